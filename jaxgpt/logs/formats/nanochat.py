"""nanochat's lines: `step 00100/21400 (0.47%) | loss: … | lrm: … | dt: …ms`, `Step 00250 | Validation bpb: …`.

`loss` is a running mean (0.9) of one process's last micro-batch, in nats per token; `lrm` is the learning rate as a
fraction of its peak. Validation is in bits per byte (see `jaxgpt.logs.bits`).
"""

import re

from jaxgpt.logs import bits, reader
from jaxgpt.logs.history import LogTraits
from jaxgpt.logs.reader import parse_count, parse_finite, parse_step

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
RESUME = re.compile(r"Resuming optimization from step \d")
PARAMETERS = re.compile(r"[Nn]umber of parameters: ([\d,]{1,20})|(?:^|\s)total {2,24}: ([\d,]{1,20})\s*$")
LENGTH = re.compile(r"number of iterations(?: from target [\w:]{1,20}(?: ratio)?)?: ([\d,]{1,20})")
WEIGHT_DECAY = re.compile(r"Scaling weight decay from [\d.]{1,12} to ([\d.]{1,12})")
DEVICE = re.compile(r"\bGPU: (.{1,80}?) \| Peak FLOPS")
MODEL = re.compile(r'"(vocab_size|n_layer|n_embd)": (\d{1,9})|\bVocab size: ([\d,]{1,20})')


class Reader(reader.Reader):
    """Reads line by line into a `Collector`. The unit of the validation is known only at the end."""

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if match := STEP.search(text):
            self._log.metadata["total_steps"] = parse_step(match["total"]) or None
            self._add_step(line_no, match)
        elif match := VALIDATION.search(text):
            self._add_evaluation(line_no, match)
        elif ": " in text or "size" in text or "Scaling" in text:
            self._header(line_no, text)

    def _header(self, line_no: int, text: str) -> None:
        """Reads a line that the program prints before the first step."""
        values = self._log.hyperparameters
        if match := BATCH.search(text) or RESUME.search(text):
            self._log.header(line_no)
            self._set_metadata(tokens_per_step=parse_count(match[1]) if match.re is BATCH else None)
        elif match := PARAMETERS.search(text):
            self._set_metadata(parameters=parse_count(match[1] or match[2]))
        elif match := LENGTH.search(text):
            self._set_metadata(total_steps=parse_step(match[1].replace(",", "")))
        elif match := DEVICE.search(text):
            self._set_metadata(device=match[1])
        elif match := WEIGHT_DECAY.search(text):
            values["weight_decay"] = parse_finite(match[1]) or 0.0
        elif match := MODEL.search(text):
            values[match[1] or "vocab_size"] = parse_count(match[2] or match[3]) or 0.0

    def end(self) -> None:
        """Converts the validation losses to nats per token, if the training loss tells how long a token is."""
        bits.convert_evaluations(self._log)
