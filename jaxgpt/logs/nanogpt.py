"""nanoGPT's output, and that of jaxgpt's own `train` where it is piped.

`iter N` is the step after N others, `step N` is measured before it; iterations 0 to max_iters are max_iters + 1 steps.
`time` of an iteration starts at the end of the one before, so that it contains compilation, evaluation and saving.
`loss` is that of the last micro-batch alone. The reader ignores nanoGPT's model FLOPs utilization, which is −100 % for
five iterations and refers to an A100.
"""

import re

from jaxgpt.logs.collector import MAX_STEP, Collector, parse_finite, parse_milliseconds, parse_number, parse_step
from jaxgpt.logs.history import Evaluation, LogTraits, Step

NAME = "nanogpt"
TRAITS = LogTraits(total_is_last_step=True, repeats_data_on_resume=True)
JAXGPT_TRAITS = LogTraits(fixed_eval_set=True)  # of jaxgpt's own output, which has the same form
MARKERS = (": loss ", ": train loss ")
PATTERN = re.compile(r"iter \d+: loss |step \d+: train loss ")
STEP = re.compile(r"\biter (\d{1,10}): loss ([^\s,]{1,40})(?:, time (-?[\d.]{1,40})ms)?")
EVALUATION = re.compile(r"\bstep (\d{1,10}): train loss ([^\s,]{1,40})(?:, val loss ([^\s,]{1,40}))?")
OVERRIDE = re.compile(r"Overriding: (\w{1,40}) = (.{1,200})")
TOKENS = re.compile(r"tokens per iteration will be: ([\d,]{1,30})")
PARAMETERS = re.compile(r"number of parameters: ([\d.]{1,20})([KMB]?)")
JAXGPT_SAVE = re.compile(r"saving checkpoint of step (\d{1,10})")
JAXGPT_RUN = re.compile(r"\brun: .*?, (?:new|resumed at step [\d,]{1,20}), ([\d,]{1,20}) steps")
JAXGPT_DATA = re.compile(r"\bdata: ([\d,]{1,20}) tokens in ")
JAXGPT_DEVICE = re.compile(r"\bdevice: (\d{1,6}) x (.{1,80}?) \(")
OPTIONS = (
    "max_iters|lr_decay_iters|warmup_iters|learning_rate|min_lr|decay_lr|batch_size|block_size|dropout|weight_decay|"
    "gradient_accumulation_steps|eval_iters|eval_interval|log_interval|n_layer|n_head|n_embd|vocab_size|bias|dataset"
)
ASSIGNMENT = re.compile(rf"(?:^|\s)({OPTIONS})\s*=(?!=)\s*([^#]{{1,200}})")
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
DEFAULTS = {"weight_decay": 0.1, "dropout": 0.0}  # nanoGPT's, as the sizes below
DEFAULT_EVAL_ITERS, DEFAULT_BATCH, DEFAULT_BLOCK = 200, 12, 1024
MAX_VALUE = 1e18


class Reader:
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        self._log = collector
        self._evaluated = -1
        self._is_jaxgpt = False

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if "iter " in text and (match := STEP.search(text)):
            self._step(line_no, *match.groups())
        elif "step " in text and (match := EVALUATION.search(text)):
            self._evaluation(line_no, *match.groups())
        elif "saving checkpoint" in text:
            self._save(text)
        elif "=" in text or ": " in text:
            self._header(line_no, text)

    def _step(self, line_no: int, n: str, loss: str, milliseconds: str | None) -> None:
        step = int(n)
        if step > MAX_STEP:
            return
        step_only = self._is_jaxgpt or self._evaluated != step
        seconds = parse_milliseconds(milliseconds)
        self._log.add(Step(step, parse_number(loss), seconds, line=line_no, step_only=step_only))

    def _evaluation(self, line_no: int, n: str, train: str, val: str | None) -> None:
        step = parse_step(n)
        if step is not None:
            self._evaluated = step
            self._log.add(Evaluation(step, parse_number(val), parse_number(train), line=line_no))

    def _save(self, text: str) -> None:
        match = JAXGPT_SAVE.search(text)
        step = parse_step(match[1]) if match else None
        if step is not None:
            self._set_jaxgpt()
            self._log.add_save(step)
        elif self._evaluated >= 0:
            self._log.add_save(self._evaluated)

    def _set_jaxgpt(self) -> None:
        """The lines are jaxgpt's: `time` excludes evaluation and saving, `loss` is that of the whole batch."""
        self._is_jaxgpt = True
        self._log.traits = JAXGPT_TRAITS

    def _header(self, line_no: int, text: str) -> None:
        if "Overriding" in text or "Resuming training from" in text or "tokens per iteration" in text:
            self._log.header(line_no)
        if match := TOKENS.search(text):
            self._set("tokens_per_iteration", match[1])
        elif match := PARAMETERS.search(text):
            self._set("parameters", match[1], UNITS[match[2]])
        elif match := OVERRIDE.search(text) or ASSIGNMENT.search(text):
            value = parse_literal(match[2])
            if value is not None:
                self._log.hyperparameters[match[1]] = value
        elif match := JAXGPT_RUN.search(text):
            self._set_jaxgpt()
            self._set("total_steps", match[1])
        elif match := JAXGPT_DATA.search(text):
            self._set("unique_tokens", match[1])
        elif match := JAXGPT_DEVICE.search(text):
            self._log.metadata["device"] = match[2]

    def _set(self, name: str, text: str, unit: float = 1.0) -> None:
        value = parse_number(text.replace(",", ""))
        if value is not None and 0 < value * unit < MAX_VALUE:
            self._log.hyperparameters[name] = value * unit

    def end(self) -> None:
        """Derives the run's metadata from its hyperparameters."""
        values = self._log.all_hyperparameters()

        def number(name: str) -> float | None:
            return parse_number(values.get(name))

        sizes = (number("batch_size"), number("block_size"))
        batch = number("tokens_per_iteration") or multiply(number("gradient_accumulation_steps"), *sizes)
        metadata: dict[str, float | None] = {
            "total_steps": parse_step(values.get("total_steps", values.get("max_iters"))),
            "parameters": number("parameters"),
            "unique_tokens": number("unique_tokens"),
            "tokens_per_step": batch,
            "eval_tokens": multiply(number("eval_iters"), *sizes),
        }
        self._log.metadata |= {name: value for name, value in metadata.items() if value}
        if "tokens_per_iteration" in values:  # the header is complete: what it leaves out has nanoGPT's default
            self._log.metadata["defaults"] = DEFAULTS | {"eval_tokens": self._default_eval_tokens(values)}

    def _default_eval_tokens(self, values: dict[str, float | bool | str]) -> float:
        batch = parse_finite(values.get("batch_size")) or DEFAULT_BATCH
        block = parse_finite(values.get("block_size")) or DEFAULT_BLOCK
        return DEFAULT_EVAL_ITERS * batch * block


def parse_literal(text: str) -> float | bool | str | None:
    """The value of a config's expression: a number, a product of numbers, a boolean or a quoted word; else None."""
    text = text.split("#")[0].strip()
    if text in ("True", "False"):
        return text == "True"
    factors = [parse_number(factor.strip().replace("_", "")) for factor in text.split("*")]
    value = multiply(*factors)
    if value is not None:
        return value
    quoted = re.fullmatch(r"(['\"]?)([\w./-]{1,100})\1", text)
    return quoted[2] if quoted else None


def multiply(*factors: float | None) -> float | None:
    """The product; None if a factor is missing or the product is not below 1e18."""
    result = 1.0
    for factor in factors:
        if factor is None or not abs(result * factor) < MAX_VALUE:
            return None
        result *= factor
    return result
