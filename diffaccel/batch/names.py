"""Names of pictures in any script, and of the files that hold them, which every file system and web server takes."""

import hashlib
import re
from functools import lru_cache
from urllib.parse import quote

MAX_ID = 120
MAX_STEM = 180  # of the 255 bytes that file systems give a name, with room for suffixes and temporary names
_ID = re.compile(r"\w[^/\\:*?\"<>|]*")


def check_id(name: str) -> str:
    """The name, where it can be one. Raises `ValueError` otherwise."""
    if len(name) <= MAX_ID and _ID.fullmatch(name) and name.isprintable() and not name.endswith((" ", ".")):
        return name
    raise ValueError(
        f"write up to {MAX_ID} characters of any script, the first a letter, a digit or _, none of them "
        '/ \\ : * ? " < > | or a line break, the last no dot or space'
    )


def as_id(text: str) -> str:
    """The text as a name, with a dash for what no name may hold."""
    return re.sub(r"[^\w. ]+", "-", text).strip("-. ")[:MAX_ID].rstrip("-. ")


@lru_cache(maxsize=4096)
def file_stem(name: str) -> str:
    """A picture's name as a file's name: percent-encoded; where that grows too long, cut, with a hash of the whole."""
    stem = quote(name, safe="")
    if len(stem) <= MAX_STEM:
        return stem
    kept = re.sub(r"%[0-9A-F]?$", "", stem[: MAX_STEM - 13])
    return f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
