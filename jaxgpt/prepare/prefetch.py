"""Prefetching: a thread runs an iterator a few items ahead of its consumer."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.1  # between checks for a consumer that has stopped


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Yields `items`, up to `depth` computed ahead. Raises an error at its item's turn; closing ends the thread."""
    ready: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any, error: BaseException | None = None, is_end: bool = False) -> None:
        while not stopped.is_set():
            try:
                ready.put((item, error, is_end), timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(None, is_end=True)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = ready.get()
            if error:
                raise error
            if is_end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
