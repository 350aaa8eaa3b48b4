"""nanochat's lines: `step 00100/21400 (0.47%) | loss: … | lrm: … | dt: …ms`, `Step 00250 | Validation bpb: …`.

`loss` is a running mean (0.9) of one process's last micro-batch, in nats per token; `lrm` is the learning rate's share
of its peak. Validation is in bits per byte: with B bytes per token it is bits × ln 2 × B nats per token. B is not
printed; it is the ratio of the training loss to the validation beside it, so that levels agree by construction and
only the shape of the validation curve is evidence.
"""

import math
import re
import statistics

from jaxgpt.logs.collector import Collector, duration, finite, number, whole
from jaxgpt.logs.history import Evaluation, Step

NAME = "nanochat"
MARKS = ("| loss: ", " bpb: ")
KNOWN = re.compile(r"\bstep \d+/\d+ \(\d[\d.]*%\) \| loss: |\bStep \d+ \| Validation bpb: ")
STEP = re.compile(r"\bstep (\d{1,10})/(\d{1,10}) \([\d.]{1,10}%\) \| loss: ([^\s|]{1,40})")
RATE = re.compile(r"\| lrm: ([^\s|]{1,40})")
TIME = re.compile(r"\| dt: ([\d.]{1,40})ms")
NORM = re.compile(r"\| grad norm: ([^\s|]{1,40})")
VALIDATION = re.compile(r"\bStep (\d{1,10}) \| Validation bpb: ([^\s|]{1,40})")
BATCH = re.compile(r"[Tt]otal batch size:? ([\d,]{1,20})")
PARAMETERS = re.compile(r"[Nn]umber of parameters: ([\d,]{1,20})")
VOCABULARY = re.compile(r"[Vv]ocab size: ([\d,]{1,20})")
PLAUSIBLE = (1.0, 16.0)  # bytes per token


class Reader:
    """Reads line by line into a `Collector`; the unit of the validation is only known at the end."""

    def __init__(self, collector: Collector) -> None:
        self._found = collector
        collector.facts |= {"smoothed_loss": True, "single_batch_loss": True, "relative_rate": True}

    def line(self, at: int, text: str) -> None:
        if found := STEP.search(text):
            self._step(at, text, found)
        elif found := VALIDATION.search(text):
            step = whole(found[1])
            if step is not None:
                self._found.evaluation(Evaluation(step, number(found[2]), line=at))
        elif found := BATCH.search(text):
            self._found.header(at)
            self._fact("tokens_per_step", found[1])
        elif found := PARAMETERS.search(text):
            self._fact("parameters", found[1])
        elif found := VOCABULARY.search(text):
            self._found.setting("vocab_size", float(found[1].replace(",", "") or 0))

    def _step(self, at: int, text: str, found: re.Match[str]) -> None:
        step = whole(found[1])
        if step is None:
            return
        self._found.facts["total_steps"] = whole(found[2]) or None
        spent, rate, norm = (pattern.search(text) for pattern in (TIME, RATE, NORM))
        seconds = finite(spent[1]) if spent else None
        self._found.step(
            Step(
                step,
                number(found[3]),
                duration(None if seconds is None else seconds / 1e3),
                number(rate[1]) if rate else None,
                number(norm[1]) if norm else None,
                at,
            )
        )

    def _fact(self, name: str, text: str) -> None:
        value = finite(text.replace(",", ""))
        if value:
            self._found.facts[name] = value

    def end(self) -> None:
        """Turns the validation into nats per token where the training loss tells how long a token is."""
        self._found.settle()
        length = self._bytes_per_token()
        if length is None:
            if self._found.evaluations:
                self._found.note("validation is in bits per byte, and no training loss beside it tells nats per token")
            self._found.evaluations = []
            return
        nats = math.log(2) * length
        self._found.evaluations = [
            e._replace(val=None if e.val is None else e.val * nats) for e in self._found.evaluations
        ]
        self._found.note(
            f"validation is in bits per byte; {length:.3f} bytes per token, at which it agrees with the training loss, "
            "turn it into nats per token, so that a gap between the two cannot be seen"
        )

    def _bytes_per_token(self) -> float | None:
        """The median ratio of the training loss to the validation of the later half."""
        losses = {step.step: step.loss for step in self._found.steps if step.loss is not None}
        ratios = []
        for evaluation in self._found.evaluations[len(self._found.evaluations) // 2 :]:
            loss = losses.get(evaluation.step, losses.get(evaluation.step - 1))
            if loss is not None and evaluation.val and math.isfinite(loss):
                ratio = loss / (evaluation.val * math.log(2))
                ratios += [ratio] if PLAUSIBLE[0] < ratio < PLAUSIBLE[1] else []
        return statistics.median(ratios) if ratios else None
