"""`python -m jaxgpt.checkpoint verify|list|prune RUN`: the checkpoints of a run. Nothing here loads JAX."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from jaxgpt import errors
from jaxgpt.config.options import Parser
from jaxgpt.diagnose.live import find_instability
from jaxgpt.errors import CheckpointError, ConfigError, printable
from jaxgpt.runs import checkpoint_files
from jaxgpt.runs.folder import RunFolder, find_run
from jaxgpt.runs.retention import kept_steps
from jaxgpt.utils.formatting import format_bytes

DESCRIPTION = """Lists the checkpoints of a run, verifies every byte of them, or deletes old ones.

verify also checks the run's config.json, tokenizer.json and data.json; its exit status is 4 if anything is damaged.

prune keeps the newest valid checkpoints, as many as --keep says, the best one, and the newest one from before a
divergence. It deletes no damaged one.
"""
EXAMPLES = """examples:
  python -m jaxgpt.checkpoint verify quickstart
  python -m jaxgpt.checkpoint prune runs/mine --keep 2
"""


@dataclass(frozen=True)
class Row:
    """A checkpoint: its state is "valid", "not verified" or what is damaged; `val_loss` is None if it has none."""

    step: int
    bytes: int
    val_loss: float | None
    state: str
    is_damaged: bool = False
    is_deleted: bool = False

    def __str__(self) -> str:
        loss = "-" if self.val_loss is None else f"{self.val_loss:.4f}"
        return f"{self.step:>9,}  {format_bytes(self.bytes):>9}  {loss:>8}  {self.state}"


def list_checkpoints(run: RunFolder) -> list[Row]:
    """The checkpoints, unread."""
    return [_row(run, step, "not verified") for step in checkpoint_files.steps_in(run.checkpoints)]


def verify_checkpoints(run: RunFolder) -> list[Row]:
    """The checkpoints, after every byte of them has been read."""
    return [_verified(run, step) for step in checkpoint_files.steps_in(run.checkpoints)]


def prune_checkpoints(run: RunFolder, keep: int) -> list[Row]:
    """Deletes all valid checkpoints but the `keep` newest, the best, and the newest from before a divergence.

    Returns all, as they were before.

    Raises `StorageError` S001 if a process uses the run.
    """
    with run.lock():
        rows = verify_checkpoints(run)
        usable = [row for row in rows if not row.is_damaged]
        losses = {row.step: row.val_loss for row in usable if row.val_loss is not None}
        steps = [row.step for row in usable]
        kept = kept_steps(steps, losses, latest=keep, best=1, unstable_since=find_instability(run))
        return [row if row.is_damaged or row.step in kept else _delete(run, row) for row in rows]


def main(argv: Sequence[str]) -> None:
    """Runs the action of the command line. Raises `CheckpointError` K003 or K005 if `verify` finds damage."""
    options = _parse(argv)
    run = find_run(options.run).run
    actions: dict[str, Callable[[], list[Row]]] = {
        "list": lambda: list_checkpoints(run),
        "verify": lambda: verify_checkpoints(run),
        "prune": lambda: prune_checkpoints(run, options.keep),
    }
    rows = actions[options.action]()
    if options.json:
        print(json.dumps({"run": str(run.path), "checkpoints": [asdict(row) for row in rows]}, indent=2))
    else:
        print(f"{'step':>9}  {'size':>9}  {'val loss':>8}  state", *(printable(str(row)) for row in rows), sep="\n")
    if options.action == "verify":
        run.check_files()
        if damaged := [row.step for row in rows if row.is_damaged]:
            message = f"{run.checkpoints}: damaged: {', '.join(map(str, damaged))}"
            help = "train, sample and evaluate move a damaged checkpoint to quarantine/ and use the one before"
            raise CheckpointError("K003", message, help)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("checkpoint", DESCRIPTION, "verify|list|prune RUN [--keep N] [--json]", EXAMPLES)
    parser.add_argument("action", choices=("verify", "list", "prune"), help="what to do")
    parser.add_argument("run", help="a run folder, or the name of a run under runs/")
    parser.add_argument("--keep", type=int, metavar="N", help="prune: how many of the newest checkpoints to keep")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse(argv)
    if (options.action == "prune") != (options.keep is not None):
        raise ConfigError("C006", f"{options.action} with --keep {options.keep}", "prune RUN --keep N, and only prune")
    if options.keep is not None and options.keep < 1:
        raise ConfigError("C009", f"--keep = {options.keep}; must be 1 or more")
    return options


def _row(run: RunFolder, step: int, state: str, *, is_damaged: bool = False) -> Row:
    folder = run.checkpoints / str(step)
    loss = checkpoint_files.read_val_loss(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Row(step, size, None if math.isinf(loss) else loss, state, is_damaged)


def _verified(run: RunFolder, step: int) -> Row:
    if run.is_old_checkpoint(step):
        return _row(run, step, "from before manifests: cannot be verified")
    damage = checkpoint_files.find_damage(run.checkpoints / str(step))
    return _row(run, step, f"damaged: {damage}" if damage else "valid", is_damaged=bool(damage))


def _delete(run: RunFolder, row: Row) -> Row:
    checkpoint_files.delete(run.checkpoints / str(row.step))
    return Row(row.step, row.bytes, row.val_loss, "deleted", is_deleted=True)


if __name__ == "__main__":
    sys.exit(errors.run(main))
