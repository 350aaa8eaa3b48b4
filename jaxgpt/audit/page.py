"""`audit.html`: the record of an audit with its plots, for reading."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxgpt.audit.analysis import Analysis
from jaxgpt.audit.record import TITLE, Record
from jaxgpt.audit.summary import figures, share, unique_share, warnings
from jaxgpt.utils.html import Block, figure, heading, page, paragraph, table

COLOURS = {"train": "#2f6fb2", "val": "#e08a1e"}


def html(name: str, analysis: Analysis) -> str:
    """The whole page; `name` is the audited folder's."""
    record = analysis.record
    blocks = [
        paragraph(
            f"{record['documents']:,} documents, {record['tokens']:,} tokens of {record['tokenizer']}. Effective "
            f"unique tokens: {record['effective_unique_tokens']:,}, {unique_share(record)} of all."
        ),
        *(paragraph(f"⚠ {warning}.") for warning in warnings(record)),
        *_splits(record),
        *_lengths(record),
        *_duplicates(record),
        *_leakage(record),
        *_frequencies(analysis),
        *_method(record),
    ]
    return page(f"{TITLE}{name}", blocks)


def _splits(record: Record) -> list[Block]:
    columns = {name: figures(split) for name, split in record["splits"].items()}
    rows = [
        [label.replace("  ", "\N{NO-BREAK SPACE}" * 4), *(column[label] for column in columns.values())]
        for label in columns["train"]
    ]
    return [heading("The tokens"), table(["", *columns], rows)]


def _lengths(record: Record) -> list[Block]:
    """Documents by their length, as shares of their split so that a small one is seen beside a large one."""
    with figure(
        "Documents by their length in tokens, as a share of their split. Each bar doubles the length."
    ) as drawn:
        axes = drawn.axes
        starts = _powers(start for split in record["splits"].values() for start, _, _ in split["lengths"]["histogram"])
        width = 0.8 / len(record["splits"])
        for place, (name, split) in enumerate(record["splits"].items()):
            shares = {start: count / split["documents"] for start, count, _ in split["lengths"]["histogram"]}
            at = np.arange(len(starts)) + (place - (len(record["splits"]) - 1) / 2) * width
            axes.bar(at, [100 * shares.get(start, 0) for start in starts], width, label=name, color=COLOURS[name])
        axes.set_xticks(range(len(starts)), [_short(start) for start in starts])
        axes.set_xlabel("tokens, from")
        axes.set_ylabel("% of documents")
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False)
    header = ["percentile of length", *record["splits"]]
    points = [dict(split["lengths"]["percentiles"]) for split in record["splits"].values()]
    names = {0: "shortest", 50: "median", 100: "longest"}
    rows = [[names.get(p, f"{p} %"), *(f"{point.get(p, 0):,}" for point in points)] for p in points[0]]
    return [heading("Document lengths"), drawn.block, table(header, rows)]


def _powers(found: Iterable[int]) -> list[int]:
    """The powers of two (and 0) from the least to the greatest that was found, without gaps."""
    present = sorted(found)
    powers = [0, *(1 << power for power in range(64))]
    return [power for power in powers if present and present[0] <= power <= present[-1]]


def _short(number: int) -> str:
    return f"{number // 1024:,}k" if number >= 1024 else str(number)


def _duplicates(record: Record) -> list[Block]:
    found, search = record["duplicates"], record["search"]
    exact, near = found["exact"], found["near"]
    intro = (
        f"{exact['documents']:,} documents ({exact['tokens']:,} tokens) equal another one; beside them "
        f"{near['documents']:,} ({near['tokens']:,} tokens) are near-duplicates: they share "
        f"{100 * search['threshold']:.0f} % or more of the {search['shingle_tokens']}-token shingles that either has. "
        f"All stand in {found['clusters']:,} clusters, of which one document each is worth keeping."
    )
    blocks = [heading("Duplicates"), paragraph(intro)]
    if found["sizes"]:
        with figure("Clusters by the number of their documents. Each bar doubles the number.", 2.6) as drawn:
            sizes, counts = zip(*found["sizes"])
            drawn.axes.bar(range(len(sizes)), counts, 0.7, color=COLOURS["train"])
            drawn.axes.set_xticks(range(len(sizes)), [f"{size:,}–{2 * size - 1:,}" for size in sizes])
            drawn.axes.set(xlabel="documents in the cluster", ylabel="clusters", xlim=(-0.8, max(len(sizes), 6) - 0.2))
            drawn.axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            drawn.axes.grid(axis="x", visible=False)
        rows = [
            [
                f"{c['documents']:,}",
                f"{c['tokens']:,}",
                f"{c['kept']['split']}\N{NO-BREAK SPACE}{c['kept']['document']:,}",
                c["kept"]["text"],
            ]
            for c in found["largest"]
        ]
        title = paragraph("The clusters that repeat most tokens, with the document that is kept:")
        blocks += [drawn.block, title, table(["documents", "tokens", "kept", "begins"], rows)]
    return blocks


def _leakage(record: Record) -> list[Block]:
    if not record["leakage"]:
        return [heading("Validation in train"), paragraph("There is no validation split.")]
    leakage, val = record["leakage"], record["splits"]["val"]
    runs = leakage["runs"]
    intro = (
        f"Of {val['documents']:,} documents of validation, {leakage['exact']['documents']:,} equal one of train and "
        f"{leakage['near']['documents']:,} are near-duplicates of one. {runs['documents_any']:,} share a run of "
        f"{runs['run_tokens']} tokens with train, {runs['documents_half']:,} half of their runs or more; that is "
        f"{share(runs['seen'], runs['runs'])} of the runs looked at"
    )
    intro += "." if runs["sampled"] == 1 else f" (one in {runs['sampled']})."
    with figure(
        f"Documents of validation by the share of their {runs['run_tokens']}-token runs in train.", 2.6
    ) as drawn:
        labels = ["none", *(f"{10 * n}–{10 * n + 10} %" for n in range(10))]
        drawn.axes.bar(range(11), runs["histogram"], 0.8, color=COLOURS["val"])
        drawn.axes.set_xticks(range(11), labels, fontsize=8)
        drawn.axes.set_ylabel("documents")
        drawn.axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        drawn.axes.grid(axis="x", visible=False)
    blocks = [heading("Validation in train"), paragraph(intro), drawn.block]
    if leakage["examples"]:
        rows = [
            [f"{one['val']['document']:,}", f"{one['train']['document']:,}", "exact" if one["exact"] else "near", text]
            for one in leakage["examples"]
            for text in [one["val"]["text"]]
        ]
        blocks.append(table(["val document", "train document", "how", "begins"], rows))
    return blocks


def _frequencies(analysis: Analysis) -> list[Block]:
    """Rank and frequency: a straight line in text, a flat one in noise, a step where a vocabulary is half used."""
    with figure("How often each id occurs, the most frequent first: nearly straight lines in natural text.") as drawn:
        for number, (name, _) in enumerate(analysis.subject.splits()):
            counts = np.sort(analysis.counts(number))[::-1]
            counts = counts[counts > 0]
            ranks = np.unique(np.geomspace(1, max(len(counts), 1), 300).astype(int))
            if len(counts):
                share_of_tokens = counts[ranks - 1] / counts.sum()
                drawn.axes.plot(ranks, share_of_tokens, label=name, color=COLOURS[name], linewidth=1.6)
        drawn.axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="share of tokens")
        drawn.axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        drawn.axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        drawn.axes.minorticks_off()
        if drawn.axes.lines:
            drawn.axes.legend(frameon=False)
    return [heading("Token frequencies"), drawn.block]


def _plain(value: float, _: Any) -> str:
    return f"{value:,.0f}"


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:.8f}".rstrip("0").rstrip(".") + " %"


def _method(record: Record) -> list[Block]:
    search = record["search"]
    how = (
        f"Each document's set of {search['shingle_tokens']}-token shingles is sketched by {search['sketch_numbers']} "
        f"numbers (fast similarity sketching; the estimate's standard deviation at the threshold is "
        f"{search['estimate_deviation']:.3f}). Documents that agree in one of {search['bands']} bands of "
        f"{search['rows']} numbers are compared: a pair at the threshold is found with probability "
        f"{search['recall_at_threshold']:.5f}. The Jaccard index of each such pair is then counted exactly "
        f"({record['duplicates']['pairs_counted']:,} pairs), so no pair below {search['threshold']} is joined. "
        f"Clusters are what chains of pairs join."
    )
    identity = [["tool", record["tool"]], ["data", record["fingerprint"]], ["seconds", f"{record['seconds']:,}"]]
    return [heading("How this was found"), paragraph(how), table(["", ""], identity)]
