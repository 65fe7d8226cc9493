"""The light UNet that distillation starts from, and the deeper transformer that training goes on with."""

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from distil_unet import BlockOutputs, assemble, every_other, feature_loss
from fit_layers import fit_layers, solve
from tiny_networks import picture_unet, unet_inputs
from torch import nn
from train_dit import CONFIG, deepen
from train_dit import denoise as denoise_dit

from diffaccel import models


@pytest.fixture(scope="module")
def teacher() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(models.path("emoji-sd"), subfolder="unet")


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    latents, context = torch.randn(2, 4, 16, 16, generator=rng), torch.randn(2, 24, 128, generator=rng)
    return latents, torch.tensor([10, 900]), context


@torch.no_grad()
def test_all_layers_at_full_width_are_the_teacher(teacher: UNet2DConditionModel) -> None:
    same = assemble(teacher, 2, half=False)
    assert torch.equal(same(*inputs()).sample, teacher(*inputs()).sample)


@torch.no_grad()
def test_one_layer_per_block_is_whole_layers_of_the_teacher(teacher: UNet2DConditionModel) -> None:
    light, weights = assemble(teacher, 1, half=False), teacher.state_dict()
    for name, weight in light.state_dict().items():
        assert any(torch.equal(weight, other) for other in weights.values() if other.shape == weight.shape), name
    last = light.up_blocks[2].resnets[1].conv1.weight
    assert torch.equal(last, teacher.up_blocks[2].resnets[2].conv1.weight)
    assert light(*inputs()).sample.shape == (2, 4, 16, 16)


@torch.no_grad()
def test_half_width_keeps_whole_groups_and_heads(teacher: UNet2DConditionModel) -> None:
    light = assemble(teacher, 2, half=True)
    assert sum(p.numel() for p in light.parameters()) < 0.3 * sum(p.numel() for p in teacher.parameters())
    assert light(*inputs()).sample.shape == (2, 4, 16, 16)
    # a normalisation of the kept channels gives what the teacher's gives there
    x = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(1))
    kept = every_other(128, 16)
    norm, small = teacher.mid_block.resnets[0].norm1, light.mid_block.resnets[0].norm1
    torch.testing.assert_close(small(x[:, kept]), norm(x)[:, kept])
    query, small_query = (unet.mid_block.attentions[0].transformer_blocks[0].attn1 for unet in (teacher, light))
    assert small_query.heads == query.heads // 2
    expected = query.to_q.weight.unflatten(0, (4, 32))[::2].flatten(0, 1)[:, kept]
    assert torch.equal(small_query.to_q.weight, expected)
    # the frequencies of the timestep that both have
    frequencies, fewer = teacher.time_proj(torch.tensor([7.0])), light.time_proj(torch.tensor([7.0]))
    torch.testing.assert_close(fewer, frequencies[:, ::2])


def test_stacked_tensors_keep_the_channels_of_each() -> None:
    both = torch.cat([every_other(128, 16), 128 + every_other(64, 16)])
    assert torch.equal(every_other(192, 16), both)


def test_too_many_layers_are_refused(teacher: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="the teacher has 2 layers per block"):
        assemble(teacher, 3, half=False)


@torch.no_grad()
def test_the_feature_loss_compares_block_with_block(teacher: UNet2DConditionModel) -> None:
    same = assemble(teacher, 2, half=False)
    ours, theirs = BlockOutputs(same), BlockOutputs(teacher)
    teacher(*inputs()), same(*inputs())
    assert len(ours.outputs) == 7
    assert feature_loss(ours, theirs) == 0
    ours.outputs[3] = ours.outputs[3] + 2 * theirs.outputs[3].std()
    assert feature_loss(ours, theirs).item() == pytest.approx(4 / 7, rel=1e-4)


@torch.no_grad()
def test_deepening_changes_nothing() -> None:
    torch.manual_seed(0)
    shallow = PixArtTransformer2DModel(**{**CONFIG, "num_layers": 2}).eval()
    deeper = deepen(shallow, 5).eval()
    latents, timesteps, context = inputs()
    mask = torch.ones(2, 24, dtype=torch.bool)
    one, other = (denoise_dit(network)(latents, timesteps, context, mask) for network in (shallow, deeper))
    assert len(deeper.transformer_blocks) == 5
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="cannot deepen 5 blocks to 2"):
        deepen(deeper, 2)


@torch.no_grad()
def test_spoilt_layers_are_mended_one_by_one() -> None:
    good, spoilt = picture_unet(), picture_unet()
    rng = torch.Generator().manual_seed(3)
    for parameter in spoilt.parameters():
        if parameter.ndim > 1:
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.1)
    given = unet_inputs(good, rows=48, size=8)
    call = given["sample"], torch.linspace(0, 999, 48).long(), given["encoder_hidden_states"]

    def error() -> float:
        return float((spoilt(*call).sample - good(*call).sample).norm() / good(*call).sample.norm())

    before = error()
    fit_layers(spoilt, good, lambda _, x: x, *call)
    assert before > 0.3
    assert error() < 0.02 * before
    assert not any(module._forward_hooks or module._forward_pre_hooks for n in (good, spoilt) for module in n.modules())


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_solved_for_in_the_least_squares(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fit_layers.RIDGE", 0.0)
    rng = torch.Generator().manual_seed(0)
    x, y, layer = torch.randn(200, 5, generator=rng) + 1, torch.randn(200, 3, generator=rng), nn.Linear(5, 3, bias=bias)
    solve(layer, x, y, rng)
    inputs = torch.cat([x, torch.ones(200, 1)], dim=1) if bias else x
    expected = torch.linalg.lstsq(inputs, y).solution
    torch.testing.assert_close(layer.weight, expected[:5].T, rtol=1e-3, atol=1e-4)
    if bias:
        torch.testing.assert_close(layer.bias, expected[5], rtol=1e-3, atol=1e-4)
