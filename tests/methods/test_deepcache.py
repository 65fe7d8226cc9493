"""DeepCache against the plain network, against a reference without hooks, and in stock pipelines."""

from typing import Any

import pytest
import torch
from cells import cells
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers import StableDiffusionImg2ImgPipeline as Img2Img
from tiny_networks import LIGHT, TEXT, generate, pipeline, sd_unet, sdxl_unet, unet_inputs
from unet_reference import ReferenceDeepCache

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache
from diffaccel.networks import layout_of
from diffaccel.reuse.schedule import Quadratic, Steps, Threshold

TIMESTEPS = torch.linspace(981, 1, 7)


@pytest.fixture(scope="module")
def unet() -> Any:
    return sd_unet(**LIGHT)


def calls(unet: Any, timesteps: Any = TIMESTEPS, **options: Any) -> list[torch.Tensor]:
    """Outputs of one run of network calls, each on another sample."""
    inputs = unet_inputs(unet, **options)
    generator = torch.Generator().manual_seed(7)
    outputs = []
    with torch.no_grad():
        for t in timesteps:
            inputs["sample"] = torch.randn(inputs["sample"].shape, generator=generator)
            outputs.append(unet(timestep=t, **inputs).sample)
    return outputs


@pytest.mark.parametrize("build", [sd_unet, sdxl_unet])
def test_never_reusing_is_the_plain_network(build: Any) -> None:
    unet = build()
    plain = calls(unet, timesteps=TIMESTEPS[:4])
    for method in (DeepCache(interval=1), DeepCache(schedule=Threshold(0.0))):
        with accelerate(unet, method):
            ours = calls(unet, timesteps=TIMESTEPS[:4])
        assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


BRANCHES = cells(range(12), (0, 4, 11).__contains__)


@pytest.mark.parametrize("branch", BRANCHES)
def test_replay_equals_the_reference(unet: Any, branch: int) -> None:
    reference = ReferenceDeepCache(unet, range(0, 7, 3), *divmod(branch, 3))
    with accelerate(unet, DeepCache(interval=3, branch=branch)):
        ours = calls(unet)
    inputs = unet_inputs(unet)
    generator = torch.Generator().manual_seed(7)
    for t, output in zip(TIMESTEPS, ours, strict=True):
        sample = torch.randn(inputs["sample"].shape, generator=generator)
        with torch.no_grad():
            expected = reference(sample, t, inputs["encoder_hidden_states"])
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_replay_differs_from_the_plain_network(unet: Any) -> None:
    plain = calls(unet)
    with accelerate(unet, DeepCache(interval=2)):
        ours = calls(unet)
    same = [torch.equal(a, b) for a, b in zip(plain, ours, strict=True)]
    assert same == [True, False, True, False, True, False, True]


@pytest.mark.parametrize("layers", cells([1, 3], lambda layers: layers == 1))
def test_branches_are_counted_from_the_layers_of_each_block(layers: int) -> None:
    unet = sd_unet(layers_per_block=layers)
    assert len(layout_of(unet).depths) == 4 * (layers + 1)
    reference = ReferenceDeepCache(unet, range(0, 7, 3), 1, 1)
    with accelerate(unet, DeepCache(interval=3, branch=layers + 2)):
        ours = calls(unet)
    inputs, generator = unet_inputs(unet), torch.Generator().manual_seed(7)
    for t, output in zip(TIMESTEPS, ours, strict=True):
        sample = torch.randn(inputs["sample"].shape, generator=generator)
        with torch.no_grad():
            expected = reference(sample, t, inputs["encoder_hidden_states"])
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_blocks_whose_first_layer_reads_the_only_skip_connection() -> None:
    """As those of Stable Diffusion's latent upscaler, whose up blocks have no layer for the network's entry."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        down_block_types=("KDownBlock2D", "KDownBlock2D", "KCrossAttnDownBlock2D"),
        up_block_types=("KCrossAttnUpBlock2D", "KUpBlock2D", "KUpBlock2D"),
        mid_block_type=None,
        norm_num_groups=None,
        cross_attention_dim=TEXT,
        act_fn="gelu",
        time_embedding_type="fourier",
        resnet_time_scale_shift="scale_shift",
    ).eval()
    for branch, found in enumerate(layout_of(unet).depths):
        kept: list[torch.Tensor] = []

        def replay(module: Any, args: Any, output: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(output)
            return kept[0]

        hook = unet.get_submodule(found.replayed[0]).register_forward_hook(replay)
        expected = calls(unet, timesteps=TIMESTEPS[:2])
        hook.remove()
        with accelerate(unet, DeepCache(interval=2, branch=branch)):
            ours = calls(unet, timesteps=TIMESTEPS[:2])
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)), found.replayed


def test_one_tensor_is_stored(unet: Any) -> None:
    with accelerate(unet, DeepCache(interval=3, branch=0)) as handle:
        calls(unet)
        placeholders = 4 * 32  # one number each
        assert 2 * 8 * 16 * 16 * 4 <= handle.report().cache_bytes <= 2 * 8 * 16 * 16 * 4 + placeholders


def test_runs_of_a_pipeline_start_afresh() -> None:
    pipe = pipeline(sd_unet(**LIGHT))
    with accelerate(pipe, DeepCache(interval=3)) as handle:
        first, again, other = generate(pipe), generate(pipe), generate(pipe, steps=5, seed=1)
        assert handle.report().computed == 2 + 2 + 2
    with accelerate(pipe, DeepCache(interval=3)):
        assert torch.equal(other, generate(pipe, steps=5, seed=1))
    assert torch.equal(first, again)


@pytest.mark.parametrize("steps", [6, 4])
def test_a_run_that_raised_half_way_leaves_nothing(steps: int) -> None:
    pipe = pipeline(sd_unet(**LIGHT))

    def fail(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise KeyboardInterrupt
        return tensors

    with accelerate(pipe, DeepCache(interval=4)):
        good = generate(pipe, steps=steps)
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, seed=1, callback_on_step_end=fail)
        assert torch.equal(good, generate(pipe, steps=steps))


def test_a_network_call_that_raises_ends_the_run(unet: Any) -> None:
    with accelerate(unet, DeepCache(interval=4)):
        good = calls(unet, timesteps=[900, 800, 700])
        with pytest.raises(RuntimeError, match="size"):
            unet(torch.randn(2, 3, 16, 16), 600, torch.randn(2, 7, 16))
        assert all(torch.equal(a, b) for a, b in zip(good, calls(unet, timesteps=[900, 800, 700]), strict=True))


@pytest.mark.parametrize(
    ("scheduler", "calls_made"),
    [(HeunDiscreteScheduler(steps_offset=1), 11), (PNDMScheduler(skip_prk_steps=True, steps_offset=1), 7)],
)
def test_network_calls_are_counted_not_steps(scheduler: Any, calls_made: int) -> None:
    pipe = pipeline(sd_unet(**LIGHT), scheduler)
    with accelerate(pipe, DeepCache(interval=3)) as handle:
        first, again = generate(pipe), generate(pipe)
        report = handle.report()
    assert torch.equal(first, again)
    assert report.computed == 2 * -(-calls_made // 3)
    assert report.computed + report.replayed == 2 * calls_made


@pytest.mark.slow
def test_image_to_image_with_changed_strength() -> None:
    pipe = pipeline(sd_unet(**LIGHT))
    pipe = Img2Img(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    alone = []
    for strength in (0.9, 0.5):
        with accelerate(pipe, DeepCache(interval=3)):
            alone.append(generate(pipe, steps=10, image=image, strength=strength))
    with accelerate(pipe, DeepCache(interval=3)) as handle:
        together = [generate(pipe, steps=10, image=image, strength=strength) for strength in (0.9, 0.5)]
        assert handle.report().computed == 3 + 2
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_timestep_by_position_or_keyword(unet: Any) -> None:
    inputs = unet_inputs(unet)
    outputs = []
    for style in ("position", "keyword"):
        with accelerate(unet, DeepCache(interval=2)), torch.no_grad():
            for t in TIMESTEPS:
                call = (inputs["sample"], t) if style == "position" else ()
                named = {} if style == "position" else {"sample": inputs["sample"], "timestep": t}
                result = unet(*call, **named, encoder_hidden_states=inputs["encoder_hidden_states"])
            outputs.append(result.sample)
    assert torch.equal(*outputs)


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_guidance_in_two_calls_does_not_leak(unet: Any, named: bool) -> None:
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    prompts = {name: unet_inputs(unet, seed=i)["encoder_hidden_states"] for i, name in enumerate(("cond", "uncond"))}
    sample = unet_inputs(unet)["sample"]

    def run(names: tuple[str, ...]) -> dict[str, list[torch.Tensor]]:
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        with accelerate(unet, DeepCache(interval=3)), torch.no_grad():
            for t in TIMESTEPS:
                for name in names:
                    if named:
                        _set_cache_context(unet, CacheContext(name))
                    outputs[name].append(unet(sample, t, prompts[name]).sample)
            if named:
                _set_cache_context(unet, None)
        return outputs

    both = run(("cond", "uncond"))
    for name in both:
        assert all(torch.equal(a, b) for a, b in zip(both[name], run((name,))[name], strict=True))


def test_rows_do_not_leak(unet: Any) -> None:
    inputs = unet_inputs(unet)
    timesteps = torch.tensor([[900, 400], [800, 300], [700, 200]])

    def run(rows: slice) -> list[torch.Tensor]:
        with accelerate(unet, DeepCache(interval=3)), torch.no_grad():
            sample, text = inputs["sample"][rows], inputs["encoder_hidden_states"][rows]
            return [unet(sample * (i + 1), t[rows], text).sample for i, t in enumerate(timesteps)]

    whole, halves = run(slice(None)), [run(slice(0, 1)), run(slice(1, 2))]
    for i in range(3):
        torch.testing.assert_close(whole[i], torch.cat([half[i] for half in halves]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"size": 24}, {"rows": 3}])
def test_another_shape_computes(unet: Any, change: dict[str, int]) -> None:
    expected = calls(unet, timesteps=[500], **change)
    with accelerate(unet, DeepCache(interval=100)):
        calls(unet, timesteps=[900, 800, 700])
        assert torch.equal(calls(unet, timesteps=[500], **change)[0], expected[0])


def test_dropping_guidance_half_way(unet: Any) -> None:
    pipe = pipeline(unet)

    def drop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return tensors

    options = {"callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with accelerate(pipe, DeepCache(interval=2)) as handle:
        assert torch.isfinite(generate(pipe, **options)).all()
        assert handle.report().computed == 2 + 2  # calls 0, 2, 4, and 3, which has no negative rows any more
    with accelerate(pipe, DeepCache(schedule=Steps((0, 5)))) as handle:
        generate(pipe, **options)
        assert handle.report().computed == 3  # calls 0, 3 and 5: they are counted on


def test_forced_decisions_per_slot(unet: Any) -> None:
    inputs = unet_inputs(unet)
    timesteps = torch.tensor([900, 400])
    with accelerate(unet, DeepCache(interval=100)) as handle, torch.no_grad():
        with handle.forced(True, context="slots"):
            first = unet(**inputs, timestep=timesteps).sample
        with handle.forced(False, context="slots"):
            assert torch.equal(first, unet(**inputs, timestep=timesteps).sample)
            moved = unet(inputs["sample"] + 1, timesteps, inputs["encoder_hidden_states"]).sample
        with handle.forced(True, context="slots"):
            fresh = unet(inputs["sample"] + 1, timesteps, inputs["encoder_hidden_states"]).sample
        assert (handle.report().computed, handle.report().replayed) == (2, 2)
    assert not torch.equal(moved, fresh)
    assert torch.equal(fresh, unet(inputs["sample"] + 1, timesteps, inputs["encoder_hidden_states"]).sample)


def test_quadratic_takes_the_number_of_calls_from_the_pipeline() -> None:
    pipe = pipeline(sd_unet(**LIGHT), EulerDiscreteScheduler(steps_offset=1))
    with accelerate(pipe, DeepCache(schedule=Quadratic(3, center=2, power=1.4))) as handle:
        generate(pipe, steps=10)
        assert handle.report().computed == 4


def test_a_schedule_longer_than_the_run_is_refused_before_it_computes() -> None:
    pipe = pipeline(sd_unet(**LIGHT), DDIMScheduler(steps_offset=1, clip_sample=False))
    with accelerate(pipe, DeepCache(schedule=Steps((0, 3, 9)))) as handle:
        with pytest.raises(ValueError, match=r"call 9, but the run has 6 network calls"):
            generate(pipe)
        assert handle.report().computed == 0


def test_branch_out_of_range(unet: Any) -> None:
    with pytest.raises(ValueError, match=r"branch of UNet2DConditionModel must be an integer in 0\.\.11; got 12"):
        accelerate(unet, DeepCache(branch=12))


@pytest.mark.parametrize("branch", BRANCHES)
def test_in_place_writes_of_freeu(branch: int) -> None:
    unet = sd_unet(**LIGHT)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    inputs = unet_inputs(unet)
    with accelerate(unet, DeepCache(interval=4, branch=branch)), torch.no_grad():
        same = [unet(**inputs, timestep=500).sample for _ in range(4)]
    assert all(torch.equal(same[0], output) for output in same)


@pytest.mark.slow
@pytest.mark.parametrize("branch", BRANCHES)
def test_residuals_of_an_adapter(branch: int) -> None:
    unet = sd_unet()
    inputs = unet_inputs(unet)
    shapes = [(8, 16), (16, 8), (16, 4), (16, 2)]
    residuals = [torch.randn(2, channels, size, size) for channels, size in shapes]
    with accelerate(unet, DeepCache(interval=3, branch=branch)), torch.no_grad():
        same = [
            unet(**inputs, timestep=500, down_intrablock_additional_residuals=[*residuals]).sample for _ in range(3)
        ]
    assert all(torch.equal(same[0], output) for output in same)


def test_a_run_that_ends_early_has_fewer_calls() -> None:
    pipe = pipeline(sdxl_unet())
    with accelerate(pipe, DeepCache(schedule=Steps((0, 5)))) as handle:
        generate(pipe, steps=14, denoising_end=0.5)
        assert handle.report().computed == 2
        with pytest.raises(ValueError, match=r"call 5, but the run has 5 network calls"):
            generate(pipe, steps=10, denoising_end=0.5)
        generate(pipe, steps=10)
