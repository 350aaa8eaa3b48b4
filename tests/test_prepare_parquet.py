"""Parquet: every type of text column, reading from any row on, and damaged or malicious files."""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from helpers.reading import (
    batches_of,
    caught,
    check_every_start,
    refused,
    refused_in_little_memory,
    skipped_in,
    texts_of,
)

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base, estimate, find_sources, parquet, read
from jaxgpt.prepare.sources.parquet_pages import ThriftReader, column_chunks, read_footer, read_pages

RECORDS = [None if n % 7 == 3 else "" if n % 11 == 5 else f"{n} é " * (n % 13) for n in range(60)]


def write(path: Path, texts: Any = RECORDS, **options: Any) -> Path:
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, **{"row_group_size": 17} | options)
    return path


# --- what is read ----------------------------------------------------------------------------------------------------


def test_reference_corpus_equals_arrows_table(shared: Path) -> None:
    for path in sorted((shared / "corpus").glob("*.parquet")):
        batches = batches_of(path)
        whole = pq.read_table(path, columns=["text"]).column("text").cast(pa.large_string())
        assert pa.chunked_array([batch.texts for batch in batches]).equals(whole)
        sizes = [base.text_bytes(batch.texts) for batch in batches]
        assert all(7_000_000 < size < 17_000_000 for size in sizes[:-1])
        result = estimate(find_sources([str(path)])[0])
        assert (result.documents, abs(result.text_bytes / sum(sizes) - 1) < 0.01) == (len(whole), True)


WRITINGS: dict[str, dict[str, Any]] = {
    "dictionary": {},
    "plain": {"use_dictionary": False},
    "plain v2 pages": {"use_dictionary": False, "data_page_version": "2.0", "compression": "gzip"},
    "dictionary given up": {"dictionary_pagesize_limit": 40, "write_batch_size": 3, "compression": "zstd"},
    "dictionary given up, odd codec": {"dictionary_pagesize_limit": 40, "write_batch_size": 3, "compression": "lz4"},
    "prefixes": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "compression": "brotli"},
    "lengths": {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
    "one group, checksums": {"row_group_size": 1000, "write_page_checksum": True, "data_page_size": 50},
    "unpacked": {"compression": "none", "dictionary_pagesize_limit": 40, "write_batch_size": 3},
}


@pytest.mark.parametrize("options", WRITINGS.values(), ids=WRITINGS)
@pytest.mark.parametrize("batch_bytes", [30, 8_000_000])
def test_reading_can_start_at_every_row(
    tmp_path: Path, options: dict[str, Any], batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", batch_bytes)
    check_every_start(find_sources([str(write(tmp_path / "a.parquet", **options))])[0], RECORDS)


def test_dictionary_is_sliced_into_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", 100)
    texts = [f"{number:07}" for number in range(90)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=60)
    result = list(read(find_sources([str(tmp_path / "a.parquet")])[0]))
    assert [text for batch in result for text in batch.texts.to_pylist()] == texts
    assert [len(batch.texts) for batch in result] == [
        15,
        15,
        15,
        15,
        15,
        15,
    ]  # 105 bytes: the first row from 100 on ends


TYPES = {
    "large": pa.large_string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large dictionary": pa.dictionary(pa.int16(), pa.large_string()),
}


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_every_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(RECORDS, pa.string())
    coded = pa.types.is_dictionary(kind)
    column = texts.dictionary_encode().cast(kind) if coded else texts.cast(kind)
    path = write(tmp_path / "a.parquet", column)
    assert texts_of(path) == [text for text in RECORDS if text]


def test_null_and_empty_rows_are_counted(tmp_path: Path) -> None:
    batches = batches_of(write(tmp_path / "a.parquet", ["one", None, "", "two", None]))
    assert [batch.texts.to_pylist() for batch in batches] == [["one", "two"]]
    assert (skipped_in(batches).null, skipped_in(batches).empty, batches[-1].records) == (2, 1, 5)
    (nothing,) = batches_of(write(tmp_path / "b.parquet", pa.array([None, ""], pa.string())))
    assert (len(nothing.texts), nothing.records, nothing.skipped.null, nothing.skipped.empty) == (0, 2, 1, 1)


def test_no_rows_and_no_row_groups(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())])
    pq.ParquetWriter(tmp_path / "none.parquet", schema).close()
    assert pq.ParquetFile(tmp_path / "none.parquet").num_row_groups == 0
    with pq.ParquetWriter(tmp_path / "empty.parquet", schema) as file:
        for _ in range(2):
            file.write_table(schema.empty_table())
    for name in ("none", "empty"):
        result = find_sources([str(tmp_path / f"{name}.parquet")])[0]
        assert (list(read(result)), estimate(result)[:2]) == ([], (0, 0))


def test_text_column_is_found(tmp_path: Path) -> None:
    several = tmp_path / "several.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["b"], "title": ["t"]}), several)
    error = refused("D020", several)
    assert error.message == f"{several}: no column 'text'; its columns: id (int64), body (string), title (string)"
    assert error.help == "--text-column body"
    assert "column 'id' is int64" in refused("D020", several, "id").message
    assert texts_of(several, "title") == ["t"]
    pq.write_table(pa.table({"id": [1], "content": ["only"], "a.b": [2]}), several)
    assert texts_of(several) == ["only"]
    pq.write_table(pa.table({"id": [1], "a.b": ["a dot"]}), several)
    assert texts_of(several, "a.b") == ["a dot"]


def test_text_within_a_struct(tmp_path: Path) -> None:
    nested = pa.array([{"body": "one", "n": 1}, None, {"body": None, "n": 2}, {"body": "two", "n": 3}])
    path = tmp_path / "a.parquet"
    for options in ({}, {"use_dictionary": False}):
        pq.write_table(pa.table({"text": nested, "tags": [["x"]] * 4}), path, row_group_size=3, **options)
        error = refused("D020", path)
        assert "column 'text' is struct<body: string, n: int64>, not text" in error.message
        assert error.help == "--text-column text.body"
        assert texts_of(path, "text.body") == ["one", "two"]
        check_every_start(find_sources([str(path)], "text.body")[0], ["one", None, None, "two"])
        assert "column 'tags' is list<" in refused("D020", path, "tags").message
        assert "no column 'text.n'" in refused("D020", path, "text.n").message
        assert "no column 'tags.x'" in refused("D020", path, "tags.x").message


def test_binary_column_is_refused(tmp_path: Path) -> None:
    error = refused("D020", write(tmp_path / "a.parquet", pa.array([b"one"], pa.binary())))
    assert "column 'text' is binary, not text" in error.message
    assert "write the file again with this column as strings" in error.help


def test_memory_is_independent_of_the_row_group(tmp_path: Path) -> None:
    text = "".join(random.Random(1).choices("abcdefgh ", k=10_000))
    for options in ({"use_dictionary": False}, {}):  # the latter with a dictionary that is given up after 1 MB
        path = write(tmp_path / "a.parquet", [text[n:] + str(n) for n in range(9000)], row_group_size=9000, **options)
        before, most, count = pa.total_allocated_bytes(), 0, 0
        for batch in read(find_sources([str(path)])[0]):
            most, count = max(most, pa.total_allocated_bytes() - before), count + len(batch.texts)
        assert (count, most < 60_000_000) == (9000, True), most


def test_document_of_100_megabytes(tmp_path: Path) -> None:
    huge = "x y " * 25_000_000
    batches = batches_of(write(tmp_path / "a.parquet", ["before", huge, "after"], use_dictionary=False))
    texts = [text for batch in batches for text in batch.texts.to_pylist()]
    assert (len(texts), texts[1] == huge, texts[2]) == (3, True, "after")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    source = random.Random(1)
    path = write(tmp_path / "a.parquet", [source.randbytes(50).hex() for _ in range(300)], row_group_size=100)
    whole, middle = path.read_bytes(), path.stat().st_size // 2
    for broken in (whole[:-100], b"", b"PAR1", b"not parquet at all", whole.replace(b"text", b"te\xfft")):
        path.write_bytes(broken)
        assert refused("D021", path).message.startswith(f"{path} is not parquet, or damaged")
    path.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    assert f"{path}, row group 1, is not parquet, or damaged" in refused("D021", path).message
    path.write_bytes(whole[: middle - 3000] + whole[middle:])  # a part is missing, the footer is whole
    assert refused("D021", path).message.startswith(f"{path}")


def test_every_damaged_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    """With page checksums, no byte can change without an error, or without changing the texts."""
    path = write(tmp_path / "a.parquet", [f"text {n}" for n in range(40)], write_page_checksum=True, compression="none")
    whole, expected = path.read_bytes(), [f"text {n}" for n in range(40)]
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        result = caught(lambda: texts_of(path), DataError)
        assert str(path) in getattr(result, "message", "") or result == expected, position


def test_invalid_utf8_is_refused(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 2, 4], "<i4").tobytes()), pa.py_buffer(b"ok\xff\xfe")]
    for options in ({}, {"use_dictionary": False}):
        path = write(tmp_path / "a.parquet", pa.Array.from_buffers(pa.string(), 2, buffers), **options)
        message = refused("D022", path).message
        assert message == f"{path}, row group 0, row 1, column 'text': a text is not UTF-8"


class Keys(pe.KmsClient):  # type: ignore[misc]
    """Wraps keys by writing them down."""

    def __init__(self, _: Any) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, name: str) -> str:
        return key.hex() + name

    def unwrap_key(self, wrapped: str, name: str) -> bytes:
        return bytes.fromhex(wrapped.removesuffix(name))


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_files_are_refused(tmp_path: Path, plaintext_footer: bool) -> None:
    keys = {"footer_key": "f", "column_keys": {"k": ["text"]}, "plaintext_footer": plaintext_footer}
    properties = pe.CryptoFactory(Keys).file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration(**keys)
    )
    path = write(tmp_path / "a.parquet", encryption_properties=properties)
    error = refused("D036", path)
    assert "is encrypted" in error.message
    assert "decrypt" in error.help


def test_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", 50)
    for change in (lambda path: path.write_bytes(path.read_bytes()[:100]), lambda path: os.utime(path, (1, 1))):
        path = write(tmp_path / "a.parquet")
        reading = read(find_sources([str(path)])[0])
        next(reading)
        change(path)
        with pytest.raises(DataError, match=r"D026.*a.parquet changed while it was read"):
            list(reading)


# --- what would fill the memory --------------------------------------------------------------------------------------


def test_one_text_in_100_000_rows_is_refused(tmp_path: Path) -> None:
    """A dictionary of 1 MB that stands for 100 GB: refused before the first text is made."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 1_000_000]))
    path = write(tmp_path / "a.parquet", texts, row_group_size=100_000)
    assert path.stat().st_size < 1_100_000
    message = refused_in_little_memory("D035", path)
    assert f"{path}, row group 0: " in message
    assert "expand to 100.0 GB or more" in message


def test_partial_dictionary_does_not_fill_the_memory(tmp_path: Path) -> None:
    longest, noise = "x" * 500_000, [random.Random(n).randbytes(4000).hex() for n in range(300)]
    texts = [longest] * 1900 + noise
    options = {"write_batch_size": 2000, "dictionary_pagesize_limit": 1_000_000, "row_group_size": 3000}
    path = write(tmp_path / "a.parquet", texts, **options)
    with parquet.open_column(find_sources([str(path)])[0]) as column:
        result = parquet._read_pages(column, 0)
    assert {page.is_indices for page in result if not page.is_dictionary} == {True, False}
    assert f"{path}, row group 0: " in refused_in_little_memory("D035", path)


def test_repeated_prefix_does_not_fill_the_memory(tmp_path: Path) -> None:
    texts = ["x" * 1_000_000] * 2000
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "row_group_size": 2000}
    path = write(tmp_path / "a.parquet", texts, **options)
    assert path.stat().st_size < 2_000_000
    assert f"{path}, row group 0: " in refused_in_little_memory("D035", path)


def test_page_that_expands_1000_times_is_refused(tmp_path: Path) -> None:
    options = {"use_dictionary": False, "compression": "zstd", "row_group_size": 1000, "data_page_size": 1 << 30}
    path = write(tmp_path / "a.parquet", ["x" * 1_000_000] * 300, **options)
    message = refused_in_little_memory("D035", path)
    assert f"{path}, row group 0, page at byte " in message
    assert "expand to 300.0 MB or more" in message


def test_wrong_page_header_is_refused(tmp_path: Path) -> None:
    """The first page says that it unpacks to 2 GB: nothing is given to it."""
    path = write(tmp_path / "a.parquet", use_dictionary=False, row_group_size=100)
    with parquet.open_column(find_sources([str(path)])[0]) as column:
        first = parquet._read_pages(column, 0)[0]
    data = path.read_bytes()
    old, new = varint(first.unpacked * 2), varint((2**31 - 1) * 2)
    position = data.index(b"\x15" + old, first.offset + 2)
    lying = data[:position] + b"\x15" + new + data[position + 1 + len(old) :]
    # The file is longer now: its columns keep their places only before this page, which is in the last column.
    path.write_bytes(lying)
    assert f"{path}, row group 0, page at byte {first.offset:,}: " in refused_in_little_memory("D035", path)


def varint(number: int) -> bytes:
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


def test_document_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "DOCUMENT_LIMIT", 100_000)
    noise = random.Random(1).randbytes(60_000).hex()
    path = write(tmp_path / "a.parquet", ["short", noise], use_dictionary=False)
    assert "row group 0, page at byte" in refused("D039", path).message


def test_wrong_row_count_in_the_footer_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["x"] * 77, row_group_size=77)
    data = path.read_bytes()
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    path.write_bytes(data[:footer] + data[footer:].replace(varint(154), varint(156)))
    message = refused("D021", path).message
    assert message.startswith(f"{path}")


# --- page headers ----------------------------------------------------------------------------------------------------


def test_page_headers_agree_with_arrow(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", use_dictionary=False, data_page_size=64, write_batch_size=4)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    with path.open("rb") as file:
        chunk = column_chunks(read_footer(file), 1)[1]
        result = list(read_pages(file, chunk.begin, chunk.packed))
    sizes = column.data_page_offset, column.total_compressed_size, column.total_uncompressed_size
    assert (chunk.begin, chunk.packed, chunk.unpacked) == sizes
    assert (chunk.rows, chunk.nulls, chunk.codec) == (17, column.statistics.null_count, 1)
    assert len(result) > 1
    assert sum(page.values for page in result) == column.num_values == 17
    headers = sum(page.content - page.offset for page in result)
    assert headers + sum(page.packed for page in result) == column.total_compressed_size
    assert headers + sum(page.unpacked for page in result) == column.total_uncompressed_size


@pytest.mark.parametrize("seed", range(200))
def test_noise_is_not_a_page_header(tmp_path: Path, seed: int) -> None:
    noise = random.Random(seed).randbytes(300)
    (tmp_path / "noise").write_bytes(noise)
    with (tmp_path / "noise").open("rb") as file:
        result = caught(lambda: list(read_pages(file, 0, 300)), ValueError)
    assert "page" in str(result) or all(page.packed <= 300 for page in result)


def test_endlessly_nested_structs_are_refused() -> None:
    with pytest.raises(ValueError, match="structs within structs"):
        ThriftReader(b"\x1c" * 1000).read_struct()
    assert json.dumps(ThriftReader(b"\x15\x04\x00").read_struct()) == '{"1": 2}'
