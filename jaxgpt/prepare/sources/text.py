"""Text files, compressed or not: each is one document, or several between separators.

The encoding is UTF-8, or the one that a byte-order mark names. Anything else is refused if it is noticeable in the
beginning of the file; single bytes that are not UTF-8 become U+FFFD and are counted.
"""

import codecs
import re
from collections.abc import Iterator

import pyarrow as pa

from jaxgpt.data.tokenizer import EOT
from jaxgpt.errors import DataError
from jaxgpt.prepare.sources import base
from jaxgpt.prepare.sources.base import Batcher, Estimate, FileGuard, Source, TextBatch, document_too_long_error
from jaxgpt.prepare.sources.streams import READ_BYTES, Stream, open_stream

DEFAULT_SEPARATOR = EOT  # of .txt files
BLANK_LINES = "blank-lines"  # names the separator that any number of blank lines is
BLANK_LINES_PATTERN = re.compile(rb"\n[ \t\r]*\n")
ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}
OVERLAP = 4096  # bytes that are searched again, since a separator may continue in the next block
BOMS = {  # UTF-32's marks begin with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
SAMPLE_BYTES = 1_000_000
MAX_NUL_SHARE = 0.1  # of the first bytes; ASCII in UTF-16 has half
MAX_INVALID_SHARE = 0.001  # of the first characters
MIN_INVALID = 10  # characters


def read(source: Source, start: int = 0) -> Iterator[TextBatch]:
    """Yields the documents from number `start` on. Raises `DataError` D022, D026, D035, D038 or D039."""
    path = source.local()
    batcher = Batcher(start)
    with FileGuard.watch(path, source.name), open_stream(path, source.name) as stream:
        for documents in _read_documents(stream, source):
            decoded = [_decode(document) for document in documents[start:]]
            start = max(0, start - len(documents))
            texts = pa.array([text for text, _ in decoded], pa.large_string())
            yield from batcher.add(texts, repaired=sum(is_repaired for _, is_repaired in decoded))
    yield from batcher.flush()


def estimate(source: Source) -> Estimate:
    """Extrapolated from the beginning of the file."""
    path = source.local()
    with open_stream(path, source.name) as stream:
        sample = next(_read_utf8(stream, source, SAMPLE_BYTES), b"")
        fraction = stream.consumed / max(path.stat().st_size, 1)
    pattern = _compile(source.separator)
    separators = len(pattern.findall(sample)) if pattern else 0
    return Estimate(round(len(sample) / max(fraction, 1e-9)), round(separators / fraction) + 1 if sample else 0)


def _compile(separator: str) -> "re.Pattern[bytes] | None":
    """The pattern of a separator, in which a backslash and n, r or t are one character; None if there is none."""
    if separator == BLANK_LINES:
        return BLANK_LINES_PATTERN
    for escape, character in ESCAPES.items():
        separator = separator.replace(escape, character)
    return re.compile(re.escape(separator.encode())) if separator else None


def _read_documents(stream: Stream, source: Source) -> Iterator[list[bytes]]:
    """Yields the documents in UTF-8, as many at a time as a block completes; in the end at least one in all.

    Documents next to a separator lose the line breaks at their ends, and are left out if they are blank.
    """
    pattern = _compile(source.separator)
    parts: list[bytes] = []  # of the document that the next separator ends
    tail = b""
    is_divided = False
    for block in _read_utf8(stream, source, min(READ_BYTES, base.BATCH_BYTES)):
        data = tail + block
        documents = []
        begin = 0
        for match in pattern.finditer(data) if pattern else ():
            documents.append(b"".join([*parts, data[begin : match.start()]]))
            parts = []
            begin = match.end()
        is_divided = is_divided or begin > 0
        yield _strip(documents)
        searched = max(begin, len(data) - OVERLAP)
        parts.append(data[begin:searched])
        tail = data[searched:]
        length = sum(map(len, parts)) + len(tail)
        if length > base.DOCUMENT_LIMIT:
            raise document_too_long_error(source.name, "", length)
    last = b"".join([*parts, tail])
    yield _strip([last]) if is_divided else [last]


def _strip(documents: list[bytes]) -> list[bytes]:
    return [document.strip(b"\r\n") for document in documents if not document.isspace() and document]


def _read_utf8(stream: Stream, source: Source, size: int) -> Iterator[bytes]:
    """Yields the file in UTF-8, in blocks of about `size` bytes, without its byte-order mark.

    Raises `DataError` D022 for other encodings.
    """
    start = stream.read(SAMPLE_BYTES)
    bom = next((bom for bom in BOMS if start.startswith(bom)), b"")
    encoding = BOMS.get(bom, "utf-8")
    start = start[len(bom) :]
    if encoding == "utf-8":
        _check_utf8(source, start)
    decoder = codecs.getincrementaldecoder(encoding)()
    block = start
    while block:
        yield block if encoding == "utf-8" else _transcode(source, decoder, block)
        block = stream.read(size)
    if encoding != "utf-8":
        _transcode(source, decoder, b"", final=True)


def _transcode(source: Source, decoder: codecs.IncrementalDecoder, block: bytes, final: bool = False) -> bytes:
    try:
        return decoder.decode(block, final).encode()
    except UnicodeDecodeError as error:
        message = f"{source.name}: its byte-order mark names {error.encoding}, but not all of it is ({error.reason})"
        raise DataError("D022", message, "convert the file to UTF-8") from error


def _check_utf8(source: Source, sample: bytes) -> None:
    """Raises `DataError` D022 if the beginning of a file is noticeably in another encoding than UTF-8."""
    nul_bytes = sample.count(0)
    if nul_bytes > MAX_NUL_SHARE * len(sample):
        message = f"{source.name} is not UTF-8: {nul_bytes:,} of its first {len(sample):,} bytes are 0, as in UTF-16"
        raise DataError("D022", message, f"iconv -f utf-16le -t utf-8 {source.name} > converted.txt")
    text = sample.decode(errors="replace")
    invalid = text.count("\ufffd") - sample.count("\ufffd".encode())
    if invalid > max(MIN_INVALID, MAX_INVALID_SHARE * len(text)):
        message = f"{source.name} is not UTF-8: {invalid:,} of its first {len(text):,} characters cannot be decoded"
        help = f"name its encoding: iconv -f windows-1252 -t utf-8 {source.name} > converted.txt"
        raise DataError("D022", message, help)


def _decode(data: bytes) -> tuple[str, bool]:
    """Decodes UTF-8, and says whether invalid bytes had to be replaced by U+FFFD."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode(errors="replace"), True
