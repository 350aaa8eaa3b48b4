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
    "gpus": ("--query-gpu=index,name,memory.total,memory.free,driver_version,uuid", "--format=csv,noheader,nounits"),
    "processes": ("--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits"),
    "banner": (),
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
    answers, error = _run_nvidia_smi()
    container_marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return Machine(
        **{name: answers.get(name) for name in QUERIES},
        smi_error=error,
        kernel_module=_read(Path("/proc/driver/nvidia/version")),
        device_nodes=tuple(sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))),
        plugins=installed_plugins(),
        wsl="microsoft" in (_read(Path("/proc/sys/kernel/osrelease")) or "").lower() or Path("/dev/dxg").exists(),
        container=any(path.exists() for path in container_marks) or "container" in os.environ,
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
            index, name, total, free, *rest = parts
            gpus.append(Gpu(index, name, _number(total), _number(free), *rest))
    return gpus


def driver_cuda(banner: str | None) -> tuple[int, int] | None:
    """The highest CUDA version that the driver supports, from the banner of plain `nvidia-smi`."""
    match = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", banner or "")
    return (int(match[1]), int(match[2])) if match else None


def check_driver(machine: Machine) -> Finding:
    """Whether the driver is installed and responds."""
    gpus = parse_gpus(machine.gpus)
    if gpus:
        return Finding("driver", "ok", ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in gpus))
    if machine.kernel_module and not machine.device_nodes and not machine.wsl:
        with_gpus = "start the container with --gpus all (NVIDIA Container Toolkit)"
        help = with_gpus if machine.container else "nvidia-modprobe"
        return Finding("driver", "problem", "the driver is loaded, but there is no /dev/nvidia0 here", help)
    if machine.gpus is not None or machine.kernel_module or machine.smi_error:
        in_windows = "in Windows, update its NVIDIA driver and run wsl --update"
        help = in_windows if machine.wsl else "reboot, or reinstall the driver"
        reason = machine.smi_error or "nvidia-smi lists no GPU"
        return Finding("driver", "problem", f"NVIDIA's driver does not respond: {reason}", help)
    if machine.wsl:
        help = "install NVIDIA's driver in Windows (none inside WSL), then wsl --shutdown"
        return Finding("driver", "warning", "WSL 2 without a GPU: runs train on the CPU", help)
    remedy = "start the container with --gpus all" if machine.container else "install NVIDIA's driver"
    help = f"none needed on a CPU; for a GPU: {remedy}"
    return Finding("driver", "warning", "no NVIDIA driver: runs train on the CPU", help)


def check_plugin(machine: Machine) -> Finding | None:
    """Whether exactly one CUDA plugin of JAX is installed and supports this driver; None without a GPU."""
    gpus = parse_gpus(machine.gpus)
    if not gpus:
        return None
    wanted = max((cuda for cuda in PLUGINS if _supports(machine, cuda)), default=None)
    install = f"pip install 'jaxgpt[cuda{wanted}]'" if wanted else f"a driver of {MIN_DRIVER[12]} or newer first"
    installed = [(cuda, name) for cuda, name in PLUGINS.items() if name in machine.plugins]
    if not installed:
        return Finding("CUDA plugin", "problem", "JAX has no CUDA plugin: it would use the CPU", install)
    if len(installed) > 1:
        spare = PLUGINS[12 if wanted == 13 else 13]
        message = f"{' and '.join(name for _, name in installed)} are both installed"
        return Finding("CUDA plugin", "problem", message, f"pip uninstall {spare} {spare.replace('plugin', 'pjrt')}")
    cuda, name = installed[0]
    plugin = f"{name} {machine.plugins[name]}"
    newest = driver_cuda(machine.banner)
    if _supports(machine, cuda):
        supported = f", the driver supports CUDA {newest[0]}.{newest[1]}" if newest else ""
        return Finding("CUDA plugin", "ok", f"{plugin}{supported}")
    limit = f" supports CUDA up to {newest[0]}.{newest[1]}" if newest else ""
    message = f"{plugin} needs CUDA {cuda}; driver {gpus[0].driver}{limit}"
    older = f", or {install}" if wanted else ""
    return Finding("CUDA plugin", "problem", message, f"a driver of {MIN_DRIVER[cuda]} or newer{older}")


def check_memory(machine: Machine) -> list[Finding]:
    """Free memory of each GPU, and the processes that use the rest."""
    return [_check_gpu_memory(gpu, machine.processes) for gpu in parse_gpus(machine.gpus)]


def _check_gpu_memory(gpu: Gpu, processes: str | None) -> Finding:
    name = f"GPU {gpu.index} memory"
    if gpu.total is None or gpu.free is None:
        return Finding(name, "ok", f"{gpu.name} shares the machine's memory")
    text = f"{gpu.free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free"
    if gpu.total - gpu.free <= USED_MIB:
        return Finding(name, "ok", text)
    help = "plan for what is free: XLA_PYTHON_CLIENT_MEM_FRACTION"
    users = _processes_on(gpu, processes)
    if not users:
        return Finding(name, "warning", text, f"nvidia-smi lists no process (it may be in another container): {help}")
    return Finding(name, "warning", f"{text}; used by {', '.join(users)}", f"end those, or {help}")


def check_environment(environment: Mapping[str, str], gpus: int) -> list[Finding]:
    """Environment variables that keep JAX from using the GPUs."""
    platforms = environment.get("JAX_PLATFORMS", "")
    texts = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": _hidden_gpus(environment.get("CUDA_VISIBLE_DEVICES"), gpus)}
    if gpus and platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        texts["JAX_PLATFORMS"] = f"{platforms}: the GPU is not used"
    return [Finding(name, "warning", text, f"unset {name}") for name, text in texts.items() if text]


def _hidden_gpus(visible: str | None, gpus: int) -> str:
    """Describes what CUDA_VISIBLE_DEVICES hides by mistake: CUDA reads it up to the first index without a GPU.

    Identifiers of GPUs and of their MIG instances, which it may contain too, are not checked.
    """
    if visible is None or not gpus:
        return ""
    if visible.strip() in ("", "-1"):
        return f"{visible!r} hides every GPU"
    for position, name in enumerate(visible.split(",")):
        index = _number(name)
        if index is not None and index >= gpus:
            effect = f"leaves {position} of {gpus} GPUs" if position else "hides every GPU"
            return f"{visible!r} {effect}: there is no GPU {index}"
    return ""


def _run_nvidia_smi() -> tuple[dict[str, str], str]:
    """The outputs of `nvidia-smi` by query, none without that tool, and the reason why it fails, if it does."""
    tool = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if tool is None:
        return {}, ""
    answers = {}
    for name, query in QUERIES.items():
        try:
            done = subprocess.run([tool, *query], capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return {}, f"nvidia-smi: {error}"
        if done.returncode and name == "gpus":
            return {}, " ".join((done.stdout + done.stderr).split())[:200]
        answers[name] = done.stdout
    return answers, ""


def _supports(machine: Machine, cuda: int) -> bool:
    """Whether the driver runs that CUDA major version; True if its version is unknown."""
    newest = driver_cuda(machine.banner)
    if newest is not None:
        return newest[0] >= cuda
    driver = _number(parse_gpus(machine.gpus)[0].driver.split(".")[0])
    return driver is None or driver >= MIN_DRIVER[cuda]


def _processes_on(gpu: Gpu, text: str | None) -> list[str]:
    """The processes on `gpu`, and those listed without a GPU, as `python3 (pid 4242, 9.3 GiB)`."""
    processes = []
    for line in (text or "").splitlines():
        match = re.match(r"\s*(?:([^,]*),\s*)??(\d+)\s*,(.*),(.*)", line)  # the GPU comes first where it is listed
        if match and match[1] in (None, gpu.uuid):
            name = os.path.basename(match[3].strip()) or "a process"
            size = _number(match[4])
            memory = f", {size / 1024:.1f} GiB" if size is not None else ""
            processes.append(f"{name} (pid {match[2]}{memory})")
    return processes


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
