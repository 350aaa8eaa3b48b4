"""Reads the scalars of TensorBoard's event files, without TensorFlow and without protocol buffers.

A file is a sequence of records: the length of the data (8 bytes), its checksum (4), the data, and their checksum (4).
The checksums are CRC-32C, rotated and with an offset. The data of a record are an `Event`, of which the wall time, the
step and the scalars of the summary are read: `simple_value`, or a tensor with one number. Large records (images,
histograms) are skipped unread.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

HEADER_BYTES, CHECKSUM_BYTES = 12, 4
MAX_SCALAR_BYTES = 1 << 14  # of a record with scalars; a larger one is something else
MAX_RECORD_BYTES = 1 << 32  # a larger length is damage
POLYNOMIAL = 0x82F63B78  # of CRC-32C, reversed
MASK_DELTA = 0xA282EAD8
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
FLOAT, DOUBLE = 1, 2  # types of tensors


class Scalar(NamedTuple):
    """A scalar of an event file, with its wall time in seconds since 1970."""

    step: int
    time: float
    tag: str
    value: float


class DamagedError(ValueError):
    """An event file that cannot be read beyond a position."""


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


CHECKSUMS = _checksum_table()


def masked_checksum(data: bytes) -> int:
    """The checksum that follows `data` in an event file."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CHECKSUMS[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17) + MASK_DELTA & 0xFFFFFFFF


def is_event_file(path: Path) -> bool:
    """Whether the file begins with a record. Raises `OSError`."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    return len(header) == HEADER_BYTES and _length(header) is not None


def _length(header: bytes) -> int | None:
    """The length in a record's header; None if its checksum does not match."""
    length, checksum = struct.unpack("<QI", header)
    return length if length < MAX_RECORD_BYTES and checksum == masked_checksum(header[:8]) else None


def read_scalars(path: Path) -> Iterator[Scalar | None]:
    """The scalars of an event file; None for a record that cannot be read. A torn last record ends the file.

    Raises `DamagedError` where the file cannot be read on, and `OSError`.
    """
    with path.open("rb") as file:
        while (header := file.read(HEADER_BYTES)) and len(header) == HEADER_BYTES:
            length = _length(header)
            if length is None:
                raise DamagedError(f"is damaged at byte {file.tell() - HEADER_BYTES:,}; the rest of it was not read")
            if length > MAX_SCALAR_BYTES:
                file.seek(length + CHECKSUM_BYTES, 1)
                continue
            yield from _read_record(file, length)


def _read_record(file: BinaryIO, length: int) -> Iterator[Scalar | None]:
    data = file.read(length)
    checksum = file.read(CHECKSUM_BYTES)
    if len(checksum) < CHECKSUM_BYTES:
        return
    try:
        if struct.unpack("<I", checksum)[0] != masked_checksum(data):
            raise ValueError("a wrong checksum")
        yield from _parse_event(data)
    except (ValueError, struct.error, IndexError):
        yield None


def _parse_event(data: bytes) -> list[Scalar]:
    event = list(_fields(data))
    times = [struct.unpack("<d", value)[0] for number, wire, value in event if (number, wire) == (1, FIXED64)]
    steps = [_signed(value) for number, wire, value in event if (number, wire) == (2, VARINT)]
    scalars = []
    for number, wire, summary in event:
        if (number, wire) == (5, LENGTH):
            values = [value for field, kind, value in _fields(summary) if (field, kind) == (1, LENGTH)]
            scalars += [_parse_value(value, (steps or [0])[-1], (times or [0.0])[-1]) for value in values]
    return [scalar for scalar in scalars if scalar is not None]


def _parse_value(data: bytes, step: int, time: float) -> Scalar | None:
    """A value of a summary; None if it is no scalar."""
    tag = ""
    value: float | None = None
    for number, wire, content in _fields(data):
        if (number, wire) == (1, LENGTH):
            tag = content.decode("utf-8", "replace")
        elif (number, wire) == (2, FIXED32):
            value = struct.unpack("<f", content)[0]
        elif (number, wire) == (8, LENGTH):
            value = _parse_tensor(content)
    return None if value is None else Scalar(step, time, tag, value)


def _parse_tensor(data: bytes) -> float | None:
    """The number of a tensor of floats or doubles that has a single one."""
    kind = 0
    contents: list[bytes] = []
    for number, wire, content in _fields(data):
        if (number, wire) == (1, VARINT):
            kind = content
        elif number in (4, 5, 6) and wire in (LENGTH, FIXED32, FIXED64):  # raw content, floats, doubles
            contents.append(content)
    form = {FLOAT: "<f", DOUBLE: "<d"}.get(kind)
    raw = b"".join(contents)
    if form is None or len(raw) != struct.calcsize(form):
        return None
    return float(struct.unpack(form, raw)[0])


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """The fields of a message: number, wire type, and an integer for a varint, else bytes. Raises `ValueError`."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == VARINT:
            value, position = _varint(data, position)
            yield key >> 3, wire, value
            continue
        if wire == LENGTH:
            size, position = _varint(data, position)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError("an unknown wire type")
        if position + size > len(data):
            raise ValueError("a field beyond the end")
        yield key >> 3, wire, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The integer at `position`, and the position behind it."""
    result = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("a number that does not end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
