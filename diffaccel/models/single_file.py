"""Checkpoints as one file, under the names of the original repositories, without a network.

A file says nothing of how its networks are built or which sampler they were trained for; a folder of configurations in
diffusers' format does: one that the user has, or one of `configurations/` beside this file, by what the file holds.
"""

import gzip
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.models.folder import require_parts
from diffaccel.models.mistaken import kind_of_file, told
from diffaccel.models.source import ModelError, ModelSource, check_header, expanded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TensorShapes = Mapping[str, tuple[int, ...]]
_PLACE = Path(__file__).parent / "configurations"
_DENOISER = "model.diffusion_model."
_HINT = "give --config and a folder in diffusers' format of the model that it was made from"
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_PARTS = {
    "unet": (_DENOISER + "input_blocks.", "down_blocks."),
    "transformer": (_DENOISER, "joint_blocks.", "double_blocks.", "transformer_blocks."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l."),
    "text_encoder_2": (
        "conditioner.embedders.1.",
        "conditioner.embedders.0.model.",
        "text_encoders.clip_g.",
        "text_encoders.t5xxl.",
    ),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
"""Where a file keeps what diffusers calls so."""
_QUANTIZED = re.compile(
    r"(^|\.)(scaled_fp8|scale_weight|weight_scale(_2)?|scale_input|input_scale|comfy_quant|absmax|qweight|SCB)$"
)
"""Ends of names of the tensors by which others are to be multiplied, which diffusers passes over."""
_SHAPES = re.compile(r"because (\S+) expected shape torch\.Size\((.*?)\), but got torch\.Size\((.*?)\)")
"""What diffusers says of a tensor that is of another shape than the network's."""


def configurations() -> tuple[str, ...]:
    """Names of the configurations that are supplied."""
    return tuple(sorted(folder.name for folder in _PLACE.iterdir() if folder.is_dir()))


def read_shapes(file: Path) -> TensorShapes:
    """Shapes of all tensors by their names, from the header alone. Raises `ModelError` where it cannot be read."""
    check_header(file)
    try:
        tensors = {name: value for name, value in _header(file).items() if name != "__metadata__"}
        _require_numbers({name: str(value["dtype"]) for name, value in tensors.items()}, file)
        return {name: tuple(value["shape"]) for name, value in tensors.items()}
    except ModelError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{file} is damaged or no safetensors file: {error}") from error


def _require_numbers(dtypes: Mapping[str, str], file: Path) -> None:
    """Raise `ModelError` for weights that are quantized: that are whole numbers, or have scales beside them."""
    for name, dtype in dtypes.items():
        if _QUANTIZED.search(name) or (name.endswith(".weight") and not dtype.startswith(("F", "BF"))):
            raise ModelError(
                f"{file} has quantized weights ({name[:80]}), which are not read: take its fp16 or bf16 version"
            )


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
    if (other := kind_of_file(shapes)) and other.startswith("it is a LoRA"):
        raise ModelError(f"{file} is no model: {other}")
    if any(name.endswith("double_blocks.0.img_attn.norm.key_norm.scale") for name in shapes):
        raise ModelError(f"{file} is of the shape of FLUX, whose text encoders are kept apart from it: {_HINT}, whole")
    if any(name.endswith("joint_blocks.0.context_block.adaLN_modulation.1.bias") for name in shapes):
        return _kind_of_sd3(file, shapes)
    channels = shapes.get(_DENOISER + "input_blocks.0.0.weight", (0, 0))[1]
    if channels not in (0, 4):
        raise ModelError(f"{file} is a network for {channels} channels, as for inpainting or depth: {_HINT}")
    if "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias" in shapes:
        return "sdxl"
    width = shapes.get(_DENOISER + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
    if width == 1024:
        prediction = _marked(file, shapes).get("prediction")
        if prediction is None:
            raise ModelError(
                f"{file} is a Stable Diffusion 2, of which it cannot be seen whether it predicts noise or v: give "
                "--config sd-2.1-base (noise, 512 pixels) or --config sd-2.1 (v, 768 pixels)"
            )
        return "sd-2.1" if prediction == "v_prediction" else "sd-2.1-base"
    if width == 768:
        return "sd-1.5"
    if other and not other.startswith("it is a model"):
        raise ModelError(f"{file} is no whole model: {other}")
    first = next(iter(shapes), "nothing")
    raise ModelError(f"{file} is of no kind whose configuration is known (it has {first[:80]}): {_HINT}")


def _marked(file: Path, shapes: TensorShapes) -> dict[str, str]:
    """What a file is marked to predict, from which noise: `prediction`, and what else it is trained for."""
    found = {}
    said = str(_header(file).get("__metadata__", {}).get("modelspec.prediction_type", ""))
    if any(mark in shapes for mark in ("v_pred", "edm_vpred.sigma_max")) or said.startswith("v"):
        found["prediction"] = "v_prediction"
    elif said == "epsilon":
        found["prediction"] = "epsilon"
    if any(mark in shapes for mark in ("edm_mean", "edm_vpred.sigma_max")):
        found["noise"] = "noise levels of EDM"
    elif "ztsnr" in shapes:
        found["noise"] = "noise without any signal at its end"
    return found


def _require_scheduler(file: Path, shapes: TensorShapes, scheduler: Mapping[str, Any], where: str) -> None:
    """Raise `ModelError` where a scheduler is for another prediction, or other noise, than a file is marked for."""
    marked, kind = _marked(file, shapes), str(scheduler.get("_class_name"))
    own = scheduler.get("prediction_type", "epsilon")
    if marked.get("prediction", own) != own and "FlowMatch" not in kind:
        told_as = {"v_prediction": "v-prediction", "epsilon": "predicting noise"}
        raise ModelError(
            f"{file} is marked as trained for {told_as[marked['prediction']]}, and the scheduler of {where} is for "
            f"{told_as.get(own, own)}: {_HINT}, whose scheduler says so"
        )
    noise = marked.get("noise")
    if noise and not (kind.startswith("EDM") if "EDM" in noise else scheduler.get("rescale_betas_zero_snr")):
        raise ModelError(
            f"{file} is marked as trained for {noise}, and the scheduler of {where} is not for that: {_HINT}, whose "
            "scheduler says so"
        )


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
    if source.denoiser and not _holds(shapes, source.denoiser):
        raise ModelError(f"{source.name} holds no {source.denoiser} under names that are read: {told(shapes)}")
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
    if not hasattr(kind, "from_single_file"):
        raise ModelError(
            f"{source.name} is one file, and diffusers reads no {kind.__name__} from one: give its folder as --model"
        )
    parts = {**_beside(source, dtype), **components}
    optional = dict.fromkeys(_OPTIONAL)
    absent = {name: None for name, value in source.index.items() if value == [None, None]}
    expected = kind._get_signature_keys(kind)[0]
    parts |= {name: None for name in {**optional, **absent} if name in expected and name not in parts}
    with whole(source.name, _called(source.folder)):
        pipe: DiffusionPipeline = kind.from_single_file(
            str(source.file), config=str(source.folder), torch_dtype=dtype, local_files_only=True, **parts
        )
        return pipe.to(dtype)


@contextmanager
def whole(name: str, configurations: str) -> Iterator[None]:
    """Raise `ModelError` where a file and the configurations that it is read by are not of one model.

    Of tensors that have no place in a network, diffusers only warns. One that was in no file has no data, and so cannot
    be given a dtype.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    logger = logging.getLogger("diffusers.loaders.single_file_model")
    unused, level = _Unused(logger.isEnabledFor(logging.WARNING)), logger.level
    logger.addFilter(unused)
    logger.setLevel(logging.WARNING)
    try:
        yield
    except NotImplementedError as error:
        raise ModelError(f"{name} lacks tensors that {configurations} asks for: it is of another model") from error
    except SingleFileComponentError as error:
        part = (re.findall(r"Failed to load (\w+)", str(error)) or ["part"])[0]
        raise ModelError(f"{name} has no {part} under names that are read: {_HINT}") from error
    except ValueError as error:
        if (shapes := _SHAPES.search(str(error))) is None:
            raise
        tensor, ours, theirs = shapes.groups()
        differs = f"its {tensor} has the shape {theirs} instead of {ours}"
        raise ModelError(f"{name} is of another model than {configurations}: {differs}") from error
    except (LookupError, AssertionError) as error:
        raise ModelError(f"{name} is of another model than {configurations}: its tensors have other names") from error
    finally:
        logger.removeFilter(unused)
        logger.setLevel(level)
    if unused.name_of_one:
        lost = f"{unused.name_of_one} has no place in it"
        raise ModelError(f"{name} is of another model than {configurations}: {lost}")


class _Unused(logging.Filter):
    """Keeps and holds back what diffusers says of tensors that it passes over, and all where nobody would see it."""

    def __init__(self, shown: bool) -> None:
        super().__init__()
        self._shown = shown
        self.name_of_one = ""

    def filter(self, record: logging.LogRecord) -> bool:
        _, passed_over, names = record.getMessage().partition("were not used when initializing ")
        self.name_of_one = self.name_of_one or names.partition("['")[2].rstrip("]'").partition(", ")[0][:80]
        return self._shown and not passed_over


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
    if source.folder.parent != _PLACE:
        require_parts(made, optional=_OPTIONAL, weights=False)
    scheduler = made.config_of("scheduler", "scheduler_config.json")
    _require_scheduler(file, read_shapes(file), scheduler, _called(source.folder))
    check_parts(made)
    return made


def _called(folder: Path) -> str:
    """Configurations by the name under which they are given."""
    return folder.name if folder.parent == _PLACE else str(folder)
