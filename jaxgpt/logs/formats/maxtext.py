"""MaxText's output: `completed step: 100, seconds: 1.341, …, total_weights: 196608, loss: 6.314`.

Step N is the step after N others. `eval metrics after step: N` (earlier `average loss after step=N`) is measured after
it, and printed before its line, which is delayed by a step. `total_weights` counts the tokens of the batch, or of the
evaluation.
"""

import re

from jaxgpt.logs import reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, LogTraits, Step
from jaxgpt.logs.reader import parse_finite, parse_number, parse_step, valid_duration

NAME = "maxtext"
TRAITS = LogTraits(fixed_eval_set=True, optimizer="adamw")
MARKERS = ("completed step: ", "eval metrics after step: ", "average loss after step=")
PATTERN = re.compile(
    r"\bcompleted step: \d{1,10}, seconds: |\b(?:eval metrics|average loss) after step[:=] ?\d{1,10}[,:] "
)
STEP = re.compile(
    r"\bcompleted step: (?P<step>\d{1,10}), seconds: (?P<seconds>[^\s,]{1,40}),"
    r"(?=.{0,400}?\bloss: (?P<loss>[^\s,]{1,40}))"
    r"(?=(?:.{0,400}?\btotal_weights: (?P<tokens>[\d.]{1,20}))?)"
    r"(?=(?:.{0,400}?\bmain_model_loss: (?P<main>[^\s,]{1,40}))?)"
)
EVALUATION = re.compile(
    r"\b(?:eval metrics|average loss) after step[:=] ?(?P<step>\d{1,10})[,:] (?:eval_step_count=\d{1,9}, )?"
    r"(?:eval_)?loss[:=] ?(?P<loss>[^\s,]{1,40})(?:, total_weights=(?P<tokens>[\d.]{1,20}))?"
)
PARAMETERS = re.compile(r"\bnumber parameters: ([\d.]{1,20}) billion")
PARAMETER = re.compile(r"\bConfig param (\w{1,60}): (\S{1,60})")
NAMES = {
    "steps": "total_steps",
    "learning_rate": "learning_rate",
    "adam_weight_decay": "weight_decay",
    "dropout_rate": "dropout",
    "vocab_size": "vocab_size",
    "warmup_steps_fraction": "warmup_fraction",
    "cosine_learning_rate_final_fraction": "final_lr_fraction",
    "learning_rate_final_fraction": "final_lr_fraction",
    "learning_rate_schedule_steps": "lr_decay_iters",
    "base_emb_dim": "n_embd",
    "base_num_decoder_layers": "n_layer",
}
TEXTS = {"opt_type": "optimizer", "dataset_name": "dataset"}
SCHEDULE = "cosine"  # MaxText's, where it has printed its config


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._pending: Evaluation | None = None  # whose step is not logged yet

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if "completed step" in text and (match := STEP.search(text)):
            self._step(line_no, match)
        elif match := EVALUATION.search(text):
            self._evaluation(line_no, match)
        elif match := PARAMETERS.search(text):
            self._set_metadata(parameters=(parse_finite(match[1]) or 0.0) * 1e9)
        elif match := PARAMETER.search(text):
            self._parameter(match[1], match[2])

    def _step(self, line_no: int, match: re.Match[str]) -> None:
        step = parse_step(match["step"])
        if step is None:
            return
        if self._pending is not None and step >= self._pending.step:
            self._flush()
        loss = parse_number(match["main"] or match["loss"])
        self._log.add(Step(step, loss, valid_duration(parse_finite(match["seconds"])), line=line_no))
        self._set_metadata(tokens_per_step=parse_finite(match["tokens"]))

    def _evaluation(self, line_no: int, match: re.Match[str]) -> None:
        step = parse_step(match["step"])
        if step is not None:
            self._flush()
            self._log.accept()
            self._pending = Evaluation(step + 1, parse_number(match["loss"]), line=line_no)
            self._set_metadata(eval_tokens=parse_finite(match["tokens"]))

    def _flush(self) -> None:
        if self._pending is not None:
            self._log.add(self._pending)
            self._pending = None

    def _parameter(self, name: str, text: str) -> None:
        number = parse_finite(text)
        if name in NAMES and number is not None and number >= 0:
            self._log.hyperparameters[NAMES[name]] = number
        elif name in TEXTS and text:
            self._log.hyperparameters[TEXTS[name]] = text

    def end(self) -> None:
        """Derives the run's metadata from the printed config."""
        self._flush()
        values = self._log.hyperparameters
        self._set_metadata(total_steps=parse_step(values.get("total_steps")))
        fraction = parse_finite(values.get("warmup_fraction"))
        steps = parse_finite(values.get("lr_decay_iters")) or parse_finite(values.get("total_steps"))
        if "learning_rate" in values:
            values.setdefault("schedule", SCHEDULE)
        if fraction is not None and steps and fraction <= 1:
            values["warmup_iters"] = float(int(fraction * steps))
