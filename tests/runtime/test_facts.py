"""Network calls are told apart by facts: what a method does is right, computed in full and said so, or refused."""

import copy
import threading
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
import walk
from tiny_networks import TEXT, generate, motion_unet, pipeline, sd_unet, unet_inputs
from tiny_transformers import TRANSFORMERS
from torch.utils._pytree import tree_map
from walk_parts import Draw, ddim, kl
from walk_unets import SMALL, sd

from diffaccel.attach.handle import accelerate
from diffaccel.methods import BlockCache, DeepCache, IntervalCache, ResidualGuidance, TextKVCache, TGate
from diffaccel.networks import layout_of
from diffaccel.reuse.schedule import Uniform

DIT = "PixArtTransformer2DModel"
EVERY_SECOND = IntervalCache(schedule=Uniform(2))


class AnyTimestep(diffusers.PixArtTransformer2DModel):
    """Takes numbers and scalars as timesteps, too."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, timestep: Any, **more: Any) -> Any:
        t = torch.as_tensor(timestep, dtype=torch.float32).expand(len(hidden_states))
        return super().forward(hidden_states, encoder_hidden_states, t, **more)


def dit() -> Any:
    model = TRANSFORMERS[DIT].build(DIT)
    model.__class__ = AnyTimestep
    return model


def dit_inputs(seed: int, rows: int = 2) -> dict[str, Any]:
    return TRANSFORMERS[DIT].inputs(rows, torch.Generator().manual_seed(seed))


def replayed(model: Any, plan: list[tuple[str, bool]]) -> Iterator[None]:
    """Outputs of attentions and feed-forward networks are stored or replayed, call by call: (context, reuse)."""
    kept: dict[Any, Any] = {}
    now: list[tuple[str, bool]] = []
    model.register_forward_pre_hook(lambda *_: now.__setitem__(slice(None), [plan.pop(0)]))
    for unit in layout_of(model).units:
        for name in unit.branch.replayed:

            def hook(module: Any, args: Any, output: Any, name: str = name) -> Any:
                context, reuse = now[0]
                if reuse:
                    return tree_map(lambda x: x, kept[name, context])
                kept[name, context] = output
                return None

            model.get_submodule(name).register_forward_hook(hook)


def run_calls(model: Any, calls: list[tuple[Any, dict[str, Any]]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(**inputs, timestep=t).sample for t, inputs in calls]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=lambda m, index=index: f"call {index}: {m}")


STEPS = (900, 700, 500, 300)
TABLE = torch.linspace(900, 300, 4)
TIMESTEPS = {
    "numbers": lambda t: t,
    "fresh": lambda t: torch.tensor([float(t)] * 2),
    "scalars": lambda t: torch.tensor(float(t)),
    "expanded": lambda t: torch.tensor(float(t)).expand(2),
    "views": lambda t: TABLE[STEPS.index(t)].expand(2),
}


@pytest.mark.parametrize("kind", TIMESTEPS)
def test_a_bare_network_called_twice_a_step(kind: str) -> None:
    prompts = [dit_inputs(seed) for seed in (0, 1)]
    calls = [(TIMESTEPS[kind](t), inputs) for t in STEPS for inputs in prompts]
    ours, theirs = dit(), dit()
    with accelerate(ours, EVERY_SECOND) as handle:
        found = run_calls(ours, calls) + run_calls(ours, calls)
        counts = handle.report().computed, handle.report().replayed
    replayed(theirs, 2 * [(prompt, step % 2 == 1) for step in range(4) for prompt in "pn"])
    same(found, run_calls(theirs, calls) + run_calls(theirs, calls))
    assert counts == (8, 8)


def test_one_prompt_twice_at_a_timestep_is_two_views() -> None:
    one, other = dit_inputs(0), dit_inputs(0)
    other["hidden_states"] = dit_inputs(5)["hidden_states"]
    calls = [(t, inputs) for t in STEPS for inputs in (one, other)]
    ours, theirs = dit(), dit()
    with accelerate(ours, EVERY_SECOND):
        found = run_calls(ours, calls)
    replayed(theirs, [(view, step % 2 == 1) for step in range(4) for view in "ab"])
    same(found, run_calls(theirs, calls))


def test_guidance_that_begins_in_mid_run() -> None:
    positive, negative = dit_inputs(0), dit_inputs(1)
    calls = [(900, positive), (700, positive), (500, positive), (500, negative), (300, positive), (300, negative)]
    ours, theirs = dit(), dit()
    with accelerate(ours, IntervalCache(schedule=Uniform(2))):
        found = run_calls(ours, calls)
    plan = [("p", False), ("p", True), ("p", False), ("n", False), ("p", True), ("n", True)]
    replayed(theirs, plan)
    same(found, run_calls(theirs, calls))


def test_guidance_whose_negative_call_comes_first_when_it_begins() -> None:
    positive, negative = dit_inputs(0), dit_inputs(1)
    calls = [(900, positive), (700, negative), (700, positive), (500, negative), (500, positive), (300, positive)]
    ours, theirs = dit(), dit()
    with accelerate(ours, EVERY_SECOND):
        found = run_calls(ours, calls)
    plan = [("p", False), ("n", False), ("p", True), ("n", False), ("p", False), ("p", True)]
    replayed(theirs, plan)
    same(found, run_calls(theirs, calls))


def test_copies_of_a_pipeline_with_their_own_schedulers() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    other = copy.copy(pipe)
    other.scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    runs = [(pipe, 6), (other, 4), (pipe, 6), (other, 4)]
    with accelerate(pipe, DeepCache(interval=2)):
        one, two, three, four = (generate(p, steps) for p, steps in runs)
    with accelerate(other, DeepCache(interval=2)):
        alone = generate(other, 4)
    assert torch.equal(one, three)
    assert torch.equal(two, four)
    assert torch.equal(two, alone)


def test_another_pipeline_brings_its_own_guidance_and_length() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.scheduler = ddim()
    img2img.set_progress_bar_config(disable=True)
    given = {"image": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), "strength": 0.5}
    with accelerate(img2img, TGate(gate=2, self_interval=1)):
        expected = generate(img2img, 8, **given)
    with accelerate(pipe, TGate(gate=2, self_interval=1)):
        generate(pipe, 5, guidance_scale=1.0)  # leaves a pipeline that says it is not guided
        assert torch.equal(generate(img2img, 8, **given), expected)
        with pytest.raises(ValueError, match="gate must be <= 1"):
            generate(img2img, 2, **given)


def test_schedulers_keep_their_class_and_copies_their_own_steps() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    cls = type(pipe.scheduler)
    before = cls.step, cls.set_timesteps
    with accelerate(pipe, DeepCache(interval=2)) as handle:
        assert type(pipe.scheduler) is cls
        generate(pipe, 4)
        copied = copy.deepcopy(pipe.scheduler)
        copied.set_timesteps(3)  # is nobody's run
        assert (handle.report().computed, handle.report().replayed) == (2, 2)
    assert (cls.step, cls.set_timesteps) == before


def test_a_scheduler_for_each_request_is_not_kept() -> None:
    import gc
    import weakref

    pipe, alive = pipeline(sd_unet(**SMALL)), []
    with accelerate(pipe, DeepCache(interval=2)):
        for _ in range(3):
            request = copy.copy(pipe)
            request.scheduler = ddim()
            generate(request, 2)
            alive.append(weakref.ref(request.scheduler))
            del request
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


@pytest.mark.parametrize("own_schedulers", [True, False])
def test_overlapping_runs_in_threads(own_schedulers: bool) -> None:
    pipe = pipeline(sd_unet(**SMALL))
    with accelerate(pipe, DeepCache(interval=2)):
        expected = [generate(pipe, 6, seed) for seed in range(3)]
        found: dict[int, Any] = {}

        def work(seed: int) -> None:
            mine = copy.copy(pipe)
            mine.scheduler = ddim()
            found[seed] = generate(mine, 6, seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(3)) or not own_schedulers


def test_alternating_requests_in_one_thread() -> None:
    """A run that is called from within another run's callback, as a server with coroutines does."""
    pipe = pipeline(sd_unet(**SMALL))
    other = copy.copy(pipe)
    other.scheduler = ddim()
    with accelerate(pipe, DeepCache(interval=2)):
        alone = generate(pipe, 5, 0), generate(other, 4, 1)
        inner: list[torch.Tensor] = []

        def between(p: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step in (0, 1):
                inner.append(generate(other, 4, 1))
            return kwargs

        outer = generate(pipe, 5, 0, callback_on_step_end=between)
    assert torch.equal(outer, alone[0])
    assert all(torch.equal(one, alone[1]) for one in inner)


def test_one_scheduler_in_two_runs_at_once_is_not_silently_wrong() -> None:
    """Here plain sampling is broken, too; features must still not cross from one picture to the other."""
    network, seen = dit(), []
    network.register_forward_hook(lambda *a: seen.append(1))
    with accelerate(network, EVERY_SECOND) as handle:
        a, b = dit_inputs(0), dit_inputs(1)
        calls = [(900, a), (900, b), (700, a), (700, b)]
        found = run_calls(network, calls)
        assert handle.report().replayed == 2
    plain = run_calls(dit(), calls)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])
    replaying = dit()
    replayed(replaying, [("a", False), ("b", False), ("a", True), ("b", True)])
    same(found, run_calls(replaying, calls))


def test_two_denoisers_have_their_own_settings() -> None:
    stop = walk.STOPS["WanPipeline, 2.2"]
    pipe = walk.built(stop, torch.float32)
    plain = walk.made_by(pipe, stop, torch.float32)
    methods = {"transformer": [IntervalCache(interval=1)], "transformer_2": [EVERY_SECOND]}
    with accelerate(pipe, methods) as handle:
        both = walk.made_by(pipe, stop, torch.float32)
        assert handle.report().replayed == 4
    with accelerate(pipe, {"transformer_2": EVERY_SECOND}) as handle:
        one = walk.made_by(pipe, stop, torch.float32)
        assert handle.report().replayed == 4
    assert torch.equal(one, both)
    assert not torch.equal(one, plain)
    with accelerate(
        pipe, {"transformer": [TGate(gate=2, self_interval=1)], "transformer_2": [TGate(gate=3, self_interval=1)]}
    ):
        walk.made_by(pipe, stop, torch.float32)
    with accelerate(pipe, TGate(gate=3, self_interval=1)), pytest.raises(ValueError, match="gate must be <= 2"):
        walk.made_by(pipe, stop, torch.float32)
    with pytest.raises(ValueError, match="there is no denoiser 'transformer_3'"):
        accelerate(pipe, {"transformer_3": [EVERY_SECOND]})


def test_a_table_of_timesteps_used_twice() -> None:
    table = torch.linspace(900, 300, 4)
    inputs = dit_inputs(0)
    calls = [(t.expand(2), inputs) for t in table]
    network = dit()
    with accelerate(network, EVERY_SECOND) as handle:
        one, two = run_calls(network, calls), run_calls(network, calls)
        assert (handle.report().computed, handle.report().replayed) == (4, 4)
    same(one, two)


class TestTextKV:
    def test_a_lora_scale_that_changes_in_mid_run(self) -> None:
        from peft import LoraConfig

        pipe = pipeline(sd_unet(**SMALL))
        pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_v"]), "a")

        def weaker(p: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            p.unet.set_adapters(["a"], [1.0 - 0.2 * step])
            return kwargs

        plain = generate(pipe, 4, callback_on_step_end=weaker)
        pipe.unet.set_adapters(["a"], [1.0])
        with accelerate(pipe, TextKVCache()):
            assert torch.equal(generate(pipe, 4, callback_on_step_end=weaker), plain)

    def test_inference_tensors_written_in_place(self) -> None:
        unet = sd_unet(**SMALL)
        with torch.inference_mode():
            inputs = unet_inputs(unet)
            prompt = inputs["encoder_hidden_states"].clone()
            inputs["encoder_hidden_states"] = prompt
            with accelerate(unet, TextKVCache()):
                for t in (900, 600):
                    found = unet(**inputs, timestep=t).sample
                    prompt.mul_(0.5)
            prompt.mul_(2.0)
            assert torch.equal(found, unet(**inputs, timestep=600).sample)

    def test_weights_written_in_inference_mode(self) -> None:
        with torch.inference_mode():
            unet = sd_unet(**SMALL)
            inputs, name = unet_inputs(unet), layout_of(unet).conditioning_only[0]
            with accelerate(unet, TextKVCache()):
                unet(**inputs, timestep=900)
                unet.get_submodule(name).weight.mul_(2.0)
                found = unet(**inputs, timestep=600).sample
            assert torch.equal(found, unet(**inputs, timestep=600).sample)


def test_stored_features_do_not_keep_the_graph() -> None:
    unet = sd_unet(**SMALL)
    inputs = unet_inputs(unet)
    with accelerate(unet, DeepCache(interval=2)):
        for t in (900, 700, 500):
            sample = inputs["sample"].clone().requires_grad_()
            loss = unet(**{**inputs, "sample": sample}, timestep=t).sample.square().mean()
            (gradient,) = torch.autograd.grad(loss, sample)
            assert gradient.abs().sum() > 0


def test_a_replaced_network_is_noticed() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    handle = accelerate(pipe, DeepCache(interval=2))
    own = pipe.unet
    pipe.unet = sd_unet(**SMALL)
    with pytest.raises(RuntimeError, match="was replaced after accelerate"):
        generate(pipe, 2)
    pipe.unet = own
    assert torch.isfinite(generate(pipe, 2)).all()
    handle.detach()
    pipe.unet = sd_unet(**SMALL)
    assert torch.isfinite(generate(pipe, 2)).all()


def test_a_cache_of_diffusers_beside_ours_is_refused() -> None:
    model = TRANSFORMERS["FluxTransformer2DModel"].build("FluxTransformer2DModel")
    inputs = TRANSFORMERS["FluxTransformer2DModel"].inputs(1, torch.Generator().manual_seed(0))
    with accelerate(model, EVERY_SECOND):
        model.enable_cache(diffusers.FirstBlockCacheConfig())
        with pytest.raises(RuntimeError, match="enable_cache"):
            model(**inputs, timestep=torch.tensor([0.5]))
        model.disable_cache()


@pytest.mark.parametrize("extra", [1, 2])
def test_rows_that_are_not_pairs_are_refused(extra: int) -> None:
    """Stacks of more than a negative and a positive prompt are not taken for halves."""
    from diffaccel.runtime.host import _compared

    negative, positive, other = (torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    stacked = torch.cat([negative, positive, *[other] * extra])
    assert _compared(stacked, negative, positive, len(stacked)) == ()
    pairs = torch.cat([negative, positive])
    assert _compared(pairs, negative, pairs, 2) == ("negative", "positive")
    assert _compared(pairs.flip(0), negative, positive, 2) == ("positive", "negative")
    assert _compared(positive, negative, pairs, 1) == ("positive",)
    assert _compared(negative, negative, positive, 1) == ("negative",)
    twice = torch.cat([pairs[[0, 0]], pairs[[1, 1]], pairs[[1, 1]]])  # negative, positive, perturbed of two pictures
    assert _compared(twice, pairs[[0, 0]], positive, 6) == ()


def test_frames_of_a_video_share_a_row() -> None:
    pipe = diffusers.AnimateDiffPipeline(
        vae=kl(), text_encoder=None, tokenizer=None, unet=motion_unet(), motion_adapter=None,
        scheduler=ddim(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    shapes: list[tuple[int, ...]] = []
    pipe.unet.register_forward_pre_hook(
        lambda m, a, k: shapes.append(tuple(k["encoder_hidden_states"].shape)), with_kwargs=True
    )
    draw = Draw(torch.float32)
    inner = lambda m, a, k: shapes.append(tuple(k["encoder_hidden_states"].shape))  # noqa: E731
    with accelerate(pipe, ResidualGuidance()):
        pipe.unet.down_blocks[0].register_forward_pre_hook(inner, with_kwargs=True)
        pipe(**draw.prompts(), height=64, width=64, num_frames=2, num_inference_steps=2, output_type="latent")
    assert shapes[-1] == (2, 6, TEXT)
    _ = sd, BlockCache
