"""A folder of pictures, or a pattern, where a row or an option names one: a row for each picture in it.

Where several of a row's pictures are sets (pictures and their masks), they go together by the names of their files.
"""

import glob
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path

from diffaccel.batch.names import as_id
from diffaccel.batch.pictures import SUFFIXES, UNREAD_SUFFIXES, check_picture, files_of
from diffaccel.batch.rows import BadRow, InputError, PlacedRow
from diffaccel.batch.settings import PICTURES, PictureSettings
from diffaccel.models import expanded, is_there


class PictureSets:
    """Finds the pictures of the sets that rows, or else `options`, name; each set once.

    Args:
        output: the folder that the run writes to, whose pictures are in no set: it would be another one for each run.
    """

    def __init__(self, options: PictureSettings, output: Path | None = None) -> None:
        self._options = options
        self._set_of = lru_cache(maxsize=1024)(partial(_set_of, output=output))

    def check(self) -> None:
        """Raise `InputError` for a picture or set of the options that cannot be opened or used, or is empty."""
        for name in PICTURES:
            path = getattr(self._options, name)
            try:
                if path and self._set_of(path) is None:
                    check_picture(path)
            except ValueError as error:
                raise InputError(f"--{name.replace('_', '-')}: {error}") from error

    def spread(self, placed: PlacedRow | BadRow) -> Iterable[PlacedRow | BadRow]:
        """The row once for each picture of its sets; as it is where there is no set."""
        if isinstance(placed, BadRow) or not (placed.row.names_pictures or self._options.names_pictures):
            return (placed,)
        return self._each(placed)

    def _each(self, placed: PlacedRow) -> Iterator[PlacedRow | BadRow]:
        named = {name: path for name in PICTURES if (path := getattr(placed.row, name) or getattr(self._options, name))}
        try:
            sets = {name: found for name, path in named.items() if (found := self._set_of(path)) is not None}
        except ValueError as error:
            yield BadRow(placed.where, str(error))
            return
        if not sets:
            yield placed
            return
        leading = next(iter(sets))
        for stem in sets[leading]:
            lacking = [name for name, found in sets.items() if stem not in found]
            if lacking:
                problem = f"{lacking[0]}: {named[lacking[0]]} has no picture named {stem}"
                yield BadRow(f"{placed.where}, {stem}", problem)
            else:
                yield _one(placed, {name: found[stem] for name, found in sets.items()}, stem)


def _one(placed: PlacedRow, pictures: dict[str, str], stem: str) -> PlacedRow:
    """The row with one picture of each set, and a name that says which."""
    from diffaccel.batch.jobs import row_id

    row = placed.row.model_copy(update=pictures)
    own = placed.row.custom_id
    name = as_id(f"{own}-{stem}") if own else row_id(row, placed.columns, stem)
    return PlacedRow(placed.where, row.model_copy(update={"custom_id": name}), placed.columns)


def _set_of(path: str, output: Path | None) -> dict[str, str] | None:
    """As `pictures_of`, without those that lie where the run writes its own. Raises `ValueError` where all do."""
    found = pictures_of(path)
    if found is None or output is None:
        return found
    folders = {Path(file).parent for file in found.values()}
    own = {folder for folder in folders if folder.resolve() == output.resolve()}
    if own == folders:
        raise ValueError(f"{path} has pictures of the output folder, where each run adds its own: use another folder")
    return {stem: file for stem, file in found.items() if Path(file).parent not in own}


def pictures_of(path: str) -> dict[str, str] | None:
    """Pictures of a folder or pattern by the stems of their names, in their order; None for a single file.

    Raises `ValueError` for a set without pictures, or with two of one name.
    """
    place = expanded(path)
    if is_there(place) and place.is_dir():
        try:
            found = _pictures_in(place)
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    elif glob.has_magic(path) and not is_there(place):
        names = glob.glob(_pattern(place), recursive=True)  # noqa: PTH207 (pathlib's takes no absolute pattern)
        found = sorted(file for name in names if (file := Path(name)).is_file())
    else:
        return None
    if not found:
        raise ValueError(f"no pictures in {path}; they end in {', '.join(SUFFIXES)}")
    stems = [unicodedata.normalize("NFC", file.stem) for file in found]  # which some systems write as NFD
    twice = next((stem for stem, count in Counter(stems).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two pictures named {twice}: name them apart")
    return dict(zip(stems, map(str, found), strict=True))


def _pictures_in(folder: Path) -> list[Path]:
    """Pictures of a folder, and those that cannot be read, unless they lie there in another format, too.

    So these fail one by one.
    """
    read = files_of(folder, SUFFIXES)
    stems = {file.stem for file in read}
    unread = [file for file in files_of(folder, UNREAD_SUFFIXES) if file.stem not in stems]
    return sorted(read + unread) if read else []


def _pattern(place: Path) -> str:
    """A pattern in which brackets and the like in the names of folders that are there stand for themselves."""
    there = next((folder for folder in place.parents if is_there(folder)), Path())
    return str(Path(glob.escape(str(there))) / place.relative_to(there))
