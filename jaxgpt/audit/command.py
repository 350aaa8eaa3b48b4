"""The command `jaxgpt audit`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.audit import dedup as deduplication
from jaxgpt.audit.analysis import AuditTarget, analyze
from jaxgpt.audit.record import AuditFiles, Record
from jaxgpt.audit.report import audit_page, audit_report
from jaxgpt.config.options import Parser, integer
from jaxgpt.data import audit_files, dataset
from jaxgpt.data.manifest import Manifest
from jaxgpt.errors import ConfigError
from jaxgpt.utils.progress import ProgressReporter
from jaxgpt.utils.report import Command, Paragraph, Section, print_report

MAX_THREADS = 1024
DESCRIPTION = """Reports what a folder of token shards contains and how much of it is worth training on.

It looks for exact and near-duplicate documents, validation documents that are also in train, and faulty documents and
ids. It writes audit.json, a report (audit.html) and the clusters by which `prepare` keeps near-duplicates in one split
(audit-clusters.bin). Unchanged data is not audited again. Folders of nanoGPT, llm.c and modded-nanogpt work too.
"""
EXAMPLES = """examples:
  python -m jaxgpt.audit data/fineweb
  python -m jaxgpt.audit data/fineweb --dedup data/fineweb-unique
"""


def audit(
    folder: str | Path,
    *,
    dedup: str | Path | None = None,
    eot: int | None = None,
    out: str | Path | None = None,
    tmp: str | Path | None = None,
    again: bool = False,
    threads: int = 0,
) -> Record:
    """Audits `folder`, writes the result beside its shards or to `out`, prints it, and returns it (docs/audit.md).

    `dedup` is a folder to create without the duplicates, `tmp` one for the temporary file, `threads` 0 for all cores.
    `again` repeats the audit of unchanged data. Raises `ConfigError`, `DataError` or `StorageError`, before the work
    if possible.
    """
    if not 0 <= threads <= MAX_THREADS:
        raise ConfigError("C032", f"threads = {threads}; must be 0 (all cores) to {MAX_THREADS}", "leave it out")
    folder = Path(folder)
    target = AuditTarget.from_dataset(dataset.open_folder(folder), eot)
    files = AuditFiles(Path(out) if out else folder / audit_files.RECORD_NAME)
    _check_paths(files, tmp)
    unique = Path(dedup) if dedup else None
    existing = deduplication.check(target, unique) if unique else None
    with ProgressReporter() as progress:
        record = None if again else _earlier_record(target, files)
        if record and (existing or not unique):
            progress.print(f"'{folder}' is audited already (--again repeats it)")
        else:
            analysis = analyze(target, Path(tmp) if tmp else files.folder, progress, threads)
            if not record:
                page = audit_page(folder.resolve().name, analysis)
                record = files.write(analysis.record, page, analysis.audit)
            if unique and not existing:
                existing = deduplication.write(analysis, unique, progress)
    print_report(audit_report(str(folder), record, _next_steps(folder, files, record, unique, existing)))
    return record


def _check_paths(files: AuditFiles, tmp: str | Path | None) -> None:
    """Raises `ConfigError` C032 or `StorageError` S016 if files cannot be written there."""
    if files.record.suffix != ".json":
        raise ConfigError("C032", f"--out '{files.record}' is not a .json file", f"--out {files.record}.json")
    if not files.folder.is_dir():
        raise ConfigError("C032", f"--out '{files.record}': there is no folder '{files.folder}'", "create it first")
    if tmp is not None and not Path(tmp).is_dir():
        raise ConfigError("C032", f"--tmp '{tmp}' is not a folder", "create it first")
    files.check()


def _earlier_record(target: AuditTarget, files: AuditFiles) -> Record | None:
    """The record of an earlier audit of the same tokens."""
    record = files.read()
    if record is None or any(record.get(name) != value for name, value in target.identity.items()):
        return None
    return record if files.is_newer_than(target.dataset) else None


def _next_steps(
    folder: Path, files: AuditFiles, record: Record, unique: Path | None, written: Manifest | None
) -> Section:
    """Where the report is, and the folder without duplicates, or the command that makes it."""
    report = Paragraph(f"Report: {files.page}")
    if unique and written:
        splits = [f"{split.tokens:,} tokens in {split.documents:,} documents" for split in written.splits.values()]
        counts = ", ".join(f"{name} {text}" for name, text in zip(written.splits, splits))
        return Section("Files", (report, Paragraph(f"Without duplicates: {unique} ({counts})")))
    if not record["duplicates"]["clusters"]:
        return Section("Files", (report,))
    parent = folder.parent if folder.name else Path("..")
    out = parent / f"{folder.resolve().name}-unique"
    command = shlex.join(["python", "-m", "jaxgpt.audit", str(folder), "--dedup", str(out)])
    return Section("Files", (report, Paragraph("To make a folder without duplicates:"), Command(command)))


def main(argv: Sequence[str]) -> None:
    """Audits the folder on the command line."""
    parser = Parser("audit", DESCRIPTION, "DIR [options]", EXAMPLES)
    option = parser.add_argument
    option("folder", metavar="DIR", help="folder of token shards")
    option("--dedup", metavar="OUT", help="also create the folder OUT, without the duplicates")
    option("--eot", type=integer, metavar="ID", help="end-of-text token (default: the manifest's or tokenizer's)")
    option("--out", metavar="FILE", help="write to FILE.json and beside it (default: DIR/audit.json)")
    option("--tmp", metavar="DIR", help="folder of the temporary file, 328 bytes per document (default: beside --out)")
    option("--threads", type=integer, default=0, metavar="N", help="threads (default: one per core)")
    option("--again", action="store_true", help="repeat the audit of unchanged data")
    options = vars(parser.parse(argv))
    audit(options.pop("folder"), **options)
