"""ControlNets: found by name, checked, loaded, and put before a pipeline's UNet."""

import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.config.words import with_article
from diffaccel.models.catalogue import BUNDLED, names
from diffaccel.models.embedding import share_words
from diffaccel.models.loader import load_part, part_folder
from diffaccel.models.mistaken import told
from diffaccel.models.quiet import quiet_loading
from diffaccel.models.single_file import read_shapes
from diffaccel.models.single_parts import load_controlnet_file
from diffaccel.models.source import HUB_ID, ModelError, ModelSource, check_weights, expanded, fetch, refuse_pickle

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

CLASS = "ControlNetModel"
_MARKS = ("controlnet", "zero_convs.", "input_hint_block.")
"""In names of the tensors of a ControlNet, as diffusers and the original repositories write them."""
ALIKE = ("cross_attention_dim", "block_out_channels", "addition_embed_type")
_HUB_FILES = [
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-*.safetensors",
]


def find_controlnet(name: str) -> Path:
    """The place of a ControlNet, checked: a bundled one, a folder or file, one in a pipeline's folder, or a Hub id.

    Raises:
        ModelError: there is none, it is of another class, or its weights are not safetensors.
    """
    if name in names("adapter"):
        raise ModelError(f"{name} is an adapter, no ControlNet: run it by FastControlPipeline.load_control({name!r})")
    place = BUNDLED[name].folder if name in names("controlnet") else expanded(name)
    refuse_pickle(place, "ControlNet")
    if place.is_file() and place.suffix == ".safetensors":
        tensors = read_shapes(place)
        if not any(mark in each for each in tensors for mark in _MARKS):
            raise ModelError(f"{place} holds no ControlNet: {told(tensors)}")
        return place
    if not place.exists() and HUB_ID.fullmatch(name):
        place = fetch(name, _HUB_FILES)
    folder = part_folder(place, "controlnet")
    if folder is None:
        bundled = ", ".join(names("controlnet")) or "none"
        raise ModelError(
            f"no ControlNet at {name!r}: give a folder with its config.json, a .safetensors file, a Hub id "
            f"(owner/name), or a bundled name: {bundled}"
        )
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read {folder / 'config.json'}: it is not the configuration of a {CLASS}") from error
    if found != CLASS:
        raise ModelError(
            f"{name} is {with_article(found)}, and streams run a {CLASS}, as for Stable Diffusion and SDXL"
        )
    check_weights(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no weights (diffusion_pytorch_model.safetensors)")
    return folder


def check_controlnet(name: str, source: ModelSource) -> None:
    """Raise ModelError where a ControlNet cannot be found, or was made for another network than a model's."""
    place, unet = find_controlnet(name), source.config_of("unet")
    if place.is_dir() and unet:
        _require_alike(json.loads((place / "config.json").read_text(encoding="utf-8")), unet)


def load_controlnet(
    model: str | os.PathLike[str], *, dtype: "torch.dtype", device: "torch.device", like: Any = None
) -> Any:
    """Load a ControlNet from a bundled name, a local folder, a single file or a Hub id.

    Args:
        model: its name or place.
        dtype, device: of the weights.
        like: the UNet that it is for, or its folder, after which one in a single file is built.

    Raises:
        ModelError: nothing there is a ControlNet, its weights are not safetensors, or it is for another kind of UNet.
    """
    folder = find_controlnet(os.fspath(model))
    if folder.is_file():
        return load_controlnet_file(folder, like, dtype).to(device)
    if hasattr(like, "config"):
        require_fit(json.loads((folder / "config.json").read_text(encoding="utf-8")), like)
    return load_part(f"ControlNet {os.fspath(model)}", CLASS, folder, dtype=dtype).to(device)


def require_fit(net: Any, unet: Any) -> None:
    """Raise ModelError if a ControlNet, or its configuration, is for UNets of other widths."""
    _require_alike(net if isinstance(net, dict) else net.config, unet.config)


def _require_alike(net: Any, unet: Any) -> None:
    """Raise ModelError where two configurations differ in what a ControlNet has from its UNet."""
    for name in ALIKE:
        own, other = (_plain(values.get(name)) for values in (net, unet))
        if own != other:
            raise ModelError(
                f"this ControlNet was made for another kind of network: its {name} is {own}, the UNet's {other}"
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def with_controlnets(pipe: Any, nets: Sequence[Any]) -> "DiffusionPipeline":
    """The stock ControlNet pipeline of the parts of ``pipe``, which stays as it is; weights are shared.

    Raises:
        ModelError: for a pipeline without a UNet, or with another kind of UNet.
    """
    unet = pipe.components.get("unet")
    if unet is None:
        raise ModelError(f"a ControlNet needs a UNet, as of Stable Diffusion or SDXL; {type(pipe).__name__} has none")
    for net in nets:
        require_fit(net, unet)
    with quiet_loading():
        from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline

    xl = unet.config.get("addition_embed_type") == "text_time"
    kind = StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline
    taken = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in {**pipe.config, **pipe.components}.items() if name in taken}
    parts["controlnet"] = list(nets) if len(nets) > 1 else nets[0]
    with quiet_loading():
        made: DiffusionPipeline = kind(**parts)
    share_words(pipe, made)
    return made
