"""Network calls are told apart by facts: what a method does is right, computed in full and said so, or refused."""

import itertools
from typing import Any

import diffusers
import pytest
import torch
import walk
from runtime_calls import EVERY_SECOND, dit, dit_inputs, replayed, run_calls, same
from tiny_networks import LIGHT, TEXT, motion_unet, sd_unet, unet_inputs
from walk_parts import Draw, ddim, kl

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache, IntervalCache, ResidualGuidance, TextKVCache, TGate
from diffaccel.networks import UnsupportedModelError
from diffaccel.reuse.schedule import Uniform
from diffaccel.runtime.contexts import KNOWN

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


class ParallelPipeline(diffusers.DiffusionPipeline):
    """Samples a window of steps in parallel, as Paradigms does."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def __call__(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        calls = [(torch.tensor([float(t), float(later)]), inputs) for t, later in itertools.pairwise(STEPS)]
        return run_calls(self.transformer, calls)


def test_prompts_that_take_turns_do_not_grow_stale() -> None:
    model, inputs = dit(), [dit_inputs(seed) for seed in (0, 1)]
    plan = "ABABABABAB"  # B comes in odd calls alone, none of which a schedule of every second or fourth call names
    with torch.no_grad(), accelerate(model, IntervalCache(schedule=Uniform(4))) as handle:
        for step, name in enumerate(plan):
            model(**inputs[name == "B"], timestep=900 - step)
        rows = [row.state for row in handle.report().calls]
    due = {0, 1, 4, 5, 8, 9}  # a prompt's call that was due while the other had its turn is made up for
    assert [state == "computed" for state in rows] == [step in due for step in range(len(plan))]


def test_rows_at_timesteps_of_their_own_compute_in_full() -> None:
    """What a row stored belongs to another step than its next call. (Rows of a bare network have runs of their own.)"""
    pipe, inputs = ParallelPipeline(dit(), ddim()), dit_inputs(0)
    plain = pipe(inputs)
    with accelerate(pipe, EVERY_SECOND) as handle:
        same(pipe(inputs), plain)
        assert handle.report().full == {"rows of one call are at timesteps of their own": 3}


@pytest.mark.slow
@pytest.mark.parametrize("count", [KNOWN, KNOWN + 1])
def test_more_prompts_in_a_step_than_are_told_apart(count: int) -> None:
    network, calls = dit(), [(t, dit_inputs(seed)) for t in (900, 700, 500) for seed in range(count)]
    plain = run_calls(dit(), calls)
    with accelerate(network, EVERY_SECOND) as handle:
        found = run_calls(network, calls)
        report = handle.report()
    if count == KNOWN:
        assert (report.replayed, report.full) == (count, {})
    else:
        assert (report.replayed, report.full) == (0, {f"more than {KNOWN} prompts in one step": 1 + 2 * count})
        same(found, plain)


def test_a_table_of_timesteps_used_twice() -> None:
    table = torch.linspace(900, 300, 4)
    inputs = dit_inputs(0)
    calls = [(t.expand(2), inputs) for t in table]
    network = dit()
    with accelerate(network, EVERY_SECOND) as handle:
        one, two = run_calls(network, calls), run_calls(network, calls)
        assert (handle.report().computed, handle.report().replayed) == (4, 4)
    same(one, two)


@pytest.mark.slow
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
    with accelerate(pipe.transformer, IntervalCache(interval=3)) as handle:  # whose second call is its last
        walk.made_by(pipe, stop, torch.float32)
        assert (handle.report().computed, handle.report().replayed) == (4, 0)
    with accelerate(pipe, TGate(gate=3, self_interval=1)), pytest.raises(ValueError, match="gate must be <= 2"):
        walk.made_by(pipe, stop, torch.float32)
    with pytest.raises(ValueError, match="there is no denoiser 'transformer_3'"):
        accelerate(pipe, {"transformer_3": [EVERY_SECOND]})


class TwoStages(diffusers.DiffusionPipeline):
    """A prior and a decoder, neither with a scheduler of the name that pipelines give it."""

    def __init__(self, prior: Any, unet: Any) -> None:
        super().__init__()
        self.register_modules(prior=prior, unet=unet)

    def __call__(self) -> list[torch.Tensor]:
        return run_calls(self.prior, [(t, dit_inputs(0)) for t in STEPS])


def test_what_denoisers_of_two_kinds_are_given_and_do_not_tell() -> None:
    pipe = TwoStages(dit(), sd_unet(**LIGHT))
    with pytest.raises(UnsupportedModelError, match=r"DeepCache needs a UNet .*\{'prior': \[...\], 'unet': \[...\]\}"):
        accelerate(pipe, DeepCache())
    with accelerate(pipe, {"prior": EVERY_SECOND, "unet": DeepCache()}) as handle:
        pipe()
        assert (handle.report().computed, handle.report().replayed) == (2, 2)
    for method, said in (
        (IntervalCache(), "nor every pipeline with several denoisers: give IntervalCache"),
        (ResidualGuidance(), "needs a scheduler, and TwoStages has none by that name"),
    ):
        with accelerate(pipe, {"prior": method}), pytest.raises(ValueError, match=said):
            pipe()


class HidesGuidance(diffusers.DiffusionPipeline):
    """Stacks two prompts, and says of guidance nothing but its scale."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet)

    def __call__(self, guidance_scale: float) -> list[torch.Tensor]:
        return run_calls(self.unet, [(t, unet_inputs(self.unet, size=8)) for t in STEPS])


def test_guidance_of_which_nothing_but_its_scale_is_known() -> None:
    pipe = HidesGuidance(sd_unet(**LIGHT))
    with accelerate(pipe, TGate(gate=2)) as handle:
        with pytest.raises(ValueError, match="HidesGuidance does not tell which rows see the negative prompt"):
            pipe(guidance_scale=3.0)
        pipe(guidance_scale=1.0)
        assert handle.report().replayed == 2
    with accelerate(pipe, TGate(gate=2), guided=False):
        pipe(guidance_scale=3.0)


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


@pytest.mark.parametrize(
    ("name", "rows"), [("LuminaPipeline", "positive, negative"), ("WanPipeline", "(negative|positive)")]
)
def test_what_is_said_of_guidance_is_held_against_the_prompts(name: str, rows: str) -> None:
    """Halves with the prompt first, or calls of one prompt each, would lose the wrong half in silence."""
    stop = walk.STOPS[name]
    pipe = walk.built(stop, torch.float32)
    with (
        accelerate(pipe, TGate(gate=2, self_interval=1), guided=True),
        pytest.raises(ValueError, match=f"its rows are {rows}: leave guided out"),
    ):
        walk.made_by(pipe, stop, torch.float32)


def unprompted() -> Any:
    """AudioLDM's UNet: its prompt comes as class labels, and its cross-attentions attend to the sample."""
    return sd_unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=(8, 16),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=TEXT,
        class_embeddings_concat=True,
    )


@torch.no_grad()
def test_keys_and_values_of_the_sample_are_not_taken_for_those_of_a_prompt() -> None:
    unet, labels = unprompted(), torch.randn(2, TEXT, generator=torch.Generator().manual_seed(0))

    def run() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        samples = [torch.randn(2, 4, 8, 8, generator=generator) for _ in STEPS]
        return [unet(x, t, None, class_labels=labels).sample for x, t in zip(samples, STEPS, strict=True)]

    plain = run()
    with accelerate(unet, TextKVCache()):
        found = run()
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    with accelerate(unet, TGate(gate=2)), pytest.raises(ValueError, match="encoder_hidden_states is None"):
        run()


@pytest.mark.slow
def test_tokens_that_a_network_adds_are_not_taken_for_channels() -> None:
    """Qwen-Image 2.1 returns its prompt's tokens before those of the picture."""
    stop = walk.STOPS["QwenImage21Pipeline, cached"]
    pipe = walk.built(stop, torch.float32)
    with accelerate(pipe, ResidualGuidance()), pytest.raises(ValueError, match="does not predict its noise"):
        walk.made_by(pipe, stop, torch.float32)


@pytest.mark.slow
def test_calls_that_keep_keys_and_values_are_not_those_that_read_them() -> None:
    stop = walk.STOPS["QwenImage21Pipeline, cached"]
    assert walk.walk(stop, "IntervalCache", torch.float32) == walk.EXACT
