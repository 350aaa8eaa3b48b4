"""nanochat's lines: `step 00100/21400 (0.47%) | loss: … | lrm: … | dt: …ms`, `Step 00250 | Validation bpb: …`.

`loss` is a running mean (0.9) of one process's last micro-batch, in nats per token; `lrm` is the learning rate as a
fraction of its peak. Validation is in bits per byte: with B bytes per token it is bits × ln 2 × B nats per token. B is
not printed; the reader estimates it as the ratio of the training loss to the validation at the same step. The levels
of both therefore agree by construction, and only the shape of the validation curve is evidence.
"""

import math
import re
import statistics

from jaxgpt.logs import reader
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.reader import parse_count, parse_step

NAME = "nanochat"
TRAITS = LogTraits(fixed_eval_set=True, optimizer="muon", lr_is_relative=True)
MARKERS = ("| loss: ", " bpb: ")
PATTERN = re.compile(r"\bstep \d+/\d+ \(\d[\d.]*%\) \| loss: |\bStep \d+ \| Validation bpb: ")
STEP = re.compile(
    r"\bstep (?P<step>\d{1,10})/(?P<total>\d{1,10}) \([\d.]{1,10}%\) \| loss: (?P<loss>[^\s|]{1,40})"
    r"(?=(?:.*?\| lrm: (?P<lr>[^\s|]{1,40}))?)"  # these three in any order
    r"(?=(?:.*?\| dt: (?P<ms>[\d.]{1,40})ms)?)"
    r"(?=(?:.*?\| grad norm: (?P<norm>[^\s|]{1,40}))?)"
)
VALIDATION = re.compile(r"\bStep (?P<step>\d{1,10}) \| Validation bpb: (?P<loss>[^\s|]{1,40})")
BATCH = re.compile(r"[Tt]otal batch size:? ([\d,]{1,20})")
PARAMETERS = re.compile(r"[Nn]umber of parameters: ([\d,]{1,20})")
VOCABULARY = re.compile(r"[Vv]ocab size: ([\d,]{1,20})")
BYTES_PER_TOKEN = (1.0, 16.0)  # plausible range


class Reader(reader.Reader):
    """Reads line by line into a `Collector`. The unit of the validation is known only at the end."""

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if match := STEP.search(text):
            self._log.metadata["total_steps"] = parse_step(match["total"]) or None
            self._add_step(line_no, match)
        elif match := VALIDATION.search(text):
            self._add_evaluation(line_no, match)
        elif match := BATCH.search(text):
            self._log.header(line_no)
            self._set_metadata(tokens_per_step=parse_count(match[1]))
        elif match := PARAMETERS.search(text):
            self._set_metadata(parameters=parse_count(match[1]))
        elif match := VOCABULARY.search(text):
            self._log.hyperparameters["vocab_size"] = parse_count(match[1]) or 0.0

    def end(self) -> None:
        """Converts the validation losses to nats per token, if the training loss tells how long a token is."""
        self._log.flush()
        if not self._log.evaluations:
            return
        length = self._bytes_per_token()
        if length is None:
            self._log.note("validation is in bits per byte, and no training loss beside it tells nats per token")
            self._log.evaluations = []
            return
        nats = math.log(2) * length
        self._log.evaluations = [
            evaluation._replace(val=None if evaluation.val is None else evaluation.val * nats)
            for evaluation in self._log.evaluations
        ]
        self._log.note(
            f"validation is in bits per byte; it was converted to nats per token with {length:.3f} bytes per token, at "
            "which it agrees with the training loss, so that a gap between the two cannot be seen"
        )

    def _bytes_per_token(self) -> float | None:
        """The median ratio of the training loss to the validation, over the later half of the evaluations."""
        losses = {step.step: step.loss for step in self._log.steps if step.loss is not None}
        ratios = []
        for evaluation in self._log.evaluations[len(self._log.evaluations) // 2 :]:
            loss = losses.get(evaluation.step, losses.get(evaluation.step - 1))
            if loss is not None and evaluation.val and math.isfinite(loss):
                ratios.append(loss / (evaluation.val * math.log(2)))
        plausible = [ratio for ratio in ratios if BYTES_PER_TOKEN[0] < ratio < BYTES_PER_TOKEN[1]]
        return statistics.median(plausible) if plausible else None
