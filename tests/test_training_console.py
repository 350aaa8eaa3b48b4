"""What a person sees: nanoGPT's lines when the output is piped, one panel on a terminal, in order to the end."""

import io
import math
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers.training import (
    NO_CHANGES,
    STEPS,
    Changes,
    Crash,
    after_step,
    arguments,
    crash,
    logged_losses,
    random_tokens,
    run_folder,
    tiny_config,
    write_shard,
)
from rich.console import Console

from jaxgpt import errors, logs, train
from jaxgpt.config.files import load_config
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.live import diagnose_run
from jaxgpt.runs.log import DONE
from jaxgpt.training import console as display
from jaxgpt.training import recorder
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.console import PlainConsole
from jaxgpt.training.evaluator import Evaluator
from jaxgpt.training.panel import LivePanel
from jaxgpt.training.records import Score, Scores, StepRecord
from jaxgpt.training.step import Metrics
from jaxgpt.utils.eta import Eta

STEP_LINE = re.compile(r"step (\d+): train loss (\S+), val loss (\S+)")
ITER_LINE = re.compile(r"iter (\d+): loss (\S+), time ([\d.]+)ms(?:, mfu (-?[\d.]+)%)?")

CHART_ROW = re.compile(r"│ ( *[\d.]+ ┤| {7}│)")

RECORD = StepRecord(12_344, 3.15579, 0.2312, 9.1e-4, 3.512, 149_291.4, 0.4123, 2.3104)
LEFT = Eta(26_000, 25_800, 26_300)
SCORES = Scores(Score(3.2, 0.01, 3200, None), Score(3.24117, 0.01123, 3200, 1.0119))


def on_a_terminal(width: int = 80, height: int = 24) -> tuple[LivePanel, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=height, color_system=None)
    return LivePanel(load_config("fineweb40m"), console), screen


def shown(panel: LivePanel) -> str:
    console = panel._console
    with console.capture() as capture:
        console.print(panel._render())
    return capture.get()


# --- piped -----------------------------------------------------------------------------------------------------------


def test_piped_run_prints_nanogpt_lines(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.train(tiny_config(workspace))
    lines = capsys.readouterr().out.splitlines()
    steps = [STEP_LINE.fullmatch(line) for line in lines if line.startswith("step ")]
    iters = [ITER_LINE.fullmatch(line) for line in lines if line.startswith("iter ")]
    assert [int(match[1]) for match in steps if match] == [0, 10, 20]
    assert [int(match[1]) for match in iters if match] == list(range(STEPS))
    assert None not in steps + iters
    exact = [float.fromhex(both.split()[0]) for both in logged_losses(run_folder(workspace)).values()]
    assert [float(match[2]) for match in iters if match] == [round(loss, 4) for loss in exact]
    assert lines[0] == "tokens per iteration will be: 128"
    assert re.fullmatch(r"number of parameters: [\d.]+M", lines[1])
    printed, logged = logs.read_text("\n".join(lines), "printed"), logs.read(run_folder(workspace).path)
    assert [step.step for step in printed.steps] == [step.step for step in logged.steps] == list(range(STEPS))
    assert (
        [step.step_only for step in printed.steps]
        == [step.step_only for step in logged.steps]
        == [False] + [True] * (STEPS - 1)
    )
    assert [round(e.val or 0, 4) for e in logged.evaluations] == [e.val for e in printed.evaluations]
    assert (printed.saves, printed.metadata.total_steps) == (logged.saves, logged.metadata.total_steps)
    assert printed.metadata.tokens_per_step == logged.metadata.tokens_per_step == 128
    assert (printed.traits.total_is_last_step, logged.metadata.stop_reason, printed.starts) == (False, DONE, (0,))


def test_mfu_is_printed_only_where_the_peak_is_known() -> None:
    out = io.StringIO()
    lines = PlainConsole(load_config("fineweb40m"), out)
    for record in (RECORD, RECORD._replace(step=50), RECORD._replace(step=60, mfu=None)):
        lines.step(record, None)
    assert out.getvalue().splitlines() == [
        "iter 50: loss 3.1558, time 3512.00ms, mfu 41.23%",
        "iter 60: loss 3.1558, time 3512.00ms",
    ]
    assert all(ITER_LINE.fullmatch(line) for line in out.getvalue().splitlines())


def test_time_excludes_evaluation_and_saving(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate, save = Evaluator.__call__, Checkpoints.save

    def slow_evaluation(self: Any, params: Any) -> Scores:
        time.sleep(0.7)
        return evaluate(self, params)

    def slow_save(self: Any, *args: Any) -> None:
        time.sleep(0.7)
        save(self, *args)

    monkeypatch.setattr(Evaluator, "__call__", slow_evaluation)
    monkeypatch.setattr(Checkpoints, "save", slow_save)
    train.train(tiny_config(workspace, {"run.eval_every": 6, "run.save_every": 9}))
    matches = [ITER_LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    times = {int(line[1]): float(line[3]) for line in matches if line}
    assert max(time for step, time in times.items() if step > 1) < 700


def test_closed_output_pipe_is_a_warning_and_the_run_continues(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as out:
        after_step(monkeypatch, 5, lambda: os.close(read))
        monkeypatch.setattr(sys, "stdout", out)
        train.train(tiny_config(workspace))
        monkeypatch.undo()
    assert len(logged_losses(run_folder(workspace))) == STEPS
    assert capfd.readouterr().err == "warning: nothing is printed from here on: Broken pipe\n"


# --- on a terminal ---------------------------------------------------------------------------------------------------


def test_panel_shows_the_run_at_80_columns() -> None:
    panel, _ = on_a_terminal()
    panel.scores(12_000, SCORES)
    panel.saved(12_000)
    for number in range(90):
        panel.step(RECORD._replace(loss=3 + math.sin(number / 9)), LEFT)
    panel.step(RECORD, LEFT)
    text = shown(panel)
    assert all(len(line) == 80 for line in text.splitlines())
    for words in (
        "fineweb40m",
        "step 12,345 of 20,000",
        "61.7 %",
        "loss     3.1558   gradient norm 0.23   lr 9.10e-04",
        "val      3.2412 ± 0.0112 at step 12,000",
        "1.012 bits per byte",
        "speed    149,291 tokens/s   3,512 ms per step   MFU 41.2 % of this device",
        "data     epoch 2.31   6,472,335,360 tokens",
        "ends in  7 h 13 min   (80 %: 7 h 10 min to 7 h 18 min)",
        "saved    step 12,000",
    ):
        assert words in text
    assert len(text.splitlines()) == 10  # nothing wraps


@pytest.mark.parametrize(("width", "height", "chart_rows"), [(80, 24, 10), (140, 40, 21), (80, 14, 0)])
def test_panel_fits_the_terminal_and_the_chart_fills_it(width: int, height: int, chart_rows: int) -> None:
    panel, _ = on_a_terminal(width, height)
    panel.scores(12_000, SCORES)
    panel.saved(12_000)
    for number in range(90):
        panel.step(RECORD._replace(step=12_300 + number, loss=3 + math.sin(number / 9)), LEFT)
    lines = shown(panel).splitlines()
    assert all(len(line) == width for line in lines)
    assert len(lines) < height
    assert sum(bool(CHART_ROW.match(line)) for line in lines) == chart_rows


def test_panel_shows_a_notice_until_it_closes() -> None:
    panel, screen = on_a_terminal()
    with panel:
        panel.step(RECORD, LEFT)
        panel.notify("stopping after this step, then saving")
        panel._live.refresh()
        assert "stopping after this step, then saving" in screen.getvalue()
    assert "stopping after" not in shown(panel)


def test_resized_terminal_is_cleared_before_the_panel_is_redrawn() -> None:
    panel, screen = on_a_terminal()
    clear = "\x1b[H\x1b[2J"
    with panel:
        panel._live.refresh()
        assert clear not in screen.getvalue()
        panel._console.size = (100, 30)  # type: ignore[assignment]
        panel._live.refresh()
        panel._live.refresh()
    assert screen.getvalue().count(clear) == 1


ECHO = """
import termios
from jaxgpt.training.terminal import echo_off

def echo():
    return bool(termios.tcgetattr(0)[3] & termios.ECHO)

states = [echo()]
with echo_off():
    states.append(echo())
print(states + [echo()])
"""


def test_keys_are_not_echoed_while_the_panel_is_shown() -> None:
    spawn = f"import pty, sys; pty.spawn([sys.executable, '-c', {ECHO!r}])"
    env = os.environ | {"PYTHONPATH": str(Path(errors.__file__).parents[1])}
    command = [sys.executable, "-c", spawn]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=True)
    assert "[True, False, True]" in run.stdout


def test_panel_of_a_resumed_run_has_its_evaluations_and_curve(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step(monkeypatch, 15, crash)
    run_on_a_terminal(workspace, monkeypatch, Crash)
    monkeypatch.undo()
    restored: list[str] = []
    restore = LivePanel.restore

    def restore_and_show(panel: LivePanel, records: Any) -> None:
        restore(panel, records)
        restored.append(shown(panel))
        assert list(panel._losses) == list(range(12))  # without the steps after the checkpoint

    monkeypatch.setattr(LivePanel, "restore", restore_and_show)
    run_on_a_terminal(workspace, monkeypatch)
    assert "at step 10" in restored[0]
    assert f"step 12 of {STEPS}" in restored[0]
    assert "training  ● evaluation" in restored[0]


def test_panel_before_the_first_step_and_on_an_unknown_device() -> None:
    panel, _ = on_a_terminal()
    assert "compiling …" in shown(panel)
    panel.scores(0, Scores(SCORES.train, None))
    assert "train  3.2000 ± 0.0100 at step 0" in shown(panel)
    assert "compiling the first step …" in shown(panel)
    panel.step(RECORD._replace(mfu=None), None)
    assert "MFU" not in shown(panel)
    assert "ends in  …" in shown(panel)


def test_panel_shows_the_forecast_of_the_final_loss() -> None:
    panel, _ = on_a_terminal()
    panel.scores(12_000, SCORES)
    panel.step(RECORD, LEFT)
    assert "forecast" not in shown(panel)
    panel.forecast(Forecast(3.19876, 0.01, 3.18594, 3.21158, 3.18, 3.22))
    text = shown(panel)
    assert "forecast  3.1988 at the end   (80 %: 3.1859 to 3.2116)" in text
    assert text.index("val ") < text.index("forecast") < text.index("speed")
    assert all(len(line) == 80 for line in text.splitlines())
    panel.forecast(None)
    assert "forecast" not in shown(panel)


def test_panel_shows_the_forecast_of_diagnose(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("train", 1000), ("val", 300)):  # of four tokens, so that there is something to learn
        write_shard(workspace / "data" / f"{name}_000000.bin", random_tokens(count, seed=count) % 4)
    text = run_on_a_terminal(workspace, monkeypatch, changes={"run.eval_every": 4})
    folder = run_folder(workspace)
    records = folder.log_file.read_text().splitlines(keepends=True)
    last = max(n for n, record in enumerate(records) if '"eval"' in record and f'"step": {STEPS}' not in record)
    folder.log_file.write_text("".join(records[: last + 1]))  # as it was at the last evaluation before the end
    forecast = diagnose_run(folder).forecast
    assert forecast is not None
    assert f"forecast  {forecast.mean:.4f} at the end   (80 %: {forecast.low80:.4f} to {forecast.high80:.4f})" in text


def test_panel_shows_a_better_earlier_evaluation() -> None:
    panel, _ = on_a_terminal()
    for step, loss in ((500, 3.1), (1000, 3.3)):
        panel.scores(step, Scores(SCORES.train, Score(loss, 0.01, 3200, None)))
    assert "val  3.3000 ± 0.0100 at step 1,000   best 3.1000 at step 500" in shown(panel)


def test_run_on_a_terminal_prints_the_result_below_the_panel(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = run_on_a_terminal(workspace, monkeypatch)
    assert f"step {STEPS} of {STEPS}" in text
    assert "val" in text
    saved = re.search(rf"saved +step {STEPS}\b", text)  # as wide as the longest name of a row
    assert saved
    assert saved.start() < text.rindex("done: 20 steps; loss on validation text")
    assert_terminal_is_left_in_order(text)


def test_panel_closes_cleanly_when_the_run_fails(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step(monkeypatch, 12, crash)
    text = run_on_a_terminal(workspace, monkeypatch, Crash)
    assert f"step 11 of {STEPS}" in text or f"step 12 of {STEPS}" in text
    assert_terminal_is_left_in_order(text)


def run_on_a_terminal(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception] | None = None,
    changes: Changes = NO_CHANGES,
) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=30, color_system=None)
    monkeypatch.setattr(display, "open_display", lambda config: LivePanel(config, console))
    with pytest.raises(error) if error else nullcontext():
        train.train(tiny_config(workspace, changes))
    return screen.getvalue()


def assert_terminal_is_left_in_order(text: str) -> None:
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    assert text.endswith(("\n", "\x1b[?25h"))


def test_error_below_the_panel_is_one_sentence(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recorder, "fetch", lambda _: Metrics(math.inf, 1.0))  # type: ignore[arg-type]
    assert errors.run(train.main, arguments(workspace)) == 5
    assert "error[N001]: the loss of step 0 is not finite (loss inf, norm 1.0)" in capsys.readouterr().err


# --- small parts -----------------------------------------------------------------------------------------------------
