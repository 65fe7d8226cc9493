"""Prompts with alternatives and wildcards, `a {red|blue} __animal__`, drawn by dynamicprompts with a picture's seed."""

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffaccel.batch.rows import InputError

DEFAULT_WILDCARDS = "wildcards"
_MARKUP = re.compile(r"\{|\$\{|__\S")
_LEFT = re.compile(r"__[\w*/-]+?__")


class Templates:
    """Draws prompts. Wildcards are text files of a folder: `__animal__` is a line of `animal.txt`.

    Raises `InputError` where the library or the folder is missing.
    """

    def __init__(self, wildcards: Path | None) -> None:
        try:
            from dynamicprompts.wildcards import WildcardManager
        except ImportError as error:
            raise InputError("--dynamic-prompts needs dynamicprompts: pip install 'diffaccel[prompts]'") from error
        if wildcards is not None and not wildcards.is_dir():
            raise InputError(f"--wildcards: no such folder: {wildcards}")
        logging.getLogger("dynamicprompts").setLevel(logging.ERROR)  # it warns of wildcards that are refused here
        self._folder = wildcards or Path(DEFAULT_WILDCARDS)
        self._manager: Any = WildcardManager(self._folder if self._folder.is_dir() else None)

    def __call__(self, template: str, seed: int) -> str:
        """The prompt that the template gives for a seed. Raises `ValueError` for a template that is not understood."""
        if not _MARKUP.search(template):
            return template
        if "#" in template:
            raise ValueError("a # begins a comment in a template: leave it out")
        from dynamicprompts.generators import RandomPromptGenerator

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # it calls its parser by names that are old
                drawn = str(RandomPromptGenerator(self._manager, seed=seed).generate(template, 1)[0]).strip()
        except Exception as error:  # the parser's own errors, and those of what it calls
            raise ValueError(f"a template that cannot be read: {error}") from error
        if left := _LEFT.search(drawn):
            raise ValueError(f"no wildcard {left[0]} in {self._folder} (--wildcards FOLDER)")
        return drawn


def drawn(draw: Callable[[str, int], str], texts: Mapping[str, str], seed: int) -> dict[str, str]:
    """A row's prompts, by their names, as their templates give them.

    Raises `ValueError` for a template that is not understood, and where nothing is left of the prompt.
    """
    made = {}
    for name, text in texts.items():
        try:
            made[name] = draw(text, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if not made["prompt"]:
        raise ValueError("prompt: the template draws an empty prompt")
    return made
