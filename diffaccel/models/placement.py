"""The pipeline of a run: loaded with another autoencoder, spread over devices, compiled, as the command line asks."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.models import (
    ModelError,
    ModelSource,
    choose_device,
    choose_dtype,
    find_vae,
    load,
    load_controlnet,
    load_vae,
    with_controlnets,
)
from diffaccel.models.embedding import load_embeddings
from diffaccel.models.lora import NONE, merge_loras
from diffaccel.models.single_parts import latent_channels

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
KL_SCALE = 0.18215
"""What an `AutoencoderKL` scales latents by whose configuration does not say."""
RECOMPILATIONS = 64  # each picture size, batch size and caching method has a graph of its own
Forward = Callable[..., Any]
_TORN_LIBRARY = re.compile(r"ImportError: (\S+\.so): ")


@dataclass(frozen=True)
class Placement:
    """Where and how a pipeline runs.

    Attributes:
        device: the default is the accelerator if there is one, else the CPU.
        device_map: as `diffaccel.models.load` takes it.
        compiled: compile the denoiser.
    """

    device: str | None = None
    device_map: str | None = None
    compiled: bool = False


def open_pipeline(
    source: ModelSource,
    dtype: str | None,
    vae: str | None,
    placement: Placement,
    *,
    embeddings: str | None = None,
    lora: str | None = None,
    lora_partial: bool = False,
    nets: Sequence[str] = (),
) -> "DiffusionPipeline":
    """Load a pipeline with what goes with it. Raises `ModelError` where something cannot be loaded or does not fit.

    Args:
        source: the model.
        dtype: of its weights; the default is that of `models.load`.
        vae: another autoencoder for the same latents, or `"none"`.
        placement: where and how it runs.
        embeddings: learned words, as `models.parse_embeddings` reads them.
        lora: LoRAs to merge into the weights for good, as `models.parse_loras` reads them.
        lora_partial: use a LoRA of which only some parts fit.
        nets: names or places of ControlNets to put before its UNet.
    """
    if placement.compiled and choose_device(placement.device).type == "cpu":
        _require_compiler()
    components = {}
    if vae not in (None, NONE):
        _require_same_latents(source, vae)
        device = choose_device("cpu" if placement.device_map else placement.device)
        components["vae"] = load_vae(vae, dtype=choose_dtype(dtype, device), device=device, like=source.folder / "vae")
    pipe = load(source, dtype=dtype, device=placement.device, device_map=placement.device_map, **components)
    load_embeddings(pipe, embeddings)
    merge_loras(pipe, lora, partial=lora_partial)
    if placement.compiled:
        _compile(pipe)
    if not nets:
        return pipe
    place: dict[str, Any] = {"dtype": pipe.dtype, "device": pipe.device, "like": pipe.components.get("unet")}
    return with_controlnets(pipe, [load_controlnet(name, **place) for name in nets])


def devices(placement: Placement, processes: int = 1) -> "list[torch.device]":
    """The accelerators that a run on this machine uses, or its CPU."""
    import torch

    chosen = choose_device(placement.device)
    if chosen.type == "cpu" or (processes == 1 and placement.device_map != "balanced"):
        return [chosen]
    count = min(processes, torch.accelerator.device_count()) if processes > 1 else torch.accelerator.device_count()
    return [torch.device(chosen.type, index) for index in range(count)] if placement.device is None else [chosen]


def _require_same_latents(source: ModelSource, vae: str) -> None:
    """Raise `ModelError` where the model's own autoencoder and `vae` have latents of different kinds."""
    own, place = source.folder / "vae" / "config.json", find_vae(vae)
    if not own.is_file():
        raise ModelError(f"{source.name} has no autoencoder that --vae could replace")
    try:
        channels = [_channels(own), latent_channels(place) if place.is_file() else _channels(place / "config.json")]
    except ModelError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"the configuration of {vae} or of {source.name}'s autoencoder is damaged: {error}") from error
    if channels[1] is None and channels[0] is not None:
        raise ModelError(f"{vae} is not an autoencoder for {source.name}: its config.json has no latent_channels")
    if channels[0] != channels[1]:
        raise ModelError(
            f"{vae} has latents of {channels[1]} channels, and {source.name} has {channels[0]}: choose an autoencoder "
            "for the same latents"
        )
    if place.is_dir():
        _require_same_scale(source.name, vae, _config(own), _config(place / "config.json"))


def _require_same_scale(model: str, vae: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise `ModelError` where two autoencoders of Stable Diffusion's kind are of models with other latents."""
    if {own.get("_class_name"), other.get("_class_name")} != {"AutoencoderKL"}:
        return  # others may scale latents of the same kind in a way of their own
    ours, theirs = (float(config.get("scaling_factor", KL_SCALE)) for config in (own, other))
    if abs(ours - theirs) > 0.01 * ours:
        raise ModelError(
            f"{vae} is for latents of another kind: it scales them by {theirs:g}, and {model}'s own autoencoder by "
            f"{ours:g}"
        )


def _config(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _channels(config: Path) -> int | None:
    found: int | None = _config(config).get("latent_channels")
    return found


def _require_compiler() -> None:
    """Raise `ModelError` where there is no C++ compiler, by which PyTorch builds what it compiles for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ModelError(
            "--compile needs a C++ compiler on the CPU, and none was found: install one (Debian, Ubuntu: apt install "
            "g++), name it in the environment variable CXX, or leave out --compile"
        ) from error


def _compile(pipe: "DiffusionPipeline") -> None:
    """Compile the denoiser's forward, which leaves room for hooks around it and on the modules in it."""
    import torch

    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # a step that a forecast reads is no graph of its own
    _keep_on_disk()
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    denoiser.forward = _rebuilding(torch.compile(denoiser.forward))


def _keep_on_disk() -> None:
    """Keep what is compiled in the user's cache, not in a folder of temporary files: the next start finds it there.

    ``TORCHINDUCTOR_CACHE_DIR`` and ``XDG_CACHE_HOME`` overrule the place.
    """
    import torch._functorch.config
    import torch._inductor.config

    place = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "diffaccel" / "compiled"
    if CACHE_VARIABLE not in os.environ:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("what is compiled is not kept for the next start: %s", error)
            return
        os.environ[CACHE_VARIABLE] = str(place)
    torch._inductor.config.fx_graph_cache = True
    torch._functorch.config.enable_autograd_cache = True


def _rebuilding(compiled: Forward) -> Forward:
    """`compiled`, which builds anew what an interrupted compiler left torn in the cache of an earlier run."""
    from torch._inductor.exc import InductorError

    rebuilt: set[str] = set()

    @wraps(compiled)
    def forward(*args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return compiled(*args, **kwargs)
            except InductorError as error:
                torn = _TORN_LIBRARY.search(str(error))
                if torn is None or torn[1] in rebuilt:
                    raise
                rebuilt.add(torn[1])
                Path(torn[1]).unlink(missing_ok=True)

    return forward


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: the accelerator's or, as torch words it, the machine's."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()

    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
