"""A schedule for the prompt and one for the negative prompt, whether guidance takes two rows or two calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from test_controlnet import IMAGE, build
from tiny_networks import TEXT, generate, picture_unet, pipeline
from tiny_transformers import TRANSFORMERS

from diffaccel import (
    DeepCache,
    EncoderPropagation,
    FeatureInheritance,
    IntervalCache,
    PerPrompt,
    Steps,
    TGate,
    Uniform,
    accelerate,
)
from diffaccel.methods import parse
from diffaccel.reuse.schedule import Always, Schedule, Threshold

STEPS = 6
LAYERS = ("down_blocks.0.resnets.0", "down_blocks.1.resnets.1", "mid_block", "up_blocks.1.attentions.0")


class InTwoCalls(DiffusionPipeline):  # type: ignore[misc]
    """Guidance as a call with the prompt, and one with the negative prompt after it."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return True

    @torch.no_grad()
    def __call__(self, prompt_embeds: torch.Tensor, negative_prompt_embeds: torch.Tensor) -> torch.Tensor:
        self.scheduler.set_timesteps(STEPS)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            positive, negative = (self.unet(latents, t, e).sample for e in (prompt_embeds, negative_prompt_embeds))
            latents = self.scheduler.step(negative + 2 * (positive - negative), t, latents).prev_sample
        return latents


def two_calls() -> InTwoCalls:
    return InTwoCalls(picture_unet(), DDIMScheduler(steps_offset=1, clip_sample=False))


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 7, TEXT, generator=generator), torch.randn(1, 7, TEXT, generator=generator)


@contextmanager
def replayed(model: torch.nn.Module, negative: tuple[int, ...], positive: tuple[int, ...]) -> Iterator[None]:
    """The reference: all runs, and rows that do not compute give what their module gave them when they did.

    In a batch of halves the negative prompt comes first; in two calls a step, the prompt does.
    """
    kept: dict[Any, torch.Tensor] = {}
    calls, rows = [-1], [0]

    def count(module: Any, args: Any, kwargs: Any) -> None:
        calls[0] += 1
        rows[0] = args[0].shape[0]

    def after(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            parts = []
            for place, row in enumerate(whole.chunk(rows[0])):
                step, is_negative = (calls[0], place == 0) if rows[0] == 2 else (calls[0] // 2, calls[0] % 2 == 1)
                if step in (negative if is_negative else positive):
                    kept[name, is_negative] = row.clone()
                parts.append(kept[name, is_negative])
            whole = torch.cat(parts)
            return (whole,) if isinstance(output, tuple) else whole

        return hook

    handles = [model.register_forward_pre_hook(count, with_kwargs=True)]
    for name, module in model.named_modules():
        if any(part in name for part in ("resnets.", "attentions.")) and name.count(".") == 3 - ("mid" in name):
            handles.append(module.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def method(positive: Schedule, negative: Schedule) -> FeatureInheritance:
    return FeatureInheritance("layer", depth=0, schedule=PerPrompt(positive, negative))


def test_equals_the_reference_in_two_rows_of_a_call() -> None:
    pipe = pipeline(picture_unet())
    with accelerate(pipe, method(Uniform(2), Steps((0, 3)))) as handle:
        ours = generate(pipe, STEPS)
    with replayed(pipe.unet, (0, 3), (0, 2, 4)):
        theirs = generate(pipe, STEPS)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - generate(pipe, STEPS)).abs().max() > 1e-2
    assert (handle.report().computed, handle.report().replayed) == (1, 5)  # call 0, where both prompts compute


def test_equals_the_reference_in_two_calls() -> None:
    pipe = two_calls()
    with accelerate(pipe, method(Uniform(2), Steps((0, 3)))) as handle:
        ours = pipe(*prompts())
    with replayed(pipe.unet, (0, 3), (0, 2, 4)):
        theirs = pipe(*prompts())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert handle.report().computed == 3 + 2
    assert (ours - pipe(*prompts())).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: (pipeline(picture_unet()), generate), lambda: (two_calls(), None)])
def test_reusing_nothing_is_the_plain_run_and_equal_schedules_are_one(make: Any) -> None:
    pipe, run = make()

    def latents(*methods: Any) -> torch.Tensor:
        if not methods:
            return run(pipe, STEPS) if run else pipe(*prompts())  # type: ignore[no-any-return]
        with accelerate(pipe, *methods):
            return latents()

    assert torch.equal(latents(DeepCache(schedule=PerPrompt(Always(), Always()))), latents())
    one = DeepCache(schedule=Uniform(2))
    assert torch.equal(latents(DeepCache(schedule=PerPrompt(Uniform(2), Uniform(2)))), latents(one))
    both = latents(DeepCache(schedule=PerPrompt(Uniform(2), Uniform(3))))
    assert not torch.equal(both, latents(one))


@pytest.mark.slow
def test_it_saves_what_the_negative_prompt_leaves_out() -> None:
    pipe, saved = pipeline(picture_unet()), []
    for schedule in (Uniform(2), PerPrompt(Uniform(2), Uniform(4)), Uniform(4)):
        with accelerate(pipe, DeepCache(schedule=schedule)) as handle:
            generate(pipe, 8)
            saved.append(handle.report().macs_saved)
    assert saved[1] == pytest.approx((saved[0] + saved[2]) / 2)


def test_without_guidance_the_first_schedule_is_the_only_one() -> None:
    pipe = pipeline(picture_unet())

    def run(schedule: Schedule) -> torch.Tensor:
        with accelerate(pipe, DeepCache(schedule=schedule)):
            return generate(pipe, STEPS, guidance_scale=1.0)

    assert torch.equal(run(PerPrompt(Uniform(2), Uniform(6))), run(Uniform(2)))


@pytest.mark.slow
def test_prompts_measure_their_own_change() -> None:
    """The negative prompt is never far from what it was; the prompt computes at each call."""
    pipe = pipeline(picture_unet())
    with accelerate(pipe, DeepCache(schedule=PerPrompt(Threshold(0.0), Threshold(99.0)))) as handle:
        ours = generate(pipe, STEPS)
        names = {item.name for call in handle.report().calls for item in call.measured}
    with accelerate(pipe, DeepCache(schedule=PerPrompt(Always(), Steps((0,))))):
        assert torch.equal(ours, generate(pipe, STEPS))
    assert names == {"relative change of the input"}


def test_other_methods_and_ends_of_the_run_go_with_it() -> None:
    pipe, seen = pipeline(picture_unet()), PerPrompt(Uniform(2), Uniform(3))
    with accelerate(pipe, DeepCache(schedule=seen, warmup=STEPS)):
        assert torch.equal(generate(pipe, STEPS), generate(pipe, STEPS))
    with accelerate(pipe, DeepCache(schedule=seen), TGate(gate=4)):
        first = generate(pipe, STEPS)
        assert torch.equal(first, generate(pipe, STEPS))


def test_a_network_of_lists_has_no_halves() -> None:
    tiny = TRANSFORMERS["ZImageTransformer2DModel"]
    network = tiny.build("ZImageTransformer2DModel")
    inputs = tiny.inputs(2, torch.Generator().manual_seed(0))
    chosen = IntervalCache(schedule=PerPrompt(Uniform(2), Uniform(3)))
    with accelerate(network, chosen, guided=True), pytest.raises(ValueError, match="takes a list of samples"):
        network(**inputs, **{tiny.timestep: torch.full((2,), 0.5)})


@pytest.mark.slow
@pytest.mark.parametrize("cache", [DeepCache, EncoderPropagation])
def test_a_controlnet_leaves_out_what_neither_prompt_reads(cache: Any) -> None:
    pipe = build(1)
    chosen = cache(schedule=PerPrompt(Uniform(2), Uniform(3)))
    with accelerate(pipe.unet, chosen, guided=True):
        in_full = generate(pipe, image=IMAGE)
    with accelerate(pipe, chosen) as handle:
        ours = generate(pipe, image=IMAGE)
        assert handle.report().controlnet[0] < 6
    if cache is DeepCache:
        torch.testing.assert_close(ours, in_full, rtol=1e-5, atol=1e-5)


def test_what_it_is_made_of() -> None:
    read = parse("deepcache:schedule=perprompt(uniform(2),steps(0,4))")
    assert read == DeepCache(schedule=PerPrompt(Uniform(2), Steps((0, 4))))
    assert parse(read.to_text()) == read
    with pytest.raises(ValueError, match="negative must be a schedule"):
        PerPrompt(Uniform(2), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive must be a schedule for all rows, such as Uniform"):
        PerPrompt(PerPrompt(Uniform(2), Uniform(3)), Uniform(3))
    pipe = pipeline(picture_unet())
    with (
        accelerate(pipe, DeepCache(schedule=PerPrompt(Uniform(2), Steps((0, 9))))),
        pytest.raises(ValueError, match="steps lists call 9, but the run has 6"),
    ):
        generate(pipe, STEPS)
