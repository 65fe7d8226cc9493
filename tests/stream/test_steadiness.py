"""Frames that see those before: a reference by hand, nothing where there are none, streams apart in a host."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from stream_pipelines import Build
from stream_reference import clean_latents, noises, text
from test_stream_host import hold

from diffaccel import (
    BlockCache,
    CrossFrame,
    DeepCache,
    FullGuidance,
    MotionNoise,
    OneTimeNegative,
    SelfNegative,
    SlotCache,
    StreamEngine,
    TokenReduction,
)

ALIKE = CrossFrame(2, scene_change=1.0)


def attentive(pipe: Any) -> Any:
    """A pipeline whose self-attentions have a say in what it paints, which those of random weights hardly have."""
    network = getattr(pipe, "unet", None) or pipe.transformer
    for name, module in network.named_modules():
        if name.endswith("attn1"):
            for layer, factor in ((module.to_q, 6), (module.to_k, 6), (module.to_v, 10), (module.to_out[0], 10)):
                layer.weight.data *= factor
    return pipe


@pytest.fixture(scope="module")
def sd() -> Any:
    return attentive(stream_pipelines.sd())


@pytest.fixture(scope="module")
def frames(frames: torch.Tensor) -> torch.Tensor:
    return frames[:6]


def painted(engine: StreamEngine, frames: torch.Tensor) -> torch.Tensor:
    with engine:
        return torch.stack([output.image for output in engine.stream(frames)])


class Bank:
    """Attentions that read a bank of earlier hidden states, by stage, written by hand in single precision.

    Attributes:
        key: whose bank is read and written now.
    """

    def __init__(self, unet: torch.nn.Module, frames: int, inside: str = "") -> None:
        self.frames, self.key, self.banks = frames, None, {}
        self.attentions = {n: m for n, m in unet.named_modules() if n.endswith("attn1") and n.startswith(inside)}

    def processor(self, name: str) -> Any:
        def process(attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            bank = self.banks.setdefault((self.key, name), [])
            seen = torch.cat([*bank, hidden_states], 1)
            bank.append(hidden_states)
            del bank[: -self.frames]
            q, k, v = (
                layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for layer, x in ((attn.to_q, hidden_states), (attn.to_k, seen), (attn.to_v, seen))
            )
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))

        return process

    @contextmanager
    def at_work(self) -> Iterator[None]:
        before = {name: attn.processor for name, attn in self.attentions.items()}
        try:
            for name, attn in self.attentions.items():
                attn.processor = self.processor(name)
            yield
        finally:
            for name, attn in self.attentions.items():
                attn.processor = before[name]


def expected(
    pipe: Any, frames: torch.Tensor, timesteps: list[int], seen: int, scale: float = 1.0, inside: str = ""
) -> torch.Tensor:
    """Frame by frame and stage by stage, each with its own bank."""
    acp = pipe.scheduler.alphas_cumprod.double().sqrt()
    levels = [(acp[t].item(), (1 - acp[t] ** 2).sqrt().item()) for t in timesteps]
    noise = noises(2, len(timesteps), 1, (4, 4, 4))[:, 0]
    prompts = {False: text(pipe, "a cat"), True: text(pipe, "blurry")}
    bank, results = Bank(pipe.unet, seen, inside), []

    def predicted(x: torch.Tensor, i: int, negative: bool) -> torch.Tensor:
        bank.key = i, negative
        return pipe.unet(x[None], timesteps[i], encoder_hidden_states=prompts[negative], return_dict=False)[0][0]

    with torch.no_grad(), bank.at_work():
        for clean in clean_latents(pipe, frames):
            x = levels[0][0] * clean + levels[0][1] * noise[0]
            for i, (t, (a, b)) in enumerate(zip(timesteps, levels, strict=True)):
                eps = predicted(x, i, False)
                if scale != 1:
                    negative = predicted(x, i, True)
                    eps = negative + scale * (eps - negative)
                s = 10.0 * t
                out = s / (s * s + 0.25) ** 0.5 * (x - b * eps) / a + 0.25 / (s * s + 0.25) * x
                if i + 1 < len(timesteps):
                    x = levels[i + 1][0] * out + levels[i + 1][1] * noise[i + 1]
            results.append(out)
    return torch.stack(results).float()


HAND = [
    (1, True, 1.0, ()), (3, True, 1.0, ()), (2, False, 1.0, ()), (2, True, 1.8, ()), (2, False, 1.8, ()),
    (2, True, 1.0, ("up_blocks",)),
]  # fmt: skip


def test_frames_that_begin_with_less_noise_see_those_before(sd: Any, engine: Build, frames: torch.Tensor) -> None:
    alone, seeing = (painted(engine(sd, motion=MotionNoise(0.1), steadiness=how), frames) for how in (None, ALIKE))
    torch.testing.assert_close(seeing[0], alone[0], rtol=0, atol=1e-4 * alone.abs().max().item())
    assert (seeing[1:] - alone[1:]).abs().amax((1, 2, 3)).min() > 1e-3 * alone.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "batch", "scale", "blocks"), cells(HAND, (HAND[1], *HAND[4:]).__contains__))
def test_equals_a_bank_kept_by_hand(
    sd: Any, engine: Build, frames: torch.Tensor, seen: int, batch: bool, scale: float, blocks: tuple[str, ...]
) -> None:
    guidance = {} if scale == 1 else {"guidance": FullGuidance(scale)}
    stream = engine(steadiness=CrossFrame(seen, blocks, 1.0), stream_batch=batch, **guidance)
    timesteps = [int(t) for t in stream._course.settings.stages.timesteps]
    ours = painted(stream, frames[:5])
    theirs = expected(sd, frames[:5], timesteps, seen, scale, *blocks)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())
    assert not torch.allclose(ours, painted(engine(**guidance), frames[:5]), atol=1e-3 * theirs.abs().max().item())


@pytest.mark.slow
def test_no_earlier_frame_changes_no_bit(engine: Build, frames: torch.Tensor) -> None:
    plain = painted(engine(), frames)
    assert torch.equal(painted(engine(steadiness=CrossFrame(0)), frames), plain)
    assert torch.equal(painted(engine(steadiness=ALIKE), frames[:1]), painted(engine(), frames[:1]))
    cuts = engine(steadiness=CrossFrame(4, scene_change=0.0), stream_batch=False)
    assert torch.equal(painted(cuts, frames), painted(engine(stream_batch=False), frames))


@pytest.mark.parametrize("guidance", [SelfNegative(1.4), OneTimeNegative(1.4, 0.5)])
def test_the_stream_batch_gives_what_the_sequential_mode_gives(
    engine: Build, frames: torch.Tensor, guidance: Any
) -> None:
    settings = {"steadiness": ALIKE, "guidance": guidance, "frame_buffer": 2}
    ours, theirs = (painted(engine(**settings, stream_batch=batch), frames) for batch in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.slow
def test_streams_of_a_host_see_their_own_frames_alone(frames: torch.Tensor) -> None:
    settings: list[dict[str, Any]] = [
        {"steadiness": ALIKE},
        {"steadiness": CrossFrame(1, ("mid_block", "up_blocks"), 1.0), "prompt": "a red dog", "seed": 5},
        {"prompt": "a star"},
        {"steadiness": ALIKE, "cache": DeepCache(2), "guidance": FullGuidance(1.5)},
    ]
    films = [frames[:4], frames[2:], frames[1:5], frames[2:6]]
    assert hold(attentive(stream_pipelines.sd()), settings, films).report().streams_per_call["network"] > 1.5


def test_new_prompts_see_nothing_of_frames_under_old_ones(engine: Build, frames: torch.Tensor) -> None:
    fresh = painted(engine(steadiness=ALIKE, prompt="a dog"), frames[3:])
    with engine(steadiness=ALIKE) as stream:
        for frame in frames[:3]:
            stream.push(frame)
        stream.flush()
        stream.update(prompt="a dog")
        ours = torch.stack([output.image for output in stream.stream(frames[3:])])
    torch.testing.assert_close(ours, fresh, rtol=0, atol=1e-5 * fresh.abs().max().item())


def test_steadiness_can_be_switched_while_frames_are_in_flight(engine: Build, frames: torch.Tensor) -> None:
    plain = painted(engine(), frames)
    with engine() as stream:
        shown = [o.image for f in frames[:3] for o in stream.push(f)]
        stream.update(steadiness=ALIKE)
        shown += [o.image for f in frames[3:6] for o in stream.push(f)]
        stream.update(steadiness=None)
        shown += [o.image for f in frames[6:] for o in stream.push(f)] + [o.image for o in stream.flush()]
    differs = (torch.stack(shown) - plain).abs().amax((1, 2, 3)) > 1e-3
    seeing = {2, 4, 5}  # 2 sees 1 on the way; 3 is the first that enters
    assert {k for k, other in enumerate(differs.tolist()) if other} == seeing


def test_a_cache_that_changes_leaves_the_frames_before_in_sight(engine: Build, frames: torch.Tensor) -> None:
    whole = painted(engine(steadiness=ALIKE), frames)
    with engine(steadiness=ALIKE) as stream:
        shown = [o.image for f in frames[:4] for o in stream.push(f)]
        stream.update(cache=DeepCache(1))  # computes in every tick
        shown += [o.image for f in frames[4:] for o in stream.push(f)] + [o.image for o in stream.flush()]
    torch.testing.assert_close(torch.stack(shown), whole, rtol=0, atol=1e-4 * whole.abs().max().item())


@pytest.mark.parametrize("pair", [(None, TokenReduction(min_tokens=4)), (TokenReduction("pool", min_tokens=4), None)])
def test_frames_of_other_numbers_of_tokens_are_not_seen(engine: Build, frames: torch.Tensor, pair: Any) -> None:
    before, after = pair
    pipe, one = attentive(stream_pipelines.sd()), {"timestep_indices": (25,)}
    anew = painted(engine(pipe, steadiness=ALIKE, cache=after, **one), frames[3:6])
    with engine(pipe, steadiness=ALIKE, cache=before, **one) as stream:
        for f in frames[:3]:
            stream.push(f)
        stream.update(cache=after)
        shown = torch.stack([o.image for f in frames[3:6] for o in stream.push(f)])
    torch.testing.assert_close(shown, anew, rtol=0, atol=1e-4 * anew.abs().max().item())


def test_a_frame_that_is_not_finite_does_not_spoil_those_behind_it(engine: Build, frames: torch.Tensor) -> None:
    bad = torch.full((4, 4, 4), 1e38)
    with engine(steadiness=ALIKE) as stream:
        outputs = [o for f in frames[:3] for o in stream.push(f)]
        outputs += stream.push(frames[3], latents=bad)
        outputs += [o for f in frames[4:] for o in stream.push(f)] + stream.flush()
        assert stream.report().frames_not_finite == 1
    assert [o.frame_id for o in outputs] == [0, 1, 2, 4, 5]
    assert all(o.image.isfinite().all() for o in outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cache",
    [DeepCache(2), SlotCache(DeepCache(2), "frame"), BlockCache(1, threshold=0.2), TokenReduction(min_tokens=4)],
)
def test_caches_work_beside_it(engine: Build, frames: torch.Tensor, cache: Any) -> None:
    pipe = attentive(stream_pipelines.pixart()) if isinstance(cache, BlockCache) else attentive(stream_pipelines.sd())
    frames = frames[:5]
    shown = painted(engine(pipe, steadiness=ALIKE, cache=cache), frames)
    assert shown.isfinite().all()
    assert not torch.allclose(shown, painted(engine(pipe, cache=cache), frames), atol=1e-3)


def test_pixart_sees_the_frames_before(engine: Build, frames: torch.Tensor) -> None:
    pipe = attentive(stream_pipelines.pixart())
    ours, theirs = (painted(engine(pipe, steadiness=ALIKE, stream_batch=batch), frames) for batch in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())
    assert not torch.allclose(ours, painted(engine(pipe), frames), atol=1e-3)


def test_half_precision(engine: Build, frames: torch.Tensor) -> None:
    pipe = stream_pipelines.sd().to(torch.bfloat16)
    assert painted(engine(pipe, steadiness=ALIKE), frames).isfinite().all()


def test_what_does_not_fit_is_refused_by_name(engine: Build) -> None:
    with pytest.raises(ValueError, match=r"'side_blocks': choose from .*up_blocks"):
        engine(steadiness=CrossFrame(blocks=("side_blocks",)))
    with pytest.raises(ValueError, match="frames"):
        CrossFrame(-1)
    with pytest.raises(TypeError, match="CrossFrame"):
        engine(steadiness=4)
    with pytest.raises(TypeError, match="Flux"):
        engine(stream_pipelines.flux(), steadiness=CrossFrame())
