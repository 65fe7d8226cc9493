"""What is not done with a prompt, in words: tokens that no text encoder reads, a negative prompt without effect."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from diffaccel.models.markup import markup
from diffaccel.models.text_parts import reading_of, words_of
from diffaccel.models.tokenizing import ONE_AT_A_TIME
from diffaccel.models.weighted_text import reads_in_parts
from diffaccel.realtime.controls import READS_NEGATIVE, Controls

UNLIMITED = 100_000
"""Tokenizers without a limit name a huge number."""


def cut_off(pipe: Any, text: str) -> str:
    """The end of a prompt that no text encoder of the pipeline reads; empty where all of it is read."""
    with ONE_AT_A_TIME:
        if reading := reading_of(pipe):
            return reading.beyond(text)
        lost = [_beyond(tokenizer, limit, text) for tokenizer, limit in _tokenizers(pipe)]
    return min(lost, key=len, default="")


def _tokenizers(pipe: Any) -> list[tuple[Any, int]]:
    """Tokenizers, and how many tokens of each the pipeline gives its encoder."""
    parameters = inspect.signature(pipe.encode_prompt).parameters if hasattr(pipe, "encode_prompt") else {}
    longest = parameters["max_sequence_length"].default if "max_sequence_length" in parameters else None
    found = []
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipe, name, None)
        if tokenizer is None:
            continue
        limit = getattr(tokenizer, "model_max_length", None) or UNLIMITED
        if isinstance(longest, int) and not type(tokenizer).__name__.startswith("CLIP"):
            limit = min(limit, longest) if limit < UNLIMITED else longest
        if limit < UNLIMITED:
            found.append((tokenizer, limit))
    return found


def _beyond(tokenizer: Any, limit: int, text: str) -> str:
    tokens = tokenizer(text, truncation=False, verbose=False).input_ids
    if len(tokens) <= limit:
        return ""
    return words_of(tokenizer, tokens[limit - 1 :])  # the last one that is read is the end


def remark(pipe: Any, prompts: Mapping[str, str], remedies: Collection[str] = ()) -> str:
    """What is left out of prompts, or drawn as text, by their titles, in sentences; empty where nothing is.

    Args:
        pipe: reads the prompts.
        prompts: texts by their titles.
        remedies: options by which more is read, as `markup` names them.
    """
    reading = reading_of(pipe)
    weights = reading is not None and reading.weights
    lost = {title: end for title, text in prompts.items() if text and (end := cut_off(pipe, text))}
    said = [f"{title} is too long for this model, which does not read “{end}”." for title, end in lost.items()]
    if lost and remedies and reading is None and reads_in_parts(type(pipe).__name__):
        said.append("--long-prompts reads more.")
    for title, text in prompts.items():
        notes = markup(text, weights=weights, remedies=remedies)
        said += [f"{title}: {note.removeprefix('prompt: ')}." for note in notes]
    return " ".join(said)


def unread(pipe: Any, controls: Controls) -> str:
    """What is left out of the prompts that count now, in a sentence; empty where nothing is."""
    prompts = {"Prompt": controls.prompt, "Second prompt": controls.second_prompt if controls.blend else ""}
    if controls.guidance in READS_NEGATIVE:
        prompts["Negative prompt"] = controls.negative_prompt
    return remark(pipe, prompts)


def unread_negative(controls: Controls) -> str:
    """That the guidance reads no negative prompt, in a sentence; empty where it does, or there is none."""
    if not controls.negative_prompt or controls.guidance in READS_NEGATIVE:
        return ""
    return (
        f"--negative-prompt changes nothing with --guidance {controls.guidance}: choose --guidance one-time or "
        "--guidance full."
    )
