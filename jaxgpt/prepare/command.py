"""The command `jaxgpt prepare`."""

import argparse
from collections.abc import Sequence

from jaxgpt.config.options import Parser, integer
from jaxgpt.data.manifest import LAYOUTS
from jaxgpt.prepare.encoder import ENGINES
from jaxgpt.prepare.pipeline import SHARD_TOKENS, prepare
from jaxgpt.utils import malloc

DESCRIPTION = """Turns documents into token shards, with a manifest and their tokenizer.

It reads each file once, encodes and splits it, and records its progress every few seconds. After an interruption the
same command resumes, and the result is bitwise identical to that of an uninterrupted preparation. Documents keep their
order, except those that were first held out for validation and then not used; an end-of-text token follows each. The
validation split takes whole documents by a hash of their text, so the choice does not depend on the order of the
sources and equal documents stay in one split. A single text file is cut instead: its end is for validation.

Everything is written to a hidden folder beside DIR, which is renamed to DIR when it is complete.
"""
EXAMPLES = """examples:
  python -m jaxgpt.prepare 'fineweb/*.parquet' --out data/fineweb --val-tokens 10e6
  python -m jaxgpt.prepare 'hf://datasets/HuggingFaceFW/fineweb/sample/10BT/*.parquet' --out data/fineweb \\
      --tokens 3.68e9 --val-tokens 10e6
  python -m jaxgpt.prepare web.jsonl.zst books/ --weights 0.8,0.2 --out data/mixed
  python -m jaxgpt.prepare input.txt --out data/shakespeare --tokenizer char
  python -m jaxgpt.prepare python-stdlib --out data/python --train-tokenizer 4096 --val-tokens 200000
"""


def main(argv: Sequence[str]) -> None:
    """Prepares the sources on the command line `argv`."""
    parser = Parser("prepare", DESCRIPTION, "SOURCE... --out DIR [options]", EXAMPLES)
    _add_options(parser)
    options = vars(parser.parse(argv))
    malloc.keep_batch_memory()
    prepare(options.pop("sources"), options.pop("out"), **options)


def _add_options(parser: Parser) -> None:
    option = parser.add_argument
    option(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="parquet, Arrow, .jsonl, .csv or text file, folder or glob of them, "
        "hf://datasets/OWNER/NAME/PATH*.parquet, or python-stdlib",
    )
    option("--out", required=True, metavar="DIR", help="folder to create")
    option(
        "--val-tokens",
        type=integer,
        metavar="N",
        help="tokens for validation (default: a tenth of a single text; no split of several)",
    )
    option("--tokens", type=integer, default=0, metavar="N", help="stop after N tokens in total (default: 0, all)")
    option("--weights", type=_weights, default=(), metavar="W,W", help="mix the SOURCEs in these proportions of tokens")
    option("--tokenizer", default="gpt2", metavar="NAME", help="gpt2, char, a tokenizer.json, or OWNER/NAME on the hub")
    option("--train-tokenizer", type=integer, default=0, metavar="N", help="train a new tokenizer of N tokens")
    option("--text-column", metavar="C", help="column or field of the text (default: text, or the only one of text)")
    option(
        "--separator",
        metavar="S",
        help="what separates documents in text files: a string, blank-lines, or '' for nothing "
        "(default: <|endoftext|> in .txt files)",
    )
    option("--shard-tokens", type=integer, default=SHARD_TOKENS, metavar="N", help="tokens per shard (default: 100e6)")
    option(
        "--format",
        dest="layout",
        default="shards",
        choices=LAYOUTS,
        help="shards, or nanogpt: headerless train.bin and val.bin",
    )
    option("--audit", metavar="DIR", help="audited folder of these texts, whose near-duplicates stay in one split")
    option("--encoder", dest="engine", default="gigatoken", choices=ENGINES, help="library that encodes")
    option("--no-eot", dest="eot", action="store_false", help="put no end-of-text token after each document")
    option("--restart", action="store_true", help="discard what an interrupted preparation has done")


def _weights(text: str) -> list[float]:
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; comma-separated numbers are needed") from error
