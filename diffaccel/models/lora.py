"""LoRAs that a picture is painted with: several at once with weights, compared with the network before they are loaded.

diffusers itself passes over the parts of a LoRA that have no place in a network.
"""

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffaccel.config.words import counted
from diffaccel.models.embedding import share_words
from diffaccel.models.loader import find_lora
from diffaccel.models.lora_file import Factors, Parts, read_parts
from diffaccel.models.quiet import quiet_loading
from diffaccel.models.source import ModelError

NONE = "none"
_BETWEEN = " + "


@dataclass(frozen=True)
class Lora:
    """One LoRA that a picture is painted with: a bundled name, file or folder, and how strongly it counts."""

    name: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}={self.weight:g}"


def parse_loras(text: str | None) -> tuple[Lora, ...]:
    """LoRAs from `"style.safetensors=0.7 + other"`; none from `"none"`, None and nothing.

    Raises `ValueError` for a weight that is not a finite number.
    """
    parts = [part.strip() for part in (text or "").split(_BETWEEN) if part.strip()]
    return () if parts == [NONE] else tuple(_parse(part) for part in parts)


def _parse(part: str) -> Lora:
    name, equals, weight = part.rpartition("=")
    try:
        value = float(weight)
    except ValueError:
        return Lora(part)
    if not equals or not name:
        return Lora(part)
    if not math.isfinite(value):
        raise ValueError(f"the weight of {name} must be a finite number (got {weight})")
    return Lora(name, value)


def write_loras(loras: Iterable[Lora]) -> str:
    """The text that `parse_loras` reads as `loras`."""
    return _BETWEEN.join(str(lora) for lora in loras) or NONE


def without_misfits(parts: Parts, components: Mapping[str, Any], name: str, *, partial: bool) -> Parts:
    """The parts that fit the networks of a pipeline, which are all unless ``partial``.

    Args:
        components: the pipeline's networks by name, with weights or without.

    Raises:
        ModelError: some parts do not fit, or with ``partial`` none does.
    """
    fitting: Parts = {}
    problems: list[str] = []
    total = sum(len(modules) for modules in parts.values())
    for component, modules in parts.items():
        network = components.get(component)
        known = {} if network is None else dict(network.named_modules())
        flat = not any(each.startswith("text_model.") for each in known)
        for module, factors in modules.items():
            own = module.removeprefix("text_model.") if flat and "text_encoder" in component else module
            shaped = _unrolled(factors, known.get(own))
            if problem := _misfit(f"{component}.{module}", shaped, known.get(own)):
                problems.append(problem)
            else:
                fitting.setdefault(component, {})[module] = shaped
    networks = {component for component in parts if "text_encoder" not in component}
    if not problems:
        return fitting
    if fitting and partial and (not networks or networks & fitting.keys()):
        return fitting
    if not fitting or (networks and not networks & fitting.keys()):
        raise ModelError(f"the LoRA {name} does not fit: {problems[0]}")
    some = f"{len(problems)} of its {counted(total, 'part')} do not fit: {problems[0]}"
    raise ModelError(f"the LoRA {name}: {some}; --lora-partial leaves them out")


def _unrolled(factors: Factors, target: Any) -> Factors:
    """The factors of a convolution with the kernel's own shape, which LoHa and LoKr keep as a row."""
    shape = tuple(getattr(getattr(target, "weight", None), "shape", ()))
    kernel = len(shape) == 4 and shape[2:] != (1, 1)
    if not kernel or factors.down.ndim != 2 or factors.down.shape[1] != math.prod(shape[1:]):
        return factors
    return Factors(factors.down.reshape(-1, *shape[1:]), factors.up[:, :, None, None])


def _misfit(module: str, factors: Factors, target: Any) -> str | None:
    """What is wrong with the factors of one module, if anything."""
    weight = getattr(target, "weight", None)
    if weight is None or not hasattr(weight, "shape"):
        return f"this model has no {module}"
    theirs, ours = (factors.up.shape[0], *factors.down.shape[1:]), tuple(weight.shape)
    if factors.down.ndim == 2 and len(ours) == 4 and ours[2:] == (1, 1):
        theirs = (*theirs, 1, 1)
    if theirs == ours or (len(ours) == 2 and theirs == (*ours, 1, 1)):
        return None
    axis = 1 if theirs[1:2] != ours[1:2] else 0
    return f"made for a network of width {theirs[axis]}, this has {ours[axis]} ({module})"


def load_loras(pipe: Any, loras: Iterable[Lora], *, partial: bool) -> None:
    """Load LoRAs into a pipeline that has none, each with its weight.

    Raises:
        ModelError: one cannot be found or read, or does not fit; or there are LoRAs already, which would rest then.
    """
    loras = tuple(loras)
    if hasattr(pipe, "get_list_adapters") and (there := adapters(pipe)):
        raise ModelError(
            f"this pipeline has LoRAs already ({', '.join(there)}): load all in one call, as in "
            "load_lora(pipe, 'a=0.7 + b'), or call pipe.unload_lora_weights() first"
        )
    with quiet_loading(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # several are what is wanted
        for index, lora in enumerate(loras):
            _load(pipe, lora, f"lora{index}", partial)
        if loras:
            pipe.set_adapters([f"lora{index}" for index in range(len(loras))], [lora.weight for lora in loras])


def _load(pipe: Any, lora: Lora, adapter: str, partial: bool) -> None:
    unet = pipe.components.get("unet")
    denoiser = "unet" if unet is not None else "transformer"
    parts = read_parts(find_lora(lora.name), type(pipe), getattr(unet, "config", None), denoiser)
    parts = without_misfits(parts, pipe.components, lora.name, partial=partial)
    state = {
        f"{component}.{module}.lora_{side}.weight": tensor.to(pipe.dtype)
        for component, modules in parts.items()
        for module, factors in modules.items()
        for side, tensor in (("A", factors.down), ("B", factors.up))
    }
    try:
        pipe.load_lora_weights(state, adapter_name=adapter)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ModelError(f"cannot load the LoRA {lora.name}: {reason}") from error


def load_lora(pipe: Any, lora: str | os.PathLike[str], *, partial: bool = False) -> None:
    """Load LoRAs into `pipe` from a bundled name, a `.safetensors` file, a folder that holds one, or several of these.

    Args:
        pipe: a pipeline without LoRAs; its weights stay, LoRAs are adapter layers beside them.
        lora: as `parse_loras` reads it: `"style.safetensors=0.7 + other"`.
        partial: leave out the parts that do not fit, if any does.

    Raises:
        ModelError: there is none, it is damaged, or it was made for another network; or the pipeline has LoRAs already.
    """
    try:
        loras = parse_loras(os.fspath(lora))
    except ValueError as error:
        raise ModelError(str(error)) from error
    load_loras(pipe, loras, partial=partial)


def merge_loras(pipe: Any, lora: str | None, *, partial: bool = False) -> None:
    """Add LoRAs to a pipeline's weights for good: as adapter layers they would cost time in every call.

    Args:
        lora, partial: as `load_lora` takes them.
    """
    if parse_loras(lora):
        load_lora(pipe, str(lora), partial=partial)
        pipe.fuse_lora()
        pipe.unload_lora_weights()


def with_lora(pipe: Any, lora: str | os.PathLike[str], weight: float) -> Any:
    """A pipeline of the same parts with a LoRA as adapter layers, in copies of the networks that can hold one.

    Raises:
        ModelError: as `load_lora`.
    """
    with quiet_loading():
        copies = {name: _copied(part) for name, part in _adaptable(pipe).items()}
        own = type(pipe)(
            **{**{k: v for k, v in pipe.config.items() if not k.startswith("_")}, **pipe.components, **copies}
        )
    share_words(pipe, own)
    load_lora(own, lora)
    own.set_adapters(adapters(own), [weight] * len(adapters(own)))
    return own


def adapters(pipe: Any) -> list[str]:
    """Names of the LoRAs of a pipeline."""
    return sorted({name for names in pipe.get_list_adapters().values() for name in names})


def copied_bytes(pipe: Any) -> int:
    """What the copies of `with_lora` take."""
    return sum(p.numel() * p.element_size() for part in _adaptable(pipe).values() for p in part.parameters())


def _adaptable(pipe: Any) -> dict[str, Any]:
    names = [name for name in pipe.components if name in ("unet", "transformer") or name.startswith("text_encoder")]
    return {name: pipe.components[name] for name in names if pipe.components[name] is not None}


def _copied(part: Any) -> Any:
    """A network like another, without the hooks that may be at work in that one."""
    own = type(part).from_config(part.config) if hasattr(part, "from_config") else type(part)(part.config)
    own.load_state_dict(part.state_dict())
    return own.to(device=part.device, dtype=part.dtype).eval().requires_grad_(False)


def rebased(text: str, places: Mapping[str, str]) -> str:
    """The same LoRAs with the names in ``places`` replaced by what they lead to."""
    return write_loras(replace(lora, name=places.get(lora.name, lora.name)) for lora in parse_loras(text))
