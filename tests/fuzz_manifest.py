"""Fuzzes the manifest reader: mutated bytes must give a manifest or a `DataError`, nothing else.

    python tests/fuzz_manifest.py [--seconds 60] [--runs N] [--seed S]

Mutations are of bytes (flipped, cut, doubled, swapped) and of the JSON's values (each replaced by any other kind of
value, by numbers at the edges of what fits, by texts that lead out of the folder). What fails is printed with its seed.
"""

import argparse
import copy
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxgpt.data import manifest
from jaxgpt.errors import DataError

NUMBERS: list[Any] = [0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.5, 1.0, -0.0, 1e308, float("inf"), float("nan")]
TEXTS = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a\x00b", "train_000000.bin", "\ud800", "uint16", "nanogpt"]
VALUES: list[Any] = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], {"": 0}, [None] * 3]
BYTES = [b"[" * 2000, b"{", b"\xff\xfe", b"\\u0000", b"1e999", b'"']


def example() -> dict[str, Any]:
    """A valid manifest."""
    shard = {"name": "train_000000.bin", "tokens": 5, "xxh3_128": "0" * 32}
    split = {"documents": 1, "tokens": 5, "bytes": 20, "max_token": 4, "shards": [shard]}
    source = {"name": "a.parquet", "size": 9, "documents": 1, "bytes": 20, "tokens": 5, "xxh3_128": None}
    tokenizer = {"name": "gpt2", "fingerprint": "f" * 64, "file": "tokenizer.json", "vocab_size": 50257, "eot": 50256}
    settings = {"train_tokenizer": 0, "val_tokens": 0, "text_column": None, "shard_tokens": 100, "weights": [0.5]}
    head = {"format": 1, "tool": "jaxgpt", "eot_position": "appended", "dtype": "uint16", "derived": None}
    return head | {"tokenizer": tokenizer, "splits": {"train": split}, "settings": settings, "sources": [source]}


def find_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [path for key, item in inner for path in find_paths(item, (*path, key))]


def with_other_values(chance: random.Random) -> bytes:
    document = copy.deepcopy(example())
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        paths = find_paths(document)
        if not paths:
            break
        *path, last = chance.choice(paths)
        holder: Any = document
        for key in path:
            holder = holder[key]
        if chance.random() < 0.15:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(chance.choice(VALUES))
    return json.dumps(document).encode()


def with_other_bytes(chance: random.Random) -> bytes:
    data = bytearray(json.dumps(example()).encode())
    for _ in range(chance.randint(1, 8)):
        at, size = chance.randrange(len(data) + 1), chance.randint(0, 12)
        kind = chance.randrange(4)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = chance.choice(
                [b"[" * 2000, b"{", b"\xff\xfe", b"\\u0000", b"1e999", b'"', chance.randbytes(size)]
            )
        else:
            data[at:at] = data[at : at + size]
    return bytes(data)


def run(folder: Path, runs: int, seconds: float, seed: int, log: Callable[[str], None]) -> int:
    """Returns the number of executions. Raises any error that `manifest.read_manifest` should not."""
    chance, began, done = random.Random(seed), time.monotonic(), 0
    accepted = 0
    target = folder / manifest.FILE_NAME
    while done < runs and time.monotonic() - began < seconds:
        data = (with_other_values if done % 3 else with_other_bytes)(chance)
        target.write_bytes(data)
        try:
            manifest.read_manifest(folder)
            accepted += 1
        except DataError:
            pass
        except BaseException:
            log(f"execution {done} of seed {seed}: {data!r}")
            raise
        done += 1
    log(f"{done:,} executions, {accepted:,} accepted, {time.monotonic() - began:.0f} s")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--runs", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.seconds == options.runs == float("inf"):
        options.seconds = 60.0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        run(Path(folder), options.runs, options.seconds, options.seed, lambda text: print(text, file=sys.stderr))


if __name__ == "__main__":
    main()
