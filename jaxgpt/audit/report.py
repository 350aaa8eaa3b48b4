"""An audit as a report: a summary for the terminal, and the page with details and plots."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgpt.audit.analysis import Analysis
from jaxgpt.audit.record import TITLE, Record
from jaxgpt.utils.formatting import UNKNOWN, pluralize
from jaxgpt.utils.report import Figure, Items, Paragraph, Report, Section, Table, html_page
from jaxgpt.utils.report.svg import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"train": BLUE, "val": ORANGE}
PERCENTILE_NAMES = {0: "shortest", 50: "median", 100: "longest"}


def audit_report(name: str, record: Record, next_steps: Section) -> Report:
    """The summary for the terminal."""
    return Report(
        title=f"{TITLE}{name}",
        summary=_summary(record),
        sections=(
            _warnings(record),
            Section("Tokens", (_split_table(record),)),
            Section("Duplicates", (_duplicate_summary(record),)),
            Section("Validation in train", (_leakage_summary(record),)),
            next_steps,
        ),
        data=record,
    )


def audit_page(name: str, analysis: Analysis) -> str:
    """The HTML page of the audit of the folder `name`."""
    record = analysis.record
    report = Report(
        title=f"{TITLE}{name}",
        summary=_summary(record),
        sections=(
            _warnings(record),
            Section("Tokens", (_split_table(record),)),
            Section("Document lengths", (_length_figure(record), _length_table(record))),
            Section("Duplicates", (_duplicate_summary(record), *_cluster_details(record))),
            Section("Validation in train", (_leakage_summary(record), *_leakage_details(record))),
            Section("Token frequencies", (_frequency_figure(analysis),)),
            Section("Method", _method(record)),
        ),
        data=record,
    )
    return html_page(report)


def _summary(record: Record) -> tuple[str, ...]:
    """How much of the text is unique, and whether the validation split is independent of train."""
    unique, duplicates = record["effective_unique_tokens"], record["duplicates"]
    repeated = duplicates["exact"]["documents"] + duplicates["near"]["documents"]
    percent = format_percent(unique, record["tokens"])
    return (
        f"{percent} of {pluralize(record['tokens'], 'token')} are unique ({unique:,}): of "
        f"{pluralize(record['documents'], 'document')}, {repeated:,} repeat another one.",
        _leakage_sentence(record),
        f"Tokenizer: {record['tokenizer']}.",
    )


def _leakage_sentence(record: Record) -> str:
    if not record["leakage"]:
        return "There is no validation split."
    leaked = _leaked_documents(record)
    if not leaked:
        return "No document of validation is also in train."
    are = "is" if leaked == 1 else "are"
    return f"{pluralize(leaked, 'document')} of validation {are} also in train: its loss will be too low."


def _leaked_documents(record: Record) -> int:
    leakage = record["leakage"]
    return leakage["exact"]["documents"] + leakage["near"]["documents"] if leakage else 0


def _warnings(record: Record) -> Section:
    warnings = tuple(find_warnings(record))
    return Section("Warnings", (Items(warnings),) if warnings else ())


def find_warnings(record: Record) -> list[str]:
    """What should be fixed or known before training, the most serious first."""
    warnings: list[str] = []
    for name, split in record["splits"].items():
        out_of_vocabulary, eot = split["out_of_vocabulary"], split["eot"]
        if out_of_vocabulary["count"]:
            first = out_of_vocabulary["first"]
            warnings.append(
                f"{name}: {pluralize(out_of_vocabulary['count'], 'id')} outside the vocabulary, "
                f"the first {first['token']} at {first['position']:,} of {first['file']}"
            )
        if eot["doubled"]:
            warnings.append(f"{name}: {pluralize(eot['doubled'], 'end-of-text token')} directly after another")
        if eot["count"] and eot["missing"]:
            position = "first" if eot["position"] == "prepended" else "last"
            warnings.append(f"{name}: the {position} document has no end-of-text token")
    return [*warnings, *record["notes"]]


def _split_table(record: Record) -> Table:
    columns = [_split_statistics(split) for split in record["splits"].values()]
    rows = tuple((label, *(column[label] for column in columns)) for label in columns[0])
    return Table(("", *record["splits"]), rows)


def _split_statistics(split: Record) -> dict[str, str]:
    percentiles = dict(split["lengths"]["percentiles"])
    eot = split["eot"]
    return {
        "documents": f"{split['documents']:,}",
        "tokens": f"{split['tokens']:,}",
        "unique tokens": f"{split['effective_unique_tokens']:,}",
        "tokens per document, mean": f"{split['lengths']['mean']:,.0f}",
        "tokens per document, median": f"{percentiles.get(50, 0):,}",
        "tokens per document, maximum": f"{percentiles.get(100, 0):,}",
        "bytes per token": _format_figure(split["bytes_per_token"]),
        "unigram entropy, nats per token": _format_figure(split["unigram_entropy"]),
        "unigram entropy, bits per byte": _format_figure(split["unigram_bits_per_byte"]),
        "ids that occur": f"{split['distinct_ids']:,}",
        "ids out of vocabulary": f"{split['out_of_vocabulary']['count']:,}",
        "end-of-text tokens": f"{eot['count']:,}",
        "end-of-text tokens missing": f"{eot['missing']:,}",
        "end-of-text tokens doubled": f"{eot['doubled']:,}",
        "empty documents": f"{eot['empty_documents']:,}",
    }


def _format_figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _length_figure(record: Record) -> Figure:
    splits = record["splits"]
    occurring = sorted(start for split in splits.values() for start, _, _ in split["lengths"]["histogram"])
    powers = [0, *(1 << power for power in range(64))]
    starts = [power for power in powers if occurring and occurring[0] <= power <= occurring[-1]]
    width = 0.8 / len(splits)

    def draw(axes: "Axes") -> None:
        for index, (name, split) in enumerate(splits.items()):
            percent = {start: 100 * count / split["documents"] for start, count, _ in split["lengths"]["histogram"]}
            x = np.arange(len(starts)) + (index - (len(splits) - 1) / 2) * width
            axes.bar(x, [percent.get(start, 0) for start in starts], width, label=name, color=COLORS[name])
        labels = [f"{start // 1024:,}k" if start >= 1024 else str(start) for start in starts]
        axes.set_xticks(range(len(starts)), labels)
        axes.set(xlabel="tokens, from", ylabel="% of documents")
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False)

    return Figure("Documents by length in tokens, in percent of their split. Each bar doubles the length.", draw)


def _length_table(record: Record) -> Table:
    points = [dict(split["lengths"]["percentiles"]) for split in record["splits"].values()]
    rows = []
    for percent in points[0]:
        lengths = (f"{point.get(percent, 0):,}" for point in points)
        rows.append((PERCENTILE_NAMES.get(percent, f"{percent} %"), *lengths))
    return Table(("percentile of length", *record["splits"]), tuple(rows))


def _duplicate_summary(record: Record) -> Paragraph:
    duplicates, search = record["duplicates"], record["search"]
    exact, near = duplicates["exact"], duplicates["near"]
    return Paragraph(
        f"{pluralize(exact['documents'], 'document')} ({exact['tokens']:,} tokens) equal another one. "
        f"{pluralize(near['documents'], 'more document')} ({near['tokens']:,} tokens) are near-duplicates, which "
        f"share {100 * search['threshold']:.0f} % or more of the {search['shingle_tokens']}-token shingles that either "
        f"has. They form {pluralize(duplicates['clusters'], 'cluster')}, each of which is worth one document."
    )


def _cluster_details(record: Record) -> tuple[Figure | Paragraph | Table, ...]:
    duplicates = record["duplicates"]
    if not duplicates["sizes"]:
        return ()

    def draw(axes: "Axes") -> None:
        sizes, counts = zip(*duplicates["sizes"])
        _draw_counts(axes, counts, [f"{size:,}–{2 * size - 1:,}" for size in sizes], COLORS["train"])
        axes.set(xlabel="documents in the cluster", ylabel="clusters", xlim=(-0.8, max(len(sizes), 6) - 0.2))

    rows = []
    for cluster in duplicates["largest"]:
        kept = cluster["kept"]
        counts = f"{cluster['documents']:,}", f"{cluster['tokens']:,}"
        rows.append((*counts, f"{kept['split']} {kept['document']:,}", kept["text"]))
    return (
        Figure("Clusters by number of documents. Each bar doubles the number.", draw, 2.6),
        Paragraph("The clusters that repeat the most tokens, with the document that is kept:"),
        Table(("documents", "tokens", "kept", "starts with"), tuple(rows)),
    )


def _draw_counts(axes: "Axes", counts: Any, labels: list[str], color: str, size: float | None = None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.bar(range(len(counts)), counts, 0.75, color=color)
    axes.set_xticks(range(len(counts)), labels, fontsize=size)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)


def _leakage_summary(record: Record) -> Paragraph:
    leakage = record["leakage"]
    if not leakage:
        return Paragraph("There is no validation split.")
    val, runs = record["splits"]["val"], leakage["runs"]
    text = (
        f"Of {pluralize(val['documents'], 'document')} of validation, {leakage['exact']['documents']:,} equal one of "
        f"train and {leakage['near']['documents']:,} are near-duplicates of one. {runs['documents_any']:,} share a run "
        f"of {runs['run_tokens']} tokens with train, {runs['documents_half']:,} half of their runs or more. "
        f"{format_percent(runs['seen'], runs['runs'])} of the runs are in train"
    )
    if runs["tokens_covered"] is not None:
        text += f", which cover {format_percent(runs['tokens_covered'], val['tokens'])} of the tokens"
    if runs["sampled"] != 1:
        text += f" (one run in {runs['sampled']} was tested)"
    return Paragraph(f"{text}.")


def _leakage_details(record: Record) -> tuple[Figure | Table, ...]:
    leakage = record["leakage"]
    if not leakage:
        return ()
    runs = leakage["runs"]

    def draw(axes: "Axes") -> None:
        labels = ["none", *(f"{10 * n}–{10 * n + 10} %" for n in range(10))]
        _draw_counts(axes, runs["histogram"], labels, COLORS["val"], size=8)
        axes.set_ylabel("documents")

    caption = f"Documents of validation by the fraction of their {runs['run_tokens']}-token runs that is in train."
    figure = Figure(caption, draw, 2.6)
    rows = []
    for example in leakage["examples"]:
        val, train = example["val"], example["train"]
        kind = "exact" if example["exact"] else "near"
        rows.append((f"{val['document']:,}", f"{train['document']:,}", kind, val["text"]))
    if not rows:
        return (figure,)
    return figure, Table(("val document", "train document", "duplicate", "starts with"), tuple(rows))


def _frequency_figure(analysis: Analysis) -> Figure:
    """Frequency by rank: a straight line in text, a flat one in noise, a step where part of a vocabulary is unused."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter

        for number, (name, _) in enumerate(analysis.target.splits()):
            counts = np.sort(analysis.token_counts(number))[::-1]
            counts = counts[counts > 0]
            ranks = np.unique(np.geomspace(1, max(len(counts), 1), 300).astype(int))
            if len(counts):
                axes.plot(ranks, counts[ranks - 1] / counts.sum(), label=name, color=COLORS[name], linewidth=1.6)
        axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="fraction of tokens")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{np.format_float_positional(100 * value, 8, trim='-')} %")
        )
        axes.minorticks_off()
        if axes.lines:
            axes.legend(frameon=False)

    return Figure("Frequency of each id, the most frequent first: nearly straight lines in natural text.", draw)


def _method(record: Record) -> tuple[Paragraph, Table]:
    search = record["search"]
    text = (
        f"The set of {search['shingle_tokens']}-token shingles of each document is sketched by "
        f"{search['sketch_numbers']} numbers (fast similarity sketching; the estimate's standard deviation at the "
        f"threshold is {search['estimate_deviation']:.3f}). Documents that agree in one of {search['bands']} bands of "
        f"{search['rows']} numbers are compared: a pair at the threshold is detected with probability "
        f"{search['recall_at_threshold']:.5f}. The Jaccard index of each such pair is then counted exactly "
        f"({record['duplicates']['pairs_counted']:,} pairs), so no pair below {search['threshold']} is joined. "
        f"Clusters are chains of such pairs."
    )
    identity = ("tool", record["tool"]), ("data", record["fingerprint"]), ("seconds", f"{record['seconds']:,}")
    return Paragraph(text), Table(("", ""), identity)


def format_percent(count: int, total: int) -> str:
    """`99.9 %`; 100 % and 0 % only if it is all or nothing."""
    if not total:
        return "0 %"
    percent = 100 * count / total
    if 0 < count < total:
        return f"{min(max(percent, 0.1), 99.9):.1f} %"
    return f"{percent:.0f} %"
