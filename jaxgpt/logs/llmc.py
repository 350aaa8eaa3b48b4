"""llm.c's `main.log` and its output.

`s:N trl` is the step after N others, `s:N tel` is measured before it. In the output, `step N/M` is the N-th step, and
`val loss` precedes the step that follows it. A loss is the mean over the whole batch.
"""

import re

from jaxgpt.logs.collector import Collector, parse_finite, parse_milliseconds, parse_number, parse_step
from jaxgpt.logs.history import Evaluation, LogTraits, Step

NAME = "llmc"
TRAITS = LogTraits(fixed_eval_set=True)
MARKERS = ("tel:", "trl:", "trn:", "| loss ")
PATTERN = re.compile(r"\bs:\d+ +(?:tel|trl|trn):|\bstep +\d+/\d+ \| loss ")
RECORD = re.compile(r"\bs:(\d{1,10})\s+(tel|trl|trn):([^\s]{1,40})(?:\s+lr:([^\s]{1,40}))?(?:\s+norm:([^\s]{1,40}))?")
STEP = re.compile(
    r"\bstep +(\d{1,10})/(\d{1,10}) \| loss ([^\s|]{1,40})[^|]{0,40}\|\s*norm ([^\s|]{1,40})[^|]{0,40}"
    r"\|\s*lr ([^\s|]{1,40})\s*\|\s*([\d.]{1,40}) ms"
)
VALIDATION = re.compile(r"(?:^|\s)val loss ([^\s]{1,40})\s*$")
TABLE_ROW = re.compile(r"\|\s*([A-Za-z_][\w ()]{0,30}?)\s*\|\s*(\S.{0,100}?)\s*\|")
NAMES = {
    "total batch size": "tokens_per_iteration",
    "LR scheduler": "schedule",
    "learning rate (LR)": "learning_rate",
    "warmup iterations": "warmup_iters",
    "final LR fraction": "final_lr_fraction",
    "weight decay": "weight_decay",
    "train_num_batches": "total_steps",
    "val_num_batches": "val_batches",
    "micro batch size B": "batch_size",
    "sequence length T": "block_size",
    "max_sequence_length T": "positions",
    "num_processes": "processes",
    "vocab_size V": "vocab_size",
    "channels C": "n_embd",
    "num_layers L": "n_layer",
    "num_parameters": "all_parameters",
}


class Reader:
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        self._log = collector
        self._steps_done = 0

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if match := RECORD.search(text):
            self._record(line_no, *match.groups())
        elif "| loss " in text and (match := STEP.search(text)):
            self._step(line_no, *match.groups())
        elif "val loss" in text and (match := VALIDATION.search(text)):
            self._log.add(Evaluation(self._steps_done, parse_number(match[1]), line=line_no))
        elif "|" in text and (match := TABLE_ROW.search(text)):
            self._table_row(line_no, match[1], match[2])

    def _record(self, line_no: int, n: str, kind: str, loss: str, lr: str | None, norm: str | None) -> None:
        step = parse_step(n)
        if step is None:
            return
        if kind == "tel":
            self._log.add(Evaluation(step, parse_number(loss), line=line_no))
        else:
            self._log.add(Step(step, parse_number(loss), None, parse_number(lr), parse_number(norm), line_no))

    def _step(self, line_no: int, n: str, total: str, loss: str, norm: str, lr: str, milliseconds: str) -> None:
        count = parse_step(n)
        if not count:
            return
        self._steps_done = count
        self._log.hyperparameters["total_steps"] = float(total)
        seconds = parse_milliseconds(milliseconds)
        self._log.add(Step(count - 1, parse_number(loss), seconds, parse_number(lr), parse_number(norm), line_no))

    def _table_row(self, line_no: int, name: str, text: str) -> None:
        if name == "train data pattern":
            self._log.header(line_no)
            self._log.hyperparameters["dataset"] = text
        elif name == "device":
            self._log.metadata["device"] = text
        elif name == "LR scheduler":
            self._log.hyperparameters["schedule"] = text
        elif name in NAMES and (value := parse_finite(text)) is not None:
            self._log.hyperparameters[NAMES[name]] = value

    def end(self) -> None:
        """Derives the run's metadata from its hyperparameters."""
        values = self._log.all_hyperparameters()
        numbers = {name: parse_finite(values.get(name)) for name in NAMES.values()}
        metadata: dict[str, float | None] = {
            "total_steps": parse_step(numbers["total_steps"]),
            "tokens_per_step": numbers["tokens_per_iteration"],
        }
        if numbers["all_parameters"]:
            positions = (numbers["positions"] or 0.0) * (numbers["n_embd"] or 0.0)
            metadata["parameters"] = max(numbers["all_parameters"] - positions, 0.0)
        if numbers["val_batches"] and numbers["batch_size"] and numbers["block_size"]:
            batch = numbers["batch_size"] * numbers["block_size"] * (numbers["processes"] or 1)
            metadata["eval_tokens"] = numbers["val_batches"] * batch
        self._log.metadata |= {name: value for name, value in metadata.items() if value}
