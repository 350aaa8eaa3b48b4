"""Memory that is kept for the next batch, and no effect where the C library is not glibc."""

import ctypes
import subprocess
import sys

import pyarrow as pa
import pytest

from jaxgpt.utils import malloc

keep_batch_memory = malloc.keep_batch_memory  # before conftest replaces it
HAS_MALLOPT = hasattr(ctypes.CDLL(None), "mallopt")
SCRIPT = """
import resource
import pyarrow as pa
from jaxgpt.utils import malloc

malloc.keep_batch_memory()
print(pa.default_memory_pool().backend_name)

def faults():
    bytes(bytearray(20_000_000))  # two blocks, written to
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

faults()
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(not HAS_MALLOPT, reason="the C library has no mallopt")
def test_freed_memory_is_reused() -> None:
    command = [sys.executable, "-c", SCRIPT]
    backend, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert backend == "system"
    assert int(faults) < 100  # without reuse, two times 4,883 pages of 4 KiB


def test_without_mallopt_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pa.default_memory_pool().backend_name
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_batch_memory()
    assert pa.default_memory_pool().backend_name == before
