"""The samplers that have a short name, and a pipeline's change from one to another."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffaccel.config.words import did_you_mean

SCHEDULERS: Mapping[str, str] = MappingProxyType(
    {
        "ddim": "DDIMScheduler",
        "ddpm": "DDPMScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-a": "EulerAncestralDiscreteScheduler",
        "heun": "HeunDiscreteScheduler",
        "lcm": "LCMScheduler",
        "pndm": "PNDMScheduler",
        "tcd": "TCDScheduler",
        "unipc": "UniPCMultistepScheduler",
    }
)


def require_known(name: str) -> None:
    """Raise `ValueError` for a name that is neither one of `SCHEDULERS` nor "default"."""
    known = ("default", *SCHEDULERS)
    if name not in known:
        raise ValueError(f"unknown scheduler {name!r}{did_you_mean(name, known)}; one of {', '.join(known)}")


def sampler_named(name: str, like: Any) -> Any:
    """A new scheduler for the noise schedule of another.

    diffusers' DDIM and DDPM clip what they predict to [-1, 1] unless told otherwise, which is for pixels: latents are
    clipped only where the model's own configuration says so.

    Args:
        name: one of `SCHEDULERS`, or "default" for a scheduler of the same class.
        like: the scheduler whose configuration is taken over.

    Raises:
        ValueError: if the name is unknown.
    """
    import diffusers

    require_known(name)
    if name == "default":
        return type(like).from_config(like.config)
    unclipped = {} if "clip_sample" in like.config else {"clip_sample": False}
    return getattr(diffusers, SCHEDULERS[name]).from_config(like.config, **unclipped)
