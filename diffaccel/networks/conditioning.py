"""Prompts as tensors: encoding results, their blends, and their rows in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from diffaccel.config.checks import weights
from diffaccel.networks.image_prompts import EMBEDS, SCALES
from diffaccel.networks.lora_rows import LORA_SCALES

Interpolation = Literal["linear", "slerp"]
Keywords = dict[str, torch.Tensor | list[torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a network is told about one prompt: named tensors, each with a leading dimension of 1."""

    tensors: Mapping[str, torch.Tensor]

    @property
    def tokens(self) -> int:
        """How many there are."""
        return next(x.shape[1] for name, x in self.tensors.items() if x.ndim == 3 and not name.startswith(EMBEDS))

    @property
    def pictures(self) -> int:
        """How many its image prompt has, for all adapters."""
        return sum(x.shape[1] for name, x in self.tensors.items() if name.startswith(EMBEDS))

    def shapes(self, ragged: Sequence[str]) -> dict[str, torch.Size]:
        """Of all tensors but ragged ones."""
        return {name: x.shape for name, x in self.tensors.items() if name not in ragged}


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """Embeddings of one prompt, by the names under which pipelines take them, each with a leading dimension of 1."""

    tensors: Mapping[str, torch.Tensor]


GivenEmbeds = torch.Tensor | Mapping[str, torch.Tensor] | PromptEmbeds | None


def as_embeds(name: str, given: GivenEmbeds) -> PromptEmbeds | None:
    """Embeddings in their one form: a tensor is ``prompt_embeds``.

    Raises:
        TypeError: for what is neither a tensor nor a mapping of names to tensors.
        ValueError: for embeddings that are not finite.
    """
    if given is None or isinstance(given, PromptEmbeds):
        return given
    tensors = {"prompt_embeds": given} if isinstance(given, torch.Tensor) else given
    if not (isinstance(tensors, Mapping) and all(isinstance(each, torch.Tensor) for each in tensors.values())):
        raise TypeError(f"{name} must be a tensor, or a mapping of names to tensors, not {type(given).__name__}")
    for part, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{part} of {name} are not finite: encode the prompt in float32 or bfloat16")
    return PromptEmbeds(
        {part: tensor.detach().clone() for part, tensor in tensors.items()}
    )  # callers write into theirs


def slerp(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """Spherical interpolation along the last dimension (Shoemake 1985), linear where the vectors are nearly parallel.

    Magnitudes are interpolated linearly, so that equal vectors of other lengths behave as expected.
    """
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    cos = ((a / norm_a.clamp_min(1e-12)) * (b / norm_b.clamp_min(1e-12))).sum(-1, keepdim=True).clamp(-1, 1)
    omega = torch.acos(cos)
    sin = torch.sin(omega)
    nearly_parallel = sin.abs() < 1e-4
    safe = torch.where(nearly_parallel, torch.ones_like(sin), sin)
    direction = torch.sin((1 - weight) * omega) / safe * a / norm_a.clamp_min(1e-12)
    direction = direction + torch.sin(weight * omega) / safe * b / norm_b.clamp_min(1e-12)
    return torch.where(nearly_parallel, torch.lerp(a, b, weight), direction * torch.lerp(norm_a, norm_b, weight))


def _mix(a: torch.Tensor, b: torch.Tensor, weight: float, how: Interpolation) -> torch.Tensor:
    if a.shape != b.shape:
        raise ValueError(
            f"prompts whose embeddings differ in shape ({tuple(a.shape)} and {tuple(b.shape)}) cannot be blended: "
            "use prompts of the same number of tokens"
        )
    if not a.is_floating_point():  # attention masks: a token counts where either prompt has one
        return torch.maximum(a, b)
    mixed = slerp(a.float(), b.float(), weight) if how == "slerp" else torch.lerp(a.float(), b.float(), weight)
    return mixed.to(a.dtype)


def blend(parts: Sequence[tuple[Conditioning, float]], how: Interpolation) -> Conditioning:
    """Weighted blend of conditionings; weights count relative to their sum, and one at a time for slerp.

    Scales are no directions, and are blended linearly in any case.

    Raises:
        ValueError: for weights that are negative or sum to nothing, and for embeddings of different shapes.
    """
    weights("prompt weights", [weight for _, weight in parts])
    parts = [part for part in parts if part[1] > 0]
    result, seen = parts[0]
    for conditioning, weight in parts[1:]:
        seen += weight
        pairs = {k: (result.tensors[k], conditioning.tensors[k]) for k in result.tensors}
        hows: dict[str, Interpolation] = dict.fromkeys((SCALES, LORA_SCALES), "linear")
        result = Conditioning({k: _mix(a, b, weight / seen, hows.get(k, how)) for k, (a, b) in pairs.items()})
    return result


def stack(conditionings: Sequence[Conditioning], frames: int) -> Keywords:
    """Rows of a batch: each conditioning repeated for its ``frames`` rows, ``(len * frames, ...)``.

    One shared conditioning is expanded, not copied. Where the shapes differ the rows are a list.
    """
    first, rows = conditionings[0], len(conditionings) * frames
    if all(c is first for c in conditionings):
        return {k: t.expand(rows, *t.shape[1:]) for k, t in first.tensors.items()}
    return {k: _rows([c.tensors[k] for c in conditionings], frames) for k in first.tensors}


def _rows(tensors: Sequence[torch.Tensor], frames: int) -> torch.Tensor | list[torch.Tensor]:
    if len({t.shape for t in tensors}) == 1:
        return torch.cat(tuple(tensors)).repeat_interleave(frames, 0)
    return [t[0] for t in tensors for _ in range(frames)]
