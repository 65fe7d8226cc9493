"""Tuned recipes against the plain network, against fixed methods, and against a reference without hooks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny_networks import LIGHT, generate, picture_unet, pipeline, sd_unet, unet_inputs
from tiny_transformers import TRANSFORMERS

from diffaccel import (
    DeepCache,
    DeltaCache,
    IntervalCache,
    Profile,
    Recipe,
    Steps,
    Taylor,
    Uniform,
    accelerate,
)
from diffaccel.methods import Evidence, Reuse, load_methods
from diffaccel.methods.profile import sampler_of
from diffaccel.networks import layout_of

TIMESTEPS = torch.linspace(981, 1, 6)
SCHEDULER = DDIMScheduler(steps_offset=1, clip_sample=False)


@pytest.fixture(scope="module")
def unet() -> Any:
    return sd_unet(**LIGHT)


def recipe(model: Any, *reuses: Reuse, total: int = 6) -> Recipe:
    layout = layout_of(model)
    return Recipe(layout.model, layout.fingerprint, *sampler_of(SCHEDULER), total, reuses)


def samples(unet: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = unet_inputs(unet)["sample"].shape
    return [torch.randn(shape, generator=generator) for _ in TIMESTEPS]


def calls(unet: Any) -> list[torch.Tensor]:
    text = unet_inputs(unet)["encoder_hidden_states"]
    with torch.no_grad():
        return [unet(x, t, text).sample for x, t in zip(samples(unet), TIMESTEPS, strict=True)]


def run_with(unet: Any, *reuses: Reuse) -> list[torch.Tensor]:
    with accelerate(unet, Profile(recipe(unet, *reuses))):
        return calls(unet)


class Reference:
    """A UNet written out: at each call the depth from which it runs, and the features that enter each depth."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.features: dict[int, list[torch.Tensor]] = {}

    def __call__(self, sample: torch.Tensor, timestep: Any, text: torch.Tensor, depth: int, weights: Any) -> Any:
        unet, args = self.unet, {"encoder_hidden_states": text, "return_dict": False}
        emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        hidden, skips = unet.conv_in(sample), []
        skips.append(hidden)
        for block in unet.down_blocks:  # all of them: what is not read does no harm
            for i, resnet in enumerate(block.resnets):
                hidden = resnet(hidden, emb)
                hidden = block.attentions[i](hidden, **args)[0] if hasattr(block, "attentions") else hidden
                skips.append(hidden)
            if block.downsamplers is not None:
                hidden = block.downsamplers[0](hidden)
                skips.append(hidden)
        hidden = unet.mid_block(hidden, emb, encoder_hidden_states=text)
        place = sum(len(block.resnets) for block in unet.up_blocks)
        for block in unet.up_blocks:
            for i, resnet in enumerate(block.resnets):
                place -= 1
                if place == depth:
                    hidden = sum(w * x for w, x in zip(weights, self.features[place], strict=False))
                elif place < depth:
                    self.features.setdefault(place, []).insert(0, hidden)
                skip = skips.pop()
                if place <= depth:
                    hidden = resnet(torch.cat([hidden, skip], dim=1), emb)
                    hidden = block.attentions[i](hidden, **args)[0] if hasattr(block, "attentions") else hidden
            if block.upsamplers is not None and place <= depth:
                hidden = block.upsamplers[0](hidden)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


FULL = 99


def test_reusing_nothing_is_the_plain_network(unet: Any) -> None:
    plain = calls(unet)
    assert all(torch.equal(a, b) for a, b in zip(run_with(unet), plain, strict=True))


def test_depth_and_weights_by_call_equal_the_reference(unet: Any) -> None:
    plan = {1: (4, (1.0,)), 2: (0, (1.0,)), 4: (0, (1.5, -0.5)), 5: (7, (0.9, 0.2))}
    reuses = [Reuse(call, f"branch {depth}", weights) for call, (depth, weights) in plan.items()]
    ours, reference = run_with(unet, *reuses), Reference(unet)
    text = unet_inputs(unet)["encoder_hidden_states"]
    for call, (sample, t) in enumerate(zip(samples(unet), TIMESTEPS, strict=True)):
        with torch.no_grad():
            expected = reference(sample, t, text, *plan.get(call, (FULL, ())))
        torch.testing.assert_close(ours[call], expected, rtol=0, atol=1e-5)


def test_one_branch_unchanged_is_deepcache(unet: Any) -> None:
    ours = run_with(unet, *(Reuse(call, "branch 2") for call in (1, 3, 4)))
    with accelerate(unet, DeepCache(branch=2, schedule=Steps((0, 2, 5)))):
        assert all(torch.equal(a, b) for a, b in zip(ours, calls(unet), strict=True))


def test_weights_of_a_line_are_taylor(unet: Any) -> None:
    ours = run_with(unet, Reuse(1, "branch 0"), Reuse(3, "branch 0", (1.5, -0.5)), Reuse(5, "branch 0", (1.5, -0.5)))
    with accelerate(unet, DeepCache(interval=2, branch=0, forecast=Taylor(1))):
        for a, b in zip(ours, calls(unet), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_an_output_is_blended_and_the_network_does_not_run(unet: Any) -> None:
    plain = calls(unet)
    with accelerate(unet, Profile(recipe(unet, Reuse(2, "output", (2.0, -1.0)), Reuse(3, "output")))) as handle:
        ours = calls(unet)
        report = handle.report()
    torch.testing.assert_close(ours[2], 2 * plain[1] - plain[0])
    assert torch.equal(ours[3], plain[1])
    assert torch.equal(ours[4], plain[4])
    assert (report.computed, report.replayed) == (4, 2)
    assert report.macs * 6 == report.macs_plain * 4


@pytest.mark.slow
def test_costs_of_nested_branches_are_counted_by_call() -> None:
    unet = picture_unet()
    with accelerate(unet, Profile(recipe(unet, Reuse(1, "branch 4"), Reuse(2, "branch 0")))) as handle:
        calls(unet)
        mixed = handle.report().macs
    total = {}
    for branch in (0, 4):
        with accelerate(unet, DeepCache(branch=branch, schedule=Steps((0, 2, 3, 4, 5)))) as handle:
            calls(unet)
            total[branch] = handle.report().macs
            plain = handle.report().macs_plain
    assert mixed == total[0] + total[4] - plain


def test_blocks_unchanged_are_a_delta_cache() -> None:
    name = "PixArtTransformer2DModel"
    model = TRANSFORMERS[name].build(name)
    layout = layout_of(model)
    inputs = TRANSFORMERS[name].inputs(2, torch.Generator().manual_seed(0))
    sample = next(iter(inputs))
    moved = [
        {**inputs, sample: inputs[sample] * (1 + 0.2 * i), "timestep": torch.full((2,), 900.0 - 100 * i)}
        for i in range(4)
    ]

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(**call).sample for call in moved]

    plain = outputs()
    with accelerate(model, DeltaCache(interval=2, blocks=len(layout.blocks), gate=2)):
        fixed = outputs()
    whole = f"blocks 0-{len(layout.blocks) - 1}"
    with accelerate(model, Profile(recipe(model, Reuse(1, whole), Reuse(3, whole), total=4))):
        assert all(torch.equal(a, b) for a, b in zip(outputs(), fixed, strict=True))
    single = [Reuse(1, f"blocks {i}-{i}") for i, _ in enumerate(layout.blocks)]
    with accelerate(model, Profile(recipe(model, *single, Reuse(3, "blocks 1-1", (2.0, -1.0)), total=4))):
        ours = outputs()
    torch.testing.assert_close(ours[1], fixed[1])
    assert torch.equal(ours[2], plain[2])
    assert not torch.equal(ours[3], plain[3])


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_units_along_a_line_are_an_interval_cache(name: str, tmp_path: Path) -> None:
    model = TRANSFORMERS[name].build(name)
    last = len(layout_of(model).blocks) - 1
    inputs = TRANSFORMERS[name].inputs(2, torch.Generator().manual_seed(0))
    sample, time = next(iter(inputs)), TRANSFORMERS[name].timestep
    moved = [
        {**inputs, sample: inputs[sample] * (1 + 0.2 * i), time: torch.full((2,), 900.0 - 100 * i)} for i in range(6)
    ]

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(**call).sample for call in moved]

    plain = outputs()
    with accelerate(model, Profile(recipe(model))):
        assert all(torch.equal(a, b) for a, b in zip(outputs(), plain, strict=True))
    with accelerate(model, IntervalCache(schedule=Uniform(3), forecast=Taylor(1))):
        fixed = outputs()
    weights = {1: (1.0,), 2: (1.0,), 4: (4 / 3, -1 / 3), 5: (5 / 3, -2 / 3)}
    edges = ((0, 0), (1, last))
    reuses = [Reuse(call, f"units {a}-{b}", w) for call, w in weights.items() for a, b in edges]
    recipe(model, *reuses).save(tmp_path / "p.json")
    assert Recipe.load(tmp_path / "p.json") == recipe(model, *reuses)
    with accelerate(model, Profile(tmp_path / "p.json")):
        for ours, theirs, whole in zip(outputs(), fixed, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            assert not torch.equal(whole, theirs) or torch.equal(ours, whole)


@pytest.mark.slow
def test_a_profile_file_is_a_method(unet: Any, tmp_path: Path) -> None:
    evidence = Evidence("min_psnr 30", True, 0.5, 31.0, 0.95, 32.0)
    tuned = replace(recipe(unet, Reuse(1, "branch 0", (1.0, 0.5)), Reuse(2, "output")), evidence=evidence)
    tuned.save(tmp_path / "p.json")
    assert Recipe.load(tmp_path / "p.json") == tuned
    assert Profile(tmp_path / "p.json").loaded == tuned
    assert load_methods(tmp_path / "p.json") == (Profile(tuned),)
    pipe = pipeline(unet, SCHEDULER)
    plain = generate(pipe)
    with accelerate(pipe, Profile(str(tmp_path / "p.json"))):
        first, second = generate(pipe), generate(pipe)
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert torch.equal(generate(pipe), plain)


def test_another_network_sampler_length_or_guidance_is_refused(unet: Any, tmp_path: Path) -> None:
    tuned = recipe(unet, Reuse(1, "branch 0"))
    with pytest.raises(ValueError, match="run diffaccel tune on it"):
        accelerate(sd_unet(block_out_channels=(8, 8, 16, 16)), Profile(tuned))
    with (
        accelerate(pipe := pipeline(unet, SCHEDULER), Profile(tuned)),
        pytest.raises(ValueError, match="tuned for 6 network calls, and this run has 4"),
    ):
        generate(pipe, steps=4)
    euler = pipeline(unet, EulerDiscreteScheduler(steps_offset=1))
    with (
        accelerate(euler, Profile(tuned)),
        pytest.raises(ValueError, match=r"tuned with DDIMScheduler .* EulerDiscreteScheduler"),
    ):
        generate(euler)
    guided = replace(tuned, total=4, guidance=(("guidance_scale", 3.0),))
    with (
        accelerate(pipe := pipeline(unet, SCHEDULER), Profile(guided)),
        pytest.raises(
            ValueError,
            match=r"tuned with guidance_scale=3, and this run has guidance_scale=7\.5: set that guidance, or tune",
        ),
    ):
        generate(pipe, steps=4)
    (tmp_path / "bad.json").write_text('{"type": "deepcache"}')
    with pytest.raises(ValueError, match=r"bad\.json is not a profile"):
        accelerate(unet, Profile(str(tmp_path / "bad.json")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reuse(0, "output"), "call must be an integer >= 1"),
        (lambda: Reuse(1, "branch"), "what must be"),
        (lambda: Reuse(1, "blocks 3-1"), "what must be"),
        (lambda: Reuse(1, "branch x"), "must end with block or branch numbers"),
        (lambda: Reuse(1, "output", ()), "weights must be finite numbers"),
        (lambda: Reuse(1, "output", (float("nan"),)), "weights must be finite numbers"),
        (lambda: Recipe("M", "", "S", "", 3, (Reuse(3, "output"),)), "names call 3; the run has calls 0..2"),
        (lambda: Recipe("M", "", "S", "", 3, (Reuse(1, "output"),) * 2), "twice"),
        (lambda: Profile(""), "recipe must be the path of a profile"),
    ],
)
def test_bad_recipes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_must_fit_the_network(unet: Any) -> None:
    with pytest.raises(ValueError, match=r"branch of UNet2DConditionModel must be an integer in 0\.\.11; got 40"):
        accelerate(unet, Profile(recipe(unet, Reuse(1, "branch 40"))))
    name = "PixArtTransformer2DModel"
    model = TRANSFORMERS[name].build(name)
    for kind in ("blocks", "units"):
        with pytest.raises(ValueError, match=f"reuses block 1 in two ranges of {kind}"):
            accelerate(model, Profile(recipe(model, Reuse(1, f"{kind} 0-1"), Reuse(2, f"{kind} 1-1"))))
    with pytest.raises(ValueError, match=r"last block of PixArtTransformer2DModel must be an integer in 0\.\..; got 9"):
        accelerate(model, Profile(recipe(model, Reuse(1, "units 0-9"))))


def test_a_call_without_the_network_is_none_that_the_other_parts_missed(unet: Any) -> None:
    def saved(*reuses: Reuse) -> float:
        with accelerate(unet, Profile(recipe(unet, *reuses))) as handle:
            calls(unet)
            return handle.report().macs_saved

    outputs, branches = [Reuse(call, "output") for call in (1, 3, 4)], [Reuse(call, "branch 1") for call in (2, 5)]
    assert saved(*outputs, *branches) == pytest.approx(saved(*outputs) + saved(*branches))
