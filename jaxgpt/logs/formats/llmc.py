"""llm.c's `main.log` and its output.

`s:N trl` is the step after N others, `s:N tel` is measured before it. In the output, `step N/M` is the N-th step, and
`val loss` precedes the step that follows it. A loss is the mean over the batch.
"""

import re

from jaxgpt.logs import reader
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.reader import parse_finite, parse_step

NAME = "llmc"
TRAITS = LogTraits(fixed_eval_set=True, optimizer="adamw", default_schedule="cosine")
MARKERS = ("tel:", "trl:", "trn:", "| loss ")
PATTERN = re.compile(r"\bs:\d+ +(?:tel|trl|trn):|\bstep +\d+/\d+ \| loss ")
RECORD = re.compile(
    r"\bs:(?P<step>\d{1,10})\s+(?P<kind>tel|trl|trn):(?P<loss>[^\s]{1,40})"
    r"(?:\s+lr:(?P<lr>[^\s]{1,40}))?(?:\s+norm:(?P<norm>[^\s]{1,40}))?"
)
STEP = re.compile(
    r"\bstep +(?P<step>\d{1,10})/(?P<total>\d{1,10}) \| loss (?P<loss>[^\s|]{1,40})[^|]{0,40}"
    r"\|\s*norm (?P<norm>[^\s|]{1,40})[^|]{0,40}\|\s*lr (?P<lr>[^\s|]{1,40})\s*\|\s*(?P<ms>[\d.]{1,40}) ms"
)
VALIDATION = re.compile(r"(?:^|\s)val loss (?P<loss>[^\s]{1,40})\s*$")
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


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if match := RECORD.search(text):
            add = self._add_evaluation if match["kind"] == "tel" else self._add_step
            add(line_no, match)
        elif "| loss " in text and (match := STEP.search(text)):
            self._log.hyperparameters["total_steps"] = float(match["total"])
            self._add_step(line_no, match, first=1)
        elif "val loss" in text and (match := VALIDATION.search(text)):
            self._add_evaluation(line_no, match)
        elif "|" in text and (match := TABLE_ROW.search(text)):
            self._table_row(line_no, match[1], match[2])

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
        positions = (numbers["positions"] or 0.0) * (numbers["n_embd"] or 0.0)
        batch = (numbers["batch_size"] or 0.0) * (numbers["block_size"] or 0.0) * (numbers["processes"] or 1)
        self._set_metadata(
            total_steps=parse_step(numbers["total_steps"]),
            tokens_per_step=numbers["tokens_per_iteration"],
            parameters=max((numbers["all_parameters"] or 0.0) - positions, 0.0),
            eval_tokens=(numbers["val_batches"] or 0.0) * batch,
        )
