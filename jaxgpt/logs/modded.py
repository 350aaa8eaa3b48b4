"""modded-nanogpt's `logs/<uuid>.txt`: the whole source first, then `step:1000/1390 val_loss:… train_time:…ms`.

A train line N is the N-th update, a `val_loss` is measured after N. `train_time` runs on from line to line without the
evaluations; it is set back to 0 after the first ten updates, and `step_avg` is `nan` until then. Its `loss` is that of
one process's last micro-batch; later versions print none.
"""

import re

from jaxgpt.logs.collector import Collector, duration, finite, number, whole
from jaxgpt.logs.history import Evaluation, Step
from jaxgpt.logs.nanogpt import literal, product

NAME = "modded"
MARKS = ("step:",)
KNOWN = re.compile(r"\bstep:\d+/\d+ (?:val_loss|train_loss|train_time):")
LINE = re.compile(
    r"\bstep:(\d{1,10})/(\d{1,10})\s+(?:(val|train)_loss:([^\s]{1,40})\s*)?(?:.{0,200}?train_time:([\d.]{1,40})(ms|s)\b)?"
)
WORDS = (
    "num_iterations|learning_rate|warmup_iters|warmdown_iters|cooldown_iters|cooldown_frac|batch_size|sequence_length|val_tokens|"
    "weight_decay"
)
ASSIGNED = re.compile(rf"^\s*({WORDS})\s*(?::\s*\w+)?\s*=(?!=)\s*([^#,)]{{1,100}})")
END_SHARE = re.compile(r"\(1 - w\) \* (0\.\d{1,6})")
DATA = re.compile(r"\b((?:edu_?)?fineweb\w{0,10})")


class Reader:
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        self._found = collector
        self._clock: tuple[int, float] | None = None  # updates done, and the seconds they took
        self._trained = 0

    def line(self, at: int, text: str) -> None:
        found = LINE.search(text) if "step:" in text else None
        if found and (found[3] or found[5]):
            self._record(at, *found.groups())
        elif self._trained == 0:
            self._source(text)

    def _record(
        self, at: int, n: str, of: str, kind: str | None, loss: str | None, time: str | None, unit: str | None
    ) -> None:
        count, spent = whole(n), finite(time)
        if count is None:
            return
        if count < self._trained:
            self._clock = None
        self._found.facts["total_steps"] = whole(of) or None
        seconds = self._pace(count, None if spent is None else spent / (1e3 if unit == "ms" else 1.0))
        if kind == "val":
            if count > self._trained and seconds is not None:
                self._found.step(Step(count - 1, None, seconds, line=at))
            self._found.evaluation(Evaluation(count, number(loss), line=at))
        elif count:
            self._found.facts["single_batch_loss"] = True
            self._found.step(Step(count - 1, number(loss), seconds, line=at))
        self._trained = count

    def _pace(self, count: int, spent: float | None) -> float | None:
        """Seconds per update since the line before; None where the clock was set back."""
        before = self._clock
        if spent is None:
            return None
        if before is None or spent < before[1] or count > before[0]:
            self._clock = (count, spent)
        if before is None or count <= before[0] or spent <= before[1]:
            return None
        return duration((spent - before[1]) / (count - before[0]))

    def _source(self, text: str) -> None:
        """The program's text: its hyperparameters, and how its rate falls."""
        if found := ASSIGNED.search(text):
            value = literal(found[2])
            if isinstance(value, float):
                self._found.settings.setdefault(found[1], value)
        elif found := END_SHARE.search(text):
            self._found.settings.setdefault("end_share", float(found[1]))
        elif "fineweb" in text and (found := DATA.search(text)):
            self._found.settings.setdefault("dataset", found[1])

    def end(self) -> None:
        """Turns the hyperparameters into facts."""
        words = self._found.settings
        batch, length, tokens = (finite(words.get(name)) for name in ("batch_size", "sequence_length", "val_tokens"))
        if batch:
            whole_batch = product(batch, length) if length and batch < 100_000 else batch
            self._found.facts["tokens_per_step"] = whole_batch if whole_batch and whole_batch >= 10_000 else None
        self._found.facts["eval_tokens"] = tokens or None
        fall = finite(words.get("warmdown_iters", words.get("cooldown_iters")))
        share, total = finite(words.get("cooldown_frac")), self._found.facts.get("total_steps")
        if fall is None and share is not None and total and 0 < share <= 1:
            fall = float(round(share * total))
        if fall:
            words |= {"schedule": "wsd", "warmdown_iters": fall}
            words.setdefault("warmup_iters", 0.0)
            words.setdefault("end_share", 0.0)
