"""Independent reference: one frame at a time, in noise space, straight from the papers; no code of the engine."""

from collections.abc import Sequence
from typing import Any

import torch


def noises(seed: int, stages: int, frames: int, shape: Sequence[int]) -> torch.Tensor:
    """The documented draw, as ``(stages, frames, C, h, w)``."""
    draw = torch.randn(stages * frames, *shape, generator=torch.Generator().manual_seed(seed))
    return draw.view(stages, frames, *shape)


def lcm(
    pipe: Any,
    clean: torch.Tensor,
    timesteps: Sequence[int],
    noise: torch.Tensor,
    *,
    prompt: torch.Tensor,
    negative: torch.Tensor,
    guidance: str = "none",
    scale: float = 1.0,
    delta: float = 1.0,
    add_noise: bool = True,
) -> torch.Tensor:
    """Finished latents of one frame, ``(C, h, w)``, by LCM steps with guidance in noise space (Eq. 5 and 6).

    ``clean`` is its input latent, ``noise`` one tensor per stage.
    """
    acp = pipe.scheduler.alphas_cumprod.double()
    kind = pipe.scheduler.config.prediction_type
    levels = [(acp[t].sqrt().item(), (1 - acp[t]).sqrt().item()) for t in timesteps]

    def eps(x: torch.Tensor, i: int, text: torch.Tensor) -> torch.Tensor:
        a, b = levels[i]
        with torch.no_grad():
            out = pipe.unet(x[None], timesteps[i], encoder_hidden_states=text, return_dict=False)[0][0]
        return {"epsilon": out, "v_prediction": a * out + b * x, "sample": (x - a * out) / b}[kind]

    a, b = levels[0]
    x = a * clean + b * noise[0]
    anchor = clean
    for i, (t, (a, b)) in enumerate(zip(timesteps, levels, strict=True)):
        cond = eps(x, i, prompt)
        if guidance == "full":
            uncond = eps(x, i, negative)
            cond = uncond + scale * (cond - uncond)
        elif guidance in ("self", "once"):
            if guidance == "once" and i == 0:
                anchor = (x - b * eps(x, i, negative)) / a
            virtual = (x - a * anchor) / b  # Eq. 5
            cond = delta * virtual + scale * (cond - delta * virtual)  # Eq. 6
        s = 10.0 * t
        out = s / (s * s + 0.25) ** 0.5 * (x - b * cond) / a + 0.25 / (s * s + 0.25) * x
        if i + 1 == len(timesteps):
            return out
        a, b = levels[i + 1]
        x = a * out + (b * noise[i + 1] if add_noise else 0)
    raise AssertionError("no stage")
