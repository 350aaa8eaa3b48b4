"""JAX's settings for a command: set once in `main`, never on import.

JAX_COMPILATION_CACHE_DIR   where compiled programs are kept (default: ~/.cache/jaxgpt/xla)
"""

import logging
import os
import warnings
from pathlib import Path

import jax
import psutil
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import _loader
from jaxgpt.errors import ConfigError
from jaxgpt.utils import malloc
from jaxgpt.utils.files import compilation_cache_dir

DRIVER_NODES = (Path("/dev/nvidiactl"), Path("/usr/lib/wsl/lib/libcuda.so.1"))  # NVIDIA's driver on Linux, in WSL 2
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"


def configure_jax() -> None:
    """Caches compiled programs between processes, and keeps the libraries' log messages off the screen.

    Raises `ConfigError` C025 if the compiled extension is of another version than the Python source.
    """
    if _loader.__version__ != jaxgpt.__version__:
        raise ConfigError(
            "C025",
            f"the compiled extension is of version {_loader.__version__}, the Python source of {jaxgpt.__version__}",
            "pip install . (in the checkout), or leave the checkout's folder to use the installed version",
        )
    if not has_gpu_driver():
        malloc.keep_step_memory()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(compilation_cache_dir()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "all")
    for name in ("jax", "jaxlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("absl", "orbax", "asyncio"):  # they log the tracebacks of errors that they raise as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="orbax")
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # by Orbax, after a failed save


def has_gpu_driver() -> bool:
    """Whether NVIDIA's driver is installed, so that steps will run on a GPU; JAX is not asked, which would start it."""
    return any(node.exists() for node in DRIVER_NODES)


def device_memory_bytes(mesh: Mesh) -> int | None:
    """The bytes of each device's memory that JAX may use; None if unknown. CPU devices share the machine's memory."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return physical_memory_bytes() // len(mesh.local_devices)
    return (device.memory_stats() or {}).get("bytes_limit")


def physical_memory_bytes() -> int:
    """The machine's memory, or that of the container if it is limited to less."""
    machine: int = psutil.virtual_memory().total
    try:
        limit = CONTAINER_LIMIT.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
