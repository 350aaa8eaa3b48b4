"""What an audit says on a screen of 80 columns."""

import shlex
from pathlib import Path

from jaxgpt.audit.record import Files, Record
from jaxgpt.utils.formatting import pluralize

LABEL, COLUMN = 26, 15


def text(folder: Path, files: Files, record: Record, hint: bool = True) -> str:
    """The whole summary: the splits, duplicates, validation in train, warnings, and with `hint` what to do next."""
    lines = [
        f"{folder}: {pluralize(record['documents'], 'document')}, {pluralize(record['tokens'], 'token')} "
        f"({record['tokenizer']})",
        f"effective unique tokens: {record['effective_unique_tokens']:,} ({unique_share(record)} of all)",
        "",
        *_table(record),
        "",
        *_duplicates(record),
        *_leakage(record),
        *(f"! {warning}" for warning in warnings(record)),
        f"report: {files.page}",
    ]
    if hint and record["duplicates"]["clusters"]:
        beside = folder.parent if folder.name else Path("..")
        out = beside / f"{folder.resolve().name}-unique"
        command = ["python", "-m", "jaxgpt.audit", str(folder), "--dedup", str(out)]
        lines += ["without duplicates:", f"  {shlex.join(command)}"]
    return "\n".join(lines)


def _table(record: Record) -> list[str]:
    splits = record["splits"]
    columns = {name: figures(split) for name, split in splits.items()}
    lines = [" " * LABEL + "".join(f"{name:>{COLUMN}}" for name in splits)]
    for label in columns["train"]:
        cells = [column[label] for column in columns.values()]
        lines.append(f"{label:<{LABEL}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells))
    return lines


def figures(split: Record) -> dict[str, str]:
    """The figures of a split, with their names, as text."""
    percentiles = dict(split["lengths"]["percentiles"])
    eot = split["eot"]
    return {
        "documents": f"{split['documents']:,}",
        "tokens": f"{split['tokens']:,}",
        "unique tokens": f"{split['effective_unique_tokens']:,}",
        "tokens per document": f"{split['lengths']['mean']:,.0f}",
        "  median": f"{percentiles.get(50, 0):,}",
        "  longest": f"{percentiles.get(100, 0):,}",
        "bytes per token": _number(split["bytes_per_token"]),
        "unigram entropy, nats": _number(split["unigram_entropy"]),
        "  bits per byte": _number(split["unigram_bits_per_byte"]),
        "ids that occur": f"{split['distinct_ids']:,}",
        "ids out of vocabulary": f"{split['out_of_vocabulary']['count']:,}",
        "end-of-text tokens": f"{eot['count']:,}",
        "  missing": f"{eot['missing']:,}",
        "  doubled": f"{eot['doubled']:,}",
        "empty documents": f"{eot['empty_documents']:,}",
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _duplicates(record: Record) -> list[str]:
    found, search = record["duplicates"], record["search"]
    exact, near = found["exact"], found["near"]
    return [
        f"duplicates: {exact['documents']:,} exact ({exact['tokens']:,} tokens), {near['documents']:,} near "
        f"({near['tokens']:,} tokens)",
        f"  in {pluralize(found['clusters'], 'cluster')}; near: Jaccard ≥ {search['threshold']} on "
        f"{search['shingle_tokens']}-token shingles",
    ]


def _leakage(record: Record) -> list[str]:
    if not record["leakage"]:
        return ["validation in train: there is no validation split"]
    leakage, runs = record["leakage"], record["leakage"]["runs"]
    documents = record["splits"]["val"]["documents"]
    covered = runs["tokens_covered"]
    part = "" if covered is None else f", {share(covered, record['splits']['val']['tokens'])} of its tokens"
    return [
        f"validation in train: {leakage['exact']['documents']:,} exactly, {leakage['near']['documents']:,} nearly, of "
        f"{pluralize(documents, 'document')}",
        f"  runs of {runs['run_tokens']} tokens in common: {runs['documents_any']:,} documents have one, "
        f"{runs['documents_half']:,} half of them",
        f"  {share(runs['seen'], runs['runs'])} of its runs{part}",
    ]


def warnings(record: Record) -> list[str]:
    """What should be looked at, the worst first."""
    found: list[str] = []
    for name, split in record["splits"].items():
        foreign, eot = split["out_of_vocabulary"], split["eot"]
        if foreign["count"]:
            first = foreign["first"]
            found.append(
                f"{name}: {pluralize(foreign['count'], 'id')} outside the vocabulary, "
                f"the first {first['token']} at {first['position']:,} of {first['file']}"
            )
        if eot["doubled"]:
            found.append(f"{name}: {pluralize(eot['doubled'], 'end-of-text token')} directly after another")
        if eot["count"] and eot["missing"]:
            found.append(f"{name}: the {'first' if eot['position'] == 'prepended' else 'last'} document has no end")
    leakage = record["leakage"]
    if leakage and (leaked := leakage["exact"]["documents"] + leakage["near"]["documents"]):
        found.append(f"{pluralize(leaked, 'document')} of validation are also in train: its loss will be too low")
    return [*found, *record["notes"]]


def unique_share(record: Record) -> str:
    return share(record["effective_unique_tokens"], record["tokens"])


def share(part: int, whole: int) -> str:
    """`99.9 %`; 100 and 0 only where it is all or none."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < part < whole:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f} %" if 0 < part < whole else f"{percent:.0f} %"
