"""The doctor on machines that are not this one, by what their drivers print, and on this one with JAX broken."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from jaxgpt import errors
from jaxgpt.doctor import command, jax_checks, machine, nvidia, probe
from jaxgpt.doctor.finding import Finding, worst_status
from jaxgpt.doctor.jax_checks import Answer
from jaxgpt.doctor.nvidia import Machine
from jaxgpt.training import jax_setup

RTX_4070 = "0, NVIDIA GeForce RTX 4070, 12282, 11500, 560.35.03\n"
BANNER = "| NVIDIA-SMI 560.35.03     Driver Version: 560.35.03    CUDA Version: 12.6     |\n"
NONE = Machine(
    gpus=None,
    processes=None,
    banner=None,
    smi_error="",
    kernel_module=None,
    device_nodes=(),
    plugins={},
    wsl=False,
    container=False,
)
DESKTOP = dataclasses.replace(
    NONE,
    gpus=RTX_4070,
    processes="",
    banner=BANNER,
    kernel_module="NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03",
    device_nodes=("/dev/nvidia0",),
    plugins={"jax-cuda12-plugin": "0.10.2"},
)
ON_GPU = Answer(
    stage="done",
    facts={"jax": "0.10.2", "platform": "gpu", "devices": ["NVIDIA GeForce RTX 4070"], "bytes_limit": 9 * 2**30}
    | {"kernel": "", "cudnn": "", "dma_map": ""},
)
ON_CPU = Answer(stage="done", facts={"jax": "0.10.2", "platform": "cpu", "devices": ["cpu"], "kernel": ""})


def on(base: Machine = DESKTOP, **changes: Any) -> Machine:
    return dataclasses.replace(base, **changes)


def plugin(here: Machine) -> Finding:
    finding = nvidia.check_plugin(here)
    assert finding is not None
    return finding


def test_driver_and_plugin_are_ok() -> None:
    assert nvidia.check_driver(DESKTOP) == Finding("driver", "ok", "NVIDIA GeForce RTX 4070 (driver 560.35.03)")
    assert plugin(DESKTOP) == Finding("CUDA plugin", "ok", "jax-cuda12-plugin 0.10.2, the driver supports CUDA 12.6")
    assert [(f.status, f.text) for f in nvidia.check_memory(DESKTOP)] == [("ok", "11.2 of 12.0 GiB free")]
    assert worst_status(jax_checks.evaluate(ON_GPU, 1)) == "ok"


@pytest.mark.parametrize(
    ("here", "status", "text", "help"),
    [
        (NONE, "warning", "no NVIDIA driver", "install NVIDIA's driver"),
        (on(NONE, container=True), "warning", "no NVIDIA driver", "--gpus all"),
        (on(NONE, wsl=True), "warning", "WSL 2 without a GPU", "in Windows"),
        (
            on(NONE, wsl=True, smi_error="GPU access blocked by the operating system"),
            "problem",
            "blocked",
            "wsl --update",
        ),
        (on(gpus=None, device_nodes=(), container=True), "problem", "no /dev/nvidia0", "--gpus all"),
        (on(gpus=None, device_nodes=()), "problem", "no /dev/nvidia0", "nvidia-modprobe"),
        (on(gpus=None, smi_error="Driver/library version mismatch"), "problem", "version mismatch", "reboot"),
        (on(gpus="No devices were found\n"), "problem", "lists no GPU", "reboot"),
    ],
    ids=["none", "container", "wsl", "wsl blocked", "no node in container", "no node", "mismatch", "no devices"],
)
def test_unresponsive_driver_differs_from_no_driver(here: Machine, status: str, text: str, help: str) -> None:
    finding = nvidia.check_driver(here)
    assert finding.status == status
    assert text in finding.text
    assert help in finding.help


def test_wsl_with_a_gpu_needs_no_device_node() -> None:
    assert nvidia.check_driver(on(wsl=True, device_nodes=(), kernel_module=None)).status == "ok"


@pytest.mark.parametrize(
    ("here", "status", "text", "help"),
    [
        (on(plugins={}), "problem", "would use the CPU", "jaxgpt[cuda12]"),
        (on(plugins={}, banner=BANNER.replace("12.6", "13.0")), "problem", "would use the CPU", "jaxgpt[cuda13]"),
        (on(plugins={"jax-cuda13-plugin": "0.10.2"}), "problem", "needs CUDA 13; driver 560", "jaxgpt[cuda12]"),
        (on(plugins={"jax-cuda13-plugin": "0.10.2"}, banner="?"), "problem", "needs CUDA 13", "580 or newer"),
        (on(banner=BANNER.replace("12.6", "11.4")), "problem", "up to 11.4", "525 or newer"),
        (on(plugins=dict.fromkeys(nvidia.PLUGINS.values(), "1")), "problem", "both installed", "uninstall jax-cuda13"),
        (on(banner=BANNER.replace("12.6", "13.1")), "ok", "13.1", ""),
    ],
    ids=["none", "none, new driver", "too new", "banner unread", "old driver", "both", "newer driver"],
)
def test_plugin_must_match_the_driver(here: Machine, status: str, text: str, help: str) -> None:
    finding = plugin(here)
    assert finding.status == status
    assert text in finding.text
    assert help in finding.help


def test_no_plugin_is_needed_without_a_gpu() -> None:
    assert nvidia.check_plugin(NONE) is None


def test_memory_used_by_others_is_listed_per_gpu() -> None:
    two = RTX_4070.replace("11500", "2000") + "1, NVIDIA GeForce RTX 4070, 12282, 12000, 560.35.03\n"
    full, empty = nvidia.check_memory(on(gpus=two, processes="4242, /usr/bin/python3, 9500\n77, [Not Found], [N/A]\n"))
    assert (full.name, full.status, empty.name, empty.status) == ("GPU 0 memory", "warning", "GPU 1 memory", "ok")
    assert "python3 (pid 4242, 9.3 GiB)" in full.text
    assert "(pid 77)" in full.text
    assert "used by" not in empty.text
    shared = nvidia.check_memory(on(gpus="0, NVIDIA GB10, [N/A], [N/A], 580.95\n"))
    assert [finding.status for finding in shared] == ["ok"]


def test_process_is_listed_at_its_own_gpu() -> None:
    two = "".join(f"{n}, NVIDIA H200, 143771, 2000, 580.95.05, GPU-{n}\n" for n in range(3))
    processes = "GPU-0, 4242, /usr/bin/python3, 9500\nGPU-1, 77, /opt/a, b/c, [N/A]\n"
    first, second, third = nvidia.check_memory(on(gpus=two, processes=processes))
    assert first.text.endswith("used by python3 (pid 4242, 9.3 GiB)")
    assert second.text.endswith("used by c (pid 77)")
    assert first.help.startswith("end those")
    assert "used by" not in third.text
    assert third.help.startswith("nvidia-smi lists no process")


def test_variables_that_hide_a_gpu_are_listed_if_there_is_one() -> None:
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    assert [finding.name for finding in nvidia.check_environment(hidden, 1)] == list(hidden)
    assert nvidia.check_environment(hidden, 0) == []
    assert nvidia.check_environment({"JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "0"}, 1) == []


@pytest.mark.parametrize(
    ("visible", "text"),
    [
        ("7", "'7' hides every GPU: there is no GPU 7"),
        ("2,0", "'2,0' hides every GPU: there is no GPU 2"),
        ("0, 7,1", "'0, 7,1' leaves 1 of 2 GPUs: there is no GPU 7"),
        ("1,0", ""),
        ("GPU-8932f937", ""),
        ("MIG-7", ""),
    ],
)
def test_missing_gpu_index_hides_the_following_ones(visible: str, text: str) -> None:
    finding = nvidia.check_environment({"CUDA_VISIBLE_DEVICES": visible}, 2)
    assert [finding.text for finding in finding] == ([text] if text else [])


def test_silent_cpu_fallback_is_a_problem_unless_requested() -> None:
    assert "although the driver sees 2 GPUs" in jax_checks.check_devices(ON_CPU, 2).text
    assert jax_checks.check_devices(ON_CPU, 2).status == "problem"
    assert jax_checks.check_devices(ON_CPU, 2, "cpu").status == "ok"
    assert jax_checks.check_devices(ON_CPU, 0).status == "ok"


def test_silent_cpu_fallback_has_reason_and_help() -> None:
    why = "RuntimeError: Unable to load cuPTI. Is it installed?"
    stdout = json.dumps({"stage": "done", **ON_CPU.facts})
    answer = probing(f"import sys; print({stdout!r}); print({why!r}, 'more', sep='\\n', file=sys.stderr)")
    finding = jax_checks.check_devices(answer, 2)
    assert finding.text.endswith(f"although the driver sees 2 GPUs; JAX printed: {why}")
    assert "pip install --force-reinstall 'jax[cuda13]'" in finding.help
    assert "problems above" not in finding.help
    assert "fix the problems above" in jax_checks.evaluate(answer, 2, driver_ok=False)[0].help


@pytest.mark.parametrize(
    ("code", "platforms", "text", "help"),
    [
        ("assert False", "cuda", "failed to look for devices: JAX finds no device of JAX_PLATFORMS=cuda", "unset "),
        ("raise RuntimeError('no x')", "x", "failed to look for devices: RuntimeError: no x", "unset JAX_PLATFORMS"),
        ("assert False", "", "failed to look for devices: AssertionError, without a reason", "nvidia-smi must answer"),
        ("import time; time.sleep(60)", "cuda", "failed to look for devices: no answer within 2 s", "nvidia-smi must"),
    ],
)
def test_unavailable_devices_name_the_requested_platform(code: str, platforms: str, text: str, help: str) -> None:
    answer = probing(IMPORT_STAGE.replace("import", "devices", 1) + code, 2)
    finding = jax_checks.check_devices(answer, 0, platforms)
    assert finding.text == text
    assert finding.help.startswith(help)


def test_slow_import_does_not_advise_to_reinstall() -> None:
    finding = jax_checks.check_devices(probing(IMPORT_STAGE + "import time; time.sleep(60)", 1), 0)
    assert "--seconds" in finding.help
    assert "install" not in finding.help


@pytest.mark.parametrize("node", ["nvidiactl", "libcuda.so.1"])
def test_gpu_driver_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    monkeypatch.setattr(jax_setup, "DRIVER_NODES", [tmp_path / Path(path).name for path in jax_setup.DRIVER_NODES])
    assert not jax_setup.has_gpu_driver()
    (tmp_path / node).touch()
    assert jax_setup.has_gpu_driver()


def test_failing_cudnn_and_dma_map_have_reason_and_help() -> None:
    broken = Answer(facts=ON_GPU.facts | {"cudnn": "CUDNN_STATUS_NOT_SUPPORTED", "dma_map": "no attribute 'dma_map'"})
    attention, direct = jax_checks.evaluate(broken, 1)[-2:]
    assert (attention.status, direct.status) == ("problem", "warning")
    assert "CUDNN_STATUS" in attention.text
    assert "--model.attention xla" in attention.help
    cut = Answer(facts={k: v for k, v in ON_GPU.facts.items() if k != "cudnn"}, ending="it was ended by signal 11")
    assert jax_checks.evaluate(cut, 1)[1].text == "it was ended by signal 11"


def test_a_gpu_without_cudnn_attention_can_train() -> None:
    refused = {"cudnn": "Flash attention requires at least Ampere", "capability": "7.5"}
    attention = jax_checks.evaluate(Answer(facts=ON_GPU.facts | refused), 1)[-2]
    assert (attention.status, attention.help) == ("ok", "")
    assert "7.5" in attention.text
    newer = Answer(facts=ON_GPU.facts | refused | {"capability": "8.0"})
    assert jax_checks.evaluate(newer, 1)[-2].status == "problem"


def probing(code: str, seconds: float = 60) -> Answer:
    return jax_checks.Probe([sys.executable, "-c", code]).answer(seconds)


IMPORT_STAGE = 'print(\'{"stage": "import"}\', flush=True); '


@pytest.mark.parametrize(
    ("code", "seconds", "text"),
    [
        (IMPORT_STAGE + "raise ImportError('libcudart')", 60, "failed to import JAX: ImportError: libcudart"),
        (IMPORT_STAGE + "import os; os.abort()", 60, "failed to import JAX: it was ended by signal 6"),
        (IMPORT_STAGE + "import time; time.sleep(60)", 2, "failed to import JAX: no answer within 2 s"),
        ("print('chatter')", 60, "failed to start Python: it printed nothing"),
    ],
    ids=["raises", "aborts", "hangs", "prints nothing"],
)
def test_failing_jax_is_a_finding(code: str, seconds: float, text: str) -> None:
    finding = jax_checks.check_devices(probing(code, seconds), 0)
    assert (finding.status, finding.text) == ("problem", text)
    assert finding.help


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxgpt.doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
        check=False,
    )


def test_report_of_this_machine(tmp_path: Path) -> None:
    folders = ("--runs", str(tmp_path / "runs"), "--data", str(tmp_path))
    done = doctor("--json", *folders)
    answer = json.loads(done.stdout)
    by_name = {finding["name"]: finding for finding in answer["findings"]}
    assert by_name["JAX"]["status"] == "ok"
    assert "on cpu" in by_name["JAX"]["text"]
    assert metadata.version("jaxlib") in by_name["versions"]["text"]
    assert by_name["extension"]["status"] == "ok"
    assert "MB/s written and synced" in by_name[f"disk of {tmp_path}"]["text"]
    assert (done.returncode, answer["status"]) == (0, worst_status([Finding(**f) for f in answer["findings"]]))
    assert list(tmp_path.iterdir()) == []


def test_missing_jax_is_reported_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise ImportError('libcudnn.so.9: cannot open shared object file')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = doctor("--runs", str(tmp_path), "--data", str(tmp_path), PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stdout.startswith(
        "A run would fail here, or not use the device that you expect (JAX failed to import JAX"
    )
    assert "\nproblem  JAX " in done.stdout
    assert "failed to import JAX: ImportError: libcudnn.so.9" in done.stdout
    assert "ok       extension" in done.stdout
    assert done.stderr.startswith("error[C065]")
    assert "Traceback" not in done.stdout + done.stderr


def test_slow_full_or_unwritable_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_measure_speeds", lambda *_: (10e6, 20e6))
    assert machine.check_disk(tmp_path / "a" / "b").status == "warning"
    monkeypatch.setattr(machine, "_free_bytes", lambda _: 1000)
    assert machine.check_disk(tmp_path).text == "0.00 GiB free"

    def refused(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine, "_free_bytes", refused)
    assert machine.check_disk(tmp_path).text == f"{tmp_path} cannot be written: Permission denied"


def test_disk_probe_measures_and_cleans_up(tmp_path: Path) -> None:
    written, read = machine._measure_speeds(tmp_path, 3 * 2**20)
    assert min(written, read) > 0
    assert list(tmp_path.iterdir()) == []


def test_mismatched_versions() -> None:
    def version(of: dict[str, str]) -> Any:
        def finding(name: str) -> str:
            if of.get(name) == "":
                raise metadata.PackageNotFoundError
            return of.get(name, "1.0.0")

        return finding

    assert machine.check_versions(version({})).status == "ok"
    assert machine.check_versions(version({"jaxlib": "1.0.1"})).status == "warning"
    assert machine.check_versions(version({"jax": "0.9.9", "jaxlib": "0.9.9"})).status == "warning"
    assert machine.check_versions(version({"flax": ""})).text == "flax is not installed"


def test_unwritable_cache_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert machine.check_cache(tmp_path / "new").status == "ok"
    assert machine.check_cache(tmp_path / "file" / "new").status == "warning"


def test_extension_of_another_version_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxgpt.__version__", "9.9")
    assert machine.check_extension().status == "problem"


def test_probe_functions_work_on_this_machine() -> None:
    import jax

    assert probe.attempt(lambda: probe.check_matmul(jax)) == ""
    assert "cudnn" in probe.attempt(lambda: probe.check_attention(jax)).lower()


class Client:
    """Stands in for a CUDA client that knows the address that is copied."""

    mapped: int | None = None

    def dma_map(self, address: int, _: int) -> None:
        self.mapped = address

    def dma_unmap(self, address: int) -> None:
        assert address == self.mapped


def test_direct_copy_compares_the_content() -> None:
    import jax
    import numpy as np

    class Device:
        client = Client()

    class Jax:
        def device_put(self, array: Any, _: Any) -> Any:
            return jax.device_put(array + self.error if self.error else array)  # as it is, JAX holds on to it

        def __init__(self, error: int) -> None:
            self.error = np.uint16(error)

    assert probe.attempt(lambda: probe.check_direct_copy(Jax(0), Device())) == ""
    assert "differs" in probe.attempt(lambda: probe.check_direct_copy(Jax(1), Device()))


def test_impossible_seconds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(command.main, ["--seconds", "0"]) == 2
    assert "C009" in capsys.readouterr().err


def test_minimum_jax_version_is_that_of_pyproject() -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"jax>={".".join(map(str, machine.MIN_JAX))}"' in pyproject
