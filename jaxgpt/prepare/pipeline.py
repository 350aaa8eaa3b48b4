"""`prepare`: documents to a folder of token shards with a manifest and their tokenizer."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import jaxgpt
from jaxgpt import _loader, errors
from jaxgpt.data import audit_files, dataset, manifest
from jaxgpt.data import tokenizer as tokenizers
from jaxgpt.data.manifest import LAYOUTS, Manifest, PrepareSettings, SplitEntry, TokenizerEntry
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import ConfigError, JaxgptError, StorageError
from jaxgpt.prepare import sources
from jaxgpt.prepare.cut import find_single_document, ingest_cut
from jaxgpt.prepare.encoder import Encoder, Engine
from jaxgpt.prepare.estimate import estimate_corpus
from jaxgpt.prepare.ingest import Ingest, IngestResult, Job
from jaxgpt.prepare.sources import find_sources
from jaxgpt.prepare.staging import JOURNAL_FORMAT, StagingDir, check_target, staging_dir
from jaxgpt.prepare.summary import describe_splits, next_run, summarize
from jaxgpt.prepare.tokenizer_training import make_tokenizer
from jaxgpt.utils.progress import ProgressReporter

SHARD_TOKENS = 100_000_000
MAX_SHARD_TOKENS = 2**31 - 1  # the header of a shard has the count as an int32
RESUME_HINT = "the same command resumes where this one stopped"
NOT_RESUMABLE = ("D024", "D025")  # errors that need other sources or settings


def prepare(
    sources: Sequence[str],
    out: str | Path,
    *,
    tokenizer: str = "gpt2",
    train_tokenizer: int = 0,
    val_tokens: int | None = None,
    tokens: int = 0,
    weights: Sequence[float] = (),
    text_column: str | None = None,
    separator: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    layout: str = "shards",
    eot: bool = True,
    audit: str | Path | None = None,
    engine: Engine = "gigatoken",
    restart: bool = False,
    suggest: bool = True,
) -> Manifest:
    """Prepares the folder `out` from `sources` (see `sources.find_sources`) and returns its manifest.

    `tokenizer` names the tokenizer; "char" makes one of the text's characters. `train_tokenizer` is the vocabulary size
    of a new one to train instead. `val_tokens` is the size of the validation split, up to a document. A text file that
    is the only source and a single document is cut: its end becomes the validation split, a tenth of it by default.
    `tokens` is the total, 0 for all there are. `weights` mix the sources by tokens. `audit` is an audited folder of the
    same texts and tokenizer: its near-duplicates stay on one side of the split. If `out` already is this dataset, it
    stays unchanged. `restart` discards an interrupted preparation of `out`; `suggest` prints the command that trains on
    it. Raises `ConfigError`, `DataError` or `StorageError`, before anything is written if possible.
    """
    settings = PrepareSettings(
        train_tokenizer=train_tokenizer,
        val_tokens=val_tokens,
        text_column=text_column,
        separator=separator,
        shard_tokens=shard_tokens,
        tokens=tokens,
        weights=tuple(float(weight) for weight in weights),
        layout=layout,
        tokenizer=tokenizers.CHAR if tokenizer == tokenizers.CHAR else "",
    )
    if "" in (str(out), *sources):
        raise ConfigError("C028", "an empty name for a source or for --out", "name files and a folder")
    _check_settings(settings, tokenizer, len(sources))
    named = None if train_tokenizer or settings.tokenizer else tokenizers.load(tokenizer)
    clusters = find_clusters(Path(audit), named) if audit else None
    if clusters:
        settings = dataclasses.replace(settings, clusters=_loader.hash_file(clusters))
    job = Job(tuple(find_sources(sources, text_column, separator)), tuple(sources), settings, eot, clusters)
    out = Path(out)
    existing = _existing_dataset(out)
    with ProgressReporter() as progress:
        if existing:
            _check_same(out, existing, job, named, progress)
            progress.print(f"'{out}' is already prepared from these sources: {describe_splits(existing)}")
            return existing
        check_target(out)
        made = _build(job, out, named, engine, restart, progress)
        if suggest:
            progress.print(next_run(out, made))
        return made


def _build(
    job: Job, out: Path, named: Tokenizer | None, engine: Engine, restart: bool, progress: ProgressReporter
) -> Manifest:
    with staging_dir(out) as staging:
        if restart:
            staging.clear()
        if staging.journal:
            _check_journal(out, staging.journal, job.plan(named))
        try:
            tokenizer, result = _ingest(job, staging, named, engine, out, progress)
        except (JaxgptError, KeyboardInterrupt) as error:
            if getattr(error, "code", "") in NOT_RESUMABLE:
                staging.clear()
            raise _add_resume_hint(error, staging) from error
        made = _manifest(job, tokenizer, result)
        tokenizer.save(staging.folder / made.tokenizer.file)
        made.write(staging.folder)
    progress.print(summarize(out, made, job, result))
    return made


def _ingest(
    job: Job, staging: StagingDir, named: Tokenizer | None, engine: Engine, out: Path, progress: ProgressReporter
) -> tuple[Tokenizer, IngestResult]:
    """Resumes from the journal of the staging folder, or starts. A new tokenizer is made first, if there is none."""
    document = find_single_document(job)
    corpus = estimate_corpus(job.sources)
    plan = job.plan(named)
    made_file = staging.folder / "tokenizer.json"
    if named:
        tokenizer = named
    elif staging.journal:
        tokenizer = tokenizers.load_file(made_file, staging.journal["tokenizer"])
    else:
        tokenizer = make_tokenizer(job, corpus, document, progress)
    if job.eot and tokenizer.eot is None:
        raise ConfigError("C029", f"tokenizer '{tokenizer.name}' has no end-of-text token", "--no-eot")
    encoder = Encoder(tokenizer, engine)
    if document:
        return tokenizer, ingest_cut(job, document, encoder, out, staging, progress)
    if not named and not staging.journal:
        tokenizer.save(made_file)
        staging.write_journal({"plan": plan, "tokenizer": tokenizer.name})
    ingest = Ingest(job, encoder, corpus, plan, staging.journal or {})
    return tokenizer, ingest.run(out, staging, progress)


def _add_resume_hint(error: BaseException, staging: StagingDir) -> BaseException:
    """The error, with the hint that what is done is kept, if it is."""
    if not staging.journal:
        return error
    if isinstance(error, KeyboardInterrupt):
        return errors.Stopped(f"interrupted: {RESUME_HINT}", errors.INTERRUPTED)
    assert isinstance(error, JaxgptError)
    return error.replace(help=f"{error.help}; then {RESUME_HINT}" if error.help else RESUME_HINT)


def _check_settings(settings: PrepareSettings, tokenizer: str, sources: int) -> None:
    """Raises `ConfigError` C027 or C028 for values that cannot be."""
    if not 1 <= settings.shard_tokens <= MAX_SHARD_TOKENS:
        message = f"shard_tokens = {settings.shard_tokens}; 1 to {MAX_SHARD_TOKENS:,} are possible"
        raise ConfigError("C028", message, f"--shard-tokens {SHARD_TOKENS:.0e}, or leave it out")
    for name in ("val_tokens", "tokens"):
        value = getattr(settings, name)
        if value is not None and value < 0:
            raise ConfigError("C028", f"{name} = {value}; must be 0 or more", "leave it out for none")
    if settings.layout not in LAYOUTS:
        raise ConfigError("C028", f"format {settings.layout!r} is not known", f"one of: {', '.join(LAYOUTS)}")
    if settings.weights and len(settings.weights) != sources:
        message = f"{len(settings.weights)} weights for {sources} sources"
        raise ConfigError("C028", message, "give one for each SOURCE")
    if not all(0 < weight < float("inf") for weight in settings.weights):
        message = f"weights = {settings.weights}; each must be a number above 0"
        raise ConfigError("C028", message, "--weights 0.7,0.3")
    if settings.train_tokenizer:
        tokenizers.check_vocab_size(settings.train_tokenizer)
        if tokenizer != "gpt2":
            message = f"both --train-tokenizer {settings.train_tokenizer} and --tokenizer {tokenizer}"
            raise ConfigError("C028", message, "leave one of them out")


def find_clusters(audited: Path, named: Tokenizer | None) -> Path:
    """The file of near-duplicates in an audited folder.

    Raises `ConfigError` C033 if there is none, or if the folder was tokenized by another tokenizer than `named`.
    """
    path = audit_files.clusters_path(audited / audit_files.RECORD_NAME)
    if not path.is_file():
        message = f"'{audited}' has not been audited: there is no {path.name}"
        raise ConfigError("C033", message, f"python -m jaxgpt.audit {audited}")
    used = dataset.open_folder(audited).tokenizer
    if named is None or used.fingerprint != named.fingerprint:
        wanted = named.name if named else "a new tokenizer"
        message = f"the audit of '{audited}' is of tokens by {used.name}, not by {wanted}"
        raise ConfigError("C033", message, "audit a preparation of these texts by the same tokenizer")
    return path


def _manifest(job: Job, tokenizer: Tokenizer, result: IngestResult) -> Manifest:
    return Manifest(
        tool=f"jaxgpt {jaxgpt.__version__}",
        tokenizer=TokenizerEntry.from_tokenizer(tokenizer, tokenizer.eot),
        eot_position="appended" if job.eot else "none",
        dtype=result.dtype.name,
        splits={name: SplitEntry.from_written(written) for name, written in result.splits.items()},
        settings=job.settings,
        sources=result.sources,
        cut_at=result.cut_at,
    )


def _existing_dataset(out: Path) -> Manifest | None:
    """The manifest of the dataset in `out`, None if there is nothing; `StorageError` S012 if there are other files."""
    if not os.path.lexists(out):
        return None
    if not out.is_dir():
        raise StorageError("S012", f"'{out}' is a file", "choose another --out")
    if (out / manifest.FILE_NAME).exists():
        return dataset.open_folder(out).manifest
    other = next(out.iterdir(), None)
    if other:
        message = f"'{out}' contains files that are not a dataset: {other.name}"
        raise StorageError("S012", message, "choose another --out")
    return None


def _check_same(out: Path, existing: Manifest, job: Job, named: Tokenizer | None, progress: ProgressReporter) -> None:
    """Raises `StorageError` S013 if `out` was made with other settings or from other files."""
    old, new = dataclasses.asdict(existing.settings), dataclasses.asdict(job.settings)
    differences = [f"{name} {old[name]} → {new[name]}" for name in old if old[name] != new[name]]
    if named and not existing.settings.train_tokenizer and named.fingerprint != existing.tokenizer.fingerprint:
        differences.append(f"tokenizer {existing.tokenizer.name} → {named.name}")
    if job.eot is not (existing.eot_position == "appended"):
        differences.append(f"end-of-text tokens {existing.eot_position} → {'appended' if job.eot else 'none'}")
    help = f"choose another --out, or remove '{out}' yourself"
    if differences:
        raise StorageError("S013", f"'{out}' was prepared with other settings: {', '.join(differences)}", help)
    changed = _changed_sources(existing, job, progress)
    if changed:
        message = f"'{out}' was prepared from other versions of {', '.join(changed[:3])}"
        raise StorageError("S013", message, help)


def _changed_sources(existing: Manifest, job: Job, progress: ProgressReporter) -> list[str]:
    """The names of the sources whose size or checksum differs from the manifest's."""
    if [entry.size for entry in existing.sources] != [source.size for source in job.sources]:
        old = {(entry.name, entry.size) for entry in existing.sources}
        names = [source.name for source in job.sources]
        return [source.name for source in job.sources if (source.name, source.size) not in old] or names
    progress.start_stage("comparing the sources")
    pairs = zip(job.sources, existing.sources, strict=True)
    return [source.name for source, entry in pairs if entry.xxh3_128 and sources.checksum(source) != entry.xxh3_128]


def _check_journal(out: Path, journal: dict[str, object], plan: dict[str, object]) -> None:
    """Raises `StorageError` S017 if the interrupted preparation of `out` had another version, sources or settings."""
    if journal.get("format") != JOURNAL_FORMAT:
        message = f"an interrupted preparation of '{out}' was made by another version of jaxgpt"
        raise StorageError("S017", message, "--restart to discard it and start from scratch")
    old = journal.get("plan")
    if old == plan:
        return
    names = [name for name in plan if not isinstance(old, dict) or old.get(name) != plan[name]]
    message = f"an interrupted preparation of '{out}' had other {', '.join(names)}"
    raise StorageError("S017", message, "give the same to resume it, or --restart to discard it and start from scratch")
