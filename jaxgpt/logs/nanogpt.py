"""What nanoGPT prints, and our own `train` where its output is piped.

`time` of an iteration is from the end of the one before: it holds compiling, evaluation and saving. `loss` is that of
the last micro-batch alone. `iter N` is the update after N others, `step N` is measured before it. Iterations 0 to
max_iters are max_iters + 1 updates. Model FLOPs utilization is −100 % for five iterations and refers to an A100: it is
not read.
"""

import re

from jaxgpt.logs.collector import MOST_STEP, Collector, duration, number, whole
from jaxgpt.logs.history import Evaluation, Step

NAME = "nanogpt"
MARKS = (": loss ", ": train loss ")
KNOWN = re.compile(r"iter \d+: loss |step \d+: train loss ")
STEP = re.compile(r"\biter (\d{1,10}): loss ([^\s,]{1,40})(?:, time (-?[\d.]{1,40})ms)?")
EVALUATION = re.compile(r"\bstep (\d{1,10}): train loss ([^\s,]{1,40})(?:, val loss ([^\s,]{1,40}))?")
OVERRIDING = re.compile(r"Overriding: (\w{1,40}) = (.{1,200})")
TOKENS = re.compile(r"tokens per iteration will be: ([\d,]{1,30})")
PARAMETERS = re.compile(r"number of parameters: ([\d.]{1,20})([KMB]?)")
OURS = re.compile(r"saving checkpoint of step (\d{1,10})")
RUN = re.compile(r"\brun: .*?, (?:new|resumed at step [\d,]{1,20}), ([\d,]{1,20}) steps")
DATA = re.compile(r"\bdata: ([\d,]{1,20}) tokens in ")
DEVICE = re.compile(r"\bdevice: (\d{1,6}) x (.{1,80}?) \(")
WORDS = (
    "max_iters|lr_decay_iters|warmup_iters|learning_rate|min_lr|decay_lr|batch_size|block_size|dropout|weight_decay|"
    "gradient_accumulation_steps|eval_iters|eval_interval|log_interval|n_layer|n_head|n_embd|vocab_size|bias|dataset"
)
ASSIGNED = re.compile(rf"(?:^|\s)({WORDS})\s*=(?!=)\s*([^#]{{1,200}})")
UNIT = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}


class Reader:
    """Reads line by line into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        self._found = collector
        self._found.facts["single_batch_loss"] = True
        self._evaluated = self._saved = -1
        self._ours = False

    def line(self, at: int, text: str) -> None:
        if "iter " in text and (found := STEP.search(text)):
            self._step(at, *found.groups())
        elif "step " in text and (found := EVALUATION.search(text)):
            self._evaluation(at, *found.groups())
        elif "saving checkpoint" in text:
            self._save(text)
        elif "=" in text or ": " in text:
            self._header(at, text)

    def _step(self, at: int, n: str, loss: str, milliseconds: str | None) -> None:
        step, spent = int(n), number(milliseconds)
        if step > MOST_STEP:
            return
        pure = self._ours or self._evaluated != step
        self._found.step(Step(step, number(loss), duration(spent and spent / 1e3), line=at, pure=pure))

    def _evaluation(self, at: int, n: str, train: str, val: str | None) -> None:
        step = whole(n)
        if step is not None:
            self._evaluated = step
            self._found.evaluation(Evaluation(step, number(val), number(train), line=at))

    def _save(self, text: str) -> None:
        found = OURS.search(text)
        if found and (step := whole(found[1])) is not None:
            self._is_ours()
            self._found.saved(step)
        elif self._evaluated >= 0:
            self._found.saved(self._evaluated)

    def _is_ours(self) -> None:
        """Our own lines: evaluation and saving stand outside `time`, the loss is that of the whole batch."""
        self._ours = True
        self._found.facts["single_batch_loss"] = False

    def _header(self, at: int, text: str) -> None:
        if "Overriding" in text or "Resuming training from" in text or "tokens per iteration" in text:
            self._found.header(at)
        if found := TOKENS.search(text):
            self._set("tokens_per_iteration", found[1].replace(",", ""))
        elif found := PARAMETERS.search(text):
            self._set("parameters", found[1], UNIT[found[2]])
        elif found := OVERRIDING.search(text) or ASSIGNED.search(text):
            value = literal(found[2])
            if value is not None:
                self._found.setting(found[1], value)
        elif found := RUN.search(text):
            self._is_ours()
            self._set("total_steps", found[1].replace(",", ""))
        elif found := DATA.search(text):
            self._set("unique_tokens", found[1].replace(",", ""))
        elif found := DEVICE.search(text):
            self._found.facts["device"] = found[2]

    def _set(self, name: str, text: str, unit: float = 1.0) -> None:
        value = number(text)
        if value is not None and 0 < value * unit < 1e18:
            self._found.setting(name, value * unit)

    def end(self) -> None:
        """Turns the header's settings into facts."""
        settings = self._found.all_settings()
        facts: dict[str, float | None] = {"total_steps": whole(settings.get("total_steps", settings.get("max_iters")))}
        plain = {"parameters": "parameters", "unique_tokens": "unique_tokens"}
        facts |= {fact: number(settings.get(name)) for fact, name in plain.items()}
        sizes = [number(settings.get(name)) for name in ("batch_size", "block_size")]
        accumulated, iters = number(settings.get("gradient_accumulation_steps")), number(settings.get("eval_iters"))
        facts["tokens_per_step"] = number(settings.get("tokens_per_iteration")) or product(accumulated, *sizes)
        facts["eval_tokens"] = product(iters, *sizes)
        self._found.facts |= {name: value for name, value in facts.items() if value}


def literal(text: str) -> float | bool | str | None:
    """The value that a config's text spells: a number, a product of numbers, a truth, a quoted word; else None."""
    text = text.split("#")[0].strip()
    if text in ("True", "False"):
        return text == "True"
    factors = [number(part.strip().replace("_", "")) for part in text.split("*")]
    value = product(*factors)
    if value is not None:
        return value
    quoted = re.fullmatch(r"(['\"]?)([\w./-]{1,100})\1", text)
    return quoted[2] if quoted else None


def product(*factors: float | None) -> float | None:
    """The product; None if a factor is missing or it is not finite."""
    result = 1.0
    for factor in factors:
        if factor is None or not abs(result * factor) < 1e18:
            return None
        result *= factor
    return result
