"""CSV and TSV files: a header, then one document per row in one of the columns; plain, gzip or zstd."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base
from jaxgpt.prepare.sources.base import Estimate, Source, TextBatch
from jaxgpt.prepare.sources.columns import find_text_column, read_rows
from jaxgpt.prepare.sources.streams import open_stream, suffix_without_codec

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BLOCK_BYTES = 64_000_000  # no row can be longer


def check(source: Source) -> None:
    """Raises `DataError` D020 if there is no text column, D037 if the first rows cannot be parsed."""
    if not source.remote:
        _find_column(source)


def _find_column(source: Source) -> str:
    """The text column. Arrow infers binary columns where a text is not UTF-8, which `read` refuses."""
    with _open_reader(source) as reader:
        fields = [field.with_type(pa.string()) if pa.types.is_binary(field.type) else field for field in reader.schema]
        return find_text_column(source, pa.schema(fields))


def read(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields the texts from row `start` on. Raises `DataError` D020, D022, D026, D035, D037 or D038."""
    return read_rows(source, start, _read_texts(source))


def estimate(source: Source) -> Estimate:
    """Extrapolated from the first block of rows."""
    path = source.local()
    with open_stream(path, source.name) as stream:
        stream.read(BLOCK_BYTES)
        fraction = max(stream.consumed / max(path.stat().st_size, 1), 1e-9)
    texts = next(_read_texts(source), pa.array([], pa.large_string()))
    return Estimate(round(base.text_bytes(texts) / fraction), round(len(texts) / fraction))


def _read_texts(source: Source) -> Iterator[Any]:
    column = _find_column(source)
    with _open_reader(source, column) as reader:
        for batch in reader:
            yield batch.column(0)


@contextmanager
def _open_reader(source: Source, column: str | None = None) -> Iterator[Any]:
    """Opens the file, to read `column` as text, or to find out which columns there are."""
    delimiter = DELIMITERS[suffix_without_codec(source.local())]
    parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    converting = pa.csv.ConvertOptions()
    if column is not None:
        converting = pa.csv.ConvertOptions(column_types={column: pa.large_string()}, include_columns=[column])
    reading = pa.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    with open_stream(source.local(), source.name) as stream:
        try:
            yield pa.csv.open_csv(stream.as_file(), reading, parsing, converting)
        except pa.ArrowException as error:
            raise _parse_error(source, error) from error


def _parse_error(source: Source, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".")
    if "UTF8" in reason:
        return DataError("D022", f"{source.name}: {reason}", "convert the file to UTF-8")
    return DataError("D037", f"{source.name} is not CSV: {reason}", "quote fields that contain delimiters or quotes")
