"""Checks of NVIDIA's driver: GPUs, their memory and the processes that use it, and the CUDA version it supports.

Every check takes the text that `nvidia-smi` printed, or None without that tool, so that tests can describe other
machines.
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
MIN_DRIVER = {12: 525, 13: 580}
USED_MIB = 1024  # GPU memory used by others that a run may lack
QUERIES = {
    "gpus": "--query-gpu=index,name,memory.total,memory.free,driver_version,uuid",
    "processes": "--query-compute-apps=gpu_uuid,pid,process_name,used_memory",
}
TIMEOUT = 10


@dataclass(frozen=True, kw_only=True)
class Machine:
    """NVIDIA's software on this machine; texts are None where `nvidia-smi` is missing or fails."""

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
    """A line of `nvidia-smi`; memory in MiB, None for `[N/A]`."""

    index: str
    name: str
    total: int | None
    free: int | None
    driver: str
    uuid: str = ""


def inspect_machine() -> Machine:
    """Inspects this machine."""
    result = _run_nvidia_smi()
    answers, error = ({}, result) if isinstance(result, str) else (result, "")
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
    plugins = {}
    for name in PLUGINS.values():
        try:
            plugins[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return plugins


def parse_gpus(text: str | None) -> list[Gpu]:
    """Parses the output of `nvidia-smi --query-gpu … --format=csv,noheader,nounits`."""
    gpus = []
    for line in (text or "").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) in (5, 6) and parts[0].isdigit():
            index, name, total, free, driver, *uuid = parts
            gpus.append(Gpu(index, name, _number(total), _number(free), driver, *uuid))
    return gpus


def driver_cuda(banner: str | None) -> tuple[int, int] | None:
    """The highest CUDA version that the driver supports, from the banner of plain `nvidia-smi`."""
    match = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", banner or "")
    return (int(match[1]), int(match[2])) if match else None


def check_driver(machine: Machine) -> Finding:
    """Whether the driver is installed and responds."""
    gpus = parse_gpus(machine.gpus)
    if gpus:
        names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in gpus)
        return Finding("driver", "ok", names)
    if machine.kernel_module and not machine.device_nodes and not machine.wsl:
        message = "the driver is loaded, but there is no /dev/nvidia0 here"
        help = (
            "start the container with --gpus all (NVIDIA Container Toolkit)" if machine.container else "nvidia-modprobe"
        )
        return Finding("driver", "problem", message, help)
    if machine.gpus is not None or machine.kernel_module or machine.smi_error:
        reason = machine.smi_error or "nvidia-smi lists no GPU"
        help = (
            "in Windows, update its NVIDIA driver and run wsl --update"
            if machine.wsl
            else "reboot, or reinstall the driver"
        )
        return Finding("driver", "problem", f"NVIDIA's driver does not respond: {reason}", help)
    if machine.wsl:
        help = "install NVIDIA's driver in Windows (none inside WSL), then wsl --shutdown"
        return Finding("driver", "warning", "WSL 2 without a GPU: runs train on the CPU", help)
    help = "none needed on a CPU; for a GPU: install NVIDIA's driver"
    if machine.container:
        help = "none needed on a CPU; for a GPU: start the container with --gpus all"
    return Finding("driver", "warning", "no NVIDIA driver: runs train on the CPU", help)


def check_plugin(machine: Machine) -> Finding | None:
    """Whether exactly one CUDA plugin of JAX is installed and supports this driver; None without a GPU."""
    gpus = parse_gpus(machine.gpus)
    plugins = machine.plugins
    if not gpus:
        return None
    wanted = _newest_cuda(machine)
    if not plugins:
        return Finding("CUDA plugin", "problem", "JAX has no CUDA plugin: it would use the CPU", _install(wanted))
    if len(plugins) > 1:
        spare = PLUGINS[12 if wanted == 13 else 13]
        message = f"{' and '.join(sorted(plugins))} are both installed"
        return Finding("CUDA plugin", "problem", message, f"pip uninstall {spare} {spare.replace('plugin', 'pjrt')}")
    name, version = next(iter(plugins.items()))
    cuda = next(number for number, plugin in PLUGINS.items() if plugin == name)
    newest = driver_cuda(machine.banner)
    if not _supports(machine, cuda):
        has = f"driver {gpus[0].driver}" + (f" supports CUDA up to {newest[0]}.{newest[1]}" if newest else "")
        help = f"a driver of {MIN_DRIVER[cuda]} or newer"
        if wanted is not None and wanted < cuda:
            help += f", or {_install(wanted)}"
        return Finding("CUDA plugin", "problem", f"{name} {version} needs CUDA {cuda}; {has}", help)
    supported = f", the driver supports CUDA {newest[0]}.{newest[1]}" if newest else ""
    return Finding("CUDA plugin", "ok", f"{name} {version}{supported}")


def check_memory(machine: Machine) -> list[Finding]:
    """Free memory of each GPU, and the processes that use the rest."""
    return [_memory(gpu, machine.processes) for gpu in parse_gpus(machine.gpus)]


def _memory(gpu: Gpu, processes: str | None) -> Finding:
    name = f"GPU {gpu.index} memory"
    if gpu.total is None or gpu.free is None:
        return Finding(name, "ok", f"{gpu.name} shares the machine's memory")
    text = f"{gpu.free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free"
    if gpu.total - gpu.free <= USED_MIB:
        return Finding(name, "ok", text)
    holders, how = _holders(processes, gpu), "plan for what is free: XLA_PYTHON_CLIENT_MEM_FRACTION"
    if not holders:
        return Finding(name, "warning", text, f"nvidia-smi lists no process (it may be in another container): {how}")
    return Finding(name, "warning", f"{text}; used by {', '.join(holders)}", f"end those, or {how}")


def check_environment(environment: Mapping[str, str], gpus: int) -> list[Finding]:
    """Environment variables that keep JAX from using the GPUs."""
    findings = []
    platforms = environment.get("JAX_PLATFORMS", "")
    if gpus and platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        findings.append(Finding("JAX_PLATFORMS", "warning", f"{platforms}: the GPU is not used", "unset JAX_PLATFORMS"))
    text = _hidden(environment.get("CUDA_VISIBLE_DEVICES"), gpus)
    if text:
        findings.append(Finding("CUDA_VISIBLE_DEVICES", "warning", text, "unset CUDA_VISIBLE_DEVICES"))
    return findings


def _hidden(visible: str | None, gpus: int) -> str:
    """Describes what CUDA_VISIBLE_DEVICES hides by mistake: CUDA reads it up to the first index without a GPU.

    Identifiers of GPUs and of their MIG instances, which it may contain too, are not checked.
    """
    if visible is None or not gpus:
        return ""
    if visible.strip() in ("", "-1"):
        return f"{visible!r} hides every GPU"
    for position, name in enumerate(visible.split(",")):
        index = _number(name.strip())
        if index is not None and index >= gpus:
            effect = f"leaves {position} of {gpus} GPUs" if position else "hides every GPU"
            return f"{visible!r} {effect}: there is no GPU {index}"
    return ""


def _run_nvidia_smi() -> dict[str, str] | str:
    """The outputs of `nvidia-smi` by query, empty without that tool, or the reason why it fails."""
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


def _newest_cuda(machine: Machine) -> int | None:
    """The newest CUDA major version that the driver supports and JAX has a plugin for, if any."""
    return max((cuda for cuda in PLUGINS if _supports(machine, cuda)), default=None)


def _supports(machine: Machine, cuda: int) -> bool:
    newest = driver_cuda(machine.banner)
    major = _driver_major(parse_gpus(machine.gpus)[0])
    if newest is not None:
        return newest[0] >= cuda
    return major is None or major >= MIN_DRIVER[cuda]


def _install(cuda: int | None) -> str:
    return f"pip install 'jaxgpt[cuda{cuda}]'" if cuda else f"a driver of {MIN_DRIVER[12]} or newer first"


def _driver_major(gpu: Gpu) -> int | None:
    return _number(gpu.driver.split(".")[0])


def _holders(text: str | None, gpu: Gpu) -> list[str]:
    """The processes on `gpu`, and those listed without a GPU."""
    holders = []
    for line in (text or "").splitlines():
        pid, _, rest = line.partition(",")
        if not pid.strip().isdigit():  # the line starts with the GPU that the process uses
            pid, _, rest = rest.partition(",") if pid.strip() == gpu.uuid else ("", "", "")
        name, _, used = rest.rpartition(",")
        if pid.strip().isdigit():
            size = _number(used)
            memory = f", {size / 1024:.1f} GiB" if size is not None else ""
            holders.append(f"{os.path.basename(name.strip()) or 'a process'} (pid {pid.strip()}{memory})")
    return holders


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
