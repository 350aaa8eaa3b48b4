"""The pages of a parquet column, located by the footer and the page headers without decompressing any page.

Page headers give the size of each page in memory and its number of values before anything is allocated. The footer is
parsed here too because Arrow's own parser can end the process on a damaged one. Both are in Thrift's compact protocol:
https://github.com/apache/parquet-format (parquet.thrift, FileMetaData and PageHeader).
"""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

HEADER_BYTES = (1 << 10, 1 << 16, 1 << 24)  # to read for a header: most are short, some contain the longest value
DICTIONARY_PAGE = 2  # a page type
DICTIONARY_ENCODINGS = (2, 8)
PLAIN = 0
DELTA_BYTE_ARRAY = 7  # strings without the prefix that they share with the one before
MAX_DEPTH = 16  # of nested structs and lists; a footer has seven

Struct = dict[int, Any]


class Chunk(NamedTuple):
    """One column in one row group. `begin`, `packed` and `unpacked` are in bytes; `nulls` is 0 if unknown.

    `codec` and `encodings` are numbers of the format.
    """

    rows: int
    begin: int
    packed: int
    unpacked: int
    codec: int
    encodings: tuple[int, ...]
    nulls: int


class Page(NamedTuple):
    """`packed` counts bytes on disk, from `content` on, `unpacked` bytes in memory; `values` includes nulls."""

    offset: int
    content: int
    packed: int
    unpacked: int
    values: int
    encoding: int
    is_dictionary: bool

    @property
    def is_indices(self) -> bool:
        """Whether its values are indices into the dictionary."""
        return not self.is_dictionary and self.encoding in DICTIONARY_ENCODINGS


def read_footer(file: BinaryIO) -> Struct:
    """The file's metadata. Raises `ValueError` if it is damaged."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(8)[:4], "little")
    if length + 8 > size:
        raise ValueError(f"its footer would have {length:,} bytes")
    file.seek(size - 8 - length)
    try:
        return ThriftReader(file.read(length)).read_struct()
    except IndexError as error:
        raise ValueError("its footer has no end") from error


def is_encrypted(footer: Struct) -> bool:
    """Whether the file has encrypted columns."""
    return 8 in footer


def column_chunks(footer: Struct, leaf: int) -> list[Chunk]:
    """Column number `leaf` in each row group. Raises `ValueError` if the footer does not describe it."""
    return [_column_chunk(group, leaf, number) for number, group in enumerate(footer.get(4) or [])]


def _column_chunk(group: Struct, leaf: int, number: int) -> Chunk:
    try:
        column: Struct = group[1][leaf][3]
        begin = column.get(11) or column[9]
        nulls = (column.get(12) or {}).get(3) or 0
        chunk = Chunk(group[3], begin, column[7], column[6], column[4], tuple(column[2]), nulls)
        if min(chunk[:4]) < 0:
            raise ValueError(f"its footer has a negative size in row group {number}")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"its footer does not describe row group {number}") from error
    return chunk


def read_pages(file: BinaryIO, start: int, size: int) -> Iterator[Page]:
    """Yields the pages of the column chunk at `start`. Raises `ValueError` if its bytes are not page headers."""
    offset = start
    end = start + size
    while offset < end:
        header, length = _read_header(file, offset)
        page = _page(header, offset, offset + length)
        yield page
        offset = page.content + page.packed
        if offset > end:
            raise ValueError(f"the page at byte {page.offset:,} extends beyond its column chunk")


def _page(header: Struct, offset: int, content: int) -> Page:
    details: Struct = next((header[field] for field in (5, 7, 8) if isinstance(header.get(field), dict)), {})
    fields = [*map(header.get, (1, 2, 3)), details.get(1), details.get(4 if 8 in header else 2)]
    numbers = [number for number in fields if isinstance(number, int) and number >= 0]
    if len(numbers) < len(fields):
        raise ValueError(f"not a page header at byte {offset:,}")
    kind, unpacked, packed, values, encoding = numbers
    return Page(offset, content, packed, unpacked, values, encoding, kind == DICTIONARY_PAGE)


def longest_entry(content: bytes) -> int:
    """Bytes of the longest string in a dictionary page; each string has its length in 4 bytes in front."""
    longest = offset = 0
    while offset + 4 <= len(content):
        length = int.from_bytes(content[offset : offset + 4], "little")
        longest = max(longest, length)
        offset += 4 + length
    return longest


def _read_header(file: BinaryIO, offset: int) -> tuple[Struct, int]:
    """The page header at `offset` and its length in bytes."""
    for size in HEADER_BYTES:
        file.seek(offset)
        reader = ThriftReader(file.read(size))
        try:
            return reader.read_struct(), reader.position
        except IndexError:
            continue
        except ValueError as error:
            raise ValueError(f"not a page header at byte {offset:,}: {error}") from error
    raise ValueError(f"the page header at byte {offset:,} has no end")


class ThriftReader:
    """Reads structs in Thrift's compact protocol. Raises `IndexError` at its end, `ValueError` if damaged."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def read_struct(self, depth: int = 0) -> Struct:
        """Returns its fields by number: integers, booleans, structs and lists; strings and floats are None."""
        if depth > MAX_DEPTH:
            raise ValueError(f"structs within structs at byte {self.position}")
        fields: Struct = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            return self._skip(8 if kind == 7 else self._unsigned())
        if kind in (9, 10):
            return self._list(depth)
        if kind == 12:
            return self.read_struct(depth + 1)
        raise ValueError(f"a field of unknown type {kind} at byte {self.position}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._unsigned()
        if head & 15 in (1, 2):  # booleans: in lists, one byte each
            return [self._byte() == 1 for _ in range(count)]
        return [self._value(head & 15, depth + 1) for _ in range(count)]

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self._data):
            raise IndexError

    def _unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError(f"a number that does not end at byte {self.position}")

    def _signed(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)
