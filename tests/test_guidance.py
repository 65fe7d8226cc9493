"""Guidance on clean estimates equals the paper's form on noises."""

import pytest
import torch

from diffaccel.sampling.guidance import FullGuidance, NoGuidance, OneTimeNegative, SelfNegative, combine

ALPHA = torch.tensor([0.07, 0.5, 0.95])[:, None, None, None]
SIGMA = (1 - ALPHA**2).sqrt()


@pytest.fixture
def tensors() -> tuple[torch.Tensor, ...]:
    """Latents, conditional noise, a clean latent: ``(3, 4, 8, 8)`` each."""
    return tuple(torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def clean(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return (x - SIGMA * eps) / ALPHA


@pytest.mark.parametrize("kind", [SelfNegative, OneTimeNegative])
@pytest.mark.parametrize(("scale", "delta"), [(1.0, 1.0), (1.4, 0.5), (2.0, 0.0), (0.5, 1.5)])
def test_residual_guidance_is_eq_5_and_6(
    kind: type[SelfNegative], scale: float, delta: float, tensors: tuple[torch.Tensor, ...]
) -> None:
    x, eps, z = tensors
    negative = (x - ALPHA * z) / SIGMA
    guided = delta * negative + scale * (eps - delta * negative)
    ours = kind(scale, delta).combine(clean(x, eps), z, x, ALPHA)
    torch.testing.assert_close(ours, clean(x, guided), rtol=1e-6, atol=1e-6)


def test_full_guidance(tensors: tuple[torch.Tensor, ...]) -> None:
    x, eps, uncond = tensors
    guided = clean(x, uncond + 3.0 * (eps - uncond))
    ours = FullGuidance(3.0).combine(clean(x, eps), clean(x, uncond), x, ALPHA)
    torch.testing.assert_close(ours, guided, rtol=1e-6, atol=1e-6)
    assert FullGuidance(1.0).negative_source == "none"
    assert FullGuidance(0.5).negative_source != "none"
    assert torch.equal(FullGuidance(1.0).combine(eps, None, x, ALPHA), eps)


def test_no_guidance(tensors: tuple[torch.Tensor, ...]) -> None:
    x, eps, _ = tensors
    assert NoGuidance().combine(eps, None, x, ALPHA) is eps


def test_pure_noise_is_defined_at_delta_1(tensors: tuple[torch.Tensor, ...]) -> None:
    x, a, b = tensors
    zero = torch.zeros_like(ALPHA)
    torch.testing.assert_close(combine(a, b, x, zero, scale=2.0), 2 * a - b)
    OneTimeNegative(2.0, 1.0).check((0.0, 0.5))
    with pytest.raises(ValueError, match=r"delta=0.5 is undefined at a stage of pure noise"):
        OneTimeNegative(2.0, 0.5).check((0.0, 0.5))


def test_bad_values() -> None:
    with pytest.raises(ValueError, match=r"^scale must be a finite number; got inf"):
        FullGuidance(float("inf"))
    with pytest.raises(ValueError, match=r"^scale must be a finite number; got nan"):
        SelfNegative(float("nan"))
    with pytest.raises(ValueError, match="delta must be a finite number; got nan"):
        SelfNegative(1.0, float("nan"))
    with pytest.raises(ValueError, match="SelfNegative needs a negative clean estimate"):
        SelfNegative().combine(ALPHA, None, ALPHA, ALPHA)
