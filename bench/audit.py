"""The audit: how its time and memory scale, and its quality and speed compared with `datasketch` in the same run.

    python bench/audit.py DIR [--copies 1 2 4] [--sample 30_000_000] [--pairs 1_000] [--json FILE]

DIR is a prepared folder of text (`python -m jaxgpt.prepare ../shared/corpus --out DIR --val-tokens 1e6`).

Scale: folders of 1, 2 and 4 times the tokens are written, as nanoGPT's train.bin and val.bin. The first copy is the
data; in each further one every id but the end of text is renamed by a permutation of the vocabulary, so that its
shingles are new while lengths, frequencies and repetitions are those of text. Each is audited by
`python -m jaxgpt.audit` in a new process (imports, report and plots included), twice, of which the second is measured;
then by the core alone, for the seconds of its stages. On a shared machine, processor time is more reliable than wall
time.

Quality: non-overlapping passages of 60 to 600 words, each with a copy in which 0 to 40 % of the words are replaced by
words from elsewhere. The true Jaccard index of each pair is counted from its 5-token shingles; recall and precision are
those of the pairs reported as "0.8 or more": for jaxgpt the pairs within a cluster, chains included. datasketch is used
as in its documentation: MinHash of 128 permutations over the same shingles, `MinHashLSH(threshold=0.8)`, and the pairs
that queries return. Then the same with the corpus's own documents, where a sparse product that counts the shared
shingles gives the true pairs.
"""

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import scipy.sparse

from jaxgpt import _loader
from jaxgpt.data.dataset import TokenDataset, open_folder

THRESHOLD, WIDTH, NUM_PERM = 0.8, 5, 128
EDITS = (0, 1, 2, 3, 4, 5, 10, 20, 30, 40)
Ids = np.ndarray
Pairs = set[tuple[int, int]]


def documents(data: TokenDataset) -> list[Ids]:
    """The documents of the train split, without end-of-text."""
    ids, eot = data.train.ids(0, data.train.tokens), data.tokenizer.eot
    return [document[document != eot] for document in np.split(ids, np.flatnonzero(ids == eot) + 1)[:-1]]


# --- scale -----------------------------------------------------------------------------------------------------------


def write_copies(data: TokenDataset, copies: int, folder: Path) -> Path:
    """Writes `copies` times the tokens, with every id renamed in all but the first copy."""
    folder.mkdir()
    eot = data.tokenizer.eot
    for name, split in (("train", data.train), ("val", data.val)):
        if split is None:
            continue
        ids = split.ids(0, split.tokens)
        with (folder / f"{name}.bin").open("wb") as file:
            for copy in range(copies):
                renamed = np.arange(data.vocab_size)
                if copy:
                    others = np.delete(renamed, eot)
                    renamed[others] = np.random.default_rng(copy).permutation(others)
                file.write(renamed[ids].astype(ids.dtype).tobytes())
    data.tokenizer.save(folder / "tokenizer.json")
    return folder


def command(folder: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory in MB of the whole command in a new process."""
    arguments = [sys.executable, "-m", "jaxgpt.audit", str(folder), "--again"]
    subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def stages(data: TokenDataset, threads: int) -> tuple[dict[str, float], _loader.Audit]:
    """Seconds of each stage of the core, sampled many times a second."""
    seconds: Counter[str] = Counter()
    eot = data.tokenizer.eot
    now = ["opening", time.perf_counter()]

    def progress(stage: str, *_: int) -> None:
        moment = time.perf_counter()
        seconds[str(now[0])] += moment - float(now[1])
        now[:] = [stage, moment]

    audit = _loader.audit(
        data.train.shards,
        data.val and data.val.shards,
        vocab_size=data.vocab_size,
        folder=data.folder,
        eot=eot,
        threads=threads,
        progress=progress,
    )
    progress("done")
    return dict(seconds), audit


def scale(data: TokenDataset, copies: list[int], work: Path) -> list[dict[str, Any]]:
    rows = []
    for count in copies:
        folder = write_copies(data, count, work / f"{count}x")
        opened = open_folder(folder)
        assert opened.tokenizer.eot is not None  # loaded before the clock starts
        seconds, processor, memory = command(folder)
        began = time.process_time()
        profile, audit = stages(opened, os.cpu_count() or 1)
        core = time.process_time() - began
        report = json.loads(audit.report)
        rows.append(
            {
                "copies": count,
                "tokens": report["tokens"],
                "documents": report["documents"],
                "seconds": seconds,
                "tokens per second": report["tokens"] / seconds,
                "CPU seconds": processor,
                "peak MB": memory,
                "core CPU seconds": core,
                "stages": profile,
            }
        )
    return rows


# --- quality ---------------------------------------------------------------------------------------------------------


def shingles(ids: Ids) -> set[bytes]:
    if len(ids) < WIDTH:
        return {ids.tobytes()}
    return {window.tobytes() for window in np.lib.stride_tricks.sliding_window_view(ids, WIDTH)}


def jaccard(a: set[bytes], b: set[bytes]) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def planted(data: TokenDataset, count: int) -> tuple[list[Ids], list[int]]:
    """Documents in adjacent pairs, and the percentage of words replaced in the second of each pair."""
    rng, tokenizer = random.Random(0), data.tokenizer
    texts = [tokenizer.decode(ids).split(" ") for ids in documents(data)[: 2 * count]]
    words = [word for text in texts[:200] for word in text]
    passages = [text[start : start + 600] for text in texts for start in range(0, len(text) - 600, 600)]
    planted_documents = []
    edits = []
    for number, passage in enumerate(rng.sample(passages, count)):
        original = passage[: rng.randrange(60, 600)]
        edits.append(EDITS[number % len(EDITS)])
        copy = list(original)
        for position in rng.sample(range(len(copy)), round(edits[-1] / 100 * len(copy))):
            copy[position] = rng.choice(words)
        planted_documents += [np.array(tokenizer.encode(" ".join(words)), np.uint16) for words in (original, copy)]
    return planted_documents, edits


def find_with_jaxgpt(texts: list[Ids], data: TokenDataset, folder: Path) -> tuple[Pairs, float]:
    """The pairs within a cluster, and the seconds of the core."""
    folder.mkdir()
    eot = data.tokenizer.eot
    np.concatenate([np.append(ids, eot) for ids in texts]).astype(np.uint16).tofile(folder / "train.bin")
    data.tokenizer.save(folder / "tokenizer.json")
    profile, audit = stages(open_folder(folder), os.cpu_count() or 1)
    clusters = defaultdict(list)
    for document, kept in enumerate(np.frombuffer(audit.kept(), "<u4").tolist()):
        clusters[kept].append(document)
    return {pair for one in clusters.values() for pair in itertools.combinations(sorted(one), 2)}, sum(profile.values())


def find_with_datasketch(texts: list[Ids]) -> tuple[Pairs, float]:
    """The pairs that queries return, and the seconds of hashing, insertion and queries in its one thread."""
    from datasketch import MinHash, MinHashLSH

    began = time.perf_counter()
    index = MinHashLSH(threshold=THRESHOLD, num_perm=NUM_PERM)
    pairs: Pairs = set()
    for number, ids in enumerate(texts):
        sketch = MinHash(num_perm=NUM_PERM)
        sketch.update_batch(list(shingles(ids)))
        pairs |= {(other, number) for other in index.query(sketch)}
        index.insert(number, sketch)
    return pairs, time.perf_counter() - began


def all_pairs(texts: list[Ids]) -> Pairs:
    """Every pair at or above the threshold, by counting the shared shingles of all pairs of documents."""
    sets = [np.unique(hash_shingles(ids)) for ids in texts]
    sizes = np.array(list(map(len, sets)))
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    rows = np.repeat(np.arange(len(texts)), sizes)
    matrix = scipy.sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)))
    matrix = matrix[:, np.flatnonzero(np.bincount(columns) > 1)]
    shared = scipy.sparse.triu(matrix @ matrix.T, 1).tocoo()
    close = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data) >= THRESHOLD
    return set(zip(shared.row[close].tolist(), shared.col[close].tolist()))


def hash_shingles(ids: Ids) -> Ids:
    """A number for each shingle of a document: a polynomial of its tokens modulo 2^64, mixed."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, WIDTH) if len(ids) >= WIDTH else ids[None]
    numbers = np.full(len(windows), windows.shape[1], np.uint64)
    for column in windows.T:
        numbers = (numbers + column.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        numbers ^= numbers >> np.uint64(29)
    return numbers


def score(predicted: Pairs, true: Pairs) -> dict[str, Any]:
    hits = len(predicted & true)
    return {
        "recall": hits / len(true) if true else None,
        "precision": hits / len(predicted) if predicted else None,
        "pairs": len(predicted),
    }


def quality(data: TokenDataset, count: int, folder: Path) -> dict[str, Any]:
    texts, edits = planted(data, count)
    sets = [shingles(ids) for ids in texts]
    pairs = [(2 * n, 2 * n + 1) for n in range(count)]
    similarity = [jaccard(sets[a], sets[b]) for a, b in pairs]
    true = all_pairs(texts)
    jaxgpt_pairs, jaxgpt_seconds = find_with_jaxgpt(texts, data, folder)
    datasketch_pairs, datasketch_seconds = find_with_datasketch(texts)
    rows = []
    for edit in EDITS:
        edited = [(pair, value) for pair, value, percent in zip(pairs, similarity, edits) if percent == edit]
        rows.append(
            {
                "edited %": edit,
                "pairs": len(edited),
                "mean Jaccard": float(np.mean([value for _, value in edited])),
                "true": sum(value >= THRESHOLD for _, value in edited),
                "jaxgpt": sum(pair in jaxgpt_pairs for pair, _ in edited),
                "datasketch": sum(pair in datasketch_pairs for pair, _ in edited),
            }
        )
    tokens = sum(map(len, texts))
    return {
        "rows": rows,
        "true pairs": len(true),
        "jaxgpt": score(jaxgpt_pairs, true) | {"tokens/s": tokens / jaxgpt_seconds},
        "datasketch": score(datasketch_pairs, true) | {"tokens/s": tokens / datasketch_seconds},
    }


def corpus(data: TokenDataset, limit: int, folder: Path) -> dict[str, Any]:
    """The results of both on the corpus's own documents, up to `limit` tokens."""
    texts, tokens = [], 0
    for ids in documents(data):
        texts.append(ids)
        tokens += len(ids)
        if tokens > limit:
            break
    true = all_pairs(texts)
    jaxgpt_pairs, jaxgpt_seconds = find_with_jaxgpt(texts, data, folder)
    datasketch_pairs, datasketch_seconds = find_with_datasketch(texts)
    return {
        "documents": len(texts),
        "tokens": tokens,
        "true pairs": len(true),
        "jaxgpt": score(jaxgpt_pairs, true) | {"tokens/s": tokens / jaxgpt_seconds},
        "datasketch": score(datasketch_pairs, true) | {"tokens/s": tokens / datasketch_seconds},
    }


# --- output ----------------------------------------------------------------------------------------------------------


def scale_table(rows: list[dict[str, Any]]) -> str:
    columns = ["tokens", "documents", "seconds", "CPU seconds", "tokens per second", "peak MB", "core CPU seconds"]
    lines = ["".join(f"{name:>18}" for name in columns)]
    lines += ["".join(f"{row[name]:>18,.{2 if name.endswith('seconds') else 0}f}" for name in columns) for row in rows]
    lines.append("\nseconds of the core's stages")
    for stage in rows[-1]["stages"]:
        lines.append(f"{stage:<24}" + "".join(f"{row['stages'].get(stage, 0):>10.3f}" for row in rows))
    return "\n".join(lines)


def quality_table(results: dict[str, Any]) -> str:
    names = list(results["rows"][0])
    lines = ["".join(f"{name:>14}" for name in names)]
    lines += [
        "".join(f"{row[name]:>14,.{3 if name == 'mean Jaccard' else 0}f}" for name in names) for row in results["rows"]
    ]
    return "\n".join([*lines, "", *sides(results)])


def sides(results: dict[str, Any]) -> list[str]:
    lines = [f"{results['true pairs']} pairs of Jaccard >= {THRESHOLD}"]
    for side in ("jaxgpt", "datasketch"):
        values = results[side]
        rates = [f"{name} {'–' if values[name] is None else f'{values[name]:.4f}'}" for name in ("recall", "precision")]
        figures = f"{', '.join(rates)}, {values['pairs']} pairs"
        lines.append(f"{side:<12}{figures}, {values['tokens/s']:,.0f} tokens/s")
    ratio = results["jaxgpt"]["tokens/s"] / results["datasketch"]["tokens/s"]
    return [*lines, f"{ratio:,.0f} times as fast ({os.cpu_count()} threads against one)"]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sample", type=int, default=30_000_000, help="tokens of the corpus that both search")
    parser.add_argument("--pairs", type=int, default=1_000, help="planted pairs")
    parser.add_argument("--json", type=Path, help="also write the figures to this new file")
    options = parser.parse_args(argv)
    common.check_output_path(options.json)
    data = open_folder(options.folder)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        results = {
            "scale": scale(data, options.copies, work),
            "planted": quality(data, options.pairs, work / "planted"),
            "corpus": corpus(data, options.sample, work / "corpus"),
        }
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n\n{scale_table(results['scale'])}\n")
    print(f"planted pairs\n{quality_table(results['planted'])}\n")
    print(f"{results['corpus']['documents']:,} documents of the corpus, {results['corpus']['tokens']:,} tokens")
    print("\n".join(sides(results["corpus"])))
    if options.json:
        settings = {"copies": options.copies, "sample": options.sample, "pairs": options.pairs}
        common.write_json(options.json, {"settings": settings, "results": results})


if __name__ == "__main__":
    sys.exit(common.run(main))
