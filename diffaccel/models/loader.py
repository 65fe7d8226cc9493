"""Load a checked model folder as a diffusers pipeline."""

import json
import os
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.models.catalogue import BUNDLED, names
from diffaccel.models.quiet import quiet_loading
from diffaccel.models.single_file import load_single_file
from diffaccel.models.single_parts import latent_channels, load_vae_file
from diffaccel.models.source import ModelError, ModelSource, check_header, expanded, is_there, refuse_pickle, resolve

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

_WEB_UI_LORA = re.compile(r"(?:<lora:)?([^<>:]+):(\d*\.?\d+)>?")
_STEM = r"(?:model|diffusion_pytorch_model)"
_PLAIN = re.compile(_STEM + r"(?:-\d{5}-of-\d{5})?")
_VARIANT = re.compile(_STEM + r"\.(\w+?)(?:-\d{5}-of-\d{5})?")
DTYPES = ("float32", "float16", "bfloat16")
PICTURE_MODEL = "emoji-sd"
"""What bundled motion adapters move."""
OURS = {
    "ExpertUNet2DConditionModel": "diffaccel.networks.expert_unet",
    "PTDiTTransformer2DModel": "diffaccel.networks.ptdit",
}
"""Networks of this package that pipelines are saved with, and their modules."""
DEVICE_MAPS = ("balanced", "offload")


def load(
    model: str | os.PathLike[str] | ModelSource,
    *,
    dtype: "str | torch.dtype | None" = None,
    device: "str | torch.device | None" = None,
    device_map: str | None = None,
    **components: Any,
) -> "DiffusionPipeline":
    """Load a pipeline from a bundled name, a local folder or a Hub id.

    Only safetensors are read, and only classes of diffusers, transformers and diffaccel are imported.

    Args:
        model: what to load, or a source that `resolve` has checked.
        dtype: a torch dtype or its name; the default is float32 on the CPU and float16 on an accelerator.
        device: where to; the default is the accelerator if there is one, else the CPU.
        device_map: `"balanced"` spreads the pipeline's parts over all accelerators, `"offload"` keeps them in the
            machine's memory and moves each to the accelerator while it runs.
        components: parts in place of the saved ones (`vae=...`, `scheduler=...`), as `from_pretrained` takes them.

    Raises:
        ModelError: the model is unknown, unreachable, or must not be loaded.
    """
    if model in names("video"):
        model = video_source(str(model))
    source = model if isinstance(model, ModelSource) else resolve(model)
    if source.name in names("video"):
        return load_video(source.name, dtype=dtype, device=device, device_map=device_map, **components)
    with quiet_loading():
        from diffusers import DiffusionPipeline

        place = choose_device(device)
        check_device_map(device_map, place)
        spread = {"device_map": device_map} if device_map == "balanced" else {}
        if spread and source.file:
            raise ModelError(f"device map balanced takes a folder, and {source.name} is a single file: use offload")
        try:
            for value in source.index.values():
                if isinstance(value, list) and value[1]:
                    our_class(value[1])  # diffusers finds other libraries' classes once they are imported
            if source.file:
                pipe = load_single_file(source, choose_dtype(dtype, place), components)
            else:
                pipe = DiffusionPipeline.from_pretrained(
                    source.folder,
                    dtype=choose_dtype(dtype, place),
                    use_safetensors=True,
                    local_files_only=True,
                    variant=variant(source.folder),
                    **spread,
                    **{**_absent(source), **components},
                )
        except ModelError:
            raise
        except (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError) as error:
            raise ModelError(f"cannot load {source.name}: {error}") from error
        if device_map == "offload":
            pipe.enable_model_cpu_offload(device=place)
        return pipe if device_map else pipe.to(place)


def our_class(name: str) -> Any:
    """The network of this package that a configuration names; None where it is no such network."""
    return getattr(import_module(OURS[name]), name) if name in OURS else None


def _absent(source: ModelSource) -> dict[str, None]:
    """Parts that a folder was saved without, of those that its pipeline must be told to do without, as SD3's T5."""
    import diffusers

    kind = getattr(diffusers, source.index["_class_name"], None)
    needed = set(kind._get_signature_keys(kind)[0]) - set(kind._optional_components) if kind else set()
    return {name: None for name, value in source.index.items() if value == [None, None] and name in needed}


def video_source(name: str) -> ModelSource:
    """A bundled motion adapter, whose other networks are those of the picture model that it moves."""
    source = resolve(PICTURE_MODEL)
    return replace(source, name=name, index={**source.index, "_class_name": "AnimateDiffPipeline"})


def load_video(name: str, **options: Any) -> "DiffusionPipeline":
    """A bundled motion adapter and its text encoder on the picture model that they were trained on.

    Args:
        name: of the adapter.
        options: as `load` takes them.
    """
    folder = BUNDLED[name].folder
    adapter, text_encoder = options.pop("motion_adapter", None), options.pop("text_encoder", None)
    still = load(PICTURE_MODEL, **options)
    with quiet_loading():
        from diffusers import AnimateDiffPipeline, MotionAdapter
        from transformers import CLIPTextModel

        weights = {"torch_dtype": still.unet.dtype, "use_safetensors": True, "local_files_only": True}
        own = adapter is None
        adapter = adapter or MotionAdapter.from_pretrained(folder, **weights)
        text_encoder = text_encoder or CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **weights)
        kept = {part: getattr(still, part) for part in ("vae", "tokenizer", "unet", "scheduler")}
        pipe = AnimateDiffPipeline(**kept, motion_adapter=adapter, text_encoder=text_encoder)
        if own:  # its LoRA lets pixels of a picture attend to those of other frames
            pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors", local_files_only=True)
            pipe.fuse_lora(components=["unet"])
            pipe.unload_lora_weights()
            pipe.unet.register_to_config(joint_self_attention=True)
        if options.get("device_map") == "offload":
            still.remove_all_hooks()
            pipe.enable_model_cpu_offload(device=choose_device(options.get("device")))
        return pipe if options.get("device_map") else pipe.to(still.device)


def variant(folder: Path) -> str | None:
    """The variant ("fp16") whose weights are the only ones of some network in a pipeline's folder, if there is one."""
    found = set()
    for place in {file.parent for file in folder.glob("*/*.safetensors")}:
        files = [file.name.removesuffix(".safetensors") for file in place.glob("*.safetensors")]
        names = {match[1] for name in files if (match := _VARIANT.fullmatch(name))}
        if not any(_PLAIN.fullmatch(name) for name in files):
            found |= names
    if len(found) > 1:
        raise ModelError(f"{folder} mixes weights of the variants {', '.join(sorted(found))}: keep one of them")
    return found.pop() if found else None


def check_device_map(device_map: str | None, device: "torch.device") -> None:
    """Raise `ModelError` for a device map that is unknown, or that would have no accelerator to map to."""
    if device_map not in (None, *DEVICE_MAPS):
        raise ModelError(f"unknown device map {device_map!r}; one of {', '.join(DEVICE_MAPS)}")
    if device_map and device.type == "cpu":
        raise ModelError(f"device map {device_map!r} needs an accelerator, and this runs on the CPU: leave it out")


def load_vae(
    model: str | os.PathLike[str], *, dtype: "torch.dtype", device: "torch.device", like: Path | None = None
) -> Any:
    """Load an autoencoder from a bundled name, a folder of diffusers' format (its own, or a pipeline's), or a file.

    Args:
        model: its name or place.
        dtype, device: of the weights.
        like: folder of the autoencoder that it is to replace, after which one in a single file is built.

    Raises:
        ModelError: nothing there is an autoencoder, or its weights are not safetensors.
    """
    folder = find_vae(os.fspath(model))
    if folder.is_file():
        return load_vae_file(folder, like, dtype).to(device)
    vae = load_part(f"autoencoder {os.fspath(model)}", "AutoModel", folder, dtype=dtype)
    if not hasattr(vae, "encode") or not hasattr(vae, "decode"):
        raise ModelError(f"{type(vae).__name__} in {folder} is not an autoencoder")
    return vae.to(device)


def load_part(what: str, kind: str, folder: Path, *, dtype: "torch.dtype") -> Any:
    """Load one network of a pipeline from its folder, with a class of diffusers; "AutoModel" is one of ours, too.

    Raises:
        ModelError: it cannot be loaded; ``what`` is its name in the message.
    """
    with quiet_loading():
        import diffusers

        try:
            named = _class_name(folder) if kind == "AutoModel" else kind
            network = our_class(named) or getattr(diffusers, kind)
            return network.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError, AttributeError) as error:
            raise ModelError(f"cannot load the {what}: {error}") from error


def _class_name(folder: Path) -> str:
    """The class that a network's folder names."""
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name"))


def part_folder(place: Path, name: str) -> Path | None:
    """The folder of one network: in a pipeline's folder, or the place itself; None where neither has a config.json."""
    return next((folder for folder in (place / name, place) if (folder / "config.json").is_file()), None)


def find_vae(name: str) -> Path:
    """The folder or single file of an autoencoder, its weights' headers checked.

    Raises `ModelError` where there is none.
    """
    place = BUNDLED[name].folder if name in names() else expanded(name)
    if place.is_file() and place.suffix == ".safetensors":
        latent_channels(place)
        return place
    refuse_pickle(place, "autoencoder")
    folder = part_folder(place, "vae")
    if folder is None:
        bundled = ", ".join((*names("autoencoder"), *names("pipeline"))) or "none"
        raise ModelError(
            f"no autoencoder at {name!r}: give a folder with config.json, a .safetensors file, "
            f"or a bundled name: {bundled}"
        )
    for file in folder.glob("*.safetensors"):
        check_header(file)
    return folder


def find_lora(name: str) -> Path:
    """The `.safetensors` file of a LoRA, its header checked. Raises `ModelError` where there is not exactly one."""
    place = BUNDLED[name].folder if name in names("lora") else expanded(name)
    candidates: list[Path] = []
    if is_there(place):
        refuse_pickle(place, "LoRA")
        candidates = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if len(candidates) != 1 or candidates[0].suffix != ".safetensors" or not candidates[0].is_file():
        if web_ui := _WEB_UI_LORA.fullmatch(name):
            raise ModelError(f"no LoRA at {name!r}: a weight is given as in {web_ui[1]}={web_ui[2]}")
        bundled = ", ".join(names("lora")) or "none"
        raise ModelError(
            f"no LoRA at {name!r}: give a .safetensors file, a folder with one, or a bundled name: {bundled}"
        )
    check_header(candidates[0])
    return candidates[0]


def choose_device(device: "str | torch.device | None" = None) -> "torch.device":
    """The device asked for, else the accelerator, else the CPU. Raises `ModelError` for a device that is not there."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return accelerator or torch.device("cpu")
    there = ["cpu", *([accelerator.type] if accelerator else [])]
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; this machine has {' and '.join(there)}") from error
    if chosen.type not in there:
        raise ModelError(f"no device {device!r} here; this machine has {' and '.join(there)}")
    return chosen


def multiplies_bfloat16(device: "torch.device") -> bool:
    """Whether a device multiplies matrices faster in bfloat16 than in float32: CPUs with AMX do, several times so."""
    import torch

    return device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def choose_dtype(dtype: "str | torch.dtype | None", device: "torch.device") -> "torch.dtype":
    """The dtype asked for, else float32 on the CPU and float16 elsewhere."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; one of {', '.join(DTYPES)}")
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen
