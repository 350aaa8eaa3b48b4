"""What a preparation says when it is done."""

import shlex
from pathlib import Path

from jaxgpt.data import tokenizer as bpe
from jaxgpt.data.manifest import Manifest
from jaxgpt.prepare.sources.base import Skipped
from jaxgpt.utils.formatting import format_bytes, pluralize


def described(made: Manifest) -> str:
    return ", ".join(f"{split.tokens:,} tokens for {name}" for name, split in made.splits.items())


def already(out: Path, done: Manifest) -> str:
    return f"'{out}' is already prepared from these sources: {described(done)}"


def summary(out: Path, made: Manifest, skipped: Skipped, rate: float) -> str:
    """What was made, at how many tokens per second, and what to run next."""
    documents, size, tokens = (
        sum(getattr(split, field) for split in made.splits.values()) for field in ("documents", "bytes", "tokens")
    )
    left_out = f" ({skipped})" if str(skipped) else ""
    lines = [f"{out}: {pluralize(documents, 'document')}, {format_bytes(size)} of text{left_out}"]
    for name, split in made.splits.items():
        counts = (split.tokens, "token"), (split.documents, "document"), (len(split.shards), "shard")
        lines.append(f"  {name:5}  {', '.join(pluralize(count, noun) for count, noun in counts)}")
    lines += _shares(made, tokens)
    lines.append(f"  {made.tokenizer.name}, {size / tokens:.3f} bytes per token, {rate:,.0f} tokens/s")
    size_of_gpt2 = made.tokenizer.vocab_size == bpe.GPT2_SIZE
    rows = "" if size_of_gpt2 else f" --model.vocab-size {made.tokenizer.vocab_size}"
    lines.append(f"next: python -m jaxgpt.train --data.path {shlex.quote(str(out))}{rows}")
    return "\n".join(lines)


def _shares(made: Manifest, tokens: int) -> list[str]:
    """Of a mixture, what each source gave."""
    if not made.settings.weights:
        return []
    return [f"  {100 * entry.tokens / tokens:5.1f} %  {entry.name}" for entry in made.sources if entry.tokens]
