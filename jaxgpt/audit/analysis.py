"""Analyzes a folder of shards: the Rust core does the work, this turns its result into the audit's record."""

import functools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import jaxgpt
from jaxgpt import _loader
from jaxgpt.audit.record import FORMAT, METHOD, Record
from jaxgpt.data.dataset import Split, TokenDataset, translate_loader_errors
from jaxgpt.errors import ConfigError
from jaxgpt.utils.progress import ProgressReporter

EXCERPT_TOKENS = 80
EXCERPT_CHARACTERS = 160


@dataclass(frozen=True)
class AuditTarget:
    """A dataset to audit, and the token that ends its documents, None if there is none."""

    dataset: TokenDataset
    eot: int | None

    @classmethod
    def from_dataset(cls, dataset: TokenDataset, eot: int | None) -> "AuditTarget":
        """Uses `eot`, or else the manifest's or the tokenizer's end-of-text id.

        Raises `ConfigError` C031 if `eot` is not an id of the tokenizer.
        """
        if eot is not None:
            if not 0 <= eot < dataset.vocab_size:
                vocabulary = f"the vocabulary of {dataset.tokenizer_name}, {dataset.vocab_size:,} ids"
                default = dataset.tokenizer.eot
                help = "leave it out" if default is None else f"its end-of-text id is {default}"
                raise ConfigError("C031", f"--eot {eot} is outside {vocabulary}", help)
            return cls(dataset, eot)
        return cls(dataset, dataset.eot)

    @property
    def eot_position(self) -> str:
        """Where the end-of-text token is, as the manifest says, or "auto"."""
        manifest = self.dataset.manifest
        return manifest.eot_position if manifest and self.eot is not None else "auto"

    def splits(self) -> Iterator[tuple[str, Split]]:
        yield "train", self.dataset.train
        if self.dataset.val:
            yield "val", self.dataset.val

    @property
    def identity(self) -> Record:
        """What the result of an audit depends on."""
        return {"fingerprint": self.dataset.fingerprint, "eot": self.eot, "method": METHOD}

    @property
    def token_bytes(self) -> npt.NDArray[Any] | None:
        """Bytes of text per id, 0 for the end of text; None if the tokenizer is not byte-level."""
        lengths = self.dataset.tokenizer.byte_lengths
        if lengths is not None and self.eot is not None:
            lengths = lengths.copy()
            lengths[self.eot] = 0
        return lengths


@dataclass(frozen=True)
class Analysis:
    """The core's result, and the record that is made from it."""

    target: AuditTarget
    audit: _loader.Audit
    record: Record

    def token_counts(self, split: int) -> npt.NDArray[Any]:
        """How often each id occurs in a split (0 train, 1 val)."""
        return np.frombuffer(self.audit.counts(split), "<u8")

    def kept_documents(self) -> list[npt.NDArray[Any]]:
        """The first token and the end of each kept document, one array of shape (documents, 2) per split."""
        kept_index = np.frombuffer(self.audit.kept(), "<u4")  # for each document, the one that is kept of its cluster
        result = []
        first = 0
        for number, _ in enumerate(self.target.splits()):
            bounds = np.frombuffer(self.audit.documents(number), "<u8").reshape(-1, 2).astype(np.int64)
            end = first + len(bounds)
            result.append(bounds[kept_index[first:end] == np.arange(first, end, dtype=np.uint32)])
            first = end
        return result


def analyze(target: AuditTarget, temporary: Path, progress: ProgressReporter, threads: int = 0) -> Analysis:
    """Audits the data with `threads` threads, 0 for all cores; `temporary` is a folder for a large temporary file.

    Raises `DataError` D011 or D017 if files do not have the content that the manifest says.
    """
    dataset = target.dataset
    start = time.monotonic()
    threads = threads or _available_cores()
    _verify_checksums(target, progress, threads)
    with translate_loader_errors():
        audit = _loader.audit(
            dataset.train.shards,
            dataset.val.shards if dataset.val else None,
            vocab_size=dataset.vocab_size,
            folder=temporary,
            eot=target.eot,
            placement=target.eot_position,
            threads=threads,
            progress=AuditProgress(progress),
        )
    report = json.loads(audit.report)
    record = {
        "format": FORMAT,
        "tool": f"jaxgpt {jaxgpt.__version__}",
        **target.identity,
        "tokens": report["tokens"],
        "effective_unique_tokens": report["effective_unique_tokens"],
        "documents": report["documents"],
        "tokenizer": dataset.tokenizer_name,
        "vocab_size": dataset.vocab_size,
        "dtype": dataset.train.shards.dtype,
        "notes": [*dataset.notes, *_notes(target, report)],
        "splits": report["splits"],
        "duplicates": report["duplicates"],
        "leakage": report["leakage"],
        "search": report["method"],
        "seconds": round(time.monotonic() - start, 2),
    }
    analysis = Analysis(target, audit, record)
    for number, (name, split) in enumerate(target.splits()):
        record["splits"][name] |= _text_statistics(analysis, number, name, split)
    _add_excerpts(target, record)
    return analysis


def _available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class AuditProgress:
    """Forwards the core's totals to a progress reporter, which counts increments."""

    def __init__(self, progress: ProgressReporter) -> None:
        self._progress = progress
        self._stage = ""
        self._last = (0, 0, 0)

    def __call__(self, stage: str, documents: int, tokens: int, size: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._last = (0, 0, 0)
            self._progress.start_stage(stage, total or None)
        current = (documents, size, tokens)
        self._progress.advance(*(new - old for new, old in zip(current, self._last)))
        self._last = current


def _verify_checksums(target: AuditTarget, progress: ProgressReporter, threads: int) -> None:
    """Compares each file with its checksum in the manifest, if there is one."""
    for name, split in target.splits():
        if split.checksums:
            callback = functools.partial(AuditProgress(progress), f"checking {name}", 0, 0)
            with translate_loader_errors():
                split.shards.verify(None, split.checksums, threads, callback)


def _notes(target: AuditTarget, report: Record) -> list[str]:
    """What was assumed, or contradicts the manifest. Shortens the paths of files in `report` to their names."""
    notes = []
    if target.eot is None:
        notes.append("no end-of-text token is known: each split counts as one document (--eot ID names it)")
    elif not any(split["eot"]["count"] for split in report["splits"].values()):
        notes.append(f"the end-of-text token {target.eot} does not occur: each split counts as one document")
    manifest = target.dataset.manifest
    for name, split in report["splits"].items():
        entry = manifest and manifest.splits[name]
        if entry and target.eot is not None and entry.documents != split["documents"]:
            count = f"{split['documents']:,} were counted"
            notes.append(f"{name}: the manifest says {entry.documents:,} documents, {count}")
        first = split["out_of_vocabulary"]["first"]
        if first:
            first["file"] = Path(first["file"]).name
    return notes


def _text_statistics(analysis: Analysis, number: int, name: str, split: Split) -> Record:
    """Bytes of text, from the manifest or from the tokens, per token, and the unigram entropy per byte."""
    entropy = analysis.record["splits"][name]["unigram_entropy"]
    lengths = analysis.target.token_bytes
    size = split.bytes
    if size is None and lengths is not None:
        size = int((analysis.token_counts(number) * lengths).sum())
    bytes_per_token = size / split.tokens if size and split.tokens else None
    return {
        "bytes": size,
        "bytes_per_token": bytes_per_token,
        "unigram_bits_per_byte": entropy / math.log(2) / bytes_per_token if bytes_per_token else None,
    }


def _add_excerpts(target: AuditTarget, record: Record) -> None:
    """Adds the start of its text to each document in the record."""
    splits = dict(target.splits())
    documents = [cluster["kept"] for cluster in record["duplicates"]["largest"]]
    for leak in (record["leakage"] or {}).get("examples", []):
        documents += [leak["val"], leak["train"]]
    for document in documents:
        ids = splits[document["split"]].ids(document["start"], min(document["tokens"], EXCERPT_TOKENS))
        text = target.dataset.tokenizer.decode(ids[ids < target.dataset.vocab_size].tolist())
        document["text"] = " ".join(text.split())[:EXCERPT_CHARACTERS]
