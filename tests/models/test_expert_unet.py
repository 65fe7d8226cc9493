"""Convolutions mixed by the timestep: against plain networks with the mixture as their weights, row by row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from distil_unet import assemble

from diffaccel import DeepCache, ExpertUNet2DConditionModel, NetworkSwitch, accelerate, models
from diffaccel.attach.macs import count_macs
from diffaccel.networks.expert_unet import ExpertConv2d

EXPERTS = 3


@pytest.fixture(scope="module")
def plain() -> UNet2DConditionModel:
    unet = models.load("emoji-sd-small").unet
    return unet.requires_grad_(False)


@pytest.fixture(scope="module")
def apart(plain: UNet2DConditionModel) -> ExpertUNet2DConditionModel:
    """Experts that have gone ways of their own."""
    unet = ExpertUNet2DConditionModel.from_unet(plain, EXPERTS).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if ".weights." in name or ".biases." in name:
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.02)
    return unet


def inputs(*timesteps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng, rows = torch.Generator().manual_seed(1), len(timesteps)
    latents, context = torch.randn(rows, 4, 16, 16, generator=rng), torch.randn(rows, 16, 128, generator=rng)
    return latents, torch.tensor(timesteps), context


def folded(plain: UNet2DConditionModel, apart: ExpertUNet2DConditionModel, timestep: int) -> UNet2DConditionModel:
    """A plain network whose weights are the mixture at a timestep, written out."""
    place = timestep / 999 * (EXPERTS - 1)
    low = min(int(place), EXPERTS - 2)
    near = place - low
    known = apart.state_dict()
    made = UNet2DConditionModel.from_config(plain.config).eval()
    for name, parameter in made.state_dict().items():
        head, _, kind = name.rpartition(".")
        several = f"{head}.{'weights' if kind == 'weight' else 'biases'}"
        if f"{several}.0" in known:
            parameter.copy_((1 - near) * known[f"{several}.{low}"] + near * known[f"{several}.{low + 1}"])
        else:
            parameter.copy_(known[name])
    return made


@torch.no_grad()
@pytest.mark.parametrize("timesteps", [(999, 999), (0, 700)])
def test_experts_begin_as_the_network_without(plain: UNet2DConditionModel, timesteps: tuple[int, int]) -> None:
    ours = ExpertUNet2DConditionModel.from_unet(plain, EXPERTS).eval()
    expected = plain(*inputs(*timesteps)).sample
    torch.testing.assert_close(ours(*inputs(*timesteps)).sample, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("timestep", [0, 250, 499, 500, 980, 999])
def test_a_call_uses_the_mixture_of_its_timestep(
    plain: UNet2DConditionModel, apart: ExpertUNet2DConditionModel, timestep: int
) -> None:
    given = inputs(timestep, timestep)
    expected = folded(plain, apart, timestep)(*given).sample
    torch.testing.assert_close(apart(*given).sample, expected, rtol=0, atol=2e-5)
    assert not torch.allclose(plain(*given).sample, expected, atol=1e-2)


@torch.no_grad()
def test_rows_of_different_timesteps_are_as_each_alone(apart: ExpertUNet2DConditionModel) -> None:
    latents, timesteps, context = inputs(20, 510, 999)
    together = apart(latents, timesteps, context).sample
    for row in range(3):
        own = slice(row, row + 1)
        alone = apart(latents[own], int(timesteps[row]), context[own]).sample
        torch.testing.assert_close(together[own], alone, rtol=0, atol=2e-5)


def test_an_expert_learns_from_its_own_noise_alone(plain: UNet2DConditionModel) -> None:
    ours = ExpertUNet2DConditionModel.from_unet(plain, EXPERTS)
    ours(*inputs(999, 900)).sample.square().mean().backward()
    for layer in (module for module in ours.modules() if isinstance(module, ExpertConv2d)):
        first, *others = (weight.grad for weight in layer.weights)
        assert first is None or not first.any()
        assert all(grad.any() for grad in others)


@torch.no_grad()
def test_rows_that_are_taken_apart_are_refused(apart: ExpertUNet2DConditionModel) -> None:
    apart(*inputs(20, 999))
    layer = next(module for module in apart.modules() if isinstance(module, ExpertConv2d))
    with pytest.raises(ValueError, match="was given 1 of the 2 rows of a call that are at different timesteps"):
        layer(torch.zeros(1, layer.weights[0].shape[1], 4, 4))


@pytest.mark.parametrize("experts", [1, 2.0, "4"])
def test_one_expert_is_none(plain: UNet2DConditionModel, experts: Any) -> None:
    with pytest.raises(ValueError, match="experts must be an integer >= 2; got"):
        ExpertUNet2DConditionModel.from_unet(plain, experts)


def test_it_takes_a_large_network_s_place(apart: ExpertUNet2DConditionModel, tmp_path: Path) -> None:
    small = models.load("emoji-sd")
    small.unet = apart
    small.save_pretrained(tmp_path)
    large = models.load("emoji-sd")
    pictures = []
    for pipe, methods in (
        (models.load(tmp_path), []),
        (large, [NetworkSwitch(str(tmp_path), until=1.0)]),
        (models.load(tmp_path), [DeepCache(1)]),
    ):
        pipe.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        handle = accelerate(pipe, *methods) if methods else None
        pictures.append(pipe("dog", num_inference_steps=4, generator=noise, output_type="latent").images)
        if handle:
            handle.detach()
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


@torch.no_grad()
def test_it_costs_what_a_plain_network_costs(plain: UNet2DConditionModel, apart: ExpertUNet2DConditionModel) -> None:
    ours, theirs = (count_macs(lambda net=net: net(*inputs(7, 7))) for net in (apart, plain))
    assert ours == theirs
    with accelerate(apart, DeepCache(2)) as handle:
        for timestep in (999, 500):
            latents, _, context = inputs(1, 1)
            apart(latents, timestep, context)
        assert 0.1 < handle.report().macs_saved < 0.5


def test_a_light_network_is_made_of_the_teacher_s_and_given_experts() -> None:
    teacher = models.load("emoji-sd").unet
    light = ExpertUNet2DConditionModel.from_unet(assemble(teacher, 1, half=True), 4)
    assert light.config.experts == 4
    assert light.config.block_out_channels == tuple(n // 2 for n in teacher.config.block_out_channels)
