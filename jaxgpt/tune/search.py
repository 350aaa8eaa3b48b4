"""The search: successive halving over each dimension, then the winner and the config as it is side by side."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.config import Config
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.tune.candidates import DEFAULT, Candidate, dimensions
from jaxgpt.utils.files import read_json

FIRST_SECONDS = 1.0  # of timed steps in the first round; each later round doubles them
COMPARISONS = 2  # of the winner with the config as it is, at the end
STARTING_SECONDS = 900.0  # in which the reference has to end: it compiles with an empty cache
PATIENCE = 3.0  # times the reference's duration, after which, and some more, a candidate counts as hung
GRACE_SECONDS = 30.0
TRIAL_COMMAND = (sys.executable, "-m", "jaxgpt.tune.trial")
MAX_CHARACTERS = 200  # of a failure
KILLED = -9  # the status of a process that SIGKILL ended: on Linux, where its memory ran out
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")


class Outcome(NamedTuple):
    """What a trial of a candidate gave: the median seconds of a step, or why it has none."""

    candidate: Candidate
    step_seconds: float | None
    problem: str = ""


class Tuned(NamedTuple):
    """The result: the winner, steps of the winner and of the config as it is, measured alternately, and all trials."""

    winner: Candidate
    default_seconds: float
    winner_seconds: float
    device: dict[str, Any]
    outcomes: list[Outcome]

    @property
    def speedup(self) -> float:
        return self.default_seconds / self.winner_seconds


class Tuner:
    """Measures candidates for `config` until `seconds` have passed; `folder` holds the files of the trials."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        seconds: float,
        say: Callable[[str], None],
        command: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._folder = folder
        self._end = time.monotonic() + seconds
        self._say = say
        self._command = command or TRIAL_COMMAND
        self._trial_limit = STARTING_SECONDS
        self._trial_seconds = 0.0
        self.outcomes: list[Outcome] = []

    def device(self) -> dict[str, Any]:
        """The device that trials use, found in a process of its own: in this one JAX would keep its memory.

        Raises the `JaxgptError` of a trial that refuses the config, C045 if it fails otherwise.
        """
        try:
            device: dict[str, Any] = self._start(DEFAULT, 0.0)["device"]
        except TrialError as error:
            raise _default_fails(str(error)) from error
        return device

    def run(self, device: dict[str, Any]) -> Tuned:
        """Raises `ConfigError` C045 if the config as it is cannot be trained."""
        started = time.monotonic()
        reference = self._measure(DEFAULT, FIRST_SECONDS)
        if reference.step_seconds is None:
            raise _default_fails(reference.problem)
        self._trial_seconds = time.monotonic() - started
        self._trial_limit = GRACE_SECONDS + PATIENCE * self._trial_seconds
        best = DEFAULT
        for dimension in dimensions(self._config, device):
            best = self._halve(dimension.candidates(best))
        winner, default_seconds, winner_seconds = self._compare(best)
        return Tuned(winner, default_seconds, winner_seconds, device, self.outcomes)

    def _halve(self, candidates: list[Candidate]) -> Candidate:
        """The fastest of `candidates`, the first of which is the best so far: half of them in each round."""
        best = candidates[0]
        seconds = FIRST_SECONDS
        while len(candidates) > 1 and self._has_time(len(candidates)):
            outcomes = [self._measure(candidate, seconds) for candidate in candidates if self._has_time(1)]
            timed = [outcome for outcome in outcomes if outcome.step_seconds is not None]
            ranked = sorted(timed, key=lambda outcome: outcome.step_seconds or 0.0)
            candidates = [outcome.candidate for outcome in ranked[: len(candidates) // 2]]
            best = candidates[0] if candidates else best
            seconds *= 2
        return best

    def _has_time(self, trials: int) -> bool:
        """Whether so many trials fit, and the last comparison after them."""
        reserve = 2 * COMPARISONS * (self._trial_seconds + FIRST_SECONDS)
        return time.monotonic() + trials * self._trial_seconds + reserve <= self._end

    def _compare(self, best: Candidate) -> tuple[Candidate, float, float]:
        """`best` if each of its measurements is faster than each of the default's, measured alternately."""
        if best == DEFAULT:
            seconds = self._best_seconds(DEFAULT)
            return DEFAULT, seconds, seconds
        pairs = [[self._measure(each, 2 * FIRST_SECONDS) for each in (DEFAULT, best)] for _ in range(COMPARISONS)]
        default, tuned = ([outcome.step_seconds for outcome in column] for column in zip(*pairs))
        known_default = [seconds for seconds in default if seconds is not None]
        known_tuned = [seconds for seconds in tuned if seconds is not None]
        is_faster = len(known_tuned) == COMPARISONS and max(known_tuned) < min(known_default, default=0.0)
        default_seconds = statistics.median(known_default or [self._best_seconds(DEFAULT)])
        if not is_faster:
            return DEFAULT, default_seconds, default_seconds
        return best, default_seconds, statistics.median(known_tuned)

    def _best_seconds(self, candidate: Candidate) -> float:
        own = [outcome.step_seconds for outcome in self.outcomes if outcome.candidate == candidate]
        return min(seconds for seconds in own if seconds is not None)

    def _measure(self, candidate: Candidate, seconds: float) -> Outcome:
        try:
            result = self._start(candidate, seconds)
        except TrialError as error:
            outcome = Outcome(candidate, None, str(error))
        except JaxgptError as error:
            outcome = Outcome(candidate, None, f"refused: {error.message}")
        else:
            outcome = _outcome(candidate, result)
        self.outcomes.append(outcome)
        time_or_problem = outcome.problem or f"{1e3 * (outcome.step_seconds or 0.0):,.1f} ms per step"
        self._say(f"{candidate.name}: {time_or_problem}")
        return outcome

    def _start(self, candidate: Candidate, seconds: float) -> dict[str, Any]:
        """The result of one trial. Raises its `JaxgptError`, and `TrialError` if it fails otherwise or hangs."""
        files = {name: self._folder / f"{name}.json" for name in ("request", "result")}
        files["result"].unlink(missing_ok=True)
        values = {
            "config": candidate.apply(self._config).to_dict(),
            "seconds": seconds,
            "reference": str(self._folder / "reference.npz"),
            "result": str(files["result"]),
        }
        files["request"].write_text(json.dumps(values), encoding="utf-8")
        done = _run([*self._command, str(files["request"])], self._trial_limit + seconds)
        if done.returncode or not files["result"].exists():
            raise TrialError(_crash(done))
        result: dict[str, Any] = read_json(files["result"])
        if "error" in result:
            raise JaxgptError(*result["error"])
        if "failure" in result:
            raise TrialError(_failure(result["failure"].splitlines()))
        return result


class TrialError(Exception):
    """A trial has no result."""


def _default_fails(problem: str) -> ConfigError:
    return ConfigError("C045", f"the config as it is does not train: {problem}", "train it without tuning first")


def _outcome(candidate: Candidate, result: dict[str, Any]) -> Outcome:
    if result.get("problem"):
        return Outcome(candidate, None, f"wrong: {result['problem']}")
    return Outcome(candidate, statistics.median(result["step_seconds"]))


def _run(command: Sequence[str], limit: float) -> "subprocess.CompletedProcess[str]":
    """Runs a trial. Raises `TrialError` if it takes longer than `limit` seconds."""
    with _life_line() as stdin:
        try:
            return subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired as error:
            raise TrialError(f"no result after {limit:.0f} s") from error


@contextmanager
def _life_line() -> Iterator[int]:
    """A pipe to read from, which the system closes when this process ends, even by SIGKILL."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def _crash(done: "subprocess.CompletedProcess[str]") -> str:
    """Why a process ended without a result."""
    if done.returncode == KILLED:
        return "out of memory"
    lines = done.stderr.strip().splitlines() or ["no message"]
    if done.returncode < 0:
        lines.append(f"ended by {signal.Signals(-done.returncode).name}")
    return _failure(lines[::-1])


def _failure(lines: Sequence[str]) -> str:
    """The first of `lines`, or that the memory did not suffice."""
    if any(text in line for line in lines for text in OUT_OF_MEMORY):
        return "out of memory"
    return f"failed: {lines[0][:MAX_CHARACTERS]}"
