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

from diffaccel.config.words import did_you_mean, with_article
from diffaccel.models.catalogue import BUNDLED, names

LIBRARIES = ("diffusers", "transformers", "diffaccel")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER_BYTES = 16 * 2**20
POINTER = b"version https://git-lfs"
UNFETCHED = "is a pointer of Git LFS, not the file itself: fetch it with git lfs pull"
"""What Git leaves in place of a large file begins so, and this is said of it."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)(?<!\.gguf)")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


class ModelError(ValueError):
    """A model that cannot be found or must not be loaded; the message says why and what to do."""


@dataclass(frozen=True)
class ModelSource:
    """A checked model folder: what was asked for, where it lies, and its `model_index.json`.

    Attributes:
        file: a checkpoint in the original format; `folder` then holds its configurations, and what it lacks.
    """

    name: str
    folder: Path
    index: dict[str, Any] = field(hash=False)
    file: Path | None = None

    @property
    def denoiser(self) -> str | None:
        """`"unet"` or `"transformer"`, whichever network the pipeline samples with."""
        return next((part for part in ("unet", "transformer") if part in self.index), None)

    def config_of(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """The configuration of a part; empty where it has none. Raises `ModelError` where it is damaged."""
        file = self.folder / part / name
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"cannot read {file}: {error}") from error


def resolve(model: str | os.PathLike[str], config: str | os.PathLike[str] | None = None) -> ModelSource:
    """Find `model` (bundled name, folder, single `.safetensors` file or Hub id) and check that it is safe to load.

    Args:
        model: its name or place.
        config: configurations for a single file, as a folder in diffusers' format or a name of those that are supplied.

    Raises:
        ModelError: unknown model, no network, only pickled weights, a damaged weight file, or a library in
            `model_index.json` that is not on the allow-list (diffusers, transformers, diffaccel).
    """
    name, given = os.fspath(model), None if config is None else os.fspath(config)
    file = expanded(name) if name not in names() and expanded(name).is_file() else None
    if given is not None and (name in names() or expanded(name).is_dir() or HUB_ID.fullmatch(name)):
        raise ModelError(f"--config is for models in a single file, and {name} is none")
    folder = _find(name) if file is None else _configuration(file, given)
    index = _read_index(folder)
    check_index(index, folder)
    check_weights(folder)
    source = ModelSource(name, folder, index)
    if file is None:
        from diffaccel.models.folder import require_parts

        require_parts(source)
        return source
    from diffaccel.models.single_file import at_file

    return at_file(source, file)


def _configuration(file: Path, config: str | None) -> Path:
    from diffaccel.models.single_file import configuration

    if file.suffix.lower() in PICKLES:
        raise ModelError(
            f"{file} is pickled, which can run code when read: convert it with safetensors.torch.save_file, or ask for "
            "the .safetensors version of it"
        )
    if file.suffix != ".safetensors":
        raise ModelError(
            f"{file} is no file that ends in .safetensors; a model is one of these, or a folder in diffusers' format"
        )
    return configuration(file, config)


def _find(name: str) -> Path:
    if name in BUNDLED and BUNDLED[name].kind != "pipeline":
        video = BUNDLED[name].kind == "video"
        kind = "a model of videos, for diffaccel video" if video else with_article(BUNDLED[name].kind)
        raise ModelError(f"{name} is {kind}, not a pipeline; pipelines: {', '.join(names('pipeline'))}")
    if name in names("pipeline"):
        return BUNDLED[name].folder
    local = expanded(name)
    if local.is_dir():
        return local
    if local.is_symlink():
        raise ModelError(f"{local} is a link to {local.readlink()}, which is not there: fetch the model again")
    if HUB_ID.fullmatch(name):
        return _download(name)
    hint = did_you_mean(name, names("pipeline"))
    raise ModelError(
        f"unknown model {name!r}{hint}; bundled: {_bundled()}; or give a local folder, a .safetensors file or a Hub id "
        "(owner/name)"
    )


def expanded(name: str) -> Path:
    """A path with the home folder in place of `~`; as it is where there is no such home, and so no such file."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 (pathlib's raises)


def located(name: str) -> str:
    """A name by which a later run finds the same from another folder: local paths in full, all others as they are."""
    place = expanded(name)
    if name in names() or not is_there(place):
        return name
    # What a file's link leads to may be called otherwise, as a hash in the Hub's cache, and a suffix says how to read.
    return str(place.resolve() if place.is_dir() else place.parent.resolve() / place.name)


def is_there(place: Path) -> bool:
    """Whether there is such a file or folder, which no name is of that is too long, or lies where nobody may look."""
    return os.path.exists(place)  # noqa: PTH110 (pathlib's raises)


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
        from diffaccel.models.mistaken import kind_of_folder

        raise ModelError(f"{folder} has no model_index.json: {kind_of_folder(folder)}") from error
    except (OSError, ValueError) as error:
        _refuse_pointer(file)
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
        for file in (file for file in files if file.suffix in (".json", ".txt", ".model")):
            _refuse_pointer(file)


def refuse_pickle(place: Path, what: str) -> None:
    """Raise `ModelError` for a file of pickled weights."""
    if place.suffix.lower() in PICKLES and place.is_file():
        raise ModelError(f"the {what} {place} is pickled, which can run code when read: convert it to .safetensors")


def _refuse_pointer(file: Path) -> None:
    """Raise `ModelError` for what Git leaves in place of a large file that was not fetched."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ModelError(f"{file} {UNFETCHED}")


def check_header(file: Path) -> None:
    """Raise `ModelError` unless the safetensors header is plausible, and the file holds all that it announces."""
    _refuse_pointer(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{file} is damaged: its header claims {length} bytes; fetch the file again")
        header = stream.read(length)
    try:
        tensors = {name: value for name, value in json.loads(header).items() if name != "__metadata__"}
        end = 8 + length + max((value["data_offsets"][1] for value in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is damaged or no safetensors file: {error}") from error
    if end > size:
        raise ModelError(f"{file} is cut short: it has {size:,} of {end:,} bytes; fetch the file again")
