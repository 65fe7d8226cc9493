"""Autoencoders and ControlNets as one file, in the original names or in diffusers', built like the model's own."""

import json
import tempfile
from pathlib import Path
from typing import Any

from diffaccel.models.mistaken import told
from diffaccel.models.quiet import quiet_loading
from diffaccel.models.single_file import read_shapes, whole
from diffaccel.models.source import ModelError

_DECODER_INPUT = ("first_stage_model.decoder.conv_in.weight", "decoder.conv_in.weight", "vae.decoder.conv_in.weight")


def latent_channels(file: Path) -> int:
    """Channels of the latents of an autoencoder in one file. Raises `ModelError` where it holds none."""
    shapes = read_shapes(file)
    found = next((shapes[name][1] for name in _DECODER_INPUT if name in shapes), None)
    if found is None:
        raise ModelError(f"{file} holds no autoencoder: {told(shapes)}")
    return found


def load_vae_file(file: Path, like: Path | None, dtype: Any) -> Any:
    """Load an autoencoder for the latents of another one.

    Args:
        like: folder of the model's own autoencoder, whose configuration and scale of the latents it has, too.
    """
    kind = _class_beside(file, like, "an autoencoder in a single file")
    if kind != "AutoencoderKL":
        raise ModelError(f"{file} is an autoencoder for models with an AutoencoderKL, and this one has an {kind}")
    return _from_file(kind, file, str(like), dtype)


def load_controlnet_file(file: Path, like: Any, dtype: Any) -> Any:
    """Load a ControlNet for a UNet.

    Args:
        like: the UNet, of which a ControlNet is a half, or its folder.
    """
    beside = like is None or isinstance(like, Path)
    kind = _class_beside(file, like, "a ControlNet in a single file") if beside else type(like).__name__
    with quiet_loading(), tempfile.TemporaryDirectory() as place:
        import diffusers
        from accelerate import init_empty_weights

        if kind != "UNet2DConditionModel":
            raise ModelError(f"{file}: single files are read for ControlNets of a UNet, and this model has a {kind}")
        with init_empty_weights():
            config = diffusers.UNet2DConditionModel.load_config(str(like)) if beside else like.config
            unet = diffusers.UNet2DConditionModel.from_config(config)
            diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False).save_config(place)
        return _from_file("ControlNetModel", file, place, dtype)


def _class_beside(file: Path, like: Path | None, what: str) -> str:
    if like is None or not (like / "config.json").is_file():
        raise ModelError(f"{file}: {what} needs a model beside it that has such a part, by which it is built")
    return str(json.loads((like / "config.json").read_text(encoding="utf-8")).get("_class_name"))


def _from_file(kind: str, file: Path, config: str, dtype: Any) -> Any:
    with quiet_loading():
        import diffusers

        try:
            with whole(str(file), "the one at hand"):
                made = getattr(diffusers, kind).from_single_file(
                    str(file), config=config, torch_dtype=dtype, local_files_only=True
                )
                return made.to(dtype)
        except ModelError:
            raise
        except (OSError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise ModelError(f"{file} cannot be read as this model's {kind}: {reason}") from error
