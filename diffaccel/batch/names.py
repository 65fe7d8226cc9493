"""Names of pictures in any script, and of the files that hold them, which every file system and web server takes."""

import hashlib
import re
import unicodedata
from functools import lru_cache
from urllib.parse import quote

MAX_ID = 120
MAX_STEM = 180  # of the 255 bytes that file systems give a name, with room for suffixes and temporary names
_ID = re.compile(r"[^\s.~/\\:*?\"<>|-][^/\\:*?\"<>|]*")
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.IGNORECASE)  # no names of files to Windows
_WORDS = {code: (chr(code).lower() if chr(code).isalnum() else " ") for code in range(128)}
_VARIANTS = "".join(map(chr, range(0xFE00, 0xFE10)))  # which say how the character before is drawn
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # which words of some scripts, and some emoji, are written with


def check_id(name: str) -> str:
    """The name, where it can be one. Raises `ValueError` otherwise."""
    printable = name.translate(_JOINERS).isprintable()
    if len(name) <= MAX_ID and _ID.fullmatch(name) and printable and not name.endswith((" ", ".")):
        return name
    raise ValueError(
        f"write up to {MAX_ID} characters of any script, none of them "
        '/ \\ : * ? " < > | or a line break, the first no dot, dash, ~ or space, the last no dot or space'
    )


def as_id(text: str) -> str:
    """The text as a name, with a dash for what no name may hold."""
    kept = (char if char in "_. " or _is_written(char) else "-" for char in unicodedata.normalize("NFC", text))
    return re.sub("-+", "-", "".join(kept)).strip("-. ")[:MAX_ID].rstrip("-. ")


def first_words(text: str) -> str:
    """The first words in the letters of their script, without accents where there is a letter without: é becomes e."""
    if not text:
        return ""
    if text.isascii():
        return "-".join(text.translate(_WORDS).split())[:40].rstrip("-")
    letters = (unicodedata.normalize("NFKD", char) for char in unicodedata.normalize("NFC", text.casefold()))
    plain = "".join(char[0] if char[:1].isascii() else unicodedata.normalize("NFC", char) for char in letters)
    words = "-".join("".join(char if _is_written(char) else " " for char in plain).split())
    return words[: 40 if words.isascii() else 20].rstrip("-")


def _is_written(char: str) -> bool:
    """Whether words are written with it: letters, digits, and marks such as the vowels of Indic scripts."""
    return char.isalnum() or (unicodedata.category(char) in ("Mn", "Mc") and char not in _VARIANTS)


@lru_cache(maxsize=4096)
def file_stem(name: str) -> str:
    """A picture's name as a file's name: percent-encoded; where that grows too long, cut, with a hash of the whole."""
    stem = quote(name, safe="")
    if _DEVICES.fullmatch(name):
        stem = f"%{ord(name[0]):X}{stem[1:]}"
    if len(stem) <= MAX_STEM:
        return stem
    kept = re.sub(r"%[0-9A-F]?$", "", stem[: MAX_STEM - 13])
    return f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
