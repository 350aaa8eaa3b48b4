"""JAX's settings for a command: set once in `main`, never on import.

JAX_COMPILATION_CACHE_DIR   where compiled programs are kept (default: ~/.cache/jaxgpt/xla)
"""

import ctypes
import logging
import os
import warnings
from pathlib import Path

import jax
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import _loader
from jaxgpt.errors import ConfigError

DRIVER_NODES = (Path("/dev/nvidiactl"), Path("/usr/lib/wsl/lib/libcuda.so.1"))  # NVIDIA's driver on Linux, in WSL 2
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def set_up() -> None:
    """Keeps compiled programs between processes and libraries' chatter off the screen."""
    if _loader.__version__ != jaxgpt.__version__:
        raise ConfigError(
            "C025",
            f"the compiled extension is of version {_loader.__version__}, the Python source of {jaxgpt.__version__}",
            "pip install . (in the checkout), or leave the checkout's folder to use the installed version",
        )
    if not gpu_driver():
        keep_freed_memory()
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxgpt" / "xla"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(default))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "all")
    for name in ("absl", "orbax", "jax", "jaxlib", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax")


def gpu_driver() -> bool:
    """Whether NVIDIA's driver is here, so that steps will run on a GPU; JAX cannot be asked before it starts."""
    return any(node.exists() for node in DRIVER_NODES)


def keep_freed_memory() -> None:
    """Keeps what XLA's CPU client frees after a step for the next one, where the C library is glibc.

    A step's temporaries are one allocation, above glibc's largest threshold for its heap: it comes from the system and
    goes back after every step, and the next step waits for each page to be cleared once more (a third of its time).
    Only the first arena can hold so large a piece, so it must be the only one. Call it before JAX starts its threads.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, with habits of its own
        return
    for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)


def device_bytes(mesh: Mesh) -> int | None:
    """What JAX may use of a device's memory, in bytes; None where it does not say, as on a CPU."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
