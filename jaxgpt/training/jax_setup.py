"""JAX's settings for a command: set once in `main`, never on import.

JAX_COMPILATION_CACHE_DIR   where compiled programs are kept (default: ~/.cache/jaxgpt/xla)
"""

import logging
import os
import warnings
from pathlib import Path

import jax
from jax.sharding import Mesh

import jaxgpt
from jaxgpt import _loader
from jaxgpt.errors import ConfigError
from jaxgpt.utils import malloc
from jaxgpt.utils.files import compilation_cache_dir

DRIVER_NODES = (Path("/dev/nvidiactl"), Path("/usr/lib/wsl/lib/libcuda.so.1"))  # NVIDIA's driver on Linux, in WSL 2


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
    for name in ("absl", "orbax", "jax", "jaxlib", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax")


def has_gpu_driver() -> bool:
    """Whether NVIDIA's driver is installed, so that steps will run on a GPU; JAX is not asked, which would start it."""
    return any(node.exists() for node in DRIVER_NODES)


def device_memory_bytes(mesh: Mesh) -> int | None:
    """The bytes of each device's memory that JAX may use; None if unknown, as on a CPU."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
