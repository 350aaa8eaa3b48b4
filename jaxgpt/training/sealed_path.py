"""How Orbax commits a checkpoint: with its manifest, and everything on the disk before it gets its name."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from orbax.checkpoint.path import atomicity

from jaxgpt.utils.files import sync


def sealed_path_class(write_manifest: Callable[[Path, int], None]) -> type[atomicity.AtomicRenameTemporaryPath]:
    """A temporary path for Orbax, for which `write_manifest` is called with it and the step before it is renamed.

    Orbax's own commit would add a timestamp and a marker after everything else, and sync neither. The metadata store is
    the one private name that is used here: a test says so when Orbax changes it.
    """

    class SealedPath(atomicity.AtomicRenameTemporaryPath):  # type: ignore[misc]
        async def finalize(self) -> None:
            final = Path(self.get_final())
            if final.name.isdecimal():
                await asyncio.to_thread(self._commit, final)
            else:  # an item in the folder of a step
                await super().finalize()

        def _commit(self, final: Path) -> None:
            if self._checkpoint_metadata_store:
                self._checkpoint_metadata_store.wait_until_finished()
            temporary = Path(self.get())
            write_manifest(temporary, int(final.name))
            temporary.rename(final)
            sync(final.parent)

    return SealedPath
