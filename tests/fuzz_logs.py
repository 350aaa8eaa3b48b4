"""A fuzzer for logs: mutated lines through `logs.read_text`, which must answer or raise `JaxgptError`, nothing else.

    python tests/fuzz_logs.py [--lines 1e6] [--seed S]

Every execution takes the log of one program, some of another's lines, and changes bytes, numbers, places and ends
of lines. A tenth of what is read goes on to `resolve_context`, which must hold to the same. What fails is printed with
its seed.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable

from helpers import logsamples

from jaxgpt import logs
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.options import Options
from jaxgpt.errors import JaxgptError
from jaxgpt.logs import lines

SEEDS = [*logsamples.ALL.values(), *logsamples.SCREENS.values(), logsamples.MARKDOWN, logsamples.table("\t")]
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


def mutated(text: list[str], chance: random.Random) -> list[str]:
    """A stretch of a log with a tenth of its lines changed."""
    begin = chance.randrange(len(text))
    found = text[begin : begin + chance.randint(1, 120)] if chance.random() < 0.7 else text[: chance.randint(1, 120)]
    for _ in range(1 + len(found) // 10):
        at, kind = chance.randrange(len(found)), chance.randrange(8)
        if kind == 0:
            found.insert(at, chance.choice(chance.choice(LINES)))
        elif kind == 1:
            found[at:at] = found[at : at + chance.randint(1, 5)]
        elif kind == 2:
            found[at] = found[at][: chance.randint(0, len(found[at]))]
        elif kind == 3:
            place = chance.randint(0, len(found[at]))
            found[at] = found[at][:place] + chance.choice(PIECES) + found[at][place:]
        elif kind == 4:
            found[at] += found[chance.randrange(len(found))]
        elif kind == 5:
            other = chance.randrange(len(found))
            found[at], found[other] = found[other], found[at]
        else:
            found[at] = NUMBER.sub(lambda n: n[0] if chance.random() < 0.6 else chance.choice(NUMBERS), found[at])
    return found


def with_other_bytes(text: str, chance: random.Random) -> str:
    data = bytearray(text.encode(chance.choice(["utf-8", "utf-8", "utf-16"]), "replace"))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data))
        if chance.random() < 0.5:
            data[at] ^= 1 << chance.randrange(8)
        else:
            data[at:at] = chance.choice(BYTES)
    return bytes(data).decode(lines.detect_encoding(bytes(data)), "replace")


def run(count: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """What came of at least `count` lines, by format. Raises what the reader should not."""
    chance, began, done, found = random.Random(seed), time.monotonic(), 0, Counter[str]()
    while done < count:
        text = "\n".join(mutated(list(chance.choice(LINES)), chance)) + chance.choice(["\n", ""])
        if chance.random() < 0.2 and text:
            text = with_other_bytes(text, chance)
        done += text.count("\n") + 1
        try:
            history = logs.read_text(text, "fuzzed")
            found[history.format] += 1
            if chance.random() < 0.1:
                resolve_context(history, Options(total_steps=chance.choice([None, 100_000])))
        except JaxgptError as error:
            found[error.code] += 1
        except BaseException:
            say(f"after line {done} of seed {seed}: {text!r}")
            raise
    say(f"{done:,} lines, {sum(found.values()):,} logs, {time.monotonic() - began:.0f} s: {dict(found)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run(int(options.lines), options.seed, lambda text: print(text, file=sys.stderr))


if __name__ == "__main__":
    main()
