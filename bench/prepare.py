"""`jaxgpt.prepare` compared with a pyarrow + tiktoken + numpy script: same files, same run, new processes.

    python bench/prepare.py [SOURCE.parquet | FOLDER ...] [--rounds 5] [--threads 1 2] [--json FILE]

Each round runs both, from parquet on disk (in the page cache) to token files on disk. Two times are measured: the whole
process, and the work alone, after imports and loading the tokenizer. The script is what one would write quickly: the
text column in batches of 1,000 rows, `encode_ordinary_batch` on as many threads, numpy's uint16, one `train.bin`; it
computes no checksums, keeps no journal and does not sync. The tokens of both must be equal. Then: memory, threads, and
the processor time of each stage. Needs `pip install tiktoken`.
"""

import argparse
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def run_script(paths: Sequence[str], out: str, threads: int) -> None:
    """The script that the command is compared with; prints the seconds of its work."""
    import pyarrow.parquet as pq
    import tiktoken

    from jaxgpt import _loader

    ranks = {token: rank for rank, token in enumerate(_loader.gpt2_vocabulary())}
    eot = {"<|endoftext|>": len(ranks)}
    encoding = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=eot)
    began = time.perf_counter()
    with Path(out).open("wb") as file:
        for path in paths:
            for rows in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
                texts = rows.column(0).to_pylist()
                for ids in encoding.encode_ordinary_batch(texts, num_threads=threads):
                    file.write(np.array([*ids, len(ranks)], np.uint16).tobytes())
    print(f"{time.perf_counter() - began:.3f} s of work")


def time_jaxgpt(paths: Sequence[str], out: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "jaxgpt.prepare", *paths, "--out", str(out), "--format", "nanogpt"]
    seconds, megabytes, printed = time_process(command, threads)
    rate = float(re.search(r"([\d,]+) tokens/s", printed)[1].replace(",", ""))  # type: ignore[index]
    tokens = (out / "train.bin").stat().st_size // 2
    return {"seconds": seconds, "work": tokens / rate, "MB": megabytes, "tokens": tokens}


def time_script(paths: Sequence[str], out: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, *paths, "--run-script", str(out), "--threads", str(threads)]
    seconds, megabytes, printed = time_process(command, threads)
    return {"seconds": seconds, "work": float(printed.split()[0]), "MB": megabytes, "tokens": out.stat().st_size // 2}


def time_process(command: Sequence[str], threads: int) -> tuple[float, float, str]:
    """Wall seconds, peak memory in MB and the output of a process that may use so many cores."""
    began = time.perf_counter()
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    assert process.stdout
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1000, printed


def stages(paths: Sequence[str], folder: Path) -> dict[str, float]:
    """Processor seconds of every stage alone, in this process."""
    figures: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        before = resource.getrusage(resource.RUSAGE_SELF)
        result = work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        figures[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return result

    def imports() -> None:
        import awkward  # noqa: F401

        import jaxgpt.prepare.pipeline  # noqa: F401

    stage("imports", imports)
    from jaxgpt import _loader
    from jaxgpt.data import tokenizer
    from jaxgpt.prepare import sources
    from jaxgpt.prepare.encoder import Encoder
    from jaxgpt.utils import malloc

    malloc.keep_batch_memory()
    encoder = Encoder(tokenizer.gpt2())
    stage("tokenizer, and its copy for gigatoken", encoder.load)
    files = sources.find_sources(list(paths))
    stage("checksums of the sources", lambda: [sources.checksum(file) for file in files])
    stage("reading parquet", lambda: sum(len(batch.texts) for file in files for batch in sources.read(file)))
    batches = [batch for file in files for batch in sources.read(file)]
    encoded = stage("encoding", lambda: [encoder.encode(batch.texts) for batch in batches])
    splitter = _loader.Splitter(folder, "uint16", shard_tokens=10**8, end_of_text=50256)
    stage("splitting and writing", lambda: [splitter.add(batch.encoded, 0, len(batch.encoded)) for batch in encoded])
    stage("syncing, checksums of the shards", splitter.finish)
    return figures


def compare(paths: Sequence[str], rounds: int, threads: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    rows = []
    for count in threads:
        pairs = []
        for number in range(rounds + 1):  # the first warms the page cache and is not counted
            out = folder / f"{count}-{number}"
            jaxgpt = time_jaxgpt(paths, out, count)
            script = time_script(paths, out.with_suffix(".bin"), count)
            if (out / "train.bin").read_bytes() != out.with_suffix(".bin").read_bytes():
                raise SystemExit("the two wrote different tokens")
            pairs.append((jaxgpt, script))
            for path in (*out.iterdir(), out.with_suffix(".bin")):
                path.unlink()
        rows.append({"threads": count, "pairs": pairs[1:]})
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    pairs = row["pairs"]

    def median(side: int, figure: str) -> float:
        return statistics.median(pair[side][figure] for pair in pairs)

    tokens = pairs[0][0]["tokens"]
    print(f"\n{row['threads']} thread(s), {tokens:,} tokens, medians of {len(pairs)} rounds")
    for name, figure in (("whole process", "seconds"), ("work alone", "work")):
        jaxgpt, script = median(0, figure), median(1, figure)
        ratios = sorted(pair[1][figure] / pair[0][figure] for pair in pairs)
        print(
            f"  {name:14} jaxgpt {jaxgpt:6.2f} s {tokens / jaxgpt / 1e6:6.1f} M tokens/s   script {script:6.2f} s "
            f"{tokens / script / 1e6:5.1f} M   "
            f"ratio {statistics.median(ratios):5.1f} ({ratios[0]:.1f}–{ratios[-1]:.1f})"
        )
    print(f"  peak memory    jaxgpt {median(0, 'MB'):6.0f} MB   script {median(1, 'MB'):6.0f} MB")


def parquet_files(path: Path) -> list[str]:
    """The parquet files of a folder in the order of the command, or the file itself."""
    return sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="SOURCE.parquet | FOLDER", default=[str(CORPUS)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, min(2, os.cpu_count() or 1)])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run-script", metavar="OUT", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    common.check_output_path(options.json)
    paths = [path for name in options.sources for path in parquet_files(Path(name))]
    if not paths:
        parser.error("name parquet files with a text column")
    if options.run_script:
        return run_script(paths, options.run_script, options.threads[0])
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(paths, options.rounds, options.threads, Path(folder))
        profile = stages(paths, Path(folder))
    print("\nprocessor seconds of each stage alone")
    for name, seconds in profile.items():
        print(f"  {name:34}{seconds:6.2f}")
    if options.json:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        common.write_json(options.json, machine | {"rows": rows, "stages": profile})
    return None


if __name__ == "__main__":
    sys.exit(common.run(main))
