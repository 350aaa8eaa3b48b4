"""Checks of versions, the extension, disks, the compilation cache, cores and memory."""

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jaxgpt
from jaxgpt.doctor.finding import GIB, Finding

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
MIN_JAX = (0, 10, 2)
PROBE_BYTES = 64 * 2**20
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
    if versions["jax"] != versions["jaxlib"] or _numbers(versions["jax"]) < MIN_JAX:
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
        written, read = _speeds(existing / f".jaxgpt-doctor-{os.getpid()}", size)
    except OSError as error:
        help = "choose another folder: --runs DIR here, --run.dir or --data.path in a run"
        return Finding(name, "problem", f"{existing} cannot be written: {error.strerror}", help)
    text = f"{written / 1e6:,.0f} MB/s written and synced, {read / 1e6:,.0f} MB/s read, {free / GIB:,.0f} GiB free"
    if written < SLOW_DISK:
        return Finding(
            name, "warning", text, "checkpoints will be slow: another --run.dir, or a larger --run.save-every"
        )
    if free < LOW_DISK:
        return Finding(name, "warning", text, "free some space: tokens and checkpoints take gigabytes")
    return Finding(name, "ok", text)


def check_cache(folder: Path) -> Finding:
    """Whether compiled programs can be cached in `folder`."""
    probe = folder / f".jaxgpt-doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror}"
        return Finding(
            "compilation cache", "warning", message, "set JAX_COMPILATION_CACHE_DIR, or every start compiles again"
        )
    return Finding("compilation cache", "ok", str(folder))


def check_host() -> Finding:
    """Cores that this process may use, and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _available()
    text = f"{cores} cores, {memory / GIB:.1f} GiB of memory" + (
        f", {available / GIB:.1f} available" if available is not None else ""
    )
    if (memory if available is None else available) < LOW_MEMORY:
        return Finding("host", "warning", text, "close other programs: start and compilation take 2 to 4 GiB")
    return Finding("host", "ok", text)


def _speeds(path: Path, size: int) -> tuple[float, float]:
    """Bytes per second of a synced write, and of a read without the page cache where the system can drop it."""
    data = os.urandom(2**20) * (size // 2**20 or 1)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    file = os.open(path, flags, 0o600)
    try:
        path.unlink()  # so that nothing is left, even after a kill
        started = time.perf_counter()
        os.write(file, data)
        os.fsync(file)
        wrote = time.perf_counter() - started
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        os.lseek(file, 0, os.SEEK_SET)
        left = len(data)
        while left > 0:
            left -= len(os.read(file, 2**22)) or left
        return len(data) / wrote, len(data) / (time.perf_counter() - started)
    finally:
        os.close(file)


def _free_bytes(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
