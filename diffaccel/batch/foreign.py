"""Settings in pictures of other tools, as far as they have an equivalent: AUTOMATIC1111's and its kin's, and ComfyUI's.

What has none is listed, so that nobody takes a picture for the same that is not.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffaccel.sampling.schedulers import SPACINGS, canonical

_PAIR = re.compile(r'\s*([^:,]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^:>]+)(?::([^>]*))?>")
_AUTOMATIC = {
    **dict.fromkeys(("dpm++ 2m", "dpm++ sde", "dpm++ 2s a", "dpm2", "dpm2 a"), "karras"),
    **dict.fromkeys(("dpm++ 2m sde", "dpm++ 2m sde heun", "dpm++ 3m sde"), "exponential"),
}
"""What AUTOMATIC1111's "Automatic" is by sampler; of others it is none."""
_SAMPLERS = ("KSampler", "KSamplerAdvanced")


@dataclass
class ForeignSettings:
    """What another tool wrote into a picture.

    Attributes:
        tool: its name.
        settings: those that a row can have.
        model: what it calls the model, which is not a name that can be loaded.
        without_equivalent: settings that are not carried over, as `"Clip skip: 2"`.
    """

    tool: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    without_equivalent: list[str] = field(default_factory=list)

    def take(self, name: str, value: Any, convert: Callable[[Any], Any], shown: str) -> None:
        """Keep a setting, or list it as `shown` where it cannot be had."""
        try:
            self.settings[name] = convert(value)
        except (ValueError, TypeError):
            self.without_equivalent.append(f"{shown}: {value}")


def read_foreign(texts: Mapping[str, Any]) -> ForeignSettings | None:
    """The settings among a picture's texts (by their PNG keywords, or `parameters` for an EXIF comment), if any."""
    parameters, graph = texts.get("parameters"), texts.get("prompt")
    if isinstance(parameters, str) and "Steps:" in parameters:
        return _automatic(parameters)
    if isinstance(graph, str):
        try:
            nodes = json.loads(graph)
        except (ValueError, RecursionError):
            return None
        if isinstance(nodes, dict) and any(isinstance(n, dict) and "class_type" in n for n in nodes.values()):
            return _comfy({name: node for name, node in nodes.items() if isinstance(node, dict)})
    return None


def _automatic(text: str) -> ForeignSettings:
    """`prompt`, `Negative prompt: ...`, a line of `Name: value` pairs, and what extensions write behind it."""
    lines = text.strip().split("\n")
    at = max((number for number, line in enumerate(lines) if line.startswith("Steps:")), default=len(lines) - 1)
    body, last = "\n".join(lines[:at]), lines[at]
    prompt, _, negative = body.partition("\nNegative prompt:") if "Negative prompt:" in body else (body, "", "")
    if body.startswith("Negative prompt:"):
        prompt, negative = "", body.removeprefix("Negative prompt:")
    found = ForeignSettings("AUTOMATIC1111")
    for kind, name, weight in _NETWORK.findall(prompt):
        found.without_equivalent.append(f"<{kind}:{name}:{weight or 1}>: give --lora FILE={weight or 1}")
    found.settings["prompt"] = _NETWORK.sub("", prompt).strip()
    if negative.strip():
        found.settings["negative_prompt"] = negative.strip()
    pairs = {name.strip(): _unquoted(value) for name, value in _PAIR.findall(last)}
    _take_pairs(found, pairs)
    found.without_equivalent += [line.strip() for line in lines[at + 1 :] if line.strip()]
    return found


def _unquoted(value: str) -> str:
    text = value.strip()
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text


def _take_pairs(found: ForeignSettings, pairs: dict[str, str]) -> None:
    spacing = pairs.pop("Schedule type", "")
    known: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "Steps": ("steps", int),
        "CFG scale": ("guidance_scale", float),
        "Seed": ("seed", int),
        "Size": ("size", str),
    }
    for name, value in pairs.items():
        if name in known:
            found.take(known[name][0], value, known[name][1], name)
        elif name == "Sampler":
            _take_sampler(found, value, spacing)
        elif name == "Denoising strength":
            found.without_equivalent.append(f"{name}: {value}: give --init-image and --strength")
        elif name == "Model":
            found.model = value
        elif name not in ("Version", "Model hash"):
            found.without_equivalent.append(f"{name}: {value}")


def _take_sampler(found: ForeignSettings, name: str, spacing: str) -> None:
    if spacing.lower() == "automatic":
        spacing = _AUTOMATIC.get(name.lower(), "")
    spacing = "" if spacing.lower() in ("normal", "") else spacing.replace("_", " ").lower()
    written = f"{name} {spacing}" if spacing in SPACINGS else name
    found.take("scheduler", written, canonical, "Sampler")
    if spacing and spacing not in SPACINGS:
        found.without_equivalent.append(f"Schedule type: {spacing}")


def _comfy(nodes: dict[str, dict[str, Any]]) -> ForeignSettings:
    """A graph of nodes, followed back from its sampler."""
    found = ForeignSettings("ComfyUI")
    samplers = [name for name, node in nodes.items() if node.get("class_type") in _SAMPLERS]
    if len(samplers) != 1:
        found.without_equivalent.append(f"{len(samplers)} sampler nodes")
        return found
    inputs = _inputs(nodes, samplers[0])
    convert: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "seed": ("seed", int),
        "noise_seed": ("seed", int),
        "steps": ("steps", int),
        "cfg": ("guidance_scale", float),
    }
    for name, (own, kind) in convert.items():
        if name in inputs:
            found.take(own, inputs[name], kind, name)
    _take_sampler(found, str(inputs.get("sampler_name", "")), str(inputs.get("scheduler", "")))
    if inputs.get("denoise", 1) not in (1, 1.0):
        found.without_equivalent.append(f"denoise: {inputs['denoise']}: give --init-image and --strength")
    found.without_equivalent += _partial_run(inputs)
    used = {samplers[0]} | _take_texts(found, nodes, inputs) | _take_chain(found, nodes, inputs.get("model"))
    used |= _take_size(found, nodes, inputs.get("latent_image"))
    plain = ("VAEDecode", "SaveImage", "PreviewImage")
    others = {str(node.get("class_type")) for name, node in nodes.items() if name not in used}
    found.without_equivalent += [f"node {kind}" for kind in sorted(others - set(plain))]
    return found


def _partial_run(inputs: Mapping[str, Any]) -> Iterator[str]:
    """What an advanced sampler is told that makes it go through a part of a run."""
    steps, end = inputs.get("steps"), inputs.get("end_at_step")
    if isinstance(steps, int) and isinstance(end, int) and end < steps:
        yield f"end_at_step: {end}"
    for name, whole in (("start_at_step", 0), ("add_noise", "enable")):
        if inputs.get(name, whole) != whole:
            yield f"{name}: {inputs[name]}"


def _inputs(nodes: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    inputs = nodes.get(name, {}).get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _behind(nodes: Mapping[str, dict[str, Any]], link: Any) -> Iterator[tuple[str, str]]:
    """Names and classes of the nodes that a link leads back through, along `clip`, `model` or `conditioning`."""
    seen: set[str] = set()
    while isinstance(link, list) and link and str(link[0]) in nodes and str(link[0]) not in seen:
        name = str(link[0])
        seen.add(name)
        yield name, str(nodes[name].get("class_type"))
        inputs = _inputs(nodes, name)
        link = next((inputs[key] for key in ("model", "conditioning") if key in inputs), None)


def _take_texts(found: ForeignSettings, nodes: Mapping[str, dict[str, Any]], inputs: Mapping[str, Any]) -> set[str]:
    used = set()
    for side, own in (("positive", "prompt"), ("negative", "negative_prompt")):
        for name, kind in _behind(nodes, inputs.get(side)):
            text = _inputs(nodes, name).get("text")
            if kind == "CLIPTextEncode" and isinstance(text, str):
                used.add(name)
                if text.strip():
                    found.settings[own] = text.strip()
    return used


def _take_chain(found: ForeignSettings, nodes: Mapping[str, dict[str, Any]], link: Any) -> set[str]:
    used = set()
    for name, kind in _behind(nodes, link):
        inputs = _inputs(nodes, name)
        if kind.startswith("LoraLoader"):
            used.add(name)
            weight = inputs.get("strength_model", 1)
            found.without_equivalent.append(f"LoRA {inputs.get('lora_name')}: give --lora FILE={weight}")
        elif "ckpt_name" in inputs or "unet_name" in inputs:
            used.add(name)
            found.model = str(inputs.get("ckpt_name", inputs.get("unet_name")))
    return used


def _take_size(found: ForeignSettings, nodes: Mapping[str, dict[str, Any]], link: Any) -> set[str]:
    for name, _ in _behind(nodes, link):
        inputs = _inputs(nodes, name)
        if "width" in inputs and "height" in inputs:
            found.take("size", f"{inputs['width']}x{inputs['height']}", str, "size")
            return {name}
    return set()
