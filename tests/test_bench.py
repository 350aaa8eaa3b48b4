"""The benchmarks run on any machine, and compare what they measure."""

import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError, DataError

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(autouse=True, scope="module")
def benches() -> Iterator[None]:
    """The benches as modules; they import each other by name."""
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == BENCH:
            del sys.modules[name]


def bench(name: str) -> ModuleType:
    return importlib.import_module(name)


def run_here(words: Sequence[str], **_: str) -> "subprocess.CompletedProcess[str]":
    """Runs a benchmark as `common.run_child` does, but in this process: imports take most of a child's time."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = bench("common").run(bench(Path(words[0]).stem).main, words[1:])
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 1
        except jax.errors.JaxRuntimeError as error:
            print(error, file=sys.stderr)
            status = 1
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def test_a_cell_measures_base_loader_and_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # halves the compile times in the child processes
    step = bench("step")
    options = step.parse_arguments(["--tiny", "--rounds", "2", "--updates", "2"])
    result = step.run_cell(options, "fineweb40m", 2, ["model.remat=blocks,model.loss_chunk=32"], 0.0)
    assert json.loads(json.dumps(result)) == result
    assert list(result["sides"]) == ["base", "model.remat=blocks,model.loss_chunk=32", "loader"]
    for side in result["sides"].values():
        assert len(side["ms_per_step"]["values"]) == 2
        assert side["tokens_per_second"] == pytest.approx(1e3 * 2 * 2 * 32 / side["ms_per_step"]["median"])
    assert result["sides"]["base"]["ratio"]["values"] == [1, 1]
    assert result["stall"]["median"] > 0
    memory = result["sides"]["base"]["memory"]
    assert memory["live_bytes"] == memory["arguments"] + memory["results"] + memory["temporary"]
    assert "data_parallel" in result["config"]["mesh"]
    assert step.format_cell(result | {"name": "tiny"}).count("\n") == 4
    assert result["failed"] == {}


def test_a_set_takes_fields_and_compiler_options() -> None:
    step, config = bench("step"), load_config("fineweb40m")
    result = step.parse_variant(config, "model.attention=xla,xla_gpu_autotune_level=0,model.remat=blocks")
    assert result.config == config.replace({"model": {"attention": "xla", "remat": "blocks"}})
    assert result.compiler == (("xla_gpu_autotune_level", "0"),)
    assert step.parse_variant(config, "xla_gpu_x=true").compiler == (("xla_gpu_x", "True"),)
    with pytest.raises(ConfigError, match="C005"):
        step.parse_variant(config, "model.atention=xla")
    listed = step.parse_variant(config, "xla_gpu_enable_command_buffer=FUSION,CUBLAS,model.remat=blocks,xla_gpu_x=1")
    assert dict(listed.compiler) == {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS", "xla_gpu_x": "1"}
    assert listed.config == config.replace({"model": {"remat": "blocks"}})
    for text in ("", "model.remat"):
        with pytest.raises(ConfigError, match="C009"):
            step.parse_variant(config, text)


@pytest.mark.parametrize("size", [1, 4, 6, 16, 64, 512])
def test_another_micro_batch_keeps_the_tokens_of_a_step(size: int) -> None:
    config = load_config("fineweb40m")
    result = bench("step").with_micro_batch(config, size)
    assert result.data.micro_batch == size
    assert abs(result.tokens_per_step / config.tokens_per_step - 1) <= size / 2 / 512


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100, 1000])
def test_largest_fitting_needs_few_trials(most: int) -> None:
    tried: list[int] = []
    result = bench("step").largest_fitting(lambda size: tried.append(size) or size <= most, 512)
    assert result == min(most, 512)
    assert len(tried) == len(set(tried)) < 20


def test_timing_is_interleaved() -> None:
    called: list[str] = []
    seconds_of = bench("common").time_interleaved({name: lambda name=name: called.append(name) for name in "ab"}, 3)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(seconds) for name, seconds in seconds_of.items()} == {"a": 3, "b": 3}


def test_arrays_survive_poisoning_of_released_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = bench("transfer")
    result = transfer.poisoned(12, direct=False, size=2**14)
    assert (result["wrong"], result["blocks"]) == (0, 12)
    assert result["released"] >= 8
    lend = transfer.PoisonedBuffer.lend

    def poison_too_early(buffer: Any, values: np.ndarray) -> np.ndarray:
        array: np.ndarray = lend(buffer, values)
        transfer.ctypes.memset(buffer.address, transfer.POISON, buffer.size)
        return array

    monkeypatch.setattr(transfer.PoisonedBuffer, "lend", poison_too_early)
    assert transfer.poisoned(12, direct=False, size=2**14)["wrong"] == 12


def test_gpu_runs_every_part_and_a_failure_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = bench("gpu")
    ran = []

    def run(part: Any) -> tuple[Any, str]:
        ran.append(part.name)
        answers = {"start": {"config": {}, "warm": {"ms_per_step": 1.0}}}
        return answers.get(part.name), "no" if part.name == "transfer" else ""

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "check", lambda order: None)
    monkeypatch.setattr(gpu.common, "describe_environment_in_child", lambda: {"device": "a", "commit": "b"})
    words = ["--nanogpt", "x", "--out", str(tmp_path / "new" / "out.json")]
    assert gpu.main(words) == 1
    own = ["doctor", "numerics", "transfer", "start", "step", "attention", "sides", "sample", "sample_reference", "fit"]
    assert ran == [*own, "vs_nanogpt_cudnn", "vs_nanogpt"]
    result = json.loads((tmp_path / "new" / "out.json").read_text())
    assert result["failed"] == {"transfer": "no"}
    assert (result["warm"]["ms_per_step"], result["about"]["device"]) == (1.0, "a")
    ran.clear()
    assert gpu.main(words) == 1
    assert ran == ["transfer"]  # only the failed part is run again


def test_gpu_does_not_extend_results_of_another_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, file = bench("gpu"), tmp_path / "out.json"
    here = {"device": "a", "commit": "b"}
    monkeypatch.setattr(gpu, "run", lambda part: (None, ""))
    monkeypatch.setattr(gpu.common, "describe_environment_in_child", lambda: here)
    assert gpu.main(["--tiny", "--only", "doctor", "--out", str(file)]) == 0
    before = file.read_text()
    with pytest.raises(ConfigError, match="C041"):
        gpu.main(["--only", "start", "--out", str(file)])
    for other in ({"commit": "c"}, {"device": "d"}, {"commit": "b+"}, {"commit": None}):
        monkeypatch.setattr(gpu.common, "describe_environment_in_child", lambda other=other: here | other)
        with pytest.raises(ConfigError, match="C041"):
            gpu.main(["--tiny", "--only", "start", "--out", str(file)])
    assert file.read_text() == before
    file.write_text("notes of mine")
    with pytest.raises(ConfigError, match="C041"):
        gpu.main(["--tiny", "--out", str(file)])
    assert file.read_text() == "notes of mine"


def test_gpu_checks_its_arguments_before_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = bench("gpu")
    monkeypatch.setattr(gpu, "run", lambda part: pytest.fail(part.name))
    monkeypatch.setattr(gpu.common, "describe_environment_in_child", lambda: {"device": "a", "commit": "b"})
    with pytest.raises(ConfigError, match="C017]: --only nosuch"):
        gpu.main(["--only", "nosuch"])
    with pytest.raises(ConfigError, match="C060"):
        gpu.main(["--nanogpt", str(tmp_path)])


COMMANDS = {
    "attention": ["--tiny", "--out"],
    "audit": ["nowhere", "--json"],
    "gpu": ["--tiny", "--only", "doctor", "--out"],
    "loader": ["--json"],
    "prepare": ["nowhere.parquet", "--json"],
    "program": ["--json"],
    "sample": ["--tiny", "--out"],
    "start": ["--tiny", "--out"],
    "step": ["--tiny", "--out"],
    "transfer": ["--tiny", "--out"],
    "vs_nanogpt": ["--nanogpt", "x", "--json"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_benchmark_overwrites_a_file(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("mine")
    for path, code in ((kept, "C041"), (kept / "below.json", "S009")):
        done = run_here([f"{name}.py", *COMMANDS[name], str(path)])
        assert (done.returncode in (2, 7), done.stdout) == (True, "")
        assert f"error[{code}]" in done.stderr
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ["step", "--micro-batch", "0"],
        ["step", "--rounds", "-1"],
        ["step", "--fit", "--most", "-1"],
        ["step", "--fit", "--memory", "-3"],
        ["start", "--steps", "5"],
        ["transfer", "--blocks", "0"],
        ["sample", "--batch", "0"],
        ["sample", "--config", "nosuch"],
        ["attention", "--rounds", "0"],
        ["vs_nanogpt", "--nanogpt", "x", "--cores", "-1"],
        ["vs_nanogpt", "--nanogpt", "x", "--cores", "9999"],
    ],
    ids=" ".join,
)
def test_invalid_arguments_are_refused(words: list[str]) -> None:
    done = run_here([f"{words[0]}.py", *words[1:]])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_a_missing_platform_is_an_error_message() -> None:
    done = bench("common").run_child([str(BENCH / "step.py"), "--tiny"], JAX_PLATFORMS="cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[C020]")
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("fast_compilation")
def test_a_side_that_does_not_run_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    step = bench("step")
    monkeypatch.setattr(step.common, "run_child", run_here)
    sets = ["xla_no_such_option=1", "model.attention=cudnn", "model.loss_chunk=16", "model.n_embd=48"]
    result = step.run_cell(step.parse_arguments(["--tiny", "--updates", "1"]), "fineweb40m", 2, sets, 0.0)
    assert list(result["sides"]) == ["base", "model.loss_chunk=16", "model.n_embd=48", "loader"]
    assert list(result["failed"]) == sets[:2]
    assert "xla_no_such_option" in result["failed"][sets[0]]
    assert "C023" in result["failed"][sets[1]]
    assert f"{sets[1]} does not run: error[C023]" in step.format_cell(result | {"name": "tiny"})


def test_a_part_that_dies_reports_the_end_of_its_stderr() -> None:
    gpu = bench("gpu")
    code = "import sys; print('{\"a\": 1}'); sys.exit('the device is gone')"
    assert gpu.run(gpu.Part("x", ["-c", code], "")) == ({"a": 1}, "the device is gone")


def test_attention_kernels_are_timed_or_say_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, file = bench("attention"), tmp_path / "times.json"
    monkeypatch.setattr(attention, "pallas", lambda q, k, v: 1.01 * attention.causal_attention(q, k, v))
    attention.main(["--tiny", "--heads", "2", "--sizes", "8", "--out", str(file)])
    (case,) = json.loads(file.read_text())["cases"]
    assert case["shape"] == [2, 64, 2, 8]
    sides = case["sides"]
    assert "cudnn" in sides["cudnn"]["does_not_run"].lower()
    assert sides["xla"]["error"] == 0
    assert 0 < sides["jaxgpt"]["error"] < 1e-5
    assert not attention.has_errors(sides)
    assert attention.has_errors(sides | {"jaxgpt": {"error": float("nan")}})
    assert attention.has_errors(sides | {"jaxgpt": {"does_not_run": "no"}})
    assert sides["pallas"]["error"] == pytest.approx(0.01, rel=0.01)  # a kernel that is wrong shows
    for name in ("xla", "jaxgpt", "pallas"):
        assert len(sides[name]["ms"]["values"]) == 2
        rate = 7 * 2 * 8 * 2 * 2 * 64**2 / 2 / (sides[name]["ms"]["median"] / 1e3) / 1e12
        assert sides[name]["tflops"] == pytest.approx(rate)


def test_heads_without_a_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="C009"):
        bench("attention").main(["--heads", "12", "6", "--sizes", "32"])


@pytest.mark.parametrize("name", ["books", "fineweb40m", "gpt2_124m"])
def test_nanogpt_supports_the_compared_configs(name: str) -> None:
    m = load_config(name).model
    size = {"n_layer": m.n_layer, "n_head": m.n_head, "n_embd": m.n_embd, "dropout": m.dropout}
    assert bench("rivals").nanogpt_size(load_config(name)).items() >= size.items()
    with pytest.raises(ConfigError, match="C062"):
        bench("rivals").nanogpt_size(load_config("fineweb40m_modern"))


def test_default_comparison_is_a_model_that_nanogpt_has() -> None:
    config, _ = bench("vs_nanogpt").parse_arguments(["--nanogpt", "x"])
    size = bench("rivals").nanogpt_size(config)
    assert (size["n_layer"], size["block_size"], size["vocab_size"]) == (4, 256, 4096)


def test_nanogpt_gets_the_text_split_like_jaxgpts(tmp_path: Path) -> None:
    bench("shakespeare").write_nanogpt_data("banana" * 100, tmp_path / "data")
    train, val = (np.fromfile(tmp_path / "data" / f"{name}.bin", np.uint16) for name in ("train", "val"))
    assert (len(train), len(val)) == (540, 60)
    assert val[:6].tolist() == [1, 0, 2, 0, 2, 0]


def test_shakespeare_needs_a_text_and_a_checkout(tmp_path: Path) -> None:
    text = tmp_path / "input.txt"
    with pytest.raises(DataError, match="D023"):
        bench("shakespeare").main([str(text), "--only", "jaxgpt"])
    text.write_text("text", encoding="utf-8")
    with pytest.raises(ConfigError, match="C060"):
        bench("shakespeare").main([str(text), "--nanogpt", str(tmp_path)])


def test_passages_are_whole_paragraphs_of_similar_length() -> None:
    short, long, too_long = "a" * 300, "b" * 800, "c" * 1000
    text = "\r\n\r\n".join([short, short, long, too_long, f" {long} ", short])
    assert list(bench("passages").passages(text)) == [f"{short}\n\n{short}", long, long]  # the last one is unfinished
