"""Textual inversion: words whose embeddings were learned, in the spellings of AUTOMATIC1111, SDXL and diffusers."""

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.models.mistaken import kind_of_file
from diffaccel.models.quiet import quiet_loading
from diffaccel.models.single_file import read_shapes
from diffaccel.models.source import PICKLES, ModelError, ModelSource, expanded

if TYPE_CHECKING:
    import torch

_BETWEEN = " + "
_OWN = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Names of a file's tensors that say which encoder they are for."""


def parse_embeddings(text: str | None) -> dict[str, str]:
    """Files by their tokens from `"style.safetensors=<style> + bad.safetensors"`; a file's own name is the default.

    Raises `ModelError` where two have one token; CLIP's words have no capitals, so case does not count.
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, (text or "").split(_BETWEEN))):
        file, _, token = part.rpartition("=") if not part.endswith(".safetensors") else (part, "", Path(part).stem)
        if not file or not token:
            raise ModelError(f"--embedding {part}: write FILE=TOKEN")
        if (other := next((known for known in found if known.lower() == token.lower()), None)) is not None:
            raise ModelError(f"--embedding: {found[other]} and {file} have the same token {token}")
        found[token] = file
    return found


def write_embeddings(files: Mapping[str, str]) -> str | None:
    """The text that `parse_embeddings` reads as `files`."""
    return _BETWEEN.join(f"{file}={token}" for token, file in files.items()) or None


def vectors_of(text: str | None) -> dict[str, int]:
    """How many vectors each learned word has, by its token as CLIP's tokenizers spell it.

    Raises `ModelError` for a file that is missing or damaged.
    """
    shapes = {token.lower(): read_shapes(_found(file)).values() for token, file in parse_embeddings(text).items()}
    return {token: max(shape[0] if len(shape) == 2 else 1 for shape in each) for token, each in shapes.items()}


def in_any_case(words: Iterable[str]) -> re.Pattern[str]:
    """Finds learned words in a prompt, as CLIP's tokenizers do: in any case, and the longest that fits."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)


def check_embeddings(text: str | None, source: ModelSource) -> None:
    """Raise `ModelError` where embeddings are missing, damaged, or for encoders of another width."""
    widths = {name: width for name in _OWN.values() if (width := source.config_of(name).get("hidden_size"))}
    for token, file in parse_embeddings(text).items():
        for encoder in _assigned(file, read_shapes(_found(file)), widths, source.name).values():
            if token.lower() in _known(source, encoder.replace("text_encoder", "tokenizer")):
                raise ModelError(
                    f"--embedding {file}={token}: {source.name} knows the word {token} already: name another"
                )


def _known(source: ModelSource, tokenizer: str) -> Container[str]:
    """The words of a tokenizer, which lie in a file of them alone, or with all else that makes it."""
    words = source.config_of(tokenizer, "vocab.json")
    whole = source.config_of(tokenizer, "tokenizer.json")
    return words or whole.get("model", {}).get("vocab", {})


def load_embeddings(pipe: Any, text: str | None) -> None:
    """Teach a pipeline's tokenizers and text encoders new words.

    Raises:
        ModelError: a file is missing, damaged or for other encoders, or a token is a word already.
    """
    widths = {
        name: int(pipe.components[name].config.hidden_size) for name in _OWN.values() if pipe.components.get(name)
    }
    files = parse_embeddings(text)
    for token, file in files.items():
        place = _found(file)
        assigned = _assigned(file, read_shapes(place), widths, type(pipe).__name__)
        from safetensors.torch import load_file

        tensors = load_file(place)
        for name, encoder in assigned.items():
            _teach(pipe, token, tensors[name], encoder, file)
    if files:
        pipe.maybe_convert_prompt = _InAnyCase(pipe, files)


def _teach(pipe: Any, token: str, vectors: "torch.Tensor", encoder: str, file: str) -> None:
    if not hasattr(pipe, "load_textual_inversion"):
        raise ModelError(f"{type(pipe).__name__} takes no embeddings")
    tokenizer = encoder.replace("text_encoder", "tokenizer")
    known = {"text_encoder": pipe.components[encoder], "tokenizer": pipe.components[tokenizer]}
    with quiet_loading():
        try:
            pipe.load_textual_inversion({token.lower(): vectors}, token=token.lower(), **known)
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise ModelError(f"cannot load the embedding {file} as {token}: {reason}") from error


class _InAnyCase:
    """A pipeline's `maybe_convert_prompt`, which spells out words of several vectors, for words in any case.

    CLIP's tokenizers know no capitals. diffusers looks for a word as the tokenizer spells it, so that of one with
    capitals, in the prompt or in its own name, the first vector alone would count.

    Args:
        pipe: the pipeline.
        words: that it was taught.
    """

    def __init__(self, pipe: Any, words: Iterable[str]) -> None:
        self._plain = pipe.maybe_convert_prompt
        self._words = in_any_case(words)

    def __call__(self, prompt: str | list[str], tokenizer: Any) -> Any:
        """The prompt, or prompts, as the encoder of the tokenizer reads them."""
        if isinstance(prompt, list):
            return [self(text, tokenizer) for text in prompt]
        return self._plain(self._words.sub(lambda found: found[0].lower(), prompt), tokenizer)


def share_words(pipe: Any, other: Any) -> None:
    """Have another pipeline of the same tokenizers find words that a pipeline was taught as that one does."""
    if (found := vars(pipe).get("maybe_convert_prompt")) is not None and hasattr(other, "maybe_convert_prompt"):
        other.maybe_convert_prompt = found


def _found(file: str) -> Path:
    place = expanded(file)
    if place.suffix in PICKLES:
        raise ModelError(f"{file} is pickled, which can run code when read: convert it to .safetensors")
    if not place.is_file():
        raise ModelError(f"no embedding at {file!r}: give a .safetensors file, as --embedding FILE=TOKEN")
    return place


def _assigned(
    file: str, shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, int], model: str
) -> dict[str, str]:
    """For each tensor of a file, the encoder that it is for: the one that it names, or the one of its width."""
    if not widths:
        raise ModelError(f"{model} has no text encoder of the kind that embeddings are for")
    made = {}
    for name, shape in shapes.items():
        fitting = [encoder for encoder, width in widths.items() if shape[-1:] == (width,)]
        own = _OWN.get(name)
        if len(shape) not in (1, 2) or (own is None and len(shapes) > 1):
            other = kind_of_file(shapes)
            what = other if other and "--embedding" not in other else f"it has {name[:80]}"
            raise ModelError(f"{file} is not an embedding: {what}")
        if not fitting or (own in widths and own not in fitting):
            ours = " and ".join(str(width) for width in widths.values())
            raise ModelError(f"the embedding {file} is for an encoder of width {shape[-1]}, and {model} has {ours}")
        made[name] = own if own in fitting else fitting[0]
    if set(made.values()) != set(widths):
        missing = ", ".join(sorted(set(widths) - set(made.values())))
        raise ModelError(
            f"the embedding {file} has nothing for the {missing} of {model}: it was made for another model"
        )
    return made
