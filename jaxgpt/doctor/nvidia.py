"""What NVIDIA's driver says: GPUs, their memory and who holds it, and which CUDA the driver can run.

Every judgement takes the text that `nvidia-smi` printed, or None where there is no such tool, so that other machines'
answers can be judged too.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jaxgpt.doctor.finding import Finding

PLUGINS = {12: "jax-cuda12-plugin", 13: "jax-cuda13-plugin"}
# NVIDIA's CUDA toolkit release notes, minor version compatibility: the oldest driver that runs any CUDA of that major.
LEAST_DRIVER = {12: 525, 13: 580}
MUCH_MIB = 1024  # of GPU memory in other hands that a run may miss
QUERIES = {
    "gpus": "--query-gpu=index,name,memory.total,memory.free,driver_version,uuid",
    "processes": "--query-compute-apps=gpu_uuid,pid,process_name,used_memory",
}
TIMEOUT = 10


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is of NVIDIA's on this machine; texts are None where `nvidia-smi` is missing or fails."""

    gpus: str | None
    processes: str | None
    banner: str | None
    smi_error: str
    kernel_module: str | None
    device_nodes: tuple[str, ...]
    plugins: Mapping[str, str]
    wsl: bool
    container: bool


@dataclass(frozen=True)
class Gpu:
    """A line of `nvidia-smi`; memory in MiB, None where it says `[N/A]`."""

    index: str
    name: str
    total: int | None
    free: int | None
    driver: str
    uuid: str = ""


def look() -> Machine:
    """Asks this machine."""
    asked = _ask()
    answers, error = ({}, asked) if isinstance(asked, str) else (asked, "")
    version = Path("/proc/driver/nvidia/version")
    return Machine(
        gpus=answers.get("gpus"),
        processes=answers.get("processes"),
        banner=answers.get("banner"),
        smi_error=error,
        kernel_module=_read(version),
        device_nodes=tuple(sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))),
        plugins=installed_plugins(),
        wsl="microsoft" in (_read(Path("/proc/sys/kernel/osrelease")) or "").lower() or Path("/dev/dxg").exists(),
        container=_in_container(),
    )


def installed_plugins() -> dict[str, str]:
    """JAX's CUDA plugins that are installed, with their versions."""
    found = {}
    for name in PLUGINS.values():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus(text: str | None) -> list[Gpu]:
    """The GPUs in `nvidia-smi --query-gpu … --format=csv,noheader,nounits`."""
    found = []
    for line in (text or "").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) in (5, 6) and parts[0].isdigit():
            index, name, total, free, driver, *uuid = parts
            found.append(Gpu(index, name, _number(total), _number(free), driver, *uuid))
    return found


def driver_cuda(banner: str | None) -> tuple[int, int] | None:
    """The highest CUDA version that the driver runs, from the head of plain `nvidia-smi`."""
    found = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", banner or "")
    return (int(found[1]), int(found[2])) if found else None


def check_driver(machine: Machine) -> Finding:
    """Whether the driver is there and answers."""
    seen = gpus(machine.gpus)
    if seen:
        names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in seen)
        return Finding("driver", "ok", names)
    if machine.kernel_module and not machine.device_nodes and not machine.wsl:
        what = "the driver is loaded, but there is no /dev/nvidia0 here"
        how = (
            "start the container with --gpus all (NVIDIA Container Toolkit)" if machine.container else "nvidia-modprobe"
        )
        return Finding("driver", "problem", what, how)
    if machine.gpus is not None or machine.kernel_module or machine.smi_error:
        why = machine.smi_error or "nvidia-smi lists no GPU"
        how = (
            "in Windows, update its NVIDIA driver and run wsl --update"
            if machine.wsl
            else "reboot, or reinstall the driver"
        )
        return Finding("driver", "problem", f"NVIDIA's driver does not answer: {why}", how)
    if machine.wsl:
        how = "install NVIDIA's driver in Windows (none inside WSL), then wsl --shutdown"
        return Finding("driver", "warning", "WSL 2 without a GPU: runs train on the CPU", how)
    how = "none needed on a CPU; for a GPU: install NVIDIA's driver"
    if machine.container:
        how = "none needed on a CPU; for a GPU: start the container with --gpus all"
    return Finding("driver", "warning", "no NVIDIA driver: runs train on the CPU", how)


def check_plugin(machine: Machine) -> Finding | None:
    """Whether JAX's CUDA plugin is installed, once, and runs on this driver; nothing to say without a GPU."""
    seen, plugins = gpus(machine.gpus), machine.plugins
    if not seen:
        return None
    wanted = _fitting(machine)
    if not plugins:
        return Finding("CUDA plugin", "problem", "JAX has no CUDA plugin: it would use the CPU", _install(wanted))
    if len(plugins) > 1:
        spare = PLUGINS[12 if wanted == 13 else 13]
        what = f"{' and '.join(sorted(plugins))} are both installed"
        return Finding("CUDA plugin", "problem", what, f"pip uninstall {spare} {spare.replace('plugin', 'pjrt')}")
    name, version = next(iter(plugins.items()))
    cuda = next(number for number, plugin in PLUGINS.items() if plugin == name)
    most = driver_cuda(machine.banner)
    if not _runs(machine, cuda):
        has = f"driver {seen[0].driver}" + (f" runs CUDA up to {most[0]}.{most[1]}" if most else "")
        how = f"a driver of {LEAST_DRIVER[cuda]} or newer"
        if wanted is not None and wanted < cuda:
            how += f", or {_install(wanted)}"
        return Finding("CUDA plugin", "problem", f"{name} {version} needs CUDA {cuda}; {has}", how)
    return Finding(
        "CUDA plugin", "ok", f"{name} {version}" + (f", driver runs CUDA {most[0]}.{most[1]}" if most else "")
    )


def check_memory(machine: Machine) -> list[Finding]:
    """Free memory of each GPU, and who holds the rest."""
    return [_memory(gpu, machine.processes) for gpu in gpus(machine.gpus)]


def _memory(gpu: Gpu, processes: str | None) -> Finding:
    name = f"GPU {gpu.index} memory"
    if gpu.total is None or gpu.free is None:
        return Finding(name, "ok", f"{gpu.name} shares the machine's memory")
    text = f"{gpu.free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free"
    if gpu.total - gpu.free <= MUCH_MIB:
        return Finding(name, "ok", text)
    holders, how = _holders(processes, gpu), "plan for what is free: XLA_PYTHON_CLIENT_MEM_FRACTION"
    if not holders:
        return Finding(name, "warning", text, f"nvidia-smi names no holder (another container's, perhaps): {how}")
    return Finding(name, "warning", f"{text}; held by {', '.join(holders)}", f"end those, or {how}")


def check_environment(environment: Mapping[str, str], seen: int) -> list[Finding]:
    """Variables that keep JAX from the GPUs that are there."""
    found, platforms = [], environment.get("JAX_PLATFORMS", "")
    if seen and platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        found.append(Finding("JAX_PLATFORMS", "warning", f"{platforms}: the GPU is left aside", "unset JAX_PLATFORMS"))
    text = _hidden(environment.get("CUDA_VISIBLE_DEVICES"), seen)
    if text:
        found.append(Finding("CUDA_VISIBLE_DEVICES", "warning", text, "unset CUDA_VISIBLE_DEVICES"))
    return found


def _hidden(visible: str | None, seen: int) -> str:
    """What CUDA_VISIBLE_DEVICES hides by mistake: CUDA reads it up to the first index that no GPU has.

    The identifiers of GPUs and of their MIG instances, which it may hold too, are left alone.
    """
    if visible is None or not seen:
        return ""
    if visible.strip() in ("", "-1"):
        return f"{visible!r} hides every GPU"
    for place, name in enumerate(visible.split(",")):
        index = _number(name.strip())
        if index is not None and index >= seen:
            what = f"leaves {place} of {seen} GPUs" if place else "hides every GPU"
            return f"{visible!r} {what}: there is no GPU {index}"
    return ""


def _ask() -> dict[str, str] | str:
    """The answers of `nvidia-smi` by name, nothing where there is no such tool, or why it does not answer."""
    tool = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if not tool:
        return {}
    commands = {name: [tool, query, "--format=csv,noheader,nounits"] for name, query in QUERIES.items()}
    answers = {}
    for name, command in (commands | {"banner": [tool]}).items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return f"nvidia-smi: {error}"
        if done.returncode and name == "gpus":
            return " ".join((done.stdout + done.stderr).split())[:200]
        answers[name] = done.stdout
    return answers


def _fitting(machine: Machine) -> int | None:
    """The newest CUDA major that the driver runs and JAX has a plugin for; None if it runs none."""
    return max((cuda for cuda in PLUGINS if _runs(machine, cuda)), default=None)


def _runs(machine: Machine, cuda: int) -> bool:
    most, major = driver_cuda(machine.banner), _driver_major(gpus(machine.gpus)[0])
    if most is not None:
        return most[0] >= cuda
    return major is None or major >= LEAST_DRIVER[cuda]


def _install(cuda: int | None) -> str:
    return f"pip install 'jaxgpt[cuda{cuda}]'" if cuda else f"a driver of {LEAST_DRIVER[12]} or newer first"


def _driver_major(gpu: Gpu) -> int | None:
    return _number(gpu.driver.split(".")[0])


def _holders(text: str | None, gpu: Gpu) -> list[str]:
    """The processes on `gpu`, and those of which no GPU is said."""
    found = []
    for line in (text or "").splitlines():
        pid, _, rest = line.partition(",")
        if not pid.strip().isdigit():  # it begins with the GPU that the process uses
            pid, _, rest = rest.partition(",") if pid.strip() == gpu.uuid else ("", "", "")
        name, _, used = rest.rpartition(",")
        if pid.strip().isdigit():
            size = _number(used)
            held = f", {size / 1024:.1f} GiB" if size is not None else ""
            found.append(f"{os.path.basename(name.strip()) or 'a process'} (pid {pid.strip()}{held})")
    return found


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _in_container() -> bool:
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return any(path.exists() for path in marks) or "container" in os.environ
