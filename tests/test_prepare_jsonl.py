"""JSON lines: Arrow and Python parse the same texts, from every line on, and errors name the line."""

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.reading import batches_of, check_every_start, refused, refused_in_little_memory, skipped_in, texts_of

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base, estimate, find_sources, jsonl, read

RECORDS = [None if n % 7 == 3 else "" if n % 11 == 5 else f'{n} é\n\u2028\x00"' * (n % 13) for n in range(60)]


def packed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return pa.compress(data, codec="zstd", asbytes=True) if suffix == ".zst" else data


def write(path: Path, *lines: Any, end: str = "\n") -> Path:
    """Objects as JSON, and strings and bytes as they are, one a line."""
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(packed(b"".join(line + end.encode() for line in encoded), path.suffix.lower()))
    return path


def objects(texts: list[str | None] = RECORDS) -> list[dict[str, Any]]:
    return [{"id": n, "text": text, "more": [1, {"text": "no"}]} for n, text in enumerate(texts)]


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_bytes", [90, 8_000_000])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.JSONL.GZ"])
def test_reading_can_start_at_every_line(
    tmp_path: Path, name: str, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", batch_bytes)
    lines = objects()
    path = write(tmp_path / name, *lines[:20], "", " \t", *lines[20:50], *lines[50:])
    check_every_start(find_sources([str(path)])[0], RECORDS)


ODD = {
    "blanks around": b' { "text" : "a" } ',
    "an escaped key": b'{"te\\u0078t": "a"}',
    "the same key twice": b'{"text": "b", "text": "a"}',
    "pairs of surrogates": b'{"text": "\\ud83d\\ude00"}',
    "a lone surrogate elsewhere": b'{"x": "\\ud800", "text": "a"}',
    "a number without bounds": b'{"x": 1e999, "y": NaN, "text": "a"}',
    "long numbers": b'{"x": ' + b"9" * 400 + b', "text": "a"}',
    "structures": b'{"x": {"text": "b"}, "text": "a", "y": [[[]]]}',
    "no text": b'{"x": 1}',
    "a null": b'{"text": null}',
    "nothing": b'{"text": ""}',
    "every escape": b'{"text": "\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000"}',
}


@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_odd_lines_are_parsed_as_by_python(tmp_path: Path, line: bytes, end: str) -> None:
    expected = json.loads(line).get("text")
    around = ["before", expected, "after"]
    path = write(tmp_path / "a.jsonl", {"text": "before"}, line, {"text": "after"}, end=end)
    assert texts_of(path) == [text for text in around if text]
    check_every_start(find_sources([str(path)])[0], around)


def test_arrow_and_python_parse_the_same_texts(shared: Path, tmp_path: Path) -> None:
    texts = texts_of(shared / "corpus" / "000_00000.parquet")[:300]
    path = write(tmp_path / "a.jsonl", *objects([*texts, *RECORDS]))
    source = find_sources([str(path)])[0]
    with jsonl.open_stream(path, "") as stream:
        (block,) = jsonl._read_blocks(stream, source, 1 << 30)
    fast = jsonl._parse_with_arrow(block.data, "text")
    assert block.well_formed_line_count() == len(fast) == 360
    assert fast.equals(jsonl._parse_by_line(source, block, "text")[0])
    assert fast.to_pylist() == [*texts, *RECORDS]
    assert texts_of(path) == [text for text in [*texts, *RECORDS] if text]


def test_objects_that_share_or_span_lines_are_refused(tmp_path: Path) -> None:
    """Arrow's reader takes both: neither may slip through, nor both together because their number is right."""
    good = '{"text": "a"}'
    before = [good] * jsonl.FIRST_LINES  # that are read one by one, to find the field
    for lines, bad in (([good, good + good], 2), ([good, '{"text": "a"', "}"], 2), ([good + good, '{"x": 1', "}"], 1)):
        message = refused("D037", write(tmp_path / "a.jsonl", *before, *lines)).message
        assert f", line {len(before) + bad} (byte " in message


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}', {"text": "b"})
    check_every_start(find_sources([str(path)])[0], ["a", "b"])
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert texts_of(tmp_path / "b.jsonl") == []


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a\\ud800b"}', {"text": "c"}, b'{"text": "\\udc00\\ud83d\\ude00"}')
    batches = batches_of(path)
    assert [text for batch in batches for text in batch.texts.to_pylist()] == ["a\ufffdb", "c", "\ufffd😀"]
    assert skipped_in(batches).repaired == 2
    check_every_start(find_sources([str(path)])[0], ["a\ufffdb", "c", "\ufffd😀"])


def test_files_without_texts(tmp_path: Path) -> None:
    for lines in ([], ["", " "], [{"text": None}, {"text": ""}]):
        for suffix in ("", ".gz", ".zst"):
            path = write(tmp_path / f"a.jsonl{suffix}", *lines)
            source = find_sources([str(path)])[0]
            assert (texts_of(path), estimate(source).text_bytes) == ([], 0)


def test_text_field_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": 1, "body": "b", "title": "t"})
    error = refused("D020", path)
    assert error.message == f"{path}: no field 'text'; the fields of its first lines: id (int), body (str), title (str)"
    assert error.help == "--text-column body"
    assert texts_of(path, "title") == ["t"]
    assert "field 'id' holds 1, not a string" in refused("D037", path, "id").message
    write(path, {"id": 1}, {"id": 2, "content": "only"})
    assert texts_of(path) == ["only"]
    write(path, *[{"id": 1}] * 150, {"text": "too late"})
    assert "no field 'text'" in refused("D020", path).message


def test_document_of_100_megabytes(tmp_path: Path) -> None:
    huge = "x y " * 25_000_000
    path = write(tmp_path / "a.jsonl", {"text": "before"}, {"text": huge}, {"text": "after"})
    first, second, third = texts_of(path)
    assert (first, second == huge, third) == ("before", True, "after")


def test_estimate_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 1_000_000)
    generator = random.Random(1)
    texts = [f"{n:05} " + generator.randbytes(100).hex() for n in range(20_000)]
    for suffix in ("", ".gz", ".zst"):
        source = find_sources([str(write(tmp_path / f"a.jsonl{suffix}", *objects(list(texts))))])[0]
        expected = estimate(source)
        assert abs(expected.text_bytes / sum(map(len, texts)) - 1) < 0.15
        assert abs(expected.documents / len(texts) - 1) < 0.15
    small = find_sources([str(write(tmp_path / "b.jsonl", *objects(["é", None, "b"])))])[0]
    assert estimate(small) == (3, 2)


# --- what is refused -------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (b"hello", 0, "not JSON: Expecting value"),
    "cut off": (b'{"text": "a', 9, "not JSON: Unterminated string"),
    "after umlauts": ('{"text": "ääh", x}'.encode(), 18, "not JSON: Expecting property name"),
    "a list": (b'["a"]', 0, '["a"], not an object'),
    "a number": (b'{"text": 3}', 0, "field 'text' holds 3, not a string"),
    "an object": (b'{"text": {"a": 1}}', 0, "field 'text' holds {\"a\": 1}, not a string"),
    "a comma after": (b'{"text": "a"},', 13, "not JSON: Extra data"),
    "a control character": (b'{"text": "a\x01"}', 11, "not JSON: Invalid control character"),
    "too deep": (b'{"text": "a", "x": ' + b"[" * 100_000 + b"}", 0, "JSON that cannot be read"),
}


@pytest.mark.parametrize(("line", "at", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_bad_line_is_located(tmp_path: Path, line: bytes, at: int, reason: str, suffix: str) -> None:
    before = [json.dumps({"text": f"é{n}"}, ensure_ascii=False).encode() for n in range(200)]
    path = write(tmp_path / f"a.jsonl{suffix}", *before, b"", line, {"text": "after"})
    position = sum(len(other) + 1 for other in before) + 1 + at
    error = refused("D037", path)
    assert f"{path}, line 202 (byte {position:,}): {reason}" in error.message
    with pytest.raises(DataError, match=f"D037.*line 202 .byte {position:,}"):
        list(read(find_sources([str(path)])[0], start=100))


def test_invalid_utf8_is_located(tmp_path: Path) -> None:
    for line in (b'{"text": "a\xff"}', b'{"x": "\xff", "text": "a"}', b'{"text": "a\xed\xa0\x80"}'):
        path = write(tmp_path / "a.jsonl", {"text": "one"}, line)
        position = 16 + next(n for n, byte in enumerate(line) if byte > 127)
        assert f"{path}, line 2 (byte {position}): not UTF-8" in refused("D022", path).message


def test_damaged_compressed_files_are_refused(tmp_path: Path) -> None:
    texts = [random.Random(n).randbytes(2000).hex() for n in range(500)]
    for suffix in (".gz", ".zst"):
        path = write(tmp_path / f"a.jsonl{suffix}", *objects(list(texts)))
        whole = path.read_bytes()
        for broken in (whole[:-100], whole[:-1], whole + b"more", b"no such thing"):
            path.write_bytes(broken)
            error = refused("D038", path)
            assert f"{path} is damaged or cut off near byte " in error.message
            assert "fetch it again" in error.help
        path.write_bytes(whole + whole)  # two members, one after another, are a file
        assert len(texts_of(path)) == 1000


def test_json_file_without_lines_is_refused(tmp_path: Path) -> None:
    for text in ('[{"text": "a"}]', '[\n{"text": "a"}\n]', '{\n  "text": "a"\n}\n', '"a"'):
        (tmp_path / "a.json").write_text(text)
        error = refused("D023", tmp_path / "a.json")
        assert "is one JSON value, not lines of objects" in error.message
    for text in ("", '{"text": "a"}', '{"text": "a"}\n'):
        (tmp_path / "a.json").write_text(text)
        assert texts_of(tmp_path / "a.json") == (["a"] if text else [])


CHANGES: list[Callable[[Path], object]] = [lambda path: os.truncate(path, 500), lambda path: os.utime(path, (1, 1))]


@pytest.mark.parametrize("change", CHANGES)
def test_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", 200)
    path = write(tmp_path / "a.jsonl", *objects())
    reading = read(find_sources([str(path)])[0])
    next(reading)
    change(path)
    with pytest.raises(DataError, match=r"D026.*a.jsonl changed while it was read"):
        list(reading)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_decompression_bomb_does_not_fill_the_memory(tmp_path: Path, suffix: str) -> None:
    for name, data in (("line", bytes(600_000_000)), ("lines", b'{"text": "' + b"x" * 989 + b'"}\n')):
        data = data if name == "line" else data * 600_000
        path = tmp_path / f"{name}.jsonl{suffix}"
        path.write_bytes(packed(data, suffix))
        assert path.stat().st_size < 2_000_000
        message = refused_in_little_memory("D035", path)
        assert f"{path}, byte " in message
        assert "expand to 256." in message


def test_line_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", 1000)
    monkeypatch.setattr(jsonl, "LINE_LIMIT", 5000)
    path = write(tmp_path / "a.jsonl", {"text": "short"}, {"text": "x" * 10_000})
    assert f"{path}, line 2 (byte 18): a document of " in refused("D039", path).message
