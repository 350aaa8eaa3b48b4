"""The command `jaxgpt doctor`."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jaxgpt.config.options import Parser
from jaxgpt.doctor import jax_checks, machine, nvidia
from jaxgpt.doctor.finding import Finding, worst_status
from jaxgpt.errors import ConfigError, printable
from jaxgpt.utils.files import compilation_cache_dir
from jaxgpt.utils.formatting import pluralize

DESCRIPTION = """Checks whether this machine can train, on which device, and what to do if it cannot.

It inspects NVIDIA's driver and JAX's CUDA plugin, asks JAX in a separate process which devices it sees (and tries
cuDNN's attention and dma_map on a GPU), and checks memory, disks, versions, the extension and the compilation cache.
Exit status 0: a run can train, with or without warnings; 2: there is a problem.
"""
SECONDS = 120.0
STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
CONCLUSIONS = {
    "ok": "This machine can train",
    "warning": "This machine can train, with warnings",
    "problem": "A run would fail here, or not use the device that you expect",
}


def run_checks(runs: Path, data: Path, seconds: float) -> list[Finding]:
    """Runs every check, in the order in which to fix problems; JAX gets `seconds` to answer."""
    process = jax_checks.Probe()
    try:
        machine_state = nvidia.inspect_machine()
        gpus = len(nvidia.parse_gpus(machine_state.gpus))
        findings = [machine.check_versions(), machine.check_extension(), nvidia.check_driver(machine_state)]
        plugin = nvidia.check_plugin(machine_state)
        findings += [plugin] if plugin else []
        findings += nvidia.check_environment(os.environ, gpus)
        memory = nvidia.check_memory(machine_state)
        rest = [machine.check_host(), machine.check_cache(compilation_cache_dir())]
        rest += [machine.check_disk(folder) for folder in dict.fromkeys((runs, data))]
        platforms = os.environ.get("JAX_PLATFORMS", "")
        driver_ok = worst_status(findings) == "ok"
        return [*findings, *jax_checks.evaluate(process.answer(seconds), gpus, platforms, driver_ok), *memory, *rest]
    finally:
        process.end()


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Prints a conclusion, then a line per finding that starts with its status, with what to do below it."""
    status = worst_status(findings)
    device = next(finding.text for finding in findings if finding.name == "JAX")
    console.print(Text.assemble((CONCLUSIONS[status], STYLES[status]), f" (JAX {printable(device)})\n"), soft_wrap=True)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        label = (f"{finding.status:<8}", STYLES[finding.status])
        console.print(Text.assemble(label, f" {finding.name:<{width}}  {printable(finding.text)}"), soft_wrap=True)
        if finding.help:
            console.print(
                f"{'':<{width + 10}} → {printable(finding.help)}", soft_wrap=True, markup=False, highlight=False
            )


def main(argv: Sequence[str]) -> None:
    """Checks the machine and prints the findings. Raises `ConfigError` C065 if there is a problem."""
    parser = Parser("doctor", DESCRIPTION, "[--json] [--runs DIR] [--data DIR]")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    folder_help = "folder of {}, for its disk (default: {})"
    parser.add_argument("--runs", type=Path, default=Path("runs"), help=folder_help.format("runs", "runs"))
    parser.add_argument("--data", type=Path, default=Path("data"), help=folder_help.format("tokens", "data"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time limit of JAX (default: {SECONDS:g})")
    options = parser.parse(argv)
    if not 0 < options.seconds < float("inf"):
        raise ConfigError("C009", f"--seconds = {options.seconds}; must be above 0")
    findings = run_checks(options.runs, options.data, options.seconds)
    status = worst_status(findings)
    if options.json:
        print(json.dumps({"status": status, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print_findings(findings, Console(file=sys.stdout, highlight=False))
    problems = [finding for finding in findings if finding.status == "problem"]
    if problems:
        first = problems[0]
        message = f"{pluralize(len(problems), 'problem')}; the first is {first.name}: {first.text}"
        raise ConfigError("C065", message, first.help)
