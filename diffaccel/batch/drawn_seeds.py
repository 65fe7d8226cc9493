"""Seeds of rows that ask for drawn ones: kept by a run that goes on, and the same in all parts of one."""

import hmac
import secrets
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from diffaccel.batch.store import kept_for_all, read_manifest

KEY = ".drawn-seeds"
_LENGTH = 16  # bytes of a key


class DrawnSeeds:
    """Draws a seed for each name: the one that was recorded, or a new one.

    Args:
        folder: the output folder.
        anew: what was recorded does not count.
        part: which part of a run this is, of how many. All draw for the same rows, and must draw the same: they find
            the key in the folder.
    """

    def __init__(self, folder: Path, *, anew: bool, part: tuple[int, int] | None = None) -> None:
        self._folder, self._anew, self._part = folder, anew, part

    def __call__(self, name: str) -> int:
        """The seed of the picture with this name: the same for a row that is repeated."""
        if name in self._recorded:
            return self._recorded[name]
        return int.from_bytes(hmac.digest(self._key, name.encode(), "sha256")[:4])

    @cached_property
    def _recorded(self) -> Mapping[str, int]:
        records = {} if self._anew else read_manifest(self._folder)
        return {record.id: seed for record in records.values() if isinstance(seed := record.settings.get("seed"), int)}

    @cached_property
    def _key(self) -> bytes:
        if self._part is None:
            return secrets.token_bytes(_LENGTH)
        return kept_for_all(self._folder / KEY, self._agreed)[:_LENGTH]

    def _agreed(self, kept: bytes) -> bytes:
        """What the folder shall keep: a key, and behind it the parts that began anew with it, as `1/8 2/8`.

        A part that begins anew takes the key of those that did so before it, and a new one where it did so itself.
        """
        if not self._anew:
            return kept or secrets.token_bytes(_LENGTH)
        assert self._part is not None, "only parts of a run agree"
        own, begun = "{}/{}".format(*self._part), kept[_LENGTH:].decode().split()
        of_this_run = [each for each in begun if each.partition("/")[2] == str(self._part[1])]
        if not of_this_run or own in begun:
            return secrets.token_bytes(_LENGTH) + own.encode()
        return kept + f" {own}".encode()
