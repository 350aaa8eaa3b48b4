"""Reading speed of sources: `python bench/read.py FILE...`, in MB of text per second, compared with Arrow alone.

Warm files, best of three, one process and one thread. Parquet files are also converted to JSON lines for comparison.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jaxgpt.prepare.sources import find_sources, read


def read_sources(paths: Sequence[Path]) -> int:
    sources = find_sources([str(path) for path in paths])
    return sum(batch.texts.nbytes for source in sources for batch in read(source))


def arrow(paths: Sequence[Path]) -> int:
    return sum(pq.read_table(path, columns=["text"], use_threads=False).nbytes for path in paths)


def python(paths: Sequence[Path]) -> int:
    lines = (line for path in paths for line in path.open("rb"))
    return sum(len(json.loads(line)["text"].encode()) for line in lines)


def write_json_lines(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Writes the rows as JSON lines, plain and compressed."""
    files = [folder / "lines.jsonl", folder / "lines.jsonl.gz", folder / "lines.jsonl.zst"]
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    data = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()
    files[0].write_bytes(data)
    for path, codec in ((files[1], "gzip"), (files[2], "zstd")):
        path.write_bytes(pa.compress(data, codec=codec, asbytes=True))
    return files


def report(name: str, work: Callable[[Sequence[Path]], int], paths: Sequence[Path]) -> None:
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        best = max(best, work(paths) / 1e6 / (time.perf_counter() - began))
    print(f"{name:36} {best:7.0f} MB/s")


def main(names: Sequence[str]) -> None:
    paths = [Path(name) for name in names]
    report("parquet", read_sources, paths)
    report("parquet, Arrow alone, unchecked", arrow, paths)
    with tempfile.TemporaryDirectory() as folder:
        for path in write_json_lines(paths, Path(folder)):
            report(path.name, read_sources, [path])
        report("lines.jsonl, Python's json alone", python, [Path(folder, "lines.jsonl")])


if __name__ == "__main__":
    main(sys.argv[1:])
