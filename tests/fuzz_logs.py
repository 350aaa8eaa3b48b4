"""A fuzzer for logs: mutated lines through `logs.read_text`, which must answer or raise `JaxgptError`, nothing else.

    python tests/fuzz_logs.py [--lines 1e6] [--seed S]

Every execution takes the log of one program and some lines of another's, and changes bytes, numbers, the order of lines
and line ends. A tenth of the histories are passed to `resolve_context`, which must do the same. A text that fails is
printed with its seed.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable

from helpers import logformats, logsamples

from jaxgpt import logs
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.options import Options
from jaxgpt.errors import JaxgptError
from jaxgpt.logs import lines

SEEDS = [
    *logsamples.ALL.values(),
    *logsamples.SCREENS.values(),
    logsamples.MARKDOWN,
    logsamples.table("\t"),
    *logformats.SAMPLES.values(),
    *(text for texts in logformats.OTHERS.values() for text in texts),
]
LINES = [text.splitlines() for text in SEEDS]
NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-5",
    "1" + "0" * 30,
    "9" * 5000,
    "0",
    "1e-400",
    "1_000",
    "٣",
    "1e308",
    "",
    "-0",
]
PIECES = [
    "\x1b[31m",
    "\r",
    "\x00",
    "\ufeff",
    "[rank0]: ",
    "2024-01-01 00:00:00 | INFO | ",
    "{" * 3000,
    "|",
    ",",
    "é",
    "\ud800",
]
BYTES = [b"\xff\xfe", b"\x00", b"\r\n", b"\n\n", b"\xc3\x28", b"\x1b]0;"]
NUMBER = re.compile(r"\d[\d.]*(?:e[-+]?\d+)?")


def mutate(text: list[str], rng: random.Random) -> list[str]:
    """A section of a log with a tenth of its lines changed."""
    begin = rng.randrange(len(text)) if rng.random() < 0.7 else 0
    result = text[begin : begin + rng.randint(1, 120)]
    for _ in range(1 + len(result) // 10):
        mutate_line(result, rng.randrange(len(result)), rng)
    return result


def mutate_line(text: list[str], at: int, rng: random.Random) -> None:
    """Changes the line with index `at`, or the lines around it."""
    line = text[at]
    kind = rng.randrange(8)
    if kind == 0:
        text.insert(at, rng.choice(rng.choice(LINES)))
    elif kind == 1:
        text[at:at] = text[at : at + rng.randint(1, 5)]
    elif kind == 2:
        text[at] = line[: rng.randint(0, len(line))]
    elif kind == 3:
        position = rng.randint(0, len(line))
        text[at] = line[:position] + rng.choice(PIECES) + line[position:]
    elif kind == 4:
        text[at] += text[rng.randrange(len(text))]
    elif kind == 5:
        other = rng.randrange(len(text))
        text[at], text[other] = text[other], line
    else:
        text[at] = NUMBER.sub(lambda number: number[0] if rng.random() < 0.6 else rng.choice(NUMBERS), line)


def mutate_bytes(text: str, rng: random.Random) -> str:
    """`text` after changes to its bytes, decoded as a log file is."""
    data = bytearray(text.encode(rng.choice(["utf-8", "utf-8", "utf-16"]), "replace"))
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at:at] = rng.choice(BYTES)
    return bytes(data).decode(lines.detect_encoding(bytes(data)), "replace")


def run(count: int, seed: int, report: Callable[[str], None]) -> Counter[str]:
    """Reads at least `count` lines; returns how many logs had each format or error code. Raises any other error."""
    rng = random.Random(seed)
    start = time.monotonic()
    done = 0
    results = Counter[str]()
    while done < count:
        text = "\n".join(mutate(list(rng.choice(LINES)), rng)) + rng.choice(["\n", ""])
        if rng.random() < 0.2 and text:
            text = mutate_bytes(text, rng)
        done += text.count("\n") + 1
        try:
            history = logs.read_text(text, "fuzzed")
            results[history.format] += 1
            if rng.random() < 0.1:
                resolve_context(history, Options(total_steps=rng.choice([None, 100_000])))
        except JaxgptError as error:
            results[error.code] += 1
        except BaseException:
            report(f"after line {done} of seed {seed}: {text!r}")
            raise
    report(f"{done:,} lines, {results.total():,} logs, {time.monotonic() - start:.0f} s: {dict(results)}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run(int(options.lines), options.seed, lambda text: print(text, file=sys.stderr))


if __name__ == "__main__":
    main()
