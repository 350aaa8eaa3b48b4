"""`python -m tests.faults --release`: many more faults than the tests inject, and a report with what came of them."""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from helpers.files import small_disk_at
from helpers.flips import Flips, dataset_targets, flip_bits, run_targets
from helpers.forked import ForkServer, fork_server
from helpers.kills import SAVE_EVERY, Kills, finish, kill_runs
from helpers.soak import DISK, Soak, soak_run
from helpers.training import run_folder, write_tokens

FLIPS_AT_ONCE = 100


@dataclass
class Report:
    """Counts of faults. `lost`: steps or checkpoints beyond what a fault may cost; `corrupt`: a state that differs."""

    seconds: float = 0.0
    kills: int = 0
    kills_inside_save: int = 0
    resumed_runs: int = 0
    repeated_steps: int = 0
    most_repeated_steps: int = 0
    flips: int = 0
    flips_by_kind: dict[str, int] = field(default_factory=dict)
    soak_faults: int = 0
    soak_faults_by_kind: dict[str, int] = field(default_factory=dict)
    soak_starts: int = 0
    soak_steps: int = 0
    lost: int = 0
    corrupt: int = 0
    silent: int = 0
    crashes: int = 0
    problems: list[str] = field(default_factory=list)

    def add_kills(self, kills: Kills) -> None:
        self.kills += kills.total
        self.kills_inside_save += kills.inside_save
        self.resumed_runs += kills.runs
        self.repeated_steps += kills.repeated_steps
        self.most_repeated_steps = max(self.most_repeated_steps, kills.most_repeated)
        self.corrupt += sum("differ" in problem for problem in kills.problems)
        self.lost += sum("differ" not in problem for problem in kills.problems)
        self.problems += kills.problems

    def add_flips(self, flips: Flips) -> None:
        self.flips += flips.total
        for kind, count in flips.by_kind.items():
            self.flips_by_kind[kind] = self.flips_by_kind.get(kind, 0) + count
        self.silent += len(flips.silent)
        self.crashes += len(flips.crashes)
        self.problems += flips.silent + flips.crashes

    def add_soak(self, soak: Soak) -> None:
        self.soak_faults += soak.faults.total()
        self.soak_faults_by_kind |= soak.faults
        self.soak_starts += soak.starts
        self.soak_steps += soak.steps
        self.most_repeated_steps = max(self.most_repeated_steps, soak.most_repeated)
        self.lost += len(soak.lost)
        self.corrupt += len(soak.corrupt)
        self.silent += len(soak.silent)
        self.crashes += len(soak.crashes)
        self.problems += soak.problems

    @property
    def failed(self) -> bool:
        return bool(self.problems)

    def markdown(self, command: str) -> str:
        lists = ("problems", "flips_by_kind", "soak_faults_by_kind")
        values = {name.replace("_", " "): value for name, value in asdict(self).items() if name not in lists}
        lines = ["# Faults", "", f"`{command}`", "", *_table("", "", values)]
        lines += ["## Flipped bits by file", "", *_table("file", "flips", self.flips_by_kind)]
        lines += ["## Faults of the soak", "", *_table("fault", "number", self.soak_faults_by_kind)]
        return "\n".join([*lines, "## Problems", "", *(self.problems or ["none"]), ""])


def _table(first: str, second: str, values: Mapping[str, object]) -> list[str]:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return [f"| {first} | {second} |", "|---|---|", *rows, ""]


class Campaign:
    """Injects faults until their numbers or the time are used up."""

    def __init__(self, workspace: Path, server: ForkServer, seed: int, minutes: float) -> None:
        self.workspace = workspace
        self.report = Report()
        self._server = server
        self._source = random.Random(seed)
        self._start = time.monotonic()
        self._end = self._start + 60 * minutes

    def flip(self, count: int) -> None:
        if not count:
            return
        self._finish_uninterrupted()
        targets = run_targets(run_folder(self.workspace, "uninterrupted")) + dataset_targets(self.workspace / "data")
        while self.report.flips < count and self._has_time():
            self.report.add_flips(flip_bits(targets, self._source, min(FLIPS_AT_ONCE, count - self.report.flips)))
            self._say(f"{self.report.flips:,} of {count:,} flips")

    def kill(self, count: int) -> None:
        if count:
            self._finish_uninterrupted()
        while self.report.kills < count and self._has_time():
            self.report.add_kills(self._kill_a_run(min(13, count - self.report.kills)))
            self._say(f"{self.report.kills} of {count} kills")

    def soak(self, count: int) -> None:
        """Faults of all kinds in one run, on a disk of its own that faults fill."""
        if not count or not self._has_time():
            return
        workspace = self.workspace / "soak"
        write_tokens(workspace / "data")
        (workspace / "runs").mkdir()
        with small_disk_at(workspace / "runs", DISK):
            self.report.add_soak(soak_run(self._server, workspace, self._source, count, self._end))
        self._say(f"{self.report.soak_faults} of {count} faults of the soak")

    def _finish_uninterrupted(self) -> None:
        finish(self._server, self.workspace, "uninterrupted")

    def _kill_a_run(self, count: int) -> Kills:
        shutil.rmtree(run_folder(self.workspace, "killed-0").path, ignore_errors=True)
        return kill_runs(self._server, self.workspace, self._source, count)

    def _has_time(self) -> bool:
        return time.monotonic() < self._end

    def _say(self, text: str) -> None:
        self.report.seconds = round(time.monotonic() - self._start, 1)
        print(f"{self.report.seconds:7.0f} s  {text}; {len(self.report.problems)} problems", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--release", action="store_true", required=True, help="inject the faults of a release")
    parser.add_argument("--minutes", type=float, default=240, help="begin no other fault after this time (240)")
    parser.add_argument("--kills", type=int, default=500, help="runs killed at random moments (500)")
    parser.add_argument("--flips", type=int, default=10_000, help="changed bits (10000)")
    parser.add_argument(
        "--soak", type=int, default=300, help="faults of all kinds in one run (300); needs the right to mount a disk"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("faults"), help="the report: OUT.md and OUT.json (faults)")
    return parser.parse_args()


def main() -> int:
    """Injects the faults and writes the report; 1 if anything was lost, corrupt or silent."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/xla"
        write_tokens(Path(folder) / "data")
        with fork_server() as server:
            campaign = Campaign(Path(folder), server, options.seed, options.minutes)
            campaign.flip(options.flips)
            campaign.kill(options.kills)
            campaign.soak(options.soak)
    report = campaign.report
    values: dict[str, Any] = asdict(report) | {"save_every": SAVE_EVERY}
    options.out.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(report.markdown(" ".join(["python -m tests.faults", *sys.argv[1:]])))
    print(f"lost {report.lost}, corrupt {report.corrupt}, silent {report.silent}, crashes {report.crashes}")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
