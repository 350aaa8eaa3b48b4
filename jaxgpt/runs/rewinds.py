"""The batches that a run leaves out, because a loss or gradient was not finite there (`run.on_nonfinite = rewind`).

Batches are numbered in the data order. Step s reads the s-th batch of those that are not left out: batch s in a run
that was never rewound. The run's log has every rewind, and every checkpoint's manifest the batches left out by then.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Self

from jaxgpt.runs.checkpoint_files import Manifest, has_manifest
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import read_log

MAX_REWINDS = 3  # to one checkpoint: the run is lost


class Rewinds:
    """The batches that are left out, ascending, and the number of rewinds to each checkpoint, by its step."""

    def __init__(self, skipped: Iterable[int] = (), restored: Iterable[int] = ()) -> None:
        self.skipped = sorted(set(skipped))
        self.counts = Counter(restored)

    @classmethod
    def read(cls, folder: RunFolder, step: int) -> Self:
        """Those of a run that continues from its checkpoint of `step`.

        The log also has the rewinds after that checkpoint: a run that repeats its steps leaves out the same batches.
        """
        log = folder.log_file
        rewinds = [record for record in read_log(log) if record.get("kind") == "rewind"] if log.is_file() else []
        skipped = [batch for record in rewinds for batch in record.get("batches", [])]
        checkpoint = folder.checkpoints / str(step)
        if has_manifest(checkpoint):
            skipped += Manifest.read(checkpoint).skipped_batches
        return cls(skipped, [record["step"] for record in rewinds])

    def batch(self, step: int) -> int:
        """The batch that step `step` reads."""
        batch = step
        for skipped in self.skipped:
            batch += skipped <= batch
        return batch

    def add(self, failed: int, restored: int) -> list[int]:
        """Records a rewind from step `failed` to the checkpoint of step `restored`; the batches that it leaves out.

        They are the batch of the failed step, and from the second rewind to one checkpoint on all batches after it:
        then what went wrong began before the step that failed.
        """
        first = restored if self.counts[restored] else failed
        batches = [self.batch(step) for step in range(first, failed + 1)]
        self.skipped = sorted({*self.skipped, *batches})
        self.counts[restored] += 1
        return batches
