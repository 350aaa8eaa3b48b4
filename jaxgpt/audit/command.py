"""The command `jaxgpt audit`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.audit import dedup as unique
from jaxgpt.audit import summary
from jaxgpt.audit.analysis import Analysis, AuditTarget, analyse
from jaxgpt.audit.record import NAME, Files, Record
from jaxgpt.config.options import Parser, integer
from jaxgpt.data import dataset
from jaxgpt.errors import ConfigError
from jaxgpt.utils.progress import ProgressReporter

MOST_THREADS = 1024
DESCRIPTION = """Reports what a folder of token shards contains and how much of it is worth training on.

It looks for exact and near-duplicate documents, validation documents that are also in train, and faulty documents and
ids. It writes audit.json, a report (audit.html) and the clusters by which `prepare` keeps near-duplicates in one split
(audit-clusters.bin). Unchanged data is not audited again. Folders of nanoGPT, llm.c and modded-nanogpt work too.
"""
EXAMPLES = """examples:
  python -m jaxgpt.audit data/fineweb40m
  python -m jaxgpt.audit data/fineweb40m --dedup data/fineweb40m-unique
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
    """Audits `folder`, writes what was found beside its shards or to `out`, and returns it (docs/audit.md).

    `dedup` is a folder to make without the duplicates, `tmp` one for the temporary file. With `threads` 0 all cores
    work. Raises `ConfigError`, `DataError` or `StorageError`; what can be known before the work is raised before.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise ConfigError("C032", f"threads = {threads}; must be 0 (all cores) to {MOST_THREADS}", "leave it out")
    subject = AuditTarget.of(dataset.open_folder(folder), eot)
    files = Files(Path(out) if out else Path(folder) / NAME)
    _check(files, tmp)
    target = Path(dedup) if dedup else None
    made = unique.check(subject, target) if target else None
    with ProgressReporter() as progress:
        record = None if again else _known(subject, files)
        if record and not (target and not made):
            progress.print(f"'{folder}' is audited already (--again repeats it)")
        else:
            analysis = analyse(subject, Path(tmp) if tmp else files.folder, progress, threads)
            record = record or _written(Path(folder), files, analysis)
            if target and not made:
                made = unique.write(analysis, target, progress)
        progress.start_stage("")
        progress.print(summary.text(Path(folder), files, record, hint=not target))
        if target and made:
            progress.print(unique.described(target, made))
    return record


def _check(files: Files, tmp: str | Path | None) -> None:
    """Refuses, before the work, places that cannot be written."""
    if files.record.suffix != ".json":
        raise ConfigError("C032", f"--out '{files.record}' is no .json file", f"--out {files.record}.json")
    if not files.folder.is_dir():
        raise ConfigError("C032", f"--out '{files.record}': there is no folder '{files.folder}'", "make it first")
    if tmp is not None and not Path(tmp).is_dir():
        raise ConfigError("C032", f"--tmp '{tmp}' is no folder", "make it first")
    files.check()


def _known(subject: AuditTarget, files: Files) -> Record | None:
    """The record of an earlier audit of the same tokens."""
    found = files.read()
    same = found and all(found.get(name) == value for name, value in subject.identity.items())
    return found if same and files.is_newer(subject.data) else None


def _written(folder: Path, files: Files, analysis: Analysis) -> Record:
    from jaxgpt.audit import page  # matplotlib takes half a second to load

    return files.write(analysis.record, page.html(folder.resolve().name, analysis), analysis.audit)


def main(argv: Sequence[str]) -> None:
    """Audits the folder on the command line."""
    parser = Parser("audit", DESCRIPTION, "DIR [options]")
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    option = parser.add_argument
    option("folder", metavar="DIR", help="folder of token shards")
    option("--dedup", metavar="OUT", help="also make the folder OUT, without the duplicates")
    option("--eot", type=integer, metavar="ID", help="end-of-text token (default: the manifest's or tokenizer's)")
    option("--out", metavar="FILE", help="write to FILE.json and beside it (default: DIR/audit.json)")
    option("--tmp", metavar="DIR", help="folder of the temporary file, 328 bytes per document (default: beside --out)")
    option("--threads", type=integer, default=0, metavar="N", help="threads (default: one per core)")
    option("--again", action="store_true", help="audit data that did not change")
    options = vars(parser.parse_args(argv))
    audit(options.pop("folder"), **options)
