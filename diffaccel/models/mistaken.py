"""What a file or folder of weights is, where it was given in another one's place: told from names, for the remedy."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

_MODEL = "it is a model: give it as --model"
_KINDS = (
    (
        r"lora_(up|down|A|B)\b|[._]lora\.(up|down)\.|\.(hada|lokr)_|\.oft_|\.dora_scale",
        "it is a LoRA: give it as --lora, with the model that it is for",
    ),
    (
        r"controlnet_|(^|\.)zero_convs\.|(^|\.)input_hint_block\.",
        "it is a ControlNet: give it as --controlnet, with the model that it is for",
    ),
    (r"^model\.diffusion_model\.|(^|\.)(joint|double)_blocks\.", _MODEL),
    (
        r"^((down|up)_blocks|mid_block|(single_)?transformer_blocks)\.",
        "it is one network of a pipeline in diffusers' format: give the folder of the pipeline",
    ),
    (
        r"(^|first_stage_model\.|vae\.)decoder\.(conv_in|layers)\.",
        "it is an autoencoder: give it as --vae, with the model that it is for",
    ),
    (r"(^|\.)encoder\.(layers|block)\.0\.|\bresblocks\.0\.", "it is a text encoder, which is a part of a model"),
    (
        r"^(emb_params|clip_[lg])$",
        "it is an embedding: give it as --embedding FILE=TOKEN, with the model that it is for",
    ),
)
"""Names of tensors that tell what they are of; the first that is met counts."""


def kind_of_file(names: Iterable[str]) -> str | None:
    """What a file is, by the names of its tensors, and what to do with it; None where that is not known."""
    known = list(names)
    return next((told for mark, told in _KINDS if any(re.search(mark, name) for name in known)), None)


def told(names: Iterable[str]) -> str:
    """What a file is, or else what it has."""
    known = list(names)
    return kind_of_file(known) or f"it has {next(iter(known), 'nothing')[:80]}"


def kind_of_folder(folder: Path) -> str:
    """What a folder without `model_index.json` is, and what to give in its place."""
    patterns = (f"{depth}/model_index.json" for depth in ("*", "snapshots/*", "*/snapshots/*"))
    below = [file.parent for pattern in patterns for file in folder.glob(pattern)]
    if below:
        return f"give a folder that has one: {min(below)}"
    if (folder / "adapter_config.json").is_file():
        return "it holds a LoRA: give it as --lora, with the model that it is for"
    if (config := folder / "config.json").is_file():
        return f"it holds one network ({_class_in(config)}): give the folder of the whole pipeline"
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    return f"give the file in it that is the model, as {folder / files[0]}" if files else "not a diffusers pipeline"


def _class_in(config: Path) -> str:
    """The class that a network's configuration names."""
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        return str(found.get("_class_name") or found["architectures"][0])
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return "of a kind that its config.json does not tell"
