"""What the loader's tests share: shards as others write and read them, and the order contract in plain Python."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxgpt._loader import Dataset, Loader

Tokens = np.ndarray
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def llmc_bytes(tokens: Tokens, magic: int = 20240520, version: int = 1) -> bytes:
    """As `write_datafile` of llm.c and modded-nanogpt does."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + tokens.tobytes()


def read_as_modded(path: Path) -> Tokens:
    """As `_load_data_shard` of modded-nanogpt does."""
    header = np.fromfile(path, dtype=np.int32, count=256)
    assert header[0] == 20240520, "magic number mismatch in the data .bin file"
    assert header[1] == 1, "unsupported version"
    tokens = np.fromfile(path, dtype=np.uint16, offset=256 * 4)
    assert len(tokens) == header[2], "number of tokens read does not match header"
    return tokens


def write_shards(folder: Path, data: Tokens, cuts: list[int]) -> list[Path]:
    paths = [folder / f"{index:03}.bin" for index in range(len(cuts) + 1)]
    for path, part in zip(paths, np.split(data, cuts), strict=True):
        path.write_bytes(llmc_bytes(part))
    return paths


def values(dataset: Dataset) -> Tokens:
    return np.frombuffer(dataset.read(0, dataset.tokens), dtype=dataset.dtype)


def mix(value: int) -> int:
    value = (value + GOLDEN) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31


def hash64(seed: int, counter: int) -> int:
    return mix(mix((seed + GOLDEN) & MASK) ^ counter)


def permute(index: int, n: int, seed: int, epoch: int) -> int:
    bits, key = (n - 1).bit_length(), hash64(seed, epoch)
    while True:
        widths = [bits // 2, bits - bits // 2]
        low, high = index & ((1 << widths[0]) - 1), index >> widths[0]
        for round_ in range(24):
            mixed = (high ^ mix(low ^ (key + round_ * GOLDEN) & MASK)) & ((1 << widths[1]) - 1)
            low, high = mixed, low
            widths.reverse()
        index = high << widths[0] | low
        if index < n:
            return index


def start(tokens: int, block: int, order: str, seed: int, sample: int) -> int:
    windows = (tokens - 1) // block
    if order == "random":
        return hash64(seed, sample) * (tokens - block) >> 64
    window = sample % windows
    return block * (permute(window, windows, seed, sample // windows) if order == "epoch" else window)


def oracle(
    data: Tokens, step: int, *, block: int, micro_batch: int, accum: int = 1, order: str = "epoch", seed: int = 0
):
    samples = range(step * accum * micro_batch, (step + 1) * accum * micro_batch)
    starts = [start(len(data), block, order, seed, sample) for sample in samples]
    return np.stack([data[at : at + block + 1] for at in starts]).reshape(accum, micro_batch, block + 1)


def assert_equals_oracle(loader: Loader, data: Tokens, **shape: int) -> None:
    for step, lease in enumerate(loader):
        np.testing.assert_array_equal(np.asarray(lease), oracle(data, step, **shape))


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
