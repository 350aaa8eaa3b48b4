"""What `prepare` prints at its end: what was made, what a user might not expect of it, and the run that suits it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from jaxgpt.budget import devices
from jaxgpt.budget.suggestion import suggest_run
from jaxgpt.data.manifest import Manifest
from jaxgpt.data.tokenizer import GPT2_SIZE
from jaxgpt.prepare.ingest import IngestResult, Job
from jaxgpt.utils.formatting import format_bytes, pluralize

MAX_EXCESS = 1.5  # a validation split that is larger than requested by this factor is reported


def describe_splits(made: Manifest) -> str:
    return ", ".join(f"{split.tokens:,} tokens for {name}" for name, split in made.splits.items())


def summarize(out: Path, made: Manifest, job: Job, result: IngestResult) -> str:
    """What was made, and how fast."""
    splits = made.splits.values()
    tokens = sum(split.tokens for split in splits)
    size = sum(split.bytes for split in splits)
    documents = pluralize(sum(entry.documents for entry in made.sources), "document")
    skipped = f" ({result.skipped})" if str(result.skipped) else ""
    lines = [f"{out}: {documents}, {format_bytes(size)} of text{skipped}"]
    for name, split in made.splits.items():
        counts = (split.tokens, "token"), (split.documents, "document"), (len(split.shards), "shard")
        lines.append(f"  {name:5}  {', '.join(pluralize(count, noun) for count, noun in counts)}")
    lines += _validation_notes(made)
    lines += _shares(made, job)
    lines.append(
        f"  {made.tokenizer.name}, {size / tokens:.3f} bytes per token, {result.tokens_per_second:,.0f} tokens/s"
    )
    return "\n".join(lines)


def _validation_notes(made: Manifest) -> Iterator[str]:
    """Yields what a user might not expect of the validation split."""
    val = made.splits.get("val")
    if val is None:
        yield "  no validation split: --val-tokens N sets documents aside"
        return
    requested = made.settings.val_tokens
    if made.cut_at is not None:
        share = 100 * val.bytes / sum(split.bytes for split in made.splits.values())
        yield f"  the document was cut after {made.cut_at:,} characters: val is its last {share:.0f} %"
    elif requested and val.tokens > MAX_EXCESS * requested:
        share = 100 * val.tokens / sum(split.tokens for split in made.splits.values())
        yield f"  val has {share:.0f} % of all tokens, more than the {requested:,} requested: it takes whole documents"


def _shares(made: Manifest, job: Job) -> Iterator[str]:
    """Yields the share of tokens of each component of a mixture."""
    if not made.settings.weights:
        return
    tokens = [sum(made.sources[index].tokens for index in group) for group in job.groups()]
    for name, count in zip(job.names, tokens, strict=True):
        yield f"  {100 * count / sum(tokens):5.1f} %  {name}"


def next_run(out: Path, made: Manifest) -> str:
    """The command of the run that suits the data and this machine, and its size, length and time."""
    name = devices.local_gpu()
    suggested = suggest_run(out, devices.lookup(name) if name else None)
    if suggested:
        return f"next: {suggested.command()}\n  {suggested.sentence()}"
    vocab_size = made.tokenizer.vocab_size
    option = "" if vocab_size == GPT2_SIZE else f" --model.vocab-size {vocab_size}"
    return f"next: python -m jaxgpt.train --config NAME --data.path {shlex.quote(str(out))}{option}"
