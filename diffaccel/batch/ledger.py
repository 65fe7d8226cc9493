"""Which pictures were asked for already: a million names in the memory that a hundred megabytes give.

Names and settings are kept as 64-bit hashes, which two of a million share with a chance of one in thirty million.
"""

from array import array
from collections.abc import Hashable
from typing import Literal

from diffaccel.batch.names import file_stem

Verdict = Literal["new", "again", "other"]


class Ledger:
    """Notes of each picture its name, a hash of its settings, and where its row came from."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._settings, self._lines, self._files = array("q"), array("q"), array("I")
        self._names: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._settings)

    def enter(self, name: str, settings: Hashable, where: str) -> Verdict:
        """Whether the picture is new, was asked for before, or has the name of one with other settings.

        Names whose files differ in case alone are one, as they are to some file systems.
        """
        key, digest = _key(name), hash(settings)
        number = self._numbers.setdefault(key, len(self))
        if number < len(self):
            return "again" if self._settings[number] == digest else "other"
        file, _, line = where.rpartition(":")
        plain = line.isdecimal() and len(line) < 19
        self._settings.append(digest)
        self._lines.append(int(line) if plain else -1)
        self._files.append(self._names.setdefault(file if plain else where, len(self._names)))
        return "new"

    def place(self, name: str) -> str:
        """Where the row of the picture that has this name came from."""
        number = self._numbers[_key(name)]
        file, line = list(self._names)[self._files[number]], self._lines[number]
        return file if line < 0 else f"{file}:{line}"


def _key(name: str) -> int:
    return hash((name if name.isascii() else file_stem(name)).lower())
