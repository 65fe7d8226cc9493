"""What there is to say of rows, each thing once, in little memory even where a million rows have something."""

import marshal
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from tempfile import TemporaryFile
from typing import IO
from weakref import finalize

from diffaccel.config.words import counted, one_line

BLOCK = 10_000


class Said:
    """What there is to say of pictures, with the places of their rows; beyond some thousands it lies in a file.

    Attributes:
        dealt: for each picture whether it is among those that are told of; None for all.
    """

    def __init__(self) -> None:
        self.dealt: Sequence[int] | None = None
        self._latest: list[tuple[int, str, str]] = []
        self._blocks = 0

    @cached_property
    def _file(self) -> IO[bytes]:
        file = TemporaryFile()  # noqa: SIM115 (it lasts as long as this)
        finalize(self, file.close)
        return file

    def add(self, number: int, where: str, text: str) -> None:
        """Say something of the picture with this number."""
        self._latest.append((number, where, text))
        if len(self._latest) == BLOCK:
            marshal.dump(self._latest, self._file)
            self._latest = []
            self._blocks += 1

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if self._blocks:
            self._file.seek(0)
        for block in chain((marshal.load(self._file) for _ in range(self._blocks)), (self._latest,)):
            yield from ((where, text) for number, where, text in block if self.dealt is None or self.dealt[number])


def told_once(said: Sequence[tuple[str, str]] | Said) -> Iterator[str]:
    """Lines for what is said of places, each thing once: of the first place, and of how many others.

    Args:
        said: gone through twice; of its texts, of which there may be a million, hashes are kept.
    """
    first: dict[int, int] = {}
    others: dict[int, set[int]] = {}
    for where, text in said:
        key, place = hash(text), hash(where)
        if first.setdefault(key, place) != place:
            others.setdefault(key, set()).add(place)
    for where, text in said:
        if first.pop(key := hash(text), None) is not None:
            more = f" and {counted(len(others[key]), 'more row')}" if key in others else ""
            yield one_line(f"{where}{more}: {text}")
