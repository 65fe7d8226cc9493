"""Checkpoints as one file, under the names of the original repositories, without a network.

A file says nothing of how its networks are built or which sampler they were trained for; a folder of configurations in
diffusers' format does: one that the user has, or one of `configurations/` beside this file, by what the file holds.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.models.source import ModelError, ModelSource, check_header, expanded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TensorShapes = Mapping[str, tuple[int, ...]]
_PLACE = Path(__file__).parent / "configurations"
_DENOISER = "model.diffusion_model."
_HINT = "give --config and a folder in diffusers' format of the model that it was made from"
_PARTS = {
    "unet": (_DENOISER + "input_blocks.",),
    "transformer": (_DENOISER, "joint_blocks.", "double_blocks."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
"""Where a file keeps what diffusers calls so."""


def configurations() -> tuple[str, ...]:
    """Names of the configurations that are supplied."""
    return tuple(sorted(folder.name for folder in _PLACE.iterdir() if folder.is_dir()))


def read_shapes(file: Path) -> TensorShapes:
    """Shapes of all tensors by their names, from the header alone. Raises `ModelError` where it is damaged."""
    check_header(file)
    try:
        return {name: tuple(value["shape"]) for name, value in _header(file).items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{file} is damaged or no safetensors file: {error}") from error


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return dict(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))


def configuration(file: Path, config: str | None) -> Path:
    """The folder of configurations for a file: the one given, by its name or path, or the one that it is known to need.

    Raises `ModelError` where it must be given.
    """
    if config is None:
        return _PLACE / _kind(file, read_shapes(file))
    folder = _PLACE / config if config in configurations() else expanded(config)
    if not folder.is_dir():
        raise ModelError(f"no folder of configurations at {config!r}; supplied are {', '.join(configurations())}")
    return folder


def _kind(file: Path, shapes: TensorShapes) -> str:
    """Name of the supplied configuration that a file needs."""
    if any(name.endswith("double_blocks.0.img_attn.norm.key_norm.scale") for name in shapes):
        raise ModelError(f"{file} is of the shape of FLUX, whose text encoders are kept apart from it: {_HINT}, whole")
    if any(name.endswith("joint_blocks.0.context_block.adaLN_modulation.1.bias") for name in shapes):
        return _kind_of_sd3(file, shapes)
    channels = shapes.get(_DENOISER + "input_blocks.0.0.weight", (0, 0))[1]
    if channels not in (0, 4):
        raise ModelError(f"{file} is a network for {channels} channels, as for inpainting or depth: {_HINT}")
    if "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias" in shapes:
        if trained := _trained_for(file, shapes):
            raise ModelError(f"{file} is an SDXL marked as trained for {trained}: {_HINT}, whose scheduler says so")
        return "sdxl"
    if any(mark in name for name in shapes for mark in (".lora_", ".hada_", ".lokr_")):
        raise ModelError(f"{file} is a LoRA, not a model: give it as --lora, with the model that it is for")
    width = shapes.get(_DENOISER + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
    if width == 1024:
        raise ModelError(
            f"{file} is a Stable Diffusion 2, of which it cannot be seen whether it predicts noise or v: give --config "
            "sd-2.1-base (noise, 512 pixels) or --config sd-2.1 (v, 768 pixels)"
        )
    if width == 768:
        if trained := _trained_for(file, shapes):
            raise ModelError(
                f"{file} is a Stable Diffusion 1 marked as trained for {trained}: {_HINT}, whose scheduler says so"
            )
        return "sd-1.5"
    first = next(iter(shapes), "nothing")
    raise ModelError(f"{file} is of no kind whose configuration is known (it has {first[:80]}): {_HINT}")


def _trained_for(file: Path, shapes: TensorShapes) -> str | None:
    """What a file is marked to predict, or from which noise, where that is not as usual in its kind."""
    marks = {"edm_mean": "noise levels of EDM", "edm_vpred.sigma_max": "v-prediction with noise levels of EDM"}
    marks |= {"v_pred": "v-prediction", "ztsnr": "noise without any signal at its end"}
    found = next((meaning for mark, meaning in marks.items() if mark in shapes), None)
    said = str(_header(file).get("__metadata__", {}).get("modelspec.prediction_type", ""))
    return found or ("v-prediction" if said.startswith("v") else None)


def _kind_of_sd3(file: Path, shapes: TensorShapes) -> str:
    if any("t5xxl" in name for name in shapes):
        raise ModelError(f"{file} holds a T5, whose tokenizer is not supplied: {_HINT}, with its tokenizers")
    if any("joint_blocks.37." in name for name in shapes):
        return "sd3.5-large"
    places = next((shape[1] for name, shape in shapes.items() if name.endswith("pos_embed") and len(shape) > 1), 0)
    kinds = {192 * 192: "sd3-medium", 384 * 384: "sd3.5-medium"}
    if places not in kinds:
        raise ModelError(f"{file} is of the shape of Stable Diffusion 3, of a size that is not known: {_HINT}")
    return kinds[places]


def check_parts(source: ModelSource) -> None:
    """Raise `ModelError` where a network is neither in the file nor in the folder of configurations."""
    assert source.file is not None
    shapes = read_shapes(source.file)
    missing = [name for name in networks(source) if not _holds(shapes, name) and not _weights(source.folder / name)]
    if missing:
        raise ModelError(
            f"{source.name} has no weights for {', '.join(missing)}, and {source.folder} has none: {_HINT}"
        )


def networks(source: ModelSource) -> list[str]:
    """Names of the pipeline's networks."""
    kinds = {name: value for name, value in source.index.items() if isinstance(value, list) and value and value[0]}
    return [name for name in kinds if (source.folder / name / "config.json").is_file() and name != "safety_checker"]


def _holds(shapes: TensorShapes, component: str) -> bool:
    return any(name.startswith(_PARTS.get(component, ())) for name in shapes)


def _weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def load_single_file(source: ModelSource, dtype: Any, components: Mapping[str, Any]) -> "DiffusionPipeline":
    """Load a checkpoint's pipeline on the CPU. Raises what diffusers does, and `ModelError` for missing weights."""
    import diffusers

    assert source.file is not None
    kind = getattr(diffusers, source.index["_class_name"])
    parts = {**_beside(source, dtype), **components}
    optional = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    absent = {name: None for name, value in source.index.items() if value == [None, None]}
    expected = kind._get_signature_keys(kind)[0]
    parts |= {name: None for name in {**optional, **absent} if name in expected and name not in parts}
    with whole(source.name, source.folder):
        pipe: DiffusionPipeline = kind.from_single_file(
            str(source.file), config=str(source.folder), torch_dtype=dtype, local_files_only=True, **parts
        )
        return pipe.to(dtype)


@contextmanager
def whole(name: str, configurations: Path | str) -> Iterator[None]:
    """Raise `ModelError` where tensors were in no file: what has no data cannot be given a dtype."""
    try:
        yield
    except NotImplementedError as error:
        raise ModelError(f"{name} lacks tensors that {configurations} asks for: it is of another model") from error


def _beside(source: ModelSource, dtype: Any) -> dict[str, Any]:
    """Parts that the file does not hold: tokenizers for supplied configurations, and networks beside others."""
    import diffusers
    import transformers

    if source.folder.parent == _PLACE:
        names = [name for name, value in source.index.items() if name.startswith("tokenizer") and value[0]]
        return {name: _clip_tokenizer("!" if _pads_with_nothing(source, name) else "<|endoftext|>") for name in names}
    assert source.file is not None
    shapes, parts = read_shapes(source.file), {}
    for name in networks(source):
        if not _holds(shapes, name):
            library = {"diffusers": diffusers, "transformers": transformers}[source.index[name][0]]
            kind = getattr(library, source.index[name][1])
            parts[name] = kind.from_pretrained(source.folder / name, dtype=dtype, local_files_only=True)
    return parts


def _pads_with_nothing(source: ModelSource, tokenizer: str) -> bool:
    """Whether an encoder was trained with zeros behind the text, as OpenCLIP's are, whose first token is "!"."""
    return tokenizer == "tokenizer_2" or source.folder.name.startswith("sd-2")


@lru_cache
def _merges() -> tuple[str, ...]:
    return tuple(gzip.decompress((_PLACE / "clip-merges.txt.gz").read_bytes()).decode().splitlines())


def _clip_tokenizer(padding: str) -> Any:
    """CLIP's tokenizer, built from its merges: every byte, every byte at the end of a word, then what they merge to."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters, merges = list(bytes_to_unicode().values()), [tuple(merge.split()) for merge in _merges()]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=padding, model_max_length=77)


def at_file(source: ModelSource, file: Path) -> ModelSource:
    """A source of configurations as the source of a checkpoint. Raises `ModelError` where networks are missing."""
    made = replace(source, file=file)
    check_parts(made)
    return made
