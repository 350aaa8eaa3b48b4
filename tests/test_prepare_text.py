"""Text files: separators between documents, and encodings."""

import codecs
from pathlib import Path

import pytest
from helpers.corpora import stories
from helpers.reading import batches_of, check_every_start, refused, skipped_in, texts_in

from jaxgpt.data import manifest
from jaxgpt.prepare.command import main
from jaxgpt.prepare.sources import base, estimate, find_sources, read, text

STORIES = [f"{story}\n\nThe end é." for story in stories(300, 5)]


def documents(path: Path, separator: str | None = None) -> list[str]:
    (source,) = find_sources([str(path)], separator=separator)
    return texts_in(read(source))


# --- separators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["\n<|endoftext|>\n", "<|endoftext|>", "\r\n\r\n<|endoftext|>\r\n"])
@pytest.mark.parametrize("block", [37, 8_000_000])
def test_end_of_text_separates_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str, block: int
) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", block)
    monkeypatch.setattr(text, "SAMPLE_BYTES", block)
    for end in ("", between):
        (tmp_path / "a.txt").write_text(between.join(STORIES) + end, encoding="utf-8", newline="")
        assert documents(tmp_path / "a.txt") == STORIES
    monkeypatch.setattr(base, "BATCH_BYTES", 8_000_000)
    (tmp_path / "a.txt").write_text(between.join(STORIES[:20]), encoding="utf-8", newline="")
    check_every_start(find_sources([str(tmp_path / "a.txt")])[0], list(STORIES[:20]))


def test_300_stories_are_300_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    expected = estimate(find_sources([str(tmp_path / "a.txt")])[0])
    assert (expected.documents, abs(expected.text_bytes / len("".join(STORIES).encode()) - 1) < 0.2) == (300, True)
    main([str(tmp_path / "a.txt"), "--out", str(tmp_path / "data"), "--val-tokens", "1000"])
    made = manifest.read_manifest(tmp_path / "data")
    assert sum(split.documents for split in made.splits.values()) == made.sources[0].documents == 300
    assert (made.splits["val"].documents > 1, made.cut_at) == (True, None)


@pytest.mark.parametrize(
    ("separator", "between"),
    [("====", "\n====\n"), (r"\n\n\n", "\n\n\n"), ("blank-lines", "\n \t\r\n\n"), ("é", "é")],
)
def test_separator_option(tmp_path: Path, separator: str, between: str) -> None:
    expected = [f"Tale {n}.\nIts end. <|endoftext|>" for n in range(50)]
    (tmp_path / "a.txt").write_text(between.join(expected), encoding="utf-8", newline="")
    assert documents(tmp_path / "a.txt", separator) == expected
    assert documents(tmp_path / "a.txt", "") == [between.join(expected)]
    main([str(tmp_path / "a.txt"), "--out", str(tmp_path / "data"), "--separator", separator])
    made = manifest.read_manifest(tmp_path / "data")
    assert (made.sources[0].documents, made.settings.separator) == (50, separator)


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>\n<|endoftext|>one<|endoftext|> \n<|endoftext|>\n")
    assert documents(tmp_path / "a.txt") == ["one"]
    assert str(skipped_in(batches_of(tmp_path / "a.txt"))) == ""


def test_only_txt_files_are_separated_by_default(tmp_path: Path) -> None:
    for name in ("a.py", "a.md"):
        (tmp_path / name).write_text("a<|endoftext|>b")
        assert documents(tmp_path / name) == ["a<|endoftext|>b"]
        assert documents(tmp_path / name, "<|endoftext|>") == ["a", "b"]


def test_large_file_of_short_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "DOCUMENT_LIMIT", 1000)
    monkeypatch.setattr(base, "BATCH_BYTES", 500)
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(["short"] * 500))
    assert documents(tmp_path / "a.txt") == ["short"] * 500
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(["short", "x" * 3000]))
    assert "a document of" in refused("D039", tmp_path / "a.txt").message


# --- encodings -------------------------------------------------------------------------------------------------------

MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKED)
def test_byte_order_mark_names_the_encoding(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SAMPLE_BYTES", 1001)  # in the middle of a character
    monkeypatch.setattr(base, "BATCH_BYTES", 999)
    content = "Grüße 🚢 中文\n" * 300
    (tmp_path / "a.txt").write_bytes(MARKED[encoding] + content.encode(encoding))
    assert documents(tmp_path / "a.txt") == [content]
    expected = estimate(find_sources([str(tmp_path / "a.txt")])[0])
    assert abs(expected.text_bytes / len(content.encode()) - 1) < 0.1
    (tmp_path / "a.txt").write_bytes(MARKED[encoding] + content.encode(encoding)[:-1])
    if encoding != "utf-8":
        assert "its byte-order mark names utf" in refused("D022", tmp_path / "a.txt").message


@pytest.mark.parametrize(
    ("encoding", "content", "message"),
    [
        ("utf-16-le", "Hello world\n", "of its first 2,400 bytes are 0, as in UTF-16"),
        ("utf-16-be", "Hello world\n", "of its first 2,400 bytes are 0, as in UTF-16"),
        ("utf-16-le", "中文字符集编码测试", "characters cannot be decoded"),
        ("latin-1", "Grüße aus München\n", "characters cannot be decoded"),
        ("cp1251", "Привет, мир\n", "characters cannot be decoded"),
        ("shift-jis", "日本語のテキスト\n", "characters cannot be decoded"),
    ],
)
def test_other_encodings_are_refused(tmp_path: Path, encoding: str, content: str, message: str) -> None:
    (tmp_path / "a.txt").write_bytes((content * 100).encode(encoding))
    error = refused("D022", tmp_path / "a.txt")
    assert message in error.message
    assert f"-t utf-8 {tmp_path}/a.txt > converted.txt" in error.help
