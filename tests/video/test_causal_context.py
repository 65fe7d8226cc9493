"""Kept keys and values equal one pass over clean frames and a noisy chunk; wrong ways of keeping them do not."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from causal_reference import FAMILIES, SIDE, TEXT, TOKENS, Family, Sight, one_pass, sights
from cells import cells

from diffaccel.networks.causal import causal_layout_of
from diffaccel.networks.inputs import Inputs
from diffaccel.networks.layout import UnsupportedModelError
from diffaccel.networks.video_calls import video_network_for
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.runtime.extend_act import ExtendKeyValues
from diffaccel.runtime.lanes import Lane, Span
from diffaccel.stream.machine import Machine

NOISY = 450
NAMES = tuple(FAMILIES)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Cached:
    """A network with kept keys and values."""

    def __init__(self, family: Family, context: CausalContext) -> None:
        self.model = family.build()
        layout = causal_layout_of(self.model)
        self.part = Part(ExtendKeyValues(layout, context), Always(), lifetime="video")
        self.machine = Machine(self.model, [self.part])
        self.network: Any = video_network_for(family.pipe(self.model), 64, 64)

    @torch.no_grad()
    def __call__(
        self,
        latents: torch.Tensor,
        t: float | torch.Tensor,
        words: torch.Tensor,
        first: int | Sequence[int],
        *,
        commits: bool = False,
        lanes: Sequence[str] | None = None,
        network: Any = None,
    ) -> torch.Tensor:
        rows, frames = latents.shape[0], latents.shape[2]
        names = lanes or [f"video {row}" for row in range(rows)]
        own = tuple(Lane("video", name) for name in names)
        firsts = [first] * rows if isinstance(first, int) else first
        told = {"latents": latents, "timesteps": torch.as_tensor(t).expand(rows), "encoder_hidden_states": words}
        features = tuple(Lane(("call", name), 0) for name in names)
        prompts = tuple(Lane(("prompt", name, frames), 0) for name in names)
        call = Call(
            Inputs(told, ("latents", "timesteps", None)),
            {"run": features, "prompt": prompts, "frame": prompts, "video": own},
            spans=tuple(Span(f, frames, commits) for f in firsts),
        )

        def run(call: Call) -> Any:
            given = dict(call.inputs.values)
            return self.network.predict(given.pop("latents"), given.pop("timesteps"), given)

        return self.machine.run(call, network or run)


def words_of(videos: int) -> torch.Tensor:
    return draw(videos, TOKENS, TEXT, seed=9)


def video(videos: int, frames: int) -> torch.Tensor:
    return torch.stack([draw(videos, 4, SIDE, SIDE, seed=100 + n) for n in range(frames)], 2)


def reference(
    family: Family, clean: torch.Tensor, noisy: torch.Tensor, plan: Sequence[Sight], index: int
) -> torch.Tensor:
    """The prediction for one chunk at `NOISY`, with everything before it clean."""
    past = plan[index].own[0]
    whole = torch.cat([clean[:, :, :past], noisy], 2)
    times = torch.cat([torch.zeros(past), torch.full((noisy.shape[2],), float(NOISY))])
    return one_pass(family, whole, times, words_of(len(clean)), plan[: index + 1])[:, :, past:]


CASES = [
    ("motion", (4, 4, 2), CausalContext(window=4)),
    ("motion", (4, 4, 4, 4, 4), CausalContext(window=6)),
    ("motion", (1, 3, 3), CausalContext(window=None, positions="absolute")),
    ("motion", (4, 4, 4), CausalContext(window=4, sink=1, positions="absolute")),
    ("joint", (4, 4, 2), CausalContext(window=4)),
    ("joint", (3, 3, 3), CausalContext(window=4, sink=1, positions="absolute")),
    ("latte", (3, 3, 3, 3, 3, 3), CausalContext(window=5)),
    ("latte", (4, 4, 2), CausalContext(window=None, positions="absolute")),
    ("wan", (3, 3, 3), CausalContext(window=None)),
    ("wan", (1, 1, 1, 1), CausalContext(window=2)),
    ("wan", (4, 4, 4, 1), CausalContext(window=4, sink=2)),
    ("wan", (4, 4, 4), CausalContext(window=4, sink=2, positions="absolute")),
    ("wan 2.2", (3, 3, 2), CausalContext(window=3, sink=1)),
    ("skyreels", (3, 3, 3), CausalContext(window=4, sink=1)),
]


QUICK = (CASES[0], *CASES[3:5], *CASES[6:9], *CASES[10:])  # every family, every way to number, windows, sinks and none


@pytest.mark.parametrize(
    ("name", "chunks", "context"),
    cells(CASES, QUICK.__contains__, lambda case: "-".join(map(str, case)).replace(" ", "")),
)
def test_a_cached_chunk_is_that_of_one_pass(name: str, chunks: tuple[int, ...], context: CausalContext) -> None:
    family, clean = FAMILIES[name], video(2, sum(chunks))
    cached, words = Cached(family, context), words_of(2)
    numbering = context.numbering(cached.part.act.layout)
    plan = sights(chunks, context.window, context.sink, numbering)
    for index, sight in enumerate(plan):
        noisy = draw(2, 4, len(sight.own), SIDE, SIDE, seed=50 + index)
        expected = reference(family, clean, noisy, plan, index)
        for _ in range(2):  # nothing is written by calls that do not commit
            found = cached(noisy, NOISY, words, sight.own[0])
            assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
        cached(clean[:, :, list(sight.own)], 0, words, sight.own[0], commits=True)


def filled(name: str, context: CausalContext, chunks: int = 2, size: int = 3) -> tuple[Cached, torch.Tensor]:
    """A network that has seen some chunks, and all clean frames with those of the chunk to come."""
    cached, clean = Cached(FAMILIES[name], context), video(2, size * (chunks + 1))
    for k in range(chunks):
        cached(clean[:, :, k * size : (k + 1) * size], 0, words_of(2), k * size, commits=True)
    return cached, clean


def differs(name: str, found: torch.Tensor, clean: torch.Tensor, context: CausalContext, size: int = 3) -> float:
    """How far a prediction for the chunk behind some frames is from the right one."""
    family, chunks = FAMILIES[name], clean.shape[2] // size
    numbering = context.numbering(causal_layout_of(family.build()))
    plan = sights((size,) * chunks, context.window, context.sink, numbering)
    noisy = draw(2, 4, size, SIDE, SIDE, seed=7)
    return float((found - reference(family, clean, noisy, plan, chunks - 1)).abs().max())


WRONG = ("nothing", "noisy", "bidirectional", "not offset", "no context")


@pytest.mark.parametrize(
    ("name", "wrong"),
    cells(
        product(("motion", "latte", "wan"), WRONG),
        lambda cell: cell[1] == "nothing" or cell[0] == ("", "latte", "wan", "wan", "motion")[WRONG.index(cell[1])],
    ),
)
def test_wrong_ways_of_keeping_are_told_apart(name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = CausalContext(window=6)
    cached, clean = Cached(FAMILIES[name], context), video(2, 9)
    words, noisy = words_of(2), draw(2, 4, 3, SIDE, SIDE, seed=7)
    for start, end in [(0, 6)] if wrong == "bidirectional" else [(0, 3), (3, 6)] if wrong != "no context" else []:
        cached(clean[:, :, start:end], NOISY if wrong == "noisy" else 0, words, start, commits=True)
    if wrong == "not offset":
        state = cached.machine.session.states[0]
        number = type(state)._number

        def from_zero(self: Any) -> None:
            number(self)
            own = torch.arange(self.frames)[None]
            self.all_numbers, self.numbers = torch.cat([self.all_numbers[:, : self.past], own], 1), own

        monkeypatch.setattr(type(state), "_number", from_zero)
    found = differs(name, cached(noisy, NOISY, words, 6), clean, context)
    assert found < 1e-5 if wrong == "nothing" else found > 1e-3


def test_a_sink_that_is_left_far_behind_is_told_apart_from_one_that_is_numbered_anew() -> None:
    context = CausalContext(window=3, sink=2)
    noisy = draw(2, 4, 3, SIDE, SIDE, seed=7)
    for positions, is_right in (("relative", True), ("absolute", False)):
        cached, clean = filled("wan", replace(context, positions=positions), chunks=4)
        found = differs("wan", cached(noisy, NOISY, words_of(2), 12), clean, context)
        assert (found < 1e-5) == is_right
        assert is_right or found > 1e-3


@pytest.mark.parametrize("name", ["motion", "latte", "wan"])
def test_both_halves_of_guidance_in_one_call_and_in_two_keep_apart(name: str) -> None:
    context = CausalContext(window=4)
    together, apart, alone = (Cached(FAMILIES[name], context) for _ in range(3))
    clean, both = video(1, 9), torch.cat([words_of(1), words_of(1) + 1])
    noisy = draw(1, 4, 3, SIDE, SIDE, seed=7)
    for k, (first, frames) in enumerate([(0, clean[:, :, :3]), (3, clean[:, :, 3:6]), (6, noisy)]):
        told = {"commits": k < 2}
        t = 0 if k < 2 else NOISY
        one = together(frames.repeat(2, 1, 1, 1, 1), t, both, first, lanes=["no", "yes"], **told)
        two = [apart(frames, t, both[i : i + 1], first, lanes=[lane], **told) for i, lane in enumerate(["no", "yes"])]
        positive = alone(frames, t, both[1:], first, lanes=["yes"], **told)
    assert torch.allclose(one, torch.cat(two), atol=1e-5)
    assert torch.equal(two[1], positive)
    assert (one[0] - one[1]).abs().max() > 1e-3


def test_rows_that_see_unequally_many_frames_share_a_call() -> None:
    for name in ("motion", "wan"):
        cached, clean = filled(name, CausalContext(window=4), chunks=3)
        words = words_of(2)
        cached(clean[:1, :, :3], 0, words[:1], 0, commits=True, lanes=["short"])
        noisy = draw(2, 4, 3, SIDE, SIDE, seed=7)
        alone = [cached(noisy[:1], NOISY, words[:1], 9, lanes=["video 0"])]
        alone += [cached(noisy[1:], 200, words[:1], 3, lanes=["short"])]
        alone += [cached(noisy[:1], 100, words[:1], 0, lanes=["new"])]
        rows, times = torch.cat([noisy, noisy[:1]]), torch.tensor([NOISY, 200, 100])
        found = cached(rows, times, words[:1].repeat(3, 1, 1), [9, 3, 0], lanes=["video 0", "short", "new"])
        assert torch.allclose(found, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("name", ["motion", "wan"])
def test_a_write_that_raised_and_was_repeated_is_right(name: str) -> None:
    context = CausalContext(window=4)
    cached, clean = filled(name, context, chunks=2)
    words, noisy = words_of(2), draw(2, 4, 3, SIDE, SIDE, seed=7)
    before = cached(noisy, NOISY, words, 6)
    block = next(m for n, m in cached.model.named_modules() if n in ("mid_block", "blocks.1"))

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = block.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        cached(clean[:, :, 6:9], 0, words, 6, commits=True)
    hook.remove()
    assert torch.equal(cached(noisy, NOISY, words, 6), before)
    cached(clean[:, :, 6:9], 0, words, 6, commits=True)
    again, _ = filled(name, context, chunks=3)
    assert torch.equal(cached(noisy, NOISY, words, 9), again(noisy, NOISY, words, 9))


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_was_let_go_is_the_stock_one(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    frames = 16 if name == "latte" else 3
    told = words_of(1).repeat(frames if family.component == "unet" else 1, 1, 1)
    arguments: dict[str, Any] = {"timestep": torch.tensor([NOISY]), "encoder_hidden_states": told}
    arguments |= {"fps": [1]} if name == "skyreels" else {}
    with torch.no_grad():
        before = model(video(1, frames), **arguments, return_dict=False)[0]
        layout = causal_layout_of(model)
        act = ExtendKeyValues(layout, CausalContext())
        machine = Machine(model, [Part(act, Always(), lifetime="video")])
        assert torch.equal(model(video(1, frames), **arguments, return_dict=False)[0], before)  # outside of its calls
        machine.close()
        assert torch.equal(model(video(1, frames), **arguments, return_dict=False)[0], before)


def test_memory_stays_level_behind_a_window_and_offloaded_frames_give_the_same() -> None:
    noisy, words = draw(2, 4, 3, SIDE, SIDE, seed=7), words_of(2)
    sizes, found = [], []
    for offload in (False, True):
        cached = Cached(FAMILIES["wan"], CausalContext(window=4, sink=1, offload=offload))
        for k in range(8):
            cached(draw(2, 4, 3, SIDE, SIDE, seed=k), 0, words, 3 * k, commits=True)
            sizes.append(cached.machine.memory.parts[0].lanes.nbytes())
        found.append(cached(noisy, NOISY, words, 24))
        assert (cached.machine.session.states[0].window_bytes() == 0) == offload
    assert len(set(sizes)) == 1
    assert torch.equal(*found)


def test_positions_end_where_the_table_ends() -> None:
    cached, _ = filled("motion", CausalContext(window=None, positions="absolute"), chunks=5)
    with pytest.raises(ValueError, match="frame 15 stands at position 17, and UNetMotionModel has 16 of them"):
        cached(video(2, 3), NOISY, words_of(2), 15)


REFUSED = [
    ("motion", CausalContext(window=2), "window=2 is shorter than a chunk of 3"),
    ("motion", CausalContext(window=14), "has 16 positions, and a window of 14, a chunk of 3"),
    ("motion", CausalContext(sink=1), "sink needs positions"),
    ("motion", CausalContext(window=None), "has 16 positions, which all frames"),
    ("latte", CausalContext(positions="relative"), "cannot be numbered anew: give refresh='chunk'"),
    ("wan", CausalContext(positions="cyclic"), "turns keys by their positions"),
    ("wan", CausalContext(window=28, sink=2), "has 32 positions"),
]


@pytest.mark.parametrize(("name", "context", "words"), REFUSED, ids=range(len(REFUSED)))
def test_contexts_that_do_not_fit_are_refused(name: str, context: CausalContext, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        context.check_fit(causal_layout_of(FAMILIES[name].build()), 3)


def test_chunks_too_long_for_any_window_are_to_be_smaller() -> None:
    with pytest.raises(ValueError, match="give smaller chunks, and a smaller window"):
        CausalContext(window=9).check_fit(causal_layout_of(FAMILIES["motion"].build()), 9)


def test_values_out_of_range_and_strange_networks_are_refused() -> None:
    for wrong in ({"window": 0}, {"sink": -1}, {"refresh": "often"}, {"refresh": "chunk", "window": None}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CausalContext(**wrong)
    with pytest.raises(UnsupportedModelError, match="Linear cannot keep"):
        causal_layout_of(torch.nn.Linear(1, 1))
    model = FAMILIES["wan"].build()
    model.blocks[0].attn1.processor = object()
    with pytest.raises(UnsupportedModelError, match=r"blocks.0.attn1 has a object"):
        causal_layout_of(model)
    assert CausalContext.parse("causalcontext:window=8,sink=1") == CausalContext(8, 1)
