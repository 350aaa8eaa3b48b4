"""Arrow and Feather files, and those that `datasets.save_to_disk` writes: batches in Arrow's IPC format."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base
from jaxgpt.prepare.sources.base import (
    Estimate,
    Source,
    TextBatch,
    check_expansion,
    document_too_long_error,
)
from jaxgpt.prepare.sources.columns import (
    column_texts,
    decoded_bytes,
    find_text_column,
    invalid_text_error,
    is_valid,
    read_rows,
    top_level_name,
)

SUFFIXES = (".arrow", ".feather", ".ipc")
FILE_MAGIC = b"ARROW1"
FEATHER_V1_MAGIC = b"FEA1"


def dataset_files(folder: Path) -> list[Path]:
    """The files of a folder that `datasets.save_to_disk` wrote, in order; empty if it did not.

    Raises `DataError` D023 if the folder has several splits.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = [path.parent.name for path in sorted(folder.glob("*/state.json"))]
        message = f"'{folder}' contains the splits {', '.join(splits)} of a dataset"
        raise DataError("D023", message, f"name one of them: {folder / (splits or ['train'])[-1]}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def check(source: Source) -> None:
    """Raises `DataError` D020 if there is no text column, D021 if the file is damaged. A hub's file is not fetched."""
    if not source.remote:
        with _open_batches(source) as (schema, _):
            find_text_column(source, schema)


def read(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields the texts from row `start` on. Raises `DataError` D020 to D022, D026, D035 or D039."""
    return read_rows(source, start, _read_texts(source))


def estimate(source: Source) -> Estimate:
    """Extrapolated from the first batch; too low for a compressed file."""
    path = source.local()
    with _open_batches(source) as (_, batches):
        size = max(1, next((batch.nbytes for batch in batches), 1))
    texts = next(_read_texts(source), pa.array([], pa.large_string()))
    batch_count = max(1.0, path.stat().st_size / size)
    return Estimate(round(base.text_bytes(texts) * batch_count), round(len(texts) * batch_count))


def _read_texts(source: Source) -> Iterator[Any]:
    """Yields the text column of each batch, validated."""
    size = source.local().stat().st_size
    with _open_batches(source) as (schema, batches):
        path = find_text_column(source, schema)
        for number, batch in enumerate(batches):
            location = f", batch {number}"
            check_expansion(source.name, location, size, batch.nbytes)
            column: Any = batch.column(schema.get_field_index(top_level_name(schema, path)))
            try:
                column.validate(full=True)
            except pa.ArrowException as error:
                raise _invalid_error(source, location, error) from error
            check_expansion(source.name, location, size, decoded_bytes(column))
            texts = column_texts(column, path)
            if not is_valid(texts):
                raise invalid_text_error(f"{source.name}{location}")
            longest = base.max_text_bytes(texts)
            if longest > base.DOCUMENT_LIMIT:
                raise document_too_long_error(source.name, location, longest)
            yield texts


def _invalid_error(source: Source, location: str, error: Exception) -> DataError:
    if "UTF8" in str(error).upper().replace("-", ""):
        return invalid_text_error(f"{source.name}{location}")
    return _damaged_error(source, error)


@contextmanager
def _open_batches(source: Source) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Opens the file; yields its schema and its batches. Raises `DataError` D021 if it is damaged."""
    with pa.OSFile(str(source.local()), "rb") as file:
        magic = file.read(len(FILE_MAGIC))
        file.seek(0)
        if magic.startswith(FEATHER_V1_MAGIC):
            message = f"{source.name} is in version 1 of the Feather format, which is not supported"
            raise DataError("D023", message, "write it again with pyarrow.feather.write_feather")
        try:
            if magic == FILE_MAGIC:
                reader: Any = pa.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                reader = pa.ipc.open_stream(file)
                batches = iter(reader)
            yield reader.schema, batches
        except (pa.ArrowException, OSError) as error:
            raise _damaged_error(source, error) from error


def _damaged_error(source: Source, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    help = "the copy or download broke off, or it is another kind of file: fetch it again"
    return DataError("D021", f"{source.name} is not an Arrow file, or damaged: {reason}", help)
