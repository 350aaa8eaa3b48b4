"""`python -m jaxgpt.prepare SOURCE... --out DIR`: documents to token shards, with a manifest and their tokenizer.

Documents keep their order, and each is followed by an end-of-text token. A validation split takes whole documents, by
a hash of their text: which ones does not depend on the order of the sources, and equal documents stay together.
Everything is written into a hidden folder beside DIR, which gets DIR's name when it is complete. An interrupted
preparation therefore leaves no DIR, and the next one clears its leftovers and starts again.
"""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import jaxgpt
from jaxgpt import dataset, errors, manifest
from jaxgpt import tokenizer as bpe
from jaxgpt.corpus import Census, Document, Skipped, Source, Tally, documents, find_sources
from jaxgpt.dataset import SplitWriter
from jaxgpt.errors import ConfigError, DataError, StorageError
from jaxgpt.manifest import Manifest, Settings, SourceEntry, Split, TokenizerEntry, building, check_room, check_target
from jaxgpt.overrides import Parser, from_text
from jaxgpt.progress import Meter, counted, sized
from jaxgpt.tokenizer import Tokenizer

SHARD_TOKENS = 100_000_000
MOST_SHARD_TOKENS = 2**31 - 1  # a shard's header holds the count as an int32
TRAINING_BYTES = 256_000_000  # text that a new tokenizer learns from, at most
BATCH_BYTES = 4_000_000  # text that is encoded at a time

EXAMPLES = """examples:
  python -m jaxgpt.prepare 'fineweb/*.parquet' --out data/fineweb --val-tokens 10e6
  python -m jaxgpt.prepare python-stdlib --out data/python --train-tokenizer 4096 --val-tokens 200000
"""


def prepare(
    sources: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str = "gpt2",
    train_tokenizer: int = 0,
    val_tokens: int = 0,
    text_column: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    eot: bool = True,
) -> Manifest:
    """Makes the folder `out` from `sources` (see `corpus.find_sources`) and returns its manifest.

    `train_tokenizer` is the vocabulary of a new tokenizer, 0 for the one that `tokenizer` names. `val_tokens` is the
    size of the validation split, give or take a document. If `out` is that dataset already, it stays as it is. Raises
    `ConfigError`, `DataError` or `StorageError`; what can be known before anything is written is raised before.
    """
    settings = Settings(
        train_tokenizer=train_tokenizer, val_tokens=val_tokens, text_column=text_column, shard_tokens=shard_tokens
    )
    _check(settings, tokenizer)
    known = None if train_tokenizer else bpe.load(tokenizer)
    job = Job(tuple(find_sources(sources, text_column)), settings, eot)
    done = _finished(Path(out))
    if done:
        _check_settings(Path(out), done, job, known)
    else:
        check_target(Path(out))
    with Meter() as meter:
        return _run(job, Path(out), known, done, meter)


@dataclass(frozen=True)
class Job:
    """What is to be prepared, and how."""

    sources: tuple[Source, ...]
    settings: Settings
    eot: bool

    def documents(self, skipped: Skipped) -> Iterator[tuple[int, Document]]:
        """Every document, with the index of its source."""
        for index, source in enumerate(self.sources):
            for document in documents(source, self.settings.text_column, skipped):
                yield index, document

    def tallies(self) -> list[Tally]:
        return [Tally(source) for source in self.sources]


def _run(job: Job, out: Path, known: Tokenizer | None, done: Manifest | None, meter: Meter) -> Manifest:
    skipped = Skipped()
    census, entries = _census(job, skipped, meter)
    if done:
        _check_texts(out, done, entries)
        meter.say(f"'{out}' is already prepared from these sources: {_described(done)}")
        return done
    encoder = known or _trained(job, census, meter)
    if job.eot and encoder.eot is None:
        raise ConfigError("C029", f"tokenizer '{encoder.name}' has no end-of-text token", "--no-eot")
    density = _bytes_per_token(encoder, census, job.eot)
    limit = _split_limit(job, census, density)
    with building(out) as folder:
        check_room(folder, out, int(census.bytes / density) * _type(encoder).itemsize)
        made = _encode(job, encoder, limit, entries, folder, meter)
        encoder.save(folder / made.tokenizer.file)
        made.write(folder)
    meter.say(_summary(out, made, skipped, meter))
    return made


def _check(asked: Settings, tokenizer: str) -> None:
    if not 1 <= asked.shard_tokens <= MOST_SHARD_TOKENS:
        raise ConfigError("C028", f"shard_tokens = {asked.shard_tokens}; 1 to {MOST_SHARD_TOKENS:,} are possible")
    if asked.val_tokens < 0:
        raise ConfigError("C028", f"val_tokens = {asked.val_tokens}; must be 0 or more")
    if asked.train_tokenizer:
        bpe.check_size(asked.train_tokenizer)
        if tokenizer != "gpt2":
            what = f"both a new tokenizer of {asked.train_tokenizer} tokens and tokenizer '{tokenizer}' are asked for"
            raise ConfigError("C028", what, "leave one of them out")


def _census(job: Job, skipped: Skipped, meter: Meter) -> tuple[Census, list[SourceEntry]]:
    """Reads the corpus once. Raises `DataError` D024 if there is no text in it."""
    census, tallies = Census(), job.tallies()
    meter.begin("reading")
    for index, document in job.documents(skipped):
        census.add(document)
        tallies[index].add(document)
        meter.advance(1, document.size)
    if not census.documents:
        what = f"no text in {', '.join(source.name for source in job.sources[:3])}"
        raise DataError("D024", f"{what} ({skipped or 'no documents'})", "give other sources")
    return census, [tally.entry() for tally in tallies]


def _trained(job: Job, census: Census, meter: Meter) -> Tokenizer:
    """A new tokenizer, from documents that will not be in the validation split.

    How many bytes that split takes is known only with the tokenizer: 8 per token is more than any reaches on prose or
    code, so that leaving out that much is enough.
    """
    first = census.limit(min(8 * job.settings.val_tokens, census.bytes // 2))
    last = census.limit(census.bytes_below(first) + TRAINING_BYTES)
    meter.begin("training a tokenizer")

    def texts() -> Iterator[str]:
        for _, document in job.documents(Skipped()):
            if first <= document.bucket < last:
                meter.advance(1, document.size)
                yield document.text

    return bpe.train(texts(), job.settings.train_tokenizer)


def _bytes_per_token(encoder: Tokenizer, census: Census, eot: bool) -> float:
    sample = census.sample
    tokens = sum(len(ids) + eot for ids in encoder.encode_batch(sample))
    return sum(len(text.encode()) for text in sample) / tokens


def _split_limit(job: Job, census: Census, bytes_per_token: float) -> int:
    """The bucket below which documents are for validation. Raises `DataError` D025 if too little would be left."""
    wanted = job.settings.val_tokens * bytes_per_token
    limit = census.limit(wanted)
    held = census.bytes_below(limit)
    if held == census.bytes or held > max(2 * wanted, census.bytes / 2):
        tokens = int(census.bytes / bytes_per_token)
        what = f"val_tokens = {job.settings.val_tokens:,} leaves too little to train on"
        there = f"about {tokens:,} tokens in {counted(census.documents, 'document')}"
        help = f"--val-tokens {tokens // 20}" if census.documents > 20 else "give more documents: none is cut in two"
        raise DataError("D025", f"{what}: there are {there}", help)
    return limit


def _type(encoder: Tokenizer) -> "np.dtype[Any]":
    return np.dtype(np.uint16 if encoder.vocab_size <= 1 << 16 else np.uint32)


def _encode(
    job: Job, encoder: Tokenizer, limit: int, entries: list[SourceEntry], folder: Path, meter: Meter
) -> Manifest:
    """Writes the shards of both splits, and describes them. Raises `DataError` D026 if the sources changed."""
    end = encoder.eot if job.eot else None
    train, val = (
        SplitWriter(folder, name, _type(encoder), end, job.settings.shard_tokens) for name in ("train", "val")
    )
    tallies = job.tallies()
    meter.begin("encoding", sum(entry.bytes for entry in entries))
    for batch in _batches(job.documents(Skipped())):
        before = train.tokens + val.tokens
        for (index, document), ids in zip(batch, encoder.encode_batch([document.text for _, document in batch])):
            tallies[index].add(document)
            (val if document.bucket < limit else train).add(document.size, ids)
        size = sum(document.size for _, document in batch)
        meter.advance(len(batch), size, train.tokens + val.tokens - before)
    for tally, entry in zip(tallies, entries):
        if tally.entry() != entry:
            raise DataError("D026", f"{entry.name} changed while it was read", "run again when nothing writes to it")
    splits = {"train": train.finish()} | ({"val": val.finish()} if limit else {})
    return _manifest(job, encoder, splits, entries)


def _batches(stream: Iterable[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    batch, size = [], 0
    for item in stream:
        batch.append(item)
        size += item[1].size
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _manifest(job: Job, encoder: Tokenizer, splits: dict[str, Split], entries: list[SourceEntry]) -> Manifest:
    return Manifest(
        tool=f"jaxgpt {jaxgpt.__version__}",
        tokenizer=TokenizerEntry(
            name=encoder.name,
            fingerprint=encoder.fingerprint,
            file="tokenizer.json",
            vocab_size=encoder.vocab_size,
            eot=encoder.eot,
        ),
        eot_position="appended" if job.eot else "none",
        dtype=_type(encoder).name,
        splits=splits,
        settings=job.settings,
        sources=tuple(entries),
    )


def _finished(out: Path) -> Manifest | None:
    """The manifest of the finished dataset in `out`, None if there is nothing; `StorageError` S012 if other files."""
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise StorageError("S012", f"'{out}' is a file", "choose another --out")
    if (out / manifest.NAME).exists():
        return dataset.open_folder(out).manifest
    other = next(out.iterdir(), None)
    if other:
        raise StorageError("S012", f"'{out}' holds files that are no dataset: {other.name}", "choose another --out")
    return None


def _check_settings(out: Path, done: Manifest, job: Job, known: Tokenizer | None) -> None:
    old, new = dataclasses.asdict(done.settings), dataclasses.asdict(job.settings)
    changed = [f"{name} {old[name]} → {new[name]}" for name in old if old[name] != new[name]]
    if known and not done.settings.train_tokenizer and known.fingerprint != done.tokenizer.fingerprint:
        changed.append(f"tokenizer {done.tokenizer.name} → {known.name}")
    if job.eot is not (done.eot_position == "appended"):
        changed.append(f"end-of-text tokens {done.eot_position} → {'appended' if job.eot else 'none'}")
    if changed:
        what = f"'{out}' was prepared with other settings: {', '.join(changed)}"
        raise StorageError("S013", what, f"choose another --out, or remove '{out}' yourself")


def _check_texts(out: Path, done: Manifest, entries: list[SourceEntry]) -> None:
    old, new = [entry.texts for entry in done.sources], [entry.texts for entry in entries]
    if old != new:
        names = [entry.name for entry, text in zip(entries, new) if text not in old] or [e.name for e in entries]
        what = f"'{out}' was prepared from other texts than {', '.join(names[:3])} now hold"
        raise StorageError("S013", what, f"choose another --out, or remove '{out}' yourself")


def _described(made: Manifest) -> str:
    return ", ".join(f"{split.tokens:,} tokens for {name}" for name, split in made.splits.items())


def _summary(out: Path, made: Manifest, skipped: Skipped, meter: Meter) -> str:
    """What was made, and what to run next."""
    documents, size, tokens = (
        sum(getattr(split, field) for split in made.splits.values()) for field in ("documents", "bytes", "tokens")
    )
    lines = [
        f"{out}: {counted(documents, 'document')}, {sized(size)} of text" + (f" ({skipped})" if str(skipped) else "")
    ]
    for name, split in made.splits.items():
        counts = (split.tokens, "token"), (split.documents, "document"), (len(split.shards), "shard")
        lines.append(f"  {name:5}  {', '.join(counted(count, noun) for count, noun in counts)}")
    lines.append(
        f"  {made.tokenizer.name}, {size / tokens:.3f} bytes per token, {tokens / meter.seconds:,.0f} tokens/s"
    )
    size_of_gpt2 = made.tokenizer.vocab_size == bpe.GPT2_SIZE
    rows = "" if size_of_gpt2 else f" --model.vocab-size {made.tokenizer.vocab_size}"
    lines.append(f"next: python -m jaxgpt.train --data.path {shlex.quote(str(out))}{rows}")
    return "\n".join(lines)


def _count(text: str) -> int:
    value = from_text("", text, int)
    if not isinstance(value, int):
        raise argparse.ArgumentTypeError(f"{text!r}; a whole number is needed")
    return value


def main(argv: Sequence[str]) -> None:
    """Prepares the sources on the command line."""
    parser = Parser("prepare", __doc__ or "", "SOURCE... --out DIR [options]")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    option = parser.add_argument
    option(
        "sources", nargs="+", metavar="SOURCE", help="parquet or text file, folder or glob of them, or python-stdlib"
    )
    option("--out", required=True, metavar="DIR", help="folder to make")
    option("--val-tokens", type=_count, default=0, metavar="N", help="tokens for validation (default: 0, no split)")
    option("--tokenizer", default="gpt2", metavar="gpt2|PATH", help="gpt2, or a tokenizer.json (default: gpt2)")
    option("--train-tokenizer", type=_count, default=0, metavar="N", help="train a new tokenizer of N tokens")
    option("--text-column", metavar="C", help="text column of parquet files (default: text, or the only text column)")
    option("--shard-tokens", type=_count, default=SHARD_TOKENS, metavar="N", help="tokens of a shard (default: 100e6)")
    option("--no-eot", dest="eot", action="store_false", help="put no end-of-text token after each document")
    options = vars(parser.parse_args(argv))
    prepare(options.pop("sources"), options.pop("out"), **options)


if __name__ == "__main__":
    sys.exit(errors.run(main))
