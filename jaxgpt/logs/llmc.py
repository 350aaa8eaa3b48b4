"""llm.c's `main.log` and what it prints.

`s:N trl` is the update after N others, `s:N tel` is measured before it; on the screen `step N/M` is the N-th update,
and `val loss` stands before the step that follows it. A loss is the mean over the whole batch.
"""

import re

from jaxgpt.logs.collector import Collector, duration, finite, number, whole
from jaxgpt.logs.history import Evaluation, Step

NAME = "llmc"
MARKS = ("tel:", "trl:", "trn:", "| loss ")
KNOWN = re.compile(r"\bs:\d+ +(?:tel|trl|trn):|\bstep +\d+/\d+ \| loss ")
RECORD = re.compile(r"\bs:(\d{1,10})\s+(tel|trl|trn):([^\s]{1,40})(?:\s+lr:([^\s]{1,40}))?(?:\s+norm:([^\s]{1,40}))?")
STEP = re.compile(
    r"\bstep +(\d{1,10})/(\d{1,10}) \| loss ([^\s|]{1,40})[^|]{0,40}\|\s*norm ([^\s|]{1,40})[^|]{0,40}"
    r"\|\s*lr ([^\s|]{1,40})\s*\|\s*([\d.]{1,40}) ms"
)
VALIDATION = re.compile(r"(?:^|\s)val loss ([^\s]{1,40})\s*$")
SETTING = re.compile(r"\|\s*([A-Za-z_][\w ()]{0,30}?)\s*\|\s*(\S.{0,100}?)\s*\|")
WORDS = {
    "total batch size": "tokens_per_iteration",
    "LR scheduler": "schedule",
    "learning rate (LR)": "learning_rate",
    "warmup iterations": "warmup_iters",
    "final LR fraction": "end_share",
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
        self._found = collector
        self._done = 0

    def line(self, at: int, text: str) -> None:
        if found := RECORD.search(text):
            self._record(at, *found.groups())
        elif "| loss " in text and (found := STEP.search(text)):
            self._printed(at, *found.groups())
        elif "val loss" in text and (found := VALIDATION.search(text)):
            self._found.evaluation(Evaluation(self._done, number(found[1]), line=at))
        elif "|" in text and (found := SETTING.search(text)):
            self._setting(at, found[1], found[2])

    def _record(self, at: int, n: str, kind: str, loss: str, rate: str | None, norm: str | None) -> None:
        step = whole(n)
        if step is None:
            return
        if kind == "tel":
            self._found.evaluation(Evaluation(step, number(loss), line=at))
        else:
            self._found.step(Step(step, number(loss), None, number(rate), number(norm), at))

    def _printed(self, at: int, n: str, of: str, loss: str, norm: str, rate: str, milliseconds: str) -> None:
        count, spent = whole(n), finite(milliseconds)
        if not count:
            return
        self._done = count
        self._found.settings["total_steps"] = float(of)
        seconds = duration(None if spent is None else spent / 1e3)
        self._found.step(Step(count - 1, number(loss), seconds, number(rate), number(norm), at))

    def _setting(self, at: int, name: str, text: str) -> None:
        if name == "train data pattern":
            self._found.header(at)
            self._found.setting("dataset", text)
        elif name == "device":
            self._found.facts["device"] = text
        elif name == "LR scheduler":
            self._found.setting("schedule", text)
        elif name in WORDS and (value := finite(text)) is not None:
            self._found.setting(WORDS[name], value)

    def end(self) -> None:
        """Turns the printed settings into facts."""
        words = self._found.all_settings()
        held = {name: finite(words.get(name)) for name in WORDS.values()}
        facts: dict[str, float | None] = {
            "total_steps": whole(held["total_steps"]),
            "tokens_per_step": held["tokens_per_iteration"],
        }
        if held["all_parameters"]:
            positions = (held["positions"] or 0.0) * (held["n_embd"] or 0.0)
            facts["parameters"] = max(held["all_parameters"] - positions, 0.0)
        if held["val_batches"] and held["batch_size"] and held["block_size"]:
            facts["eval_tokens"] = (
                held["val_batches"] * held["batch_size"] * held["block_size"] * (held["processes"] or 1)
            )
        self._found.facts |= {name: value for name, value in facts.items() if value}
