"""Samplers by the names that people know them by, and a pipeline's change from one to another.

The names are those of k-diffusion, AUTOMATIC1111 and ComfyUI, which call "DPM++ 2M Karras" or "dpmpp_2m karras" what is
a class of diffusers and an option of it. Models that are trained with flow matching get the version of a sampler that
integrates a velocity, or the name is refused: a sampler for noise predictions paints them a wrong picture.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from diffaccel.config.words import did_you_mean

Options = Mapping[str, Any]


@dataclass(frozen=True)
class SamplerName:
    """A class of diffusers, and what makes it the sampler of this name.

    Attributes:
        flow: the class for models of flow matching, and `flow_options`; None where there is none.
        needs: a package that it takes.
        shown: its name in AUTOMATIC1111's `parameters` text.
    """

    scheduler: str
    shown: str
    options: Options = field(default_factory=dict)
    flow: str | None = None
    flow_options: Options = field(default_factory=dict)
    needs: str | None = None


_SDE = {"algorithm_type": "sde-dpmsolver++"}
_MULTISTEP = "DPMSolverMultistepScheduler"
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS: Mapping[str, SamplerName] = MappingProxyType(
    {
        "ddim": SamplerName("DDIMScheduler", "DDIM"),
        "ddpm": SamplerName("DDPMScheduler", "DDPM"),
        "deis": SamplerName("DEISMultistepScheduler", "DEIS"),
        "dpm++": SamplerName(_MULTISTEP, "DPM++ 2M", {}, _MULTISTEP, _FLOW),
        "dpm++ 2m": SamplerName(_MULTISTEP, "DPM++ 2M", {}, _MULTISTEP, _FLOW),
        "dpm++ 2m sde": SamplerName(_MULTISTEP, "DPM++ 2M SDE", _SDE, _MULTISTEP, _FLOW | _SDE),
        "dpm++ 3m sde": SamplerName(_MULTISTEP, "DPM++ 3M SDE", _SDE | {"solver_order": 3}),
        "dpm++ sde": SamplerName("DPMSolverSDEScheduler", "DPM++ SDE", needs="torchsde"),
        "dpm2": SamplerName("KDPM2DiscreteScheduler", "DPM2"),
        "dpm2-a": SamplerName("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
        "euler": SamplerName("EulerDiscreteScheduler", "Euler", {}, "FlowMatchEulerDiscreteScheduler"),
        "euler-a": SamplerName("EulerAncestralDiscreteScheduler", "Euler a"),
        "heun": SamplerName("HeunDiscreteScheduler", "Heun", {}, "FlowMatchHeunDiscreteScheduler"),
        "lcm": SamplerName("LCMScheduler", "LCM", {}, "FlowMatchLCMScheduler"),
        "lms": SamplerName("LMSDiscreteScheduler", "LMS", needs="scipy"),
        "pndm": SamplerName("PNDMScheduler", "PLMS"),
        "tcd": SamplerName("TCDScheduler", "TCD"),
        "unipc": SamplerName("UniPCMultistepScheduler", "UniPC", {}, "UniPCMultistepScheduler", _FLOW),
    }
)
SPACINGS: Mapping[str, Options] = MappingProxyType(
    {
        "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True},
        "beta": {"use_beta_sigmas": True},
        "sgm uniform": {"timestep_spacing": "trailing"},
        "simple": {"timestep_spacing": "trailing"},
        "normal": {"timestep_spacing": "linspace"},
    }
)
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_STARTS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_OWN_LEVELS = ("StableDiffusion3", "Sana")  # pipelines that leave the noise levels to the scheduler
_OF_FLOW = " of flow"
_OTHER_LEVELS = ("EDM", "CosineDPM", "CMStochastic", "DDPMWuerstchen", "Amused")
"""Begins of the names of samplers whose noise levels are of another kind than those made of betas."""
_SPELLINGS = {
    "uni pc bh2": "unipc",
    "dpmpp": "dpm++",
    "euler ancestral": "euler-a",
    "euler a": "euler-a",
    "dpm 2": "dpm2",
    "uni pc": "unipc",
}
_SPELLINGS |= {"dpm2 ancestral": "dpm2-a", "dpm2 a": "dpm2-a", "plms": "pndm", "k ": "", "sde gpu": "sde"}
_ABSENT = {
    "dpm++ 2s a": "dpm++ sde",
    "dpm++ 2s ancestral": "dpm++ sde",
    "dpm fast": "dpm++ 2m",
    "dpm adaptive": "dpm++ 2m",
    "restart": "heun",
}


def canonical(name: str) -> str:
    """The name of a sampler as it is written here: "DPM++ 2M Karras" and "dpmpp_2m_karras" are "dpm++ 2m karras".

    Raises `ValueError` for a name that is neither "default" nor a sampler of `SCHEDULERS`, with or without one of
    `SPACINGS` behind it.
    """
    words = " ".join(name.lower().replace("_", " ").split())
    spelled = words if words in SCHEDULERS else _spelled(words)
    base, spacing = split_spacing(spelled)
    if base in _ABSENT:
        raise ValueError(f"diffusers has no sampler {base!r}; the nearest is {_ABSENT[base]}")
    known = ("default", *SCHEDULERS)
    if base not in known:
        hint = did_you_mean(base, known)
        raise ValueError(
            f"unknown scheduler {name!r}{hint}; one of {', '.join(known)}; all but default may be followed by "
            f"{', '.join(SPACINGS)}"
        )
    if spacing and base == "default":
        raise ValueError(f"scheduler {name!r}: name the sampler that {spacing} spacing is for")
    return spelled


def _spelled(words: str) -> str:
    for other, here in _SPELLINGS.items():
        if words.startswith(other):
            words = here + words.removeprefix(other)
        words = words.replace(f" {other}", f" {here}") if other != "k " else words
    return words


def split_spacing(name: str) -> tuple[str, str | None]:
    """A sampler's canonical name without its spacing, and the spacing if there is one."""
    spacing = next((spacing for spacing in SPACINGS if name.endswith(" " + spacing)), None)
    return (name.removesuffix(" " + spacing), spacing) if spacing else (name, None)


def shown(name: str) -> str | None:
    """A sampler and its spacing as AUTOMATIC1111 writes them, "DPM++ 2M Karras"; None for "default"."""
    base, spacing = split_spacing(name)
    if base not in SCHEDULERS:
        return None
    return " ".join([SCHEDULERS[base].shown, *([spacing.title().replace("Sgm", "SGM")] if spacing else [])])


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is of a model that predicts a velocity of flow matching."""
    return (
        str(config.get("_class_name", "")).startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def sampler_problem(
    name: str, config: Mapping[str, Any], pipeline: str = "", *, from_picture: bool = False
) -> str | None:
    """What keeps a model from being sampled by that name, if anything.

    Args:
        config: of the model's own scheduler, with its `_class_name`.
        pipeline: name of the pipeline's class, where it is known.
        from_picture: whether runs start from a picture.
    """
    base, spacing = split_spacing(canonical(name))
    if base == "default":
        return None
    sampler, flow = SCHEDULERS[base], is_flow(config)
    if flow and sampler.flow is None:
        fitting = ", ".join(name for name, each in SCHEDULERS.items() if each.flow)
        return f"{base} is for noise predictions, and this model is trained with flow matching: use {fitting}"
    if str(config.get("_class_name")).startswith(_OTHER_LEVELS):
        return f"{base} is for other noise levels than those that this model is trained with: use default"
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in _accepted(sampler.scheduler):
        return f"{base} cannot begin at noise without any signal, as this model is trained to: use euler, ddim or dpm++"
    if sampler.needs and find_spec(sampler.needs) is None:
        return f"{base} needs {sampler.needs}: pip install 'diffaccel[samplers]'"
    if flow and base == "heun" and pipeline and not pipeline.startswith(_OWN_LEVELS):
        return f"heun cannot take the noise levels that {pipeline} asks for: use euler"
    if flow and from_picture and sampler.flow not in _STARTS:
        return f"{base} cannot start from a picture on a model of flow matching: use euler"
    return _spacing_problem(base, spacing, _class(sampler, flow)) if spacing else None


def _spacing_problem(base: str, spacing: str, scheduler: str) -> str | None:
    fitting = [name for name, options in SPACINGS.items() if set(options) <= _accepted(scheduler)]
    if spacing not in fitting:
        return f"{base} has no {spacing} spacing on this model; it has {', '.join(fitting) or 'no other: leave it out'}"
    if spacing == "beta" and find_spec("scipy") is None:
        return "beta spacing needs scipy: pip install 'diffaccel[samplers]'"
    return None


def _accepted(scheduler: str) -> set[str]:
    """Options that a class takes; of a multistep class in its flow version ("Class of flow") none of spacings."""
    import diffusers

    name = scheduler.removesuffix(_OF_FLOW)
    names = set(inspect.signature(getattr(diffusers, name).__init__).parameters)
    spacings = {option for options in SPACINGS.values() for option in options}
    return names - spacings if name != scheduler else names


def _class(sampler: SamplerName, flow: bool) -> str:
    """The class of diffusers, with a mark where it has a mode for flow matching, which knows no other spacing."""
    if not (flow and sampler.flow):
        return sampler.scheduler
    return sampler.flow + (_OF_FLOW if sampler.flow_options else "")


def sampler_named(name: str, like: Any) -> Any:
    """A new scheduler for the noise schedule of another.

    diffusers' DDIM and DDPM clip what they predict to [-1, 1] unless told otherwise, which is for pixels: latents are
    clipped only where the model's own configuration says so.

    Args:
        name: one of `SCHEDULERS` in any of its spellings, with or without one of `SPACINGS`, or "default" for a
            scheduler of the same class.
        like: the scheduler whose configuration is taken over.

    Raises:
        ValueError: if the name is unknown, or does not go with the model.
    """
    base, spacing = split_spacing(canonical(name))
    if base == "default":
        return type(like).from_config(like.config)
    config = {"_class_name": type(like).__name__, **like.config}
    if problem := sampler_problem(name, config):
        raise ValueError(problem)
    options: dict[str, Any] = {} if "clip_sample" in config else {"clip_sample": False}
    if spacing or not is_flow(config):  # one kind of spacing at a time, and none that the name does not say
        options |= dict.fromkeys(_SIGMAS, False)
    options |= SPACINGS[spacing] if spacing else {}
    sampler = SCHEDULERS[base]
    return _flow_version(sampler, config, options) if is_flow(config) else _built(sampler, like, options)


def _built(sampler: SamplerName, like: Any, options: Options) -> Any:
    import diffusers

    known = _accepted(sampler.scheduler)
    options = {key: value for key, value in {**options, **sampler.options}.items() if key in known}
    return getattr(diffusers, sampler.scheduler).from_config(like.config, **options)


def _flow_version(sampler: SamplerName, config: Options, options: Options) -> Any:
    """The version for flow matching, with the model's shift of the noise levels under the name that its class knows."""
    import diffusers

    assert sampler.flow is not None
    scheduler = getattr(diffusers, sampler.flow)
    shift = config.get("shift", config.get("flow_shift", 1.0))
    values = {**config, "shift": shift, "flow_shift": shift, **options, **sampler.flow_options}
    known = _accepted(sampler.flow)
    if sampler.flow_options:
        scheduler = _without_unused_shift(scheduler)
    return scheduler.from_config({key: value for key, value in values.items() if key in known})


@lru_cache
def _without_unused_shift(scheduler: type[Any]) -> type[Any]:
    """The class, whose `set_timesteps` leaves out `mu` where levels do not depend on the picture's size, as in Euler's.

    FLUX hands `mu` to every scheduler, and the multistep ones refuse it.
    """

    @wraps(scheduler.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.config.get("use_dynamic_shifting"):
            kwargs.pop("mu", None)
        return scheduler.set_timesteps(self, *args, **kwargs)

    own = {"set_timesteps": set_timesteps, "__module__": scheduler.__module__, "__doc__": scheduler.__doc__}
    return type(scheduler.__name__, (scheduler,), own)


def seed_noise(scheduler: Any, seeds: list[int]) -> None:
    """Give a scheduler that draws its own noise the seed of each row, as diffusers' DPM++ SDE does with one for all."""
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = seeds
