"""Settings of glibc's malloc that keep freed memory for the next batch or step.

Fresh memory is expensive: the system clears each page, and a hypervisor may first have to allocate it. Every batch and
every step needs the same few large blocks, so keeping them does not raise the peak. Settings hold for the whole
process, so only commands change them, never library functions.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # glibc's malloc.h

# For batches of text: keeps 256 MiB; blocks above 32 MiB come from the system and go back to it.
BATCHES = {M_MMAP_THRESHOLD: 1 << 25, M_TRIM_THRESHOLD: 1 << 28, M_ARENA_MAX: 1}
# For steps of XLA's CPU client, whose temporaries are one allocation above any mmap threshold: without this, every step
# would wait for all of its pages to be cleared (a third of its time). Only the first arena can hold so large a block.
STEPS = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}


def keep_step_memory() -> None:
    """Keeps what XLA's CPU client frees after a step. Call it before JAX starts its threads."""
    _configure(STEPS)


def keep_batch_memory() -> None:
    """Keeps what is freed after a batch of text, and lets Arrow allocate from it."""
    import pyarrow as pa  # not needed for steps

    if _configure(BATCHES):
        pa.set_memory_pool(pa.system_memory_pool())


def _configure(settings: dict[int, int]) -> bool:
    """Applies `mallopt` settings; returns False if one is refused, or if the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    accepted = [mallopt(parameter, value) for parameter, value in settings.items()]
    return all(accepted)
