"""llama2.c's output: nanoGPT's but for the lines of steps, `100 | loss 5.1 | lr 5.0e-04 | 1234.56ms | mfu 12.1%`."""

import re

from jaxgpt.logs.formats import nanogpt
from jaxgpt.logs.history import LogTraits

NAME = "llama2c"
TRAITS = LogTraits(total_is_last_step=True, repeats_data_on_resume=True, optimizer="adamw", default_schedule="cosine")
MARKERS = ("| loss ",)
PATTERN = re.compile(r"(?:^|\s)\d{1,10} \| loss [^\s|]{1,40} \| lr ")
STEP = re.compile(
    r"(?:^|\s)(?P<step>\d{1,10}) \| loss (?P<loss>[^\s|]{1,40}) \| lr (?P<lr>[^\s|]{1,40})"
    r"(?: \| (?P<ms>[\d.]{1,40})ms)?"
)
NAMES = {"max_seq_len": "block_size", "dim": "n_embd", "n_layers": "n_layer"}  # llama2.c's, and nanoGPT's
NAME_PATTERN = re.compile(rf"(?:^|\s)({'|'.join(NAMES)})\s*=(?!=)\s*(\d{{1,12}})")


class Reader(nanogpt.Reader):
    """Reads line by line into a `Collector`."""

    DEFAULT_EVAL_ITERS, DEFAULT_BATCH, DEFAULT_BLOCK = 100, 128, 256

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        if "| loss " in text and (match := STEP.search(text)):
            self._add_step(line_no, match, step_only=self._evaluated != int(match["step"]))
            return
        if match := NAME_PATTERN.search(text):
            self._log.hyperparameters[NAMES[match[1]]] = float(match[2])
        super().line(line_no, text)
