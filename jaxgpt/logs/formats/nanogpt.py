"""nanoGPT's output, and that of jaxgpt's own `train` where it is piped.

`iter N` is the step after N others, `step N` is measured before it; iterations 0 to max_iters are max_iters + 1 steps.
`time` of an iteration starts at the end of the one before, so that it contains compilation, evaluation and saving.
`loss` is that of the last micro-batch alone. The reader ignores nanoGPT's model FLOPs utilization, which is −100 % for
five iterations and refers to an A100.
"""

import re

from jaxgpt.logs import reader
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.reader import MAX_VALUE, multiply, parse_finite, parse_literal, parse_number, parse_step

NAME = "nanogpt"
TRAITS = LogTraits(optimizer="adamw", default_schedule="cosine", total_is_last_step=True, repeats_data_on_resume=True)
# jaxgpt's own output has the same form. Its `time` excludes evaluation and saving; its `loss` is that of a batch.
JAXGPT_TRAITS = LogTraits(fixed_eval_set=True, default_schedule="cosine")
MARKERS = (": loss ", ": train loss ")
PATTERN = re.compile(r"iter \d[\d,]*: loss |step \d[\d,]*: train loss ")
STEP = re.compile(r"\biter (?P<step>\d[\d,]{0,12}): loss (?P<loss>[^\s,]{1,40})(?:, time (?P<ms>-?[\d.]{1,40})ms)?")
EVALUATION = re.compile(
    r"\bstep (?P<step>\d[\d,]{0,12}): train loss (?P<train>[^\s,]{1,40})(?:, val loss (?P<loss>[^\s,]{1,40}))?"
)
OVERRIDE = re.compile(r"Overriding: (\w{1,40}) = (.{1,200})")
TOKENS = re.compile(r"tokens per iteration(?: will be)?: ([\d,]{1,30})")
PROCESSES = re.compile(r"breaks down as: \d{1,9} grad accum steps \* (\d{1,6}) processes")
VOCABULARY = re.compile(r"found vocab_size = (\d{1,10}) ")
PARAMETERS = re.compile(r"number of parameters: ([\d.]{1,20})([KMB]?)")
JAXGPT_SAVE = re.compile(r"saving checkpoint of step (\d{1,10})")
JAXGPT_RUN = re.compile(
    r"\brun: .*?, (?:new|(?:resumed|forked from .{1,200}?) at step [\d,]{1,20}), ([\d,]{1,20}) steps"
)
JAXGPT_DATA = re.compile(r"\bdata: ([\d,]{1,20}) tokens in ")
JAXGPT_DEVICE = re.compile(r"\bdevice: (\d{1,6}) x (.{1,80}?) \(")
OPTIONS = (
    "max_iters|lr_decay_iters|warmup_iters|learning_rate|min_lr|decay_lr|batch_size|block_size|dropout|weight_decay|"
    "gradient_accumulation_steps|eval_iters|eval_interval|log_interval|n_layer|n_head|n_embd|vocab_size|bias|dataset"
)
ASSIGNMENT = re.compile(rf"(?:^|\s)({OPTIONS})\s*=(?!=)\s*([^#]{{1,200}})")
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
DEFAULTS = {"weight_decay": 0.1, "dropout": 0.0}  # nanoGPT's


class Reader(reader.Reader):
    """Reads line by line into a `Collector`."""

    DEFAULT_EVAL_ITERS, DEFAULT_BATCH, DEFAULT_BLOCK = 200, 12, 1024  # of what a complete header leaves out

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if "iter " in text and (match := STEP.search(text)):
            step = parse_step(match["step"]) if "," in match["step"] else int(match["step"])
            is_jaxgpt = self._log.traits is JAXGPT_TRAITS
            self._add_step(line_no, match, step_only=is_jaxgpt or self._evaluated != step)
        elif "step " in text and (match := EVALUATION.search(text)):
            self._add_evaluation(line_no, match)
        elif "saving checkpoint" in text:
            self._save(text)
        elif "=" in text or ": " in text:
            self._header(line_no, text)

    def _save(self, text: str) -> None:
        match = JAXGPT_SAVE.search(text)
        step = parse_step(match[1]) if match else None
        if step is not None:
            self._log.traits = JAXGPT_TRAITS
            self._log.add_save(step)
        elif self._evaluated >= 0:
            self._log.add_save(self._evaluated)

    def _header(self, line_no: int, text: str) -> None:
        if "Overriding" in text or "Resuming training from" in text or "tokens per iteration" in text:
            self._log.header(line_no)
        if match := TOKENS.search(text):
            self._set("tokens_per_iteration", match[1])
        elif match := VOCABULARY.search(text):
            self._set("vocab_size", match[1])
        elif match := PARAMETERS.search(text):
            self._set("parameters", match[1], UNITS[match[2]])
        elif match := OVERRIDE.search(text) or ASSIGNMENT.search(text):
            value = parse_literal(match[2])
            if value is not None:
                self._log.hyperparameters[match[1]] = value
        elif match := JAXGPT_RUN.search(text):
            self._log.traits = JAXGPT_TRAITS
            self._set("total_steps", match[1])
        elif match := JAXGPT_DATA.search(text):
            self._set("unique_tokens", match[1])
        elif match := JAXGPT_DEVICE.search(text):
            self._log.metadata |= {"device": match[2], "device_count": int(match[1]) or None}
        elif match := PROCESSES.search(text):
            self._log.metadata["device_count"] = int(match[1]) or None

    def _set(self, name: str, text: str, unit: float = 1.0) -> None:
        value = parse_number(text.replace(",", ""))
        if value is not None and 0 < value * unit < MAX_VALUE:
            self._log.hyperparameters[name] = value * unit

    def end(self) -> None:
        """Derives the run's metadata from its hyperparameters."""
        values = self._log.all_hyperparameters()

        def number(name: str) -> float | None:
            return parse_finite(values.get(name))

        sizes = (number("batch_size"), number("block_size"))
        batch = number("tokens_per_iteration") or multiply(number("gradient_accumulation_steps"), *sizes)
        self._set_metadata(
            total_steps=parse_step(values.get("total_steps", values.get("max_iters"))),
            parameters=number("parameters"),
            unique_tokens=number("unique_tokens"),
            tokens_per_step=batch,
            eval_tokens=multiply(number("eval_iters"), *sizes),
        )
        if "tokens_per_iteration" in values:  # the header is complete: what it leaves out has nanoGPT's default
            sizes = (number("batch_size") or self.DEFAULT_BATCH, number("block_size") or self.DEFAULT_BLOCK)
            self._log.metadata["defaults"] = DEFAULTS | {"eval_tokens": self.DEFAULT_EVAL_ITERS * sizes[0] * sizes[1]}
