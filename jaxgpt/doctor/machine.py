"""Checks of versions, the extension, disks, the compilation cache, cores and memory."""

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil

import jaxgpt
from jaxgpt.doctor.finding import GIB, Finding

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
MIN_JAX = (0, 10, 2)
MIB = 2**20
PROBE_BYTES = 64 * MIB
SLOW_DISK = 50e6  # bytes per second: a checkpoint of the 124M model, 1.5 GB, would take half a minute
LOW_DISK, LOW_MEMORY = 5 * GIB, 4 * GIB


def check_versions(version_of: Callable[[str], str] = metadata.version) -> Finding:
    """The versions of jaxgpt and the libraries under it."""
    versions = {"jaxgpt": jaxgpt.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version_of(name)
        except metadata.PackageNotFoundError:
            return Finding("versions", "problem", f"{name} is not installed", "pip install .")
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    jax_version = tuple(int(number) for number in re.findall(r"\d+", versions["jax"])[:3])
    if versions["jax"] != versions["jaxlib"] or jax_version < MIN_JAX:
        minimum = ".".join(map(str, MIN_JAX))
        return Finding("versions", "warning", text, f"install jax and jaxlib in the same version, {minimum} or newer")
    return Finding("versions", "ok", text)


def check_extension() -> Finding:
    """Whether the compiled loader can be imported and has the version of the source."""
    help = "pip install . (in the checkout)"
    try:
        from jaxgpt import _loader
    except ImportError as error:
        return Finding("extension", "problem", f"the Rust loader cannot be imported: {error}", help)
    if _loader.__version__ != jaxgpt.__version__:
        message = f"the loader is of version {_loader.__version__}, the Python source of {jaxgpt.__version__}"
        return Finding("extension", "problem", message, help)
    return Finding("extension", "ok", f"the Rust loader, {_loader.__version__}")


def check_disk(folder: Path, size: int = PROBE_BYTES) -> Finding:
    """Speed and free space where `folder` is or would be: writes, syncs and reads `size` bytes."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    name = f"disk of {folder}"
    try:
        free = _free_bytes(existing)
        if free < 4 * size:
            return Finding(name, "problem", f"{free / GIB:.2f} GiB free", "free some space, or choose another folder")
        written, read = _measure_speeds(existing, size)
    except OSError as error:
        help = "choose another folder: --runs DIR here, --run.dir or --data.path in a run"
        return Finding(name, "problem", f"{existing} cannot be written: {error.strerror}", help)
    text = f"{written / 1e6:,.0f} MB/s written and synced, {read / 1e6:,.0f} MB/s read, {free / GIB:,.0f} GiB free"
    if written < SLOW_DISK:
        help = "checkpoints will be slow: another --run.dir, or a larger --run.save-every"
        return Finding(name, "warning", text, help)
    if free < LOW_DISK:
        return Finding(name, "warning", text, "free some space: tokens and checkpoints take gigabytes")
    return Finding(name, "ok", text)


def check_cache(folder: Path) -> Finding:
    """Whether compiled programs can be cached in `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        help = "set JAX_COMPILATION_CACHE_DIR, or every start compiles again"
        return Finding("compilation cache", "warning", f"{folder} cannot be written: {error.strerror}", help)
    return Finding("compilation cache", "ok", str(folder))


def check_host() -> Finding:
    """Cores that this process may use, and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    text = f"{cores} cores, {memory.total / GIB:.1f} GiB of memory, {memory.available / GIB:.1f} available"
    if memory.available < LOW_MEMORY:
        return Finding("host", "warning", text, "close other programs: start and compilation take 2 to 4 GiB")
    return Finding("host", "ok", text)


def _measure_speeds(folder: Path, size: int) -> tuple[float, float]:
    """Bytes per second of a synced write, and of a read without the page cache where the system can drop it."""
    data = os.urandom(MIB) * (size // MIB or 1)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:  # has no name: nothing remains, even after a kill
        start = time.perf_counter()
        file.write(data)
        os.fsync(file)
        write_seconds = time.perf_counter() - start
        if sys.platform == "linux":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(4 * MIB):
            pass
        return len(data) / write_seconds, len(data) / (time.perf_counter() - start)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
