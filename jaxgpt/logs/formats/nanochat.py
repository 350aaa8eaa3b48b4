"""nanochat's lines: `step 00100/21400 (0.47%) | loss: … | lrm: … | dt: …ms`, `Step 00250 | Validation bpb: …`.

`loss` is a running mean (0.9) of one process's last micro-batch, in nats per token; `lrm` is the learning rate as a
fraction of its peak. Validation is in bits per byte (see `jaxgpt.logs.bits`).
"""

import re

from jaxgpt.logs import bits, reader
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
        bits.convert_evaluations(self._log)
