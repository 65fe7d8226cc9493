"""Independent reference: one frame at a time, in noise space, straight from the papers; no code of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


def noises(seed: int, stages: int, frames: int, shape: Sequence[int]) -> torch.Tensor:
    """The documented draw, as ``(stages, frames, C, h, w)``."""
    draw = torch.randn(stages * frames, *shape, generator=torch.Generator().manual_seed(seed))
    return draw.view(stages, frames, *shape)


@dataclass(frozen=True)
class Step:
    """One network step of a frame: its timestep, the fixed noise of its stage, its text and its guidance."""

    timestep: int
    noise: torch.Tensor
    prompt: torch.Tensor
    negative: torch.Tensor | None = None
    guidance: str = "none"
    scale: float = 1.0
    delta: float = 1.0
    new_anchor: bool = False


def clean_latents(pipe: Any, frames: torch.Tensor) -> torch.Tensor:
    """Latents of pictures ``(frames, 3, H, W)`` in [0, 1]."""
    with torch.no_grad():
        return pipe.vae.encode(frames * 2 - 1).latents * pipe.vae.config.scaling_factor


def text(pipe: Any, prompt: str) -> torch.Tensor:
    """Text embeddings, ``(1, tokens, features)``."""
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def lcm(pipe: Any, clean: torch.Tensor, steps: Sequence[Step], *, add_noise: bool = True) -> torch.Tensor:
    """Finished latents ``(C, h, w)`` of the frame with input latents ``clean``: LCM steps, guidance by Eq. 5 and 6."""
    acp = pipe.scheduler.alphas_cumprod.double()
    kind = pipe.scheduler.config.prediction_type
    levels = [(acp[s.timestep].sqrt().item(), (1 - acp[s.timestep]).sqrt().item()) for s in steps]

    def eps(x: torch.Tensor, i: int, prompt: torch.Tensor | None) -> torch.Tensor:
        a, b = levels[i]
        with torch.no_grad():
            out = pipe.unet(x[None], steps[i].timestep, encoder_hidden_states=prompt, return_dict=False)[0][0]
        return {"epsilon": out, "v_prediction": a * out + b * x, "sample": (x - a * out) / b}[kind]

    a, b = levels[0]
    x = a * clean + b * steps[0].noise
    anchor = None
    for i, (step, (a, b)) in enumerate(zip(steps, levels, strict=True)):
        cond = eps(x, i, step.prompt)
        if step.guidance == "full":
            uncond = eps(x, i, step.negative)
            cond = uncond + step.scale * (cond - uncond)
        elif step.guidance == "self":
            cond = residual(cond, (x - a * clean) / b, step)
        elif step.guidance == "once":
            if anchor is None or step.new_anchor:
                anchor = (x - b * eps(x, i, step.negative)) / a
            cond = residual(cond, (x - a * anchor) / b, step)
        s = 10.0 * step.timestep
        out = s / (s * s + 0.25) ** 0.5 * (x - b * cond) / a + 0.25 / (s * s + 0.25) * x
        if i + 1 < len(steps):
            a, b = levels[i + 1]
            x = a * out + (b * steps[i + 1].noise if add_noise else 0)
    return out


def residual(cond: torch.Tensor, virtual: torch.Tensor, step: Step) -> torch.Tensor:
    """Eq. 6."""
    return step.delta * virtual + step.scale * (cond - step.delta * virtual)
