"""Which files a name stands for, and texts that are whole files."""

import gzip
import os
import random
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.reading import batches_of, check_every_start, refused, refused_in_little_memory, skipped_in, texts_of

from jaxgpt import _loader, errors
from jaxgpt.errors import DataError, JaxgptError
from jaxgpt.prepare import sources
from jaxgpt.prepare.sources import base, checksum, estimate, find_sources, read


def texts_of_all(*names: Path) -> list[str]:
    return [
        str(text)
        for source in find_sources([str(name) for name in names])
        for batch in read(source)
        for text in batch.texts
    ]


def test_files_folders_and_globs(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    names = ("b.txt", "a.md", "sub/c.py", ".hidden.txt", ".git/d.txt", "data.json", "e[1].txt")
    for name in names:
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "sub" / "z.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert texts_of_all(folder) == ["a.md", "b.txt", "e[1].txt", "sub/c.py", "packed"]
    assert texts_of_all(folder / "b.txt", folder / "a.md") == ["b.txt", "a.md"]
    assert texts_of_all(folder / "*.txt") == ["b.txt", "e[1].txt"]
    assert texts_of_all(folder / "e[1].txt") == ["e[1].txt"]
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a line"}'))
    assert texts_of_all(folder) == ["a line"]
    pq.write_table(pa.table({"text": ["from parquet"]}), folder / "sub" / "p.parquet")
    assert texts_of_all(folder) == ["from parquet"]


def test_sources_have_group_size_and_name(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name * 3)
    group_sources = find_sources([str(tmp_path / "b.txt"), str(tmp_path / "a"), "python-stdlib"])
    assert [(source.group, source.kind) for source in group_sources] == [
        (0, "text"),
        (1, "text"),
        (1, "text"),
        (2, "python"),
    ]
    assert [source.size for source in group_sources[:3]] == [15, 21, 21]
    assert [source.name for source in group_sources] == [
        *(str(tmp_path / n) for n in ("b.txt", "a/1.txt", "a/2.txt")),
        "python-stdlib",
    ]
    assert [source.local() for source in group_sources] == [source.path for source in group_sources]


def test_unreadable_sources_are_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.zip", "a.parquet.gz"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "empty").mkdir()
    assert ".zip files cannot be read" in refused("D023", tmp_path / "a.zip").message
    assert ".gz files cannot be read" in refused("D023", tmp_path / "a.parquet.gz").message
    assert "not found" in refused("D023", tmp_path / "nope.txt").message
    assert "no file matches" in refused("D023", tmp_path / "nope*").message
    assert "no .parquet, .arrow" in refused("D023", tmp_path / "empty").message
    assert "pipe.txt is not a file" in refused("D015", tmp_path / "pipe.txt").message
    with pytest.raises(DataError, match=r"D023.*is given twice"):
        find_sources([str(tmp_path / "a.txt"), str(tmp_path / "a*.txt")])


# --- text files ------------------------------------------------------------------------------------------------------


def test_invalid_utf8_is_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok \xff\xfe\x00 <|eot|>")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfmarked\r\n")
    (tmp_path / "c.txt").write_bytes(b"")
    expected = ["ok \ufffd\ufffd\x00 <|eot|>", "marked\r\n"]
    assert texts_of(tmp_path) == expected
    message = "1 empty document left out, 1 text with bytes or surrogates that are not UTF-8, now U+FFFD"
    assert str(skipped_in(batches_of(tmp_path))) == message
    for name, records in (("a.txt", expected[:1]), ("b.txt", expected[1:]), ("c.txt", [""])):
        check_every_start(find_sources([str(tmp_path / name)])[0], list(records))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_text(tmp_path: Path, suffix: str) -> None:
    text = "".join(f"{n:06} é\n" for n in range(100_000))
    path = tmp_path / f"a.txt{suffix}"
    codec = {".gz": "gzip", ".zst": "zstd"}.get(suffix)
    path.write_bytes(pa.compress(text.encode(), codec=codec, asbytes=True) if codec else text.encode())
    (source,) = find_sources([str(path)])
    assert texts_of(path) == [text]
    check_every_start(source, [text])
    expected = estimate(source)
    assert (expected.documents, abs(expected.text_bytes / len(text.encode()) - 1) < 0.1) == (1, True)


def test_compressed_text_that_is_cut_off_or_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(random.Random(1).randbytes(5000))[:-10])
    assert "cut off near byte 5," in refused("D038", path).message
    path.write_bytes(gzip.compress(b"x" * 600_000_000))
    assert f"{path}, byte " in refused_in_little_memory("D035", path)


def test_text_file_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "DOCUMENT_LIMIT", 1000)
    (tmp_path / "a.txt").write_text("x" * 1000)
    assert texts_of(tmp_path / "a.txt") == ["x" * 1000]
    (tmp_path / "a.txt").write_text("x" * 1001)
    assert "a document of 1.0 kB; the limit is 1.0 kB" in refused("D039", tmp_path / "a.txt").message


# --- the standard library --------------------------------------------------------------------------------------------


def test_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = b"def f():\n"
    files = {
        "a.py": b"# \xc3\xa9\nclass A:\n",
        "b.py": b"# -*- coding: latin-1 -*-\n# \xe9\nif f:\n    async def f():\n",
        "broken.py": b"# -*- coding: utf-8 -*-\n# \xe9\n" + code,
        "nocodec.py": b"# -*- coding: uft-8 -*-\n" + code,
        "sub/c.py": code,
    }
    left_out = {"empty.py": b"", "table.py": b"TABLE = {1: 'def f'}\n", "sub/data.txt": code}
    folders = ("test", "sub/tests", "idlelib/idle_test", "encodings", "site-packages", "__pycache__")
    left_out |= {f"{folder}/other.py": code for folder in folders}
    for name, data in (files | left_out).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (source,) = find_sources(["python-stdlib"])
    expected = [files["a.py"].decode(), files["b.py"].decode("latin-1"), code.decode()]
    assert texts_of("python-stdlib") == expected
    assert skipped_in(read(source)).unreadable == 2
    check_every_start(source, [*expected[:2], None, None, expected[2]])
    assert estimate(source) == sources.Estimate(sum(map(len, files.values())), len(files))
    before = checksum(source)
    assert checksum(source) == before
    (tmp_path / "sub" / "c.py").rename(tmp_path / "sub" / "d.py")
    renamed = checksum(source)
    (tmp_path / "a.py").write_text("class B:\n")
    assert len({before, renamed, checksum(source)}) == 3


# --- checksums -------------------------------------------------------------------------------------------------------


def test_checksum_is_xxh3_128_of_the_file(tmp_path: Path) -> None:
    """The values for no bytes and for "abc" are those of xxHash's own command, `xxhsum -H2`."""
    path = tmp_path / "a.txt"
    for data, expected in ((b"", "99aa06d3014798d86001c324468d497f"), (b"abc", "06b05ab6733a618578af5f94892f3950")):
        path.write_bytes(data)
        assert checksum(find_sources([str(path)])[0]) == expected == _loader.hash_bytes(data)
    path.unlink()
    with pytest.raises(JaxgptError, match=r"D016.*a.txt"):
        _loader.hash_file(path)
    with pytest.raises(JaxgptError, match=r"D015.*is a folder"):
        _loader.hash_file(tmp_path)


def test_missing_source_exits_with_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(lambda argv: sources.find_sources(argv) and None, [str(tmp_path / "none")]) == 3
    assert "help: parquet, Arrow (.arrow, .feather), JSON lines" in capsys.readouterr().err
