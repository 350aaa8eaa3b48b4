"""modded-nanogpt's `logs/<uuid>.txt`: the source first, then `step:1000/1390 val_loss:… train_time:…ms`.

A training line N is the N-th step, a `val_loss` is measured after N steps. `train_time` accumulates from line to line
without the evaluations; it is reset to 0 after the first ten steps, and `step_avg` is `nan` until then. The training
loss is that of one process's last micro-batch; later versions print none.
"""

import re

from jaxgpt.logs import reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, LogTraits, Step
from jaxgpt.logs.reader import multiply, parse_finite, parse_literal, parse_number, parse_step, valid_duration

NAME = "modded"
TRAITS = LogTraits(fixed_eval_set=True, default_schedule="wsd")
MARKERS = ("step:",)
PATTERN = re.compile(r"\bstep:\d+/\d+ (?:val_loss|train_loss|train_time):")
LINE = re.compile(
    r"\bstep:(\d{1,10})/(\d{1,10})\s+(?:(val|train)_loss:([^\s]{1,40})\s*)?(?:.{0,200}?train_time:([\d.]{1,40})(ms|s)\b)?"
)
OPTIONS = (
    "num_iterations|learning_rate|warmup_iters|warmdown_iters|cooldown_iters|cooldown_frac|batch_size|sequence_length|val_tokens|"
    "weight_decay"
)
ASSIGNMENT = re.compile(rf"^\s*({OPTIONS})\s*(?::\s*\w+)?\s*=(?!=)\s*([^#,)]{{1,100}})")
# Facts that derived programs print, and the hyperparameters that they are.
PRINTED_NAMES = {
    "model_params": "parameters",
    "train_batch_tokens": "tokens_per_step",
    "warmup_steps": "warmup_iters",
    "val_tokens": "val_tokens",
    "max_wallclock_seconds": "max_seconds",
}
PRINTED = re.compile(rf"(?:^|\s)({'|'.join(PRINTED_NAMES)}):(\d{{1,15}}(?:\.\d{{1,6}})?)(?=\s|$)")
FINAL_LR_FRACTION = re.compile(r"\(1 - w\) \* (0\.\d{1,6})")
DATASET = re.compile(r"\b((?:edu_?)?fineweb\w{0,10})")
MIN_BATCH = 10_000  # tokens: a smaller product is not the whole batch
MAX_SEQUENCES = 100_000  # a larger batch_size already counts tokens


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._clock: tuple[int, float] | None = None  # steps done, and the seconds that they took
        self._seconds = 0.0  # by the last line

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        match = LINE.search(text) if "step:" in text else None
        if match and (match[3] or match[5]):
            self._record(line_no, *match.groups())
        elif self._steps_done == 0:
            self._source_line(text)

    def _record(
        self, line_no: int, n: str, total: str, kind: str | None, loss: str | None, time: str | None, unit: str | None
    ) -> None:
        count = parse_step(n)
        if count is None:
            return
        if count < self._steps_done:
            self._clock = None
        self._log.metadata["total_steps"] = parse_step(total) or None
        elapsed = parse_finite(time)
        elapsed = None if elapsed is None else elapsed / (1e3 if unit == "ms" else 1.0)
        self._seconds = elapsed or 0.0
        seconds = self._step_time(count, elapsed)
        if kind == "val":
            if count > self._steps_done and seconds is not None:
                self._log.add(Step(count - 1, None, seconds, line=line_no))
            self._log.add(Evaluation(count, parse_number(loss), line=line_no))
        elif count:
            self._log.add(Step(count - 1, parse_number(loss), seconds, line=line_no))
        self._steps_done = count

    def _step_time(self, count: int, elapsed: float | None) -> float | None:
        """Seconds per step since the line before; None where the clock was reset."""
        before = self._clock
        if elapsed is None:
            return None
        if before is None or elapsed < before[1] or count > before[0]:
            self._clock = (count, elapsed)
        if before is None or count <= before[0] or elapsed <= before[1]:
            return None
        return valid_duration((elapsed - before[1]) / (count - before[0]))

    def _source_line(self, text: str) -> None:
        """Reads a line of the program's source: hyperparameters, and the learning rate at the end of the decay."""
        if match := ASSIGNMENT.search(text):
            value = parse_literal(match[2])
            if isinstance(value, float):
                self._log.hyperparameters.setdefault(match[1], value)
        elif match := FINAL_LR_FRACTION.search(text):
            self._log.hyperparameters.setdefault("final_lr_fraction", float(match[1]))
        elif "fineweb" in text and (match := DATASET.search(text)):
            self._log.hyperparameters.setdefault("dataset", match[1])
        for name, value in PRINTED.findall(text):
            self._log.hyperparameters.setdefault(PRINTED_NAMES[name], float(value))

    def end(self) -> None:
        """Derives the run's metadata and its schedule from its hyperparameters."""
        values = self._log.hyperparameters
        self._log.metadata["eval_tokens"] = parse_finite(values.get("val_tokens")) or None
        self._log.metadata["parameters"] = parse_finite(values.get("parameters")) or None
        self._log.metadata["tokens_per_step"] = parse_finite(values.get("tokens_per_step")) or None
        limit = parse_finite(values.get("max_seconds"))
        if limit and self._seconds >= limit:
            self._log.metadata["total_steps"] = self._steps_done
            self._log.note(f"the run ended at step {self._steps_done:,}, at its limit of {limit:,.0f} seconds")
        batch = parse_finite(values.get("batch_size"))
        if batch:
            self._log.metadata["tokens_per_step"] = _tokens_per_step(batch, parse_finite(values.get("sequence_length")))
        cooldown = self._cooldown_steps()
        if cooldown:
            values |= {"schedule": "wsd", "warmdown_iters": cooldown}
            values.setdefault("warmup_iters", 0.0)
            values.setdefault("final_lr_fraction", 0.0)

    def _cooldown_steps(self) -> float | None:
        values = self._log.hyperparameters
        steps = parse_finite(values.get("warmdown_iters", values.get("cooldown_iters")))
        fraction = parse_finite(values.get("cooldown_frac"))
        total = self._log.metadata.get("total_steps")
        if steps is None and fraction is not None and total and 0 < fraction <= 1:
            return float(round(fraction * total))
        return steps


def _tokens_per_step(batch: float, sequence_length: float | None) -> float | None:
    """`batch` counts sequences in the older versions, tokens in the newer ones."""
    tokens = multiply(batch, sequence_length) if sequence_length and batch < MAX_SEQUENCES else batch
    return tokens if tokens and tokens >= MIN_BATCH else None
