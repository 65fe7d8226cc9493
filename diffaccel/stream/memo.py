"""The last few values computed for the same objects."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

SIZE = 16
T = TypeVar("T")


class Memo(Generic[T]):
    """The last few values computed for sequences of objects, which are compared by identity and kept alive."""

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[int, ...], tuple[Any, T]] = OrderedDict()

    def get(self, objects: Sequence[object], compute: Callable[[], T]) -> T:
        """The value for ``objects``, computed where it is not known."""
        key = tuple(map(id, objects))
        found = self._values.get(key)
        if found is None:
            found = self._values[key] = (tuple(objects), compute())
            if len(self._values) > SIZE:
                self._values.popitem(last=False)
        return found[1]
