"""Logs for tests of the command `diagnose`, and a way to run it."""

import math

import pytest

from jaxgpt import diagnose, errors

ONE_LINE = "iter 100: loss 3.9012, time 3995.11ms, mfu 20.11%\n"


def nanogpt(done: int = 14_000, name: str = "") -> str:
    """nanoGPT's output for 40M parameters: a smooth decrease, an evaluation every 500 steps, a line every 100."""
    lines = ["tokens per iteration will be: 524,288", "number of parameters: 40.56M", *([name] if name else [])]
    for step in range(0, done + 1, 100):
        loss = 3.2 + 7.7 * (1 + step / 40) ** -0.48
        if step % 500 == 0:
            lines.append(f"step {step}: train loss {loss + 0.03:.4f}, val loss {loss:.4f}")
        extra = 60_000 * (step % 500 == 0) + 45_000 * (step == 0)
        lines.append(f"iter {step}: loss {loss + 0.02 * math.sin(step):.4f}, time {3995 + step % 7 + extra}.11ms")
    return "\n".join(lines) + "\n"


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The output of `diagnose` with these arguments."""
    assert errors.run(diagnose.main, arguments) == 0
    return capsys.readouterr().out


LOGS = {
    "a long run": nanogpt(),
    "a run that is done": nanogpt(20_000),
    "one line": ONE_LINE,
    "NaN": nanogpt(6000) + "iter 6100: loss nan, time 3995.11ms\nstep 6500: train loss nan, val loss nan\n",
    "no time": "step,val_loss\n2000,4.05\n5000,3.73\n8000,3.64\n11000,3.6\n",
    "one evaluation": "step 500: train loss 5.1, val loss 5.2\n",
}
