"""Reading ahead: an iterator that a thread of its own runs, a few items in front of whoever consumes it."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
LOOK = 0.1  # seconds between looks at whether the consumer is gone


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items; up to `depth` of them wait. An error is raised at its item's turn; closing ends the thread."""
    waiting: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(depth)
    gone = threading.Event()

    def put(item: Any, error: BaseException | None = None, last: bool = False) -> None:
        while not gone.is_set():
            try:
                waiting.put((item, error, last), timeout=LOOK)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if gone.is_set():
                    return
            put(None, last=True)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = waiting.get()
            if error:
                raise error
            if last:
                return
            yield item
    finally:
        gone.set()
        thread.join()
