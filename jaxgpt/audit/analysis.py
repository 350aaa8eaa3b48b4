"""From a folder of shards to an audit's record: the Rust core does the work, this gives it its words and its order."""

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

EXCERPT_TOKENS, EXCERPT = 80, 160


@dataclass(frozen=True)
class AuditTarget:
    """What is audited: a folder's data and the token that ends its documents, None if there is none."""

    data: TokenDataset
    eot: int | None

    @classmethod
    def of(cls, data: TokenDataset, eot: int | None) -> "AuditTarget":
        """Raises `ConfigError` C031 if the asked-for `eot` is no id of the tokenizer."""
        if eot is not None:
            if not 0 <= eot < data.vocab_size:
                what = f"--eot {eot} is outside the vocabulary of {data.tokenizer_name}, {data.vocab_size:,} ids"
                known = data.tokenizer.eot
                raise ConfigError("C031", what, "leave it out" if known is None else f"its end-of-text id is {known}")
            return cls(data, eot)
        found = data.manifest
        if found:
            return cls(data, None if found.eot_position == "none" else found.tokenizer.eot)
        return cls(data, data.tokenizer.eot)

    @property
    def placement(self) -> str:
        return self.data.manifest.eot_position if self.data.manifest and self.eot is not None else "auto"

    def splits(self) -> Iterator[tuple[str, Split]]:
        yield "train", self.data.train
        if self.data.val:
            yield "val", self.data.val

    @property
    def identity(self) -> Record:
        """What an audit's result depends on."""
        return {"fingerprint": self.data.fingerprint, "eot": self.eot, "method": METHOD}

    @property
    def token_bytes(self) -> npt.NDArray[Any] | None:
        """Bytes of text of each id, None where the tokenizer is not byte-level; the end of text has none."""
        lengths = self.data.tokenizer.byte_lengths
        if lengths is not None and self.eot is not None:
            lengths = lengths.copy()
            lengths[self.eot] = 0
        return lengths


@dataclass(frozen=True)
class Analysis:
    """The core's result, and the record that is made of it."""

    subject: AuditTarget
    audit: _loader.Audit
    record: Record

    def counts(self, split: int) -> npt.NDArray[Any]:
        """How often each id occurs."""
        return np.frombuffer(self.audit.counts(split), "<u8")

    def kept(self) -> list[npt.NDArray[Any]]:
        """Of each split, where the documents that are kept begin and end."""
        kept, found, first = np.frombuffer(self.audit.kept(), "<u4"), [], 0
        for number, _ in enumerate(self.subject.splits()):
            places = np.frombuffer(self.audit.documents(number), "<u8").reshape(-1, 2).astype(np.int64)
            own = np.arange(first, first + len(places), dtype=np.uint32)
            found.append(places[kept[first : first + len(places)] == own])
            first += len(places)
        return found


def analyse(subject: AuditTarget, temporary: Path, progress: ProgressReporter, threads: int = 0) -> Analysis:
    """Audits the data; `DataError` D011 or D017 if the files are not what they should be."""
    data, began = subject.data, time.monotonic()
    threads = threads or _cores()
    _check_files(subject, progress, threads)
    with translate_loader_errors():
        audit = _loader.audit(
            data.train.shards,
            data.val.shards if data.val else None,
            vocab_size=data.vocab_size,
            folder=temporary,
            eot=subject.eot,
            placement=subject.placement,
            threads=threads,
            progress=AuditProgress(progress),
        )
    found = json.loads(audit.report)
    record = {
        "format": FORMAT,
        "tool": f"jaxgpt {jaxgpt.__version__}",
        **subject.identity,
        "tokens": found["tokens"],
        "effective_unique_tokens": found["effective_unique_tokens"],
        "documents": found["documents"],
        "tokenizer": data.tokenizer_name,
        "vocab_size": data.vocab_size,
        "dtype": data.train.shards.dtype,
        "notes": [*data.notes, *_notes(subject, found)],
        "splits": found["splits"],
        "duplicates": found["duplicates"],
        "leakage": found["leakage"],
        "search": found["method"],
        "seconds": round(time.monotonic() - began, 2),
    }
    analysis = Analysis(subject, audit, record)
    for number, (name, split) in enumerate(subject.splits()):
        record["splits"][name] |= _text_figures(analysis, number, split)
    _add_excerpts(subject, record)
    return analysis


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class AuditProgress:
    """Shows the core's progress on a progress."""

    def __init__(self, progress: ProgressReporter) -> None:
        self._reporter, self._stage = progress, ""
        self._before = (0, 0, 0)

    def __call__(self, stage: str, documents: int, tokens: int, size: int, total: int) -> None:
        if stage != self._stage:
            self._stage, self._before = stage, (0, 0, 0)
            self._reporter.start_stage(stage, total or None)
        now = (documents, size, tokens)
        self._reporter.advance(*(new - old for new, old in zip(now, self._before)))
        self._before = now


def _check_files(subject: AuditTarget, progress: ProgressReporter, threads: int) -> None:
    """Compares every file with its checksum, where the manifest has them."""
    for name, split in subject.splits():
        if split.checksums:
            show = functools.partial(AuditProgress(progress), f"checking {name}", 0, 0)
            with translate_loader_errors():
                split.shards.verify(None, split.checksums, threads, show)


def _notes(subject: AuditTarget, found: Record) -> list[str]:
    """What a reader should know before the figures."""
    notes = []
    if subject.eot is None:
        notes.append("no end-of-text token is known: each split counts as one document (--eot ID names it)")
    elif not any(split["eot"]["count"] for split in found["splits"].values()):
        notes.append(f"the end-of-text token {subject.eot} does not occur: each split counts as one document")
    for name, split in found["splits"].items():
        entry = subject.data.manifest and subject.data.manifest.splits[name]
        if entry and subject.eot is not None and entry.documents != split["documents"]:
            notes.append(f"{name}: the manifest counts {entry.documents:,} documents, {split['documents']:,} are found")
        if split["out_of_vocabulary"]["first"]:
            first = split["out_of_vocabulary"]["first"]
            first["file"] = Path(first["file"]).name
    return notes


def _text_figures(analysis: Analysis, number: int, split: Split) -> Record:
    """Bytes of text per token, from the manifest or else from the tokens' lengths, and the entropy by that measure."""
    entropy = analysis.record["splits"]["val" if number else "train"]["unigram_entropy"]
    size, lengths = split.bytes, analysis.subject.token_bytes
    if size is None and lengths is not None:
        size = int((analysis.counts(number) * lengths).sum())
    per_token = size / split.tokens if size and split.tokens else None
    return {
        "bytes": size,
        "bytes_per_token": per_token,
        "unigram_bits_per_byte": entropy / math.log(2) / per_token if per_token else None,
    }


def _add_excerpts(subject: AuditTarget, record: Record) -> None:
    """Gives every document that the record names the beginning of its text."""
    splits = dict(subject.splits())
    places = [cluster["kept"] for cluster in record["duplicates"]["largest"]]
    for leak in (record["leakage"] or {}).get("examples", []):
        places += [leak["val"], leak["train"]]
    for place in places:
        ids = splits[place["split"]].ids(place["start"], min(place["tokens"], EXCERPT_TOKENS))
        text = subject.data.tokenizer.decode(ids[ids < subject.data.vocab_size].tolist())
        place["text"] = " ".join(text.split())[:EXCERPT]
