"""What the denoisers are trained on."""

import pytest
import torch
from diffusion import diffusion_loss

ALPHAS = torch.linspace(0.999, 0.01, 1000)


class Text:
    """No words: a context of zeros."""

    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(captions), 4, 8), torch.ones(len(captions), 4, dtype=torch.bool)


def timesteps_of(noisier: float) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def denoise(latents: torch.Tensor, timesteps: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        seen.append(timesteps)
        return latents

    latents = torch.zeros(4096, 4, 2, 2)
    diffusion_loss(denoise, Text(), ALPHAS, ["a"] * len(latents), latents, 0, bf16=False, noisier=noisier)
    return seen[0]


@pytest.mark.parametrize(("noisier", "share"), [(0.0, 0.5), (1.0, 0.75), (3.0, 0.9375)])
def test_noisier_timesteps_are_drawn_more_often(noisier: float, share: float) -> None:
    timesteps = timesteps_of(noisier)
    assert (timesteps >= 500).float().mean().item() == pytest.approx(share, abs=1e-3)
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999


def test_a_student_of_its_teacher_has_nothing_to_learn() -> None:
    def teacher(latents: torch.Tensor, timesteps: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return latents * timesteps[:, None, None, None] / 1000

    latents = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    args = (Text(), ALPHAS, ["a"] * 8, latents, 3)
    assert diffusion_loss(teacher, *args, bf16=False, teacher=teacher) == 0
    other = diffusion_loss(lambda x, t, *_: teacher(x, t) + 0.5, *args, bf16=False, teacher=teacher)
    assert other.item() == pytest.approx(0.25, rel=1e-5)
    assert diffusion_loss(teacher, *args, bf16=False) > 0.1
