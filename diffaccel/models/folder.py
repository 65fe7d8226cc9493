"""What a pipeline's folder must hold before anything is loaded: every part that its index names, whole.

Libraries pass some of it over: a tokenizer without its words is loaded as one that knows none, and then every prompt
is the same to the model.
"""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from diffaccel.models.source import ModelError, ModelSource

_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_NO_WORDS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_WORDLESS = "ByT5"
"""Reads bytes, and so has no words."""


def require_parts(source: ModelSource, *, optional: Collection[str] = (), weights: bool = True) -> None:
    """Raise `ModelError` where a part that a model's index names is not there, or not whole.

    Args:
        source: a model, or its configurations.
        optional: parts that it can do without.
        weights: those of networks must be there, too.
    """
    for part, library, kind in _parts(source):
        folder = source.folder / part
        if part in optional:
            continue
        if not folder.is_dir():
            raise ModelError(
                f"{source.name} has no {part}, which its model_index.json names: there is no folder {folder}; "
                "fetch the model again"
            )
        if "Tokenizer" in kind:
            _require_words(source, part, kind)
        elif not any(folder.glob("*config.json")):
            raise ModelError(f"{source.name} has no configuration of its {part}: {folder} has no config.json")
        elif weights and (folder / "config.json").is_file():
            _require_weights(source, part, library)


def _parts(source: ModelSource) -> Iterator[tuple[str, str, str]]:
    """Name, library and class of each part."""
    for part, value in source.index.items():
        if isinstance(value, list) and len(value) == 2 and value[0] and isinstance(value[1], str):
            yield part, str(value[0]), value[1]


def _require_words(source: ModelSource, part: str, kind: str) -> None:
    folder = source.folder / part
    files = {file.name for file in folder.iterdir()}
    words = files.difference(_NO_WORDS)
    if words <= {"vocab.json"} and not kind.startswith(_WORDLESS):
        lacking = "merges.txt" if words else "tokenizer.json, vocab.json or the like"
        raise ModelError(f"{source.name} has no words in its {part}: {folder} has no {lacking}; fetch the model again")


def _require_weights(source: ModelSource, part: str, library: str) -> None:
    folder, stem = source.folder / part, _STEMS.get(library, "(diffusion_pytorch_)?model")
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source.name} has no weights for its {part}: {folder} has no .safetensors file")
    indices = list(folder.glob("*.safetensors.index*.json"))
    for index in indices:
        absent = [file for file in _shards(index) if not (folder / file).is_file()]
        if absent:
            raise ModelError(f"{source.name} lacks weights of its {part}: {folder} has no {absent[0]}")
    if not indices and not any(re.fullmatch(rf"{stem}(\.\w+)?\.safetensors", name) for name in files):
        raise ModelError(
            f"{source.name} has weights of its {part} under a name that is not looked for: {folder / files[0]}; "
            f"{'shards need their .safetensors.index.json' if '-of-' in files[0] else f'it must be {_plain(library)}'}"
        )


def _plain(library: str) -> str:
    return f"{_STEMS.get(library, _STEMS['diffusers'])}.safetensors"


def _shards(index: Path) -> list[str]:
    """Names of the files that an index of weights names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {index}: {error}") from error
