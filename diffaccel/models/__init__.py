"""The models that ship inside the package, and one careful loader for these, a local folder or a Hub repository.

from diffaccel import models
pipe = models.load("emoji-sd")
print(models.figures("emoji-sd"))
"""

from diffaccel.models.catalogue import BUNDLED, Bundled, Defaults, defaults, figures, names, path
from diffaccel.models.controlnet import check_controlnet, find_controlnet, load_controlnet, with_controlnets
from diffaccel.models.embedding import check_embeddings, load_embeddings, parse_embeddings, write_embeddings
from diffaccel.models.loader import (
    DEVICE_MAPS,
    DTYPES,
    check_device_map,
    choose_device,
    choose_dtype,
    find_lora,
    find_vae,
    load,
    load_vae,
    multiplies_bfloat16,
    video_source,
)
from diffaccel.models.lora import Lora, adapters, copied_bytes, load_lora, parse_loras, rebased, with_lora, write_loras
from diffaccel.models.source import ModelError, ModelSource, expanded, is_there, located, resolve

__all__ = [
    "BUNDLED",
    "DEVICE_MAPS",
    "DTYPES",
    "Bundled",
    "Defaults",
    "Lora",
    "ModelError",
    "ModelSource",
    "adapters",
    "check_controlnet",
    "check_device_map",
    "check_embeddings",
    "choose_device",
    "choose_dtype",
    "copied_bytes",
    "defaults",
    "expanded",
    "figures",
    "find_controlnet",
    "find_lora",
    "find_vae",
    "is_there",
    "load",
    "load_controlnet",
    "load_embeddings",
    "load_lora",
    "load_vae",
    "located",
    "multiplies_bfloat16",
    "names",
    "parse_embeddings",
    "parse_loras",
    "path",
    "rebased",
    "resolve",
    "video_source",
    "with_controlnets",
    "with_lora",
    "write_embeddings",
    "write_loras",
]
