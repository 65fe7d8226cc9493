"""A line of text as a row: a prompt alone, or with options as kohya's scripts and AUTOMATIC1111's web UI write them.

    a cat on a sofa --n blurry --s 30 --d 7
    --prompt "a cat on a sofa" --negative_prompt "blurry" --steps 30

Names of settings work as options in both (`--guidance_scale 3`). An option that has no equivalent makes the line a bad
row, for a picture that ignores it would not be the one that was asked for.
"""

import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType

from diffaccel.batch.rows import SETTINGS, WEB_UI, setting_name
from diffaccel.config.words import did_you_mean

COMMENT = "#"
_OPTION = re.compile(r"(?:^|\s)--([A-Za-z][\w-]*)(?=[\s=]|$)=?")
_KOHYA: Mapping[str, str] = MappingProxyType(
    {
        "n": "negative_prompt",
        "w": "width",
        "h": "height",
        "d": "seed",
        "s": "steps",
        "l": "guidance_scale",
        "g": "guidance_scale",
        "t": "strength",
        "ss": "scheduler",
        "i": "init_image",
        "cn": "control_image",
    }
)
_IGNORED = ("prompt_for_display", "outpath_samples", "outpath_grids", "do_not_save_samples", "do_not_save_grid")


def text_values(line: str) -> dict[str, str]:
    """The settings in a line of text. Raises `ValueError` for options that are unknown, repeated or without a value."""
    if not _OPTION.search(line):
        return {"prompt": line}
    text = line.strip()
    return _web_ui(text) if text.startswith("--") else _kohya(text)


def _kohya(text: str) -> dict[str, str]:
    """`prompt --n negative --d 7`: what stands between two options belongs to the first."""
    prompt, *parts = _OPTION.split(text)
    values = {"prompt": prompt.strip()}
    for option, value in zip(parts[::2], parts[1::2], strict=True):
        _add(values, option, value.strip() or None)
    return values


def _web_ui(text: str) -> dict[str, str]:
    """`--prompt "..." --steps 30`, quoted as on a command line."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f'a quotation mark is not closed; write \\" for one inside "...": {error}') from error
    values: dict[str, str] = {}
    option, collected = "", list[str]()
    for word in [*words, "--"]:
        if not word.startswith("--"):
            collected.append(word)
            continue
        if option:
            _add(values, option, " ".join(collected) if collected else None)
        option, equals, first = word.removeprefix("--").partition("=")
        collected = [first] if equals else []
    return values


def _add(values: dict[str, str], option: str, value: str | None) -> None:
    name = setting_name(option)
    if name in _IGNORED:
        return
    setting = _KOHYA.get(name) or WEB_UI.get(name) or name
    if setting not in SETTINGS:
        known = (*SETTINGS, *WEB_UI)
        hint = did_you_mean(name, known) or f"; there are --{', --'.join(_KOHYA)}, and the names of settings"
        raise ValueError(f"--{option}: no such option of a line of text{hint}")
    if values.get(setting):
        raise ValueError(f"--{option}: {setting} is given twice")
    if value is None or not (value or setting == "negative_prompt"):  # "" says that there is none
        raise ValueError(f"--{option} needs a value")
    values[setting] = value
