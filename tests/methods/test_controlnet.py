"""A ControlNet computes what the denoiser reads and nothing else, without any change to the pictures."""

import sys
from typing import Any

import pytest
import torch
from cells import cells
from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline
from tiny_networks import LIGHT, generate, pipeline, sd_unet

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache, EncoderPropagation, TextKVCache
from diffaccel.reuse.schedule import Steps, Threshold

IMAGE = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(9))


def controlnet(unet: Any, seed: int) -> ControlNetModel:
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(zero.weight, std=0.3)
    return net.eval()


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build(1)


def build(nets: int) -> Any:
    unet = sd_unet(**LIGHT)
    parts = pipeline(unet).components | {"requires_safety_checker": False}
    controlnets = [controlnet(unet, seed) for seed in range(nets)]
    chosen = controlnets[0] if nets == 1 else MultiControlNetModel(controlnets)
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=chosen)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_controlnet_matters(pipe: Any) -> None:
    strong, weak = (generate(pipe, image=IMAGE, controlnet_conditioning_scale=scale) for scale in (1.0, 0.5))
    assert (strong - weak).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("branch", cells([0, 1, 2, 3, 5, 10, 11], (0, 5, 11).__contains__))
def test_leaving_out_what_is_not_read_changes_nothing(pipe: Any, branch: int) -> None:
    method = DeepCache(interval=3, branch=branch)
    with accelerate(pipe.unet, method):
        in_full = generate(pipe, image=IMAGE)
    with accelerate(pipe, method) as handle:
        first, again = generate(pipe, image=IMAGE), generate(pipe, image=IMAGE)
        assert (handle.report().computed, handle.report().replayed) == (4, 8)
        assert sum(handle.report().controlnet) == 12
        assert handle.report().controlnet[0] == (4 if branch < 11 else 12)
    assert torch.equal(first, in_full)
    assert torch.equal(again, in_full)


@pytest.mark.parametrize(
    "options",
    cells(
        [{"guess_mode": True}, {"guidance_scale": 1.0}, {"control_guidance_end": 0.5}],
        lambda options: "guidance_scale" not in options,
    ),
)
def test_ways_to_run_it(pipe: Any, options: dict[str, Any]) -> None:
    method = DeepCache(schedule=Threshold(0.3, max_reuse=2))
    with accelerate(pipe.unet, method):
        in_full = generate(pipe, image=IMAGE, **options)
    with accelerate(pipe, method) as handle:
        assert torch.equal(generate(pipe, image=IMAGE, **options), in_full)
        assert handle.report().replayed > 0


@pytest.mark.slow
def test_several_controlnets() -> None:
    pipe, images = build(2), [IMAGE, 1 - IMAGE]
    options = {"image": images, "controlnet_conditioning_scale": [1.0, 0.7]}
    with accelerate(pipe.unet, DeepCache(interval=3)):
        in_full = generate(pipe, **options)
    with accelerate(pipe, DeepCache(interval=3)) as handle:
        assert torch.equal(generate(pipe, **options), in_full)
        assert handle.report().controlnet == (4, 8)


@pytest.mark.slow
def test_macs_of_the_controlnet_are_saved_and_counted(pipe: Any) -> None:
    with accelerate(pipe.unet, DeepCache(interval=3)) as handle:
        generate(pipe, image=IMAGE)
        alone = handle.report()
    with accelerate(pipe, DeepCache(interval=3)) as handle:
        generate(pipe, image=IMAGE)
        both = handle.report()
    assert both.macs_plain > 1.2 * alone.macs_plain
    assert both.macs_saved > alone.macs_saved
    assert "ControlNet: 2 computed, 4 replayed" in str(both)


def test_encoder_propagation_runs_it_at_key_steps_only(pipe: Any) -> None:
    with accelerate(pipe, EncoderPropagation(Steps((0, 1, 4)))) as handle:
        pictures = [generate(pipe, image=IMAGE) for _ in range(2)]
        assert handle.report().controlnet == (6, 6)
    assert torch.equal(*pictures)


@pytest.mark.slow
def test_prompt_projections_of_the_controlnet_are_kept(pipe: Any) -> None:
    plain = generate(pipe, image=IMAGE)
    with accelerate(pipe, DeepCache(interval=1), TextKVCache()) as handle:
        assert torch.equal(generate(pipe, image=IMAGE), plain)
        assert handle.report().controlnet == (6, 0)


def test_detaching_leaves_nothing(pipe: Any) -> None:
    before = [list(module.__dict__) for module in pipe.controlnet.modules()]
    accelerate(pipe, DeepCache(), TextKVCache()).detach()
    assert [list(module.__dict__) for module in pipe.controlnet.modules()] == before


@pytest.mark.parametrize("method", [DeepCache(interval=4), DeepCache(schedule=Threshold(0.3))])
def test_dropping_guidance_half_way(pipe: Any, method: DeepCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            pipe._guidance_scale = 0.0
            return {name: tensor.chunk(2)[-1] for name, tensor in tensors.items()}
        return tensors

    names = ["prompt_embeds", "image"]
    options = {"image": IMAGE, "callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": names}
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[accelerate.__module__], "_controlnets", lambda _: [])
        with accelerate(pipe, method):
            in_full = generate(pipe, **options)
    with accelerate(pipe, method) as handle:
        assert torch.equal(generate(pipe, **options), in_full)
        assert handle.report().replayed > 0
        assert handle.report().controlnet[1] > 0


def test_a_controlnet_that_raises_ends_the_run_of_its_denoiser(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = pipeline(pipe.unet)
    with accelerate(pipe.unet, DeepCache(interval=3)):
        expected = generate(other)
    calls: list[None] = []

    def fail(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("the ControlNet is out of memory")

    with accelerate(pipe, DeepCache(interval=3)):
        hook = pipe.controlnet.conv_in.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            generate(pipe, image=IMAGE)
        hook.remove()
        assert torch.equal(generate(other), expected)
