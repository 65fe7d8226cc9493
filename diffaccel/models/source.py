"""From what the user typed to a folder that is safe to load, without importing torch.

A model folder is input from strangers. Pickled weights run code when they are read, and `model_index.json` names Python
libraries that get imported, so both are checked before anything is loaded.
"""

import json
import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffaccel.config.words import did_you_mean
from diffaccel.models.catalogue import BUNDLED, names

LIBRARIES = ("diffusers", "transformers", "diffaccel")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER_BYTES = 16 * 2**20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


class ModelError(ValueError):
    """A model that cannot be found or must not be loaded; the message says why and what to do."""


@dataclass(frozen=True)
class ModelSource:
    """A checked model folder: what was asked for, where it lies, and its `model_index.json`."""

    name: str
    folder: Path
    index: dict[str, Any] = field(hash=False)

    @property
    def denoiser(self) -> str | None:
        """`"unet"` or `"transformer"`, whichever network the pipeline samples with."""
        return next((part for part in ("unet", "transformer") if part in self.index), None)


def resolve(model: str | os.PathLike[str]) -> ModelSource:
    """Find `model` (bundled name, local folder or Hub id) and check that it is safe to load.

    Raises `ModelError`: unknown model, no network, only pickled weights, a damaged weight file, or a library in
    `model_index.json` that is not on the allow-list (diffusers, transformers, diffaccel).
    """
    name = os.fspath(model)
    folder = _find(name)
    index = _read_index(folder)
    check_index(index, folder)
    check_weights(folder)
    return ModelSource(name, folder, index)


def _find(name: str) -> Path:
    if name in BUNDLED and BUNDLED[name].kind != "pipeline":
        raise ModelError(f"{name} is a {BUNDLED[name].kind}, not a pipeline; pipelines: {', '.join(names('pipeline'))}")
    if name in names("pipeline"):
        return BUNDLED[name].folder
    local = expanded(name)
    if local.is_dir():
        return local
    if local.is_file():
        raise ModelError(f"{name} is a file; a model is a folder in diffusers format (with model_index.json)")
    if HUB_ID.fullmatch(name):
        return _download(name)
    hint = did_you_mean(name, names("pipeline"))
    raise ModelError(
        f"unknown model {name!r}{hint}; bundled: {_bundled()}; or give a local folder or a Hub id (owner/name)"
    )


def expanded(name: str) -> Path:
    """A path with the home folder in place of `~`; as it is where there is no such home, and so no such file."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 (pathlib's raises)


def _bundled() -> str:
    return ", ".join(names("pipeline")) or "none"


def _download(name: str) -> Path:
    """Fetch the safetensors and configuration files of a Hub repository, and nothing that could be code."""
    snapshot = fetch(name, ["model_index.json"])
    check_index(_read_index(snapshot), snapshot)
    return fetch(name, _HUB_FILES)


def fetch(name: str, patterns: list[str]) -> Path:
    """Files of a Hub repository in a local folder. Raises `ModelError` where they cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise ModelError(f"no model {name!r} on the Hub (or it is private); bundled: {_bundled()}") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"cannot reach the Hub for {name!r}; models that need no network: {_bundled()}") from error


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no model_index.json: not a diffusers pipeline") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error
    if not isinstance(index, dict):
        raise ModelError(f"{file} is not a JSON object")
    return index


def check_index(index: dict[str, Any], folder: Path) -> None:
    """Raise `ModelError` where `model_index.json` names code that is not on the allow-list."""
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(f"{folder}: _class_name {index.get('_class_name')!r} asks for code of its own; not loaded")
    for part, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        if not part.startswith("_") and library is not None and not _allowed(library, folder, part):
            allowed = ", ".join(LIBRARIES)
            raise ModelError(f"{folder}: {part} comes from {library!r}, which is not one of {allowed}; not loaded")


def _allowed(library: object, folder: Path, part: str) -> bool:
    """Whether a component's library is ours, or one of diffusers' own pipeline folders (as for its safety checkers)."""
    if not isinstance(library, str) or list((folder / part).glob("*.py")):
        return False
    root = library.split(".")[0]
    if root in LIBRARIES:
        return True
    diffusers = find_spec("diffusers")
    places = diffusers.submodule_search_locations if diffusers else None
    return library.isidentifier() and any((Path(place) / "pipelines" / library).is_dir() for place in places or ())


def check_weights(folder: Path) -> None:
    """Raise `ModelError` for pickled weights without a safetensors twin, and for damaged or inflated headers."""
    for place in (folder, *(child for child in sorted(folder.iterdir()) if child.is_dir())):
        files = [file for file in place.iterdir() if file.is_file()]
        pickles = [file.name for file in files if file.suffix in PICKLES and file.name != "training_args.bin"]
        weights = [file for file in files if file.suffix == ".safetensors"]
        if pickles and not weights:
            raise ModelError(
                f"{place} holds pickled weights only ({pickles[0]}), which can run code when read; "
                "convert them with save_pretrained(..., safe_serialization=True)"
            )
        for file in weights:
            check_header(file)


def check_header(file: Path) -> None:
    """Raise `ModelError` unless the safetensors header's length is plausible."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > min(MAX_HEADER_BYTES, file.stat().st_size - 8):
        raise ModelError(f"{file} is damaged: its header claims {length} bytes; fetch the file again")
