"""Cuts a corpus into short documents: passages of whole paragraphs, shuffled, as JSON lines.

    python bench/passages.py PARQUET [MORE …] --out passages.jsonl

Whether attention should cross documents depends on how many documents are in a window. Books are far longer than the
windows of small models; passages of about 650 characters fill 0.7 of a window of 256 tokens, as FineWeb's documents do
one of 1,024.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import common
import pyarrow.parquet as pq

SHORTEST, LONGEST = 500, 900  # characters


def passages(text: str) -> Iterator[str]:
    """The paragraphs of `text`, joined until they have `SHORTEST` characters; those above `LONGEST` are left out."""
    passage = ""
    for paragraph in re.split(r"\s*\n\s*\n\s*", text.replace("\r\n", "\n").strip()):
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        if len(passage) < SHORTEST:
            continue
        if len(passage) <= LONGEST:
            yield passage
        passage = ""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="PARQUET")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    common.check_output_path(options.out)
    texts = (text for file in options.files for text in pq.read_table(file, columns=["text"])["text"].to_pylist())
    found = [passage for text in texts for passage in passages(text)]
    random.Random(0).shuffle(found)
    options.out.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in found), "utf-8")
    print(f"{len(found):,} passages, {sum(map(len, found)) / len(found):.0f} characters on average")


if __name__ == "__main__":
    sys.exit(common.run(main))
