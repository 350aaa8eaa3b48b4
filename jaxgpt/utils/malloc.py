"""Memory that is used again, rather than given back and asked for anew with every batch.

Fresh memory is dear: the system clears each page, and under a hypervisor may first have to find it. Every batch needs
the same few large blocks, so that keeping them costs little: the peak is what it was.
"""

import ctypes

import pyarrow as pa

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # glibc's malloc.h
KEPT_BYTES, BLOCK_BYTES = 1 << 28, 1 << 25  # free memory to keep; larger blocks come and go alone


def reuse() -> None:
    """Tells the C library to keep what is freed, for all threads alike, and Arrow to use that; glibc only.

    It holds for the whole process, so that only a command does it, never a library's function.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if mallopt(MMAP_THRESHOLD, BLOCK_BYTES) and mallopt(TRIM_THRESHOLD, KEPT_BYTES) and mallopt(ARENA_MAX, 1):
        pa.set_memory_pool(pa.system_memory_pool())
