"""`python -m jaxgpt.prepare SOURCE... --out DIR`: documents to token shards, with a manifest and their tokenizer.

One pass: each file is read, encoded, split and written as it comes, and what is known so far is noted every few
seconds. Interrupted at any moment, the same command goes on from the last note, and what it makes is, byte for byte,
what it would have made at once. Documents keep their order (but for those that were held aside for validation and not
taken), and each is followed by an end-of-text token. A validation split takes whole documents, by a hash of their text:
which ones does not depend on the order of the sources, and equal documents stay together.

Everything is written into a hidden folder beside DIR, which gets DIR's name when it is complete.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jaxgpt
from jaxgpt import _loader, errors
from jaxgpt._loader import WrittenSplit
from jaxgpt.config.command_line import Parser, from_text
from jaxgpt.data import dataset, manifest
from jaxgpt.data import tokenizer as bpe
from jaxgpt.data.manifest import LAYOUTS, Manifest, PrepareSettings, SplitEntry, TokenizerEntry
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, JaxgptError, StorageError
from jaxgpt.prepare import sources
from jaxgpt.prepare.encoder import ENGINES, Encoder, Engine
from jaxgpt.prepare.estimate import survey
from jaxgpt.prepare.ingest import Encoding, Job, Result
from jaxgpt.prepare.sources import find_sources
from jaxgpt.prepare.staging import Site, building, check_target
from jaxgpt.prepare.summary import already, summary
from jaxgpt.prepare.tokenizer_training import learn
from jaxgpt.utils import malloc as memory
from jaxgpt.utils.progress import ProgressReporter

SHARD_TOKENS = 100_000_000
SHARD_HELP = f"--shard-tokens {SHARD_TOKENS:.0e}, or leave it out"
MOST_SHARD_TOKENS = 2**31 - 1  # a shard's header holds the count as an int32
CLUSTERS = "audit-clusters.bin"
CONTINUES = "the same command goes on where this one stopped"

DESCRIPTION = """Turns documents into token shards, with a manifest and their tokenizer.

It reads each file once, encodes and splits it, and records its progress every few seconds. After an interruption the
same command continues, and the result is bitwise identical to that of an uninterrupted preparation. Documents keep
their order, except those first set aside for validation and then not used; an end-of-text token follows each. The
validation split takes whole documents by a hash of their text, so the choice does not depend on the order of the
sources and equal documents stay in one split.

Everything is written to a hidden folder beside DIR, which is renamed to DIR when it is complete.
"""
EXAMPLES = """examples:
  python -m jaxgpt.prepare 'fineweb/*.parquet' --out data/fineweb --val-tokens 10e6
  python -m jaxgpt.prepare 'hf://datasets/HuggingFaceFW/fineweb/sample/10BT/*.parquet' --out data/fineweb \\
      --tokens 3.68e9 --val-tokens 10e6
  python -m jaxgpt.prepare web.jsonl.zst books/ --weights 0.8,0.2 --out data/mixed
  python -m jaxgpt.prepare python-stdlib --out data/python --train-tokenizer 4096 --val-tokens 200000
"""


def prepare(
    sources: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str = "gpt2",
    train_tokenizer: int = 0,
    val_tokens: int = 0,
    tokens: int = 0,
    weights: Sequence[float] = (),
    text_column: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    layout: str = "shards",
    eot: bool = True,
    audit: str | Path | None = None,
    engine: Engine = "gigatoken",
    restart: bool = False,
) -> Manifest:
    """Makes the folder `out` from `sources` (see `sources.find_sources`) and returns its manifest.

    `train_tokenizer` is the vocabulary of a new tokenizer, 0 for the one that `tokenizer` names. `val_tokens` is the
    size of the validation split, give or take a document; `tokens` that of the whole, 0 for all there is. `weights`
    mix the sources by their share of the tokens. `audit` is a folder that was audited, of the same texts by the same
    tokenizer: what it knows as near-duplicates falls on one side of the split. If `out` is that dataset already, it
    stays as it is. `restart` gives up what an interrupted preparation of `out` has done. Raises `ConfigError`,
    `DataError` or `StorageError`; what can be known before anything is written is raised before.
    """
    settings = PrepareSettings(
        train_tokenizer=train_tokenizer,
        val_tokens=val_tokens,
        text_column=text_column,
        shard_tokens=shard_tokens,
        tokens=tokens,
        weights=tuple(float(weight) for weight in weights),
        layout=layout,
    )
    if "" in (str(out), *sources):
        raise ConfigError("C028", "an empty name for a source or for --out", "name files and a folder")
    _check(settings, tokenizer, len(sources))
    known = None if train_tokenizer else bpe.load(tokenizer)
    clusters = clusters_of(Path(audit), known) if audit else None
    if clusters:
        settings = dataclasses.replace(settings, clusters=_loader.hash_file(clusters))
    job = Job(tuple(find_sources(sources, text_column)), settings, eot, clusters)
    done = _finished(Path(out))
    with ProgressReporter() as meter:
        if done:
            _check_same(Path(out), done, job, known, meter)
            meter.say(already(Path(out), done))
            return done
        check_target(Path(out))
        return _build(job, Path(out), known, engine, restart, meter)


def _build(
    job: Job, out: Path, known: Tokenizer | None, engine: Engine, restart: bool, meter: ProgressReporter
) -> Manifest:
    with building(out) as site:
        if restart:
            site.clear()
        try:
            encoding = _begun(job, out, site, known, engine, meter)
            result = encoding.run(out, site, meter)
        except (JaxgptError, KeyboardInterrupt) as error:
            raise _with_hope(error, site) from error
        made = _manifest(job, encoding.encoder.tokenizer, result)
        encoding.encoder.tokenizer.save(site.folder / made.tokenizer.file)
        made.write(site.folder)
    meter.say(summary(out, made, result.skipped, encoding.rate))
    return made


def _begun(
    job: Job, out: Path, site: Site, known: Tokenizer | None, engine: Engine, meter: ProgressReporter
) -> Encoding:
    """The encoding that the site's journal describes, or a new one."""
    plan, learnt = job.plan(known), site.folder / "tokenizer.json"
    if site.journal:
        _check_journal(out, site.journal, plan)
    found = survey(job.sources, job.settings.text_column)
    if not known and not site.journal:
        known = learn(job, found, meter)
        known.save(learnt)
        site.note({"plan": plan, "tokenizer": known.name})
    encoder = Encoder(known or bpe.load_named(learnt, (site.journal or {})["tokenizer"]), engine)
    if job.eot and encoder.tokenizer.eot is None:
        raise ConfigError("C029", f"tokenizer '{encoder.tokenizer.name}' has no end-of-text token", "--no-eot")
    return Encoding(job, encoder, found, plan, site.journal or {})


def _with_hope(error: BaseException, site: Site) -> BaseException:
    """The error, with the good news that what is done is kept, if it is."""
    if not site.journal:
        return error
    if isinstance(error, KeyboardInterrupt):
        return errors.Stopped(f"interrupted: {CONTINUES}", errors.INTERRUPTED)
    assert isinstance(error, JaxgptError)
    return type(error)(error.code, error.message, f"{error.help}; then {CONTINUES}" if error.help else CONTINUES)


def _check(asked: PrepareSettings, tokenizer: str, sources: int) -> None:
    if not 1 <= asked.shard_tokens <= MOST_SHARD_TOKENS:
        raise ConfigError(
            "C028", f"shard_tokens = {asked.shard_tokens}; 1 to {MOST_SHARD_TOKENS:,} are possible", SHARD_HELP
        )
    for name in ("val_tokens", "tokens"):
        if getattr(asked, name) < 0:
            raise ConfigError("C028", f"{name} = {getattr(asked, name)}; must be 0 or more", "leave it out for none")
    if asked.layout not in LAYOUTS:
        raise ConfigError("C028", f"format {asked.layout!r} is not known", f"one of: {', '.join(LAYOUTS)}")
    if asked.weights and len(asked.weights) != sources:
        raise ConfigError("C028", f"{len(asked.weights)} weights for {sources} sources", "give one for each SOURCE")
    if not all(0 < weight < float("inf") for weight in asked.weights):
        raise ConfigError("C028", f"weights = {asked.weights}; each must be a number above 0", "--weights 0.7,0.3")
    if asked.train_tokenizer:
        bpe.check_size(asked.train_tokenizer)
        if tokenizer != "gpt2":
            what = f"both a new tokenizer of {asked.train_tokenizer} tokens and tokenizer '{tokenizer}' are asked for"
            raise ConfigError("C028", what, "leave one of them out")


def clusters_of(audited: Path, known: Tokenizer | None) -> Path:
    """The file of near-duplicates in an audited folder. `ConfigError` C033 if there is none, or it is of other ids."""
    path = audited / CLUSTERS
    if not path.is_file():
        raise ConfigError("C033", f"'{audited}' holds no audit ({CLUSTERS})", f"python -m jaxgpt.audit {audited}")
    used = dataset.open_folder(audited).tokenizer
    if known is None or used.fingerprint != known.fingerprint:
        wanted = known.name if known else "a new tokenizer"
        what = f"the audit of '{audited}' is of tokens by {used.name}, not by {wanted}"
        raise ConfigError("C033", what, "audit a preparation of these texts by the same tokenizer")
    return path


def _manifest(job: Job, tokenizer: Tokenizer, result: Result) -> Manifest:
    return Manifest(
        tool=f"jaxgpt {jaxgpt.__version__}",
        tokenizer=TokenizerEntry(
            name=tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            file="tokenizer.json",
            vocab_size=tokenizer.vocab_size,
            eot=tokenizer.eot,
        ),
        eot_position="appended" if job.eot else "none",
        dtype=result.dtype.name,
        splits={name: _split(written) for name, written in result.splits.items()},
        settings=job.settings,
        sources=result.sources,
    )


def _split(written: WrittenSplit) -> SplitEntry:
    shards = [
        manifest.ShardEntry(name=Path(shard.path).name, tokens=shard.tokens, xxh3_128=shard.xxh3_128)
        for shard in written.shards
    ]
    return SplitEntry(
        documents=written.documents,
        tokens=written.tokens,
        bytes=written.bytes,
        max_token=max((shard.max_token or 0 for shard in written.shards), default=None),
        shards=tuple(shards),
    )


def _finished(out: Path) -> Manifest | None:
    """The manifest of the finished dataset in `out`, None if there is nothing; `StorageError` S012 if other files."""
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise StorageError("S012", f"'{out}' is a file", "choose another --out")
    if (out / manifest.FILE_NAME).exists():
        return dataset.open_folder(out).manifest
    other = next(out.iterdir(), None)
    if other:
        raise StorageError("S012", f"'{out}' holds files that are no dataset: {other.name}", "choose another --out")
    return None


def _check_same(out: Path, done: Manifest, job: Job, known: Tokenizer | None, meter: ProgressReporter) -> None:
    """Raises `StorageError` S013 if `out` was made with other settings or from other files."""
    old, new = dataclasses.asdict(done.settings), dataclasses.asdict(job.settings)
    changed = [f"{name} {old[name]} → {new[name]}" for name in old if old[name] != new[name]]
    if known and not done.settings.train_tokenizer and known.fingerprint != done.tokenizer.fingerprint:
        changed.append(f"tokenizer {done.tokenizer.name} → {known.name}")
    if job.eot is not (done.eot_position == "appended"):
        changed.append(f"end-of-text tokens {done.eot_position} → {'appended' if job.eot else 'none'}")
    help = f"choose another --out, or remove '{out}' yourself"
    if changed:
        raise StorageError("S013", f"'{out}' was prepared with other settings: {', '.join(changed)}", help)
    others = _other_files(done, job, meter)
    if others:
        raise StorageError("S013", f"'{out}' was prepared from other files than {', '.join(others[:3])} now are", help)


def _other_files(done: Manifest, job: Job, meter: ProgressReporter) -> list[str]:
    """The sources whose sizes or checksums are not those of the manifest's, in their order."""
    if [entry.size for entry in done.sources] != [source.size for source in job.sources]:
        old = {(entry.name, entry.size) for entry in done.sources}
        return [s.name for s in job.sources if (s.name, s.size) not in old] or [s.name for s in job.sources]
    meter.begin("comparing the sources")
    pairs = zip(job.sources, done.sources, strict=True)
    return [source.name for source, entry in pairs if entry.xxh3_128 and sources.checksum(source) != entry.xxh3_128]


def _check_journal(out: Path, journal: dict[str, object], plan: dict[str, object]) -> None:
    """Raises `StorageError` S017 if the interrupted preparation of `out` had other sources or settings."""
    old = journal.get("plan")
    if old == plan:
        return
    names = [name for name in plan if not isinstance(old, dict) or old.get(name) != plan[name]]
    what = f"an interrupted preparation of '{out}' had other {', '.join(names)}"
    raise StorageError("S017", what, "give the same to go on with it, or --restart to give it up and begin anew")


def _count(text: str) -> int:
    value = from_text("", text, int)
    if not isinstance(value, int):
        raise argparse.ArgumentTypeError(f"{text!r}; a whole number is needed")
    return value


def _weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; numbers with commas between them are needed") from error


def main(argv: Sequence[str]) -> None:
    """Prepares the sources on the command line."""
    parser = Parser("prepare", DESCRIPTION, "SOURCE... --out DIR [options]")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    _add_options(parser)
    options = vars(parser.parse_args(argv))
    memory.reuse()
    prepare(options.pop("sources"), options.pop("out"), **options)


def _add_options(parser: Parser) -> None:
    option = parser.add_argument
    option(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="parquet, .jsonl(.gz, .zst) or text file, folder or glob of them, "
        "hf://datasets/OWNER/NAME/PATH*.parquet, or python-stdlib",
    )
    option("--out", required=True, metavar="DIR", help="folder to make")
    option("--val-tokens", type=_count, default=0, metavar="N", help="tokens for validation (default: 0, no split)")
    option("--tokens", type=_count, default=0, metavar="N", help="stop after N tokens in all (default: 0, take all)")
    option("--weights", type=_weights, default=(), metavar="W,W", help="mix the SOURCEs by these shares of the tokens")
    option("--tokenizer", default="gpt2", metavar="NAME", help="gpt2, a tokenizer.json, or OWNER/NAME on the hub")
    option("--train-tokenizer", type=_count, default=0, metavar="N", help="train a new tokenizer of N tokens")
    option("--text-column", metavar="C", help="column or field of the text (default: text, or the only one of text)")
    option("--shard-tokens", type=_count, default=SHARD_TOKENS, metavar="N", help="tokens of a shard (default: 100e6)")
    option(
        "--format",
        dest="layout",
        default="shards",
        choices=LAYOUTS,
        help="shards, or nanogpt: headerless train.bin and val.bin",
    )
    option("--audit", metavar="DIR", help="audited folder of these texts, whose near-duplicates share a side")
    option("--encoder", dest="engine", default="gigatoken", choices=ENGINES, help="library that encodes")
    option("--no-eot", dest="eot", action="store_false", help="put no end-of-text token after each document")
    option("--restart", action="store_true", help="give up what an interrupted preparation has done")


if __name__ == "__main__":
    sys.exit(errors.run(main))
