"""Arrow, Feather and CSV files, and folders of `datasets.save_to_disk`."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pytest
from helpers.reading import caught, check_every_start, refused, refused_in_little_memory, texts_of

from jaxgpt.errors import DataError
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.prepare.sources import base, estimate, find_sources

RECORDS = [None if n % 7 == 3 else "" if n % 11 == 5 else f'{n} é,"\n' * (n % 13) for n in range(60)]


def write_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=17)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=17)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "file.arrow": write_file,
    "stream.arrow": write_stream,
    "packed.feather": lambda table, path: pyarrow.feather.write_feather(table, path, compression="zstd"),
}


def table(texts: Any = RECORDS) -> pa.Table:
    return pa.table({"id": range(len(texts)), "text": texts})


# --- Arrow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_reading_can_start_at_every_row(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[name](table(), tmp_path / name)
    (source,) = find_sources([str(tmp_path / name)])
    for size in (30, 8_000_000):
        monkeypatch.setattr(base, "BATCH_BYTES", size)
        check_every_start(source, RECORDS)
    assert estimate(source).documents > 0
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        column = pa.array(RECORDS, pa.string())
        is_dictionary = pa.types.is_dictionary(kind)
        WRITERS[name](table(column.dictionary_encode() if is_dictionary else column.cast(kind)), tmp_path / name)
        assert texts_of(tmp_path / name) == [text for text in RECORDS if text]


def test_text_column_of_arrow_files(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_file(pa.table({"id": [1], "body": ["b"], "title": ["t"], "more": [{"body": "nested"}]}), path)
    error = refused("D020", path)
    assert (f"{path}: no column 'text'" in error.message, error.help) == (True, "--text-column body")
    assert texts_of(path, "title") == ["t"]
    assert texts_of(path, "more.body") == ["nested"]


def saved_dataset(folder: Path, texts: list[str]) -> None:
    """The files that `datasets.Dataset.save_to_disk` writes, with a file of a cache that is no part of it."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-00002.arrow" for number in range(2)]
    for name, half in zip(names, (texts[::2], texts[1::2])):
        write_stream(table(half), folder / name)
    write_stream(table(["cached"]), folder / "cache-0123456789abcdef.arrow")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(10)]
    saved_dataset(tmp_path / "one", texts)
    assert texts_of(tmp_path / "one") == texts[::2] + texts[1::2]
    saved_dataset(tmp_path / "several" / "train", texts)
    saved_dataset(tmp_path / "several" / "test", texts)
    (tmp_path / "several" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    error = refused("D023", tmp_path / "several")
    assert "contains the splits test, train of a dataset" in error.message
    assert error.help == f"name one of them: {tmp_path}/several/train"
    assert prepare([str(tmp_path / "several" / "train")], tmp_path / "data").splits["train"].documents == 10


def test_damaged_arrow_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_file(table(["é" * 50] * 300), path)
    complete = path.read_bytes()
    for broken in (
        complete[:-100],
        complete[: len(complete) // 2],
        b"",
        b"ARROW1",
        b"nothing of the kind",
        b"FEA1" + complete,
    ):
        path.write_bytes(broken)
        error = caught(lambda: texts_of(path), DataError)
        assert error.code in ("D021", "D023")
        assert str(path) in error.message
    position = complete.index("é".encode() * 20)
    path.write_bytes(complete[:position] + b"\xff\xff" + complete[position + 2 :])
    assert "a text is not UTF-8" in refused("D022", path).message


def test_every_damaged_byte_of_an_arrow_file(tmp_path: Path) -> None:
    """A changed byte is an error or another text, never the end of the process."""
    path = tmp_path / "a.arrow"
    write_file(table(["one", "two"]), path)
    complete = path.read_bytes()
    for position in range(len(complete)):
        path.write_bytes(complete[:position] + bytes([complete[position] ^ 0x55]) + complete[position + 1 :])
        result = caught(lambda: texts_of(path), DataError)
        assert str(path) in getattr(result, "message", "") or len(result) <= 2, position


def test_arrow_dictionary_does_not_fill_the_memory(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 1_000_000]))
    with pa.ipc.new_file(tmp_path / "a.arrow", table(texts).schema) as writer:
        writer.write_table(table(texts))
    assert "expand to 100.0 GB or more" in refused_in_little_memory("D035", tmp_path / "a.arrow")


# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.csv.zst"])
def test_csv_rows(tmp_path: Path, name: str) -> None:
    records = [text or "" for text in RECORDS] + ["NA", "1", "null"]
    options = pyarrow.csv.WriteOptions(delimiter="\t" if name == "a.tsv" else ",")
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table(records), sink, options)
    data = sink.getvalue().to_pybytes()
    codec = {".gz": "gzip", ".zst": "zstd"}.get(Path(name).suffix)
    (tmp_path / name).write_bytes(pa.compress(data, codec=codec, asbytes=True) if codec else data)
    (source,) = find_sources([str(tmp_path / name)])
    check_every_start(source, list(records))
    assert estimate(source).documents == len(records)


def test_text_column_of_csv_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body,title\n1,b,t\n")
    error = refused("D020", tmp_path / "a.csv")
    assert (error.message.endswith("columns: id (int64), body (string), title (string)"), error.help) == (
        True,
        "--text-column body",
    )
    assert texts_of(tmp_path / "a.csv", "title") == ["t"]


def test_damaged_csv_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,a\n2,b,c\n")
    assert "is not CSV: CSV parse error: Row #3: Expected 2 columns, got 3" in refused("D037", path).message
    path.write_bytes(b"id,text\n1,a\n2,b\xff\n")
    assert f"{path}" in refused("D022", path).message
    path.write_text("")
    assert f"{path} is not CSV" in refused("D037", path).message
    noise = random.Random(1).randbytes(5000).hex()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(f"id,text\n1,{noise}\n".encode())[:-10])
    assert "cut off" in refused("D038", tmp_path / "a.csv.gz").message
