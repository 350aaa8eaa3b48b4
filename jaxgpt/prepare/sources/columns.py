"""The column of a table that contains the text, and its values as texts."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jaxgpt.errors import DataError
from jaxgpt.prepare.sources.base import Batcher, FileGuard, Source, TextBatch, byte_lengths


def find_text_column(source: Source, schema: pa.Schema) -> str:
    """The column that contains the text: `source.text_column`, else `text`, else the only column of strings.

    `a.b` is the string `b` in the struct `a`. Raises `DataError` D020 if there is no such column.
    """
    types = {field.name: field.type for field in schema}
    strings = [name for name, kind in types.items() if _is_text(kind)]
    default = strings[0] if "text" not in types and len(strings) == 1 else "text"
    path = source.text_column or default
    if path in strings or (path not in types and _is_text(_field_type(schema, path))):
        return path
    problem = f"column {path!r} is {types[path]}, not text" if path in types else f"no column {path!r}"
    columns = ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "none"
    raise DataError("D020", f"{source.name}: {problem}; its columns: {columns}", _column_help(path, types, strings))


def _field_type(schema: pa.Schema, path: str) -> Any:
    """The type of a field within structs, None if there is no such field."""
    first, *names = path.split(".")
    kind: Any = schema.field(first).type if first in schema.names else None
    for name in names:
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _column_help(path: str, types: dict[str, Any], strings: list[str]) -> str:
    kind = types.get(path)
    if kind is not None and pa.types.is_struct(kind):
        strings = [f"{path}.{field.name}" for field in kind if _is_text(field.type)] or strings
    elif kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and not strings:
        return "if its bytes are UTF-8, write the file again with this column as strings"
    return f"--text-column {strings[0]}" if strings else "give a file that has a column of strings"


def _is_text(kind: Any) -> bool:
    if kind is None:
        return False
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def column_texts(column: Any, path: str) -> Any:
    """One string or null per row of `column`, the top-level column of `path`; a string within a null struct is null."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, path.split(".")[1:])
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_string())


def read_rows(source: Source, start: int, arrays: Iterable[Any]) -> Iterator[TextBatch]:
    """Yields the texts of `arrays`, which have one per row of the file, from row `start` on."""
    batcher = Batcher(start)
    with FileGuard.watch(source.local(), source.name):
        row = 0
        for texts in arrays:
            if start < row + len(texts):
                yield from batcher.add(texts.slice(max(0, start - row)))
            row += len(texts)
    yield from batcher.flush()


def decoded_bytes(column: Any) -> int:
    """Bytes of the texts that a dictionary-encoded column stands for; 0 for other columns."""
    if not pa.types.is_dictionary(column.type):
        return 0
    return int(pc.sum(byte_lengths(column.dictionary).take(column.indices)).as_py() or 0)


def top_level_name(schema: pa.Schema, path: str) -> str:
    """The name of the top-level column that contains the text."""
    return path if path in schema.names else path.split(".")[0]


def is_valid(texts: pa.LargeStringArray) -> bool:
    """Whether all texts are UTF-8 and their offsets are within their buffers."""
    try:
        texts.validate(full=True)
    except pa.ArrowException:
        return False
    return True


def invalid_text_error(location: str) -> DataError:
    return DataError("D022", f"{location}: a text is not UTF-8", "convert the file's text to UTF-8")
