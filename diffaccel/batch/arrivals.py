"""Rows of a source that goes on for a while, such as a pipe: taken as they come, in lists of what came together."""

import queue
from collections.abc import Iterable, Iterator
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

LINGER = 0.2
"""Seconds within which rows follow one another that came together."""

LONGEST = 1.0
"""Seconds after which the first of them waits no longer, however steadily others follow."""

MOST = 1000
T = TypeVar("T")
_END = object()


def arriving(
    rows: Iterable[T], linger: float = LINGER, most: int = MOST, longest: float = LONGEST
) -> Iterator[list[T]]:
    """Lists of at most `most` rows, each ended by a pause of `linger` seconds or after `longest`.

    Rows are read on another thread. Raises what reading raises, after the rows before it.
    """
    box: queue.Queue[Any] = queue.Queue(2 * most)
    Thread(target=_read, args=(rows, box), name="diffaccel-read", daemon=True).start()
    while True:
        found, end = _together(box, linger, most, longest)
        if found:
            yield found
        if isinstance(end, BaseException):
            raise end
        if end is _END:
            return


def _read(rows: Iterable[T], box: "queue.Queue[Any]") -> None:
    try:
        for row in rows:
            box.put((row,))
    except BaseException as error:  # raised again where rows are taken
        box.put(error)
    else:
        box.put(_END)


def _together(box: "queue.Queue[Any]", linger: float, most: int, longest: float) -> tuple[list[Any], Any]:
    """The next row, and those that follow without a pause; and what ended them, if it was their end."""
    found: list[Any] = []
    item = box.get()
    end = monotonic() + longest
    while isinstance(item, tuple):
        found.append(item[0])
        left = end - monotonic()
        if len(found) == most or left <= 0:
            return found, None
        try:
            item = box.get(timeout=min(linger, left))
        except queue.Empty:
            return found, None
    return found, item
