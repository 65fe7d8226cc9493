"""Slot caches against a forward pass written without hooks, and what makes them compute."""

import copy
import gc
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from stream_pipelines import Build
from unet_reference import ReferenceDeepCache

from diffaccel import DeepCache, EasyCache, FullGuidance, NoGuidance, OneTimeNegative, Taylor, accelerate
from diffaccel._diffusers import hooks_of
from diffaccel.methods import TextKVCache, TGate
from diffaccel.reuse.schedule import Quadratic, Threshold
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.slot_cache import Scenes, SlotCache

GUIDANCES = [NoGuidance(), FullGuidance(1.5), OneTimeNegative(1.5)]


@pytest.fixture(scope="module")
def movie() -> torch.Tensor:
    """A square that moves over a still background: twelve frames ``(12, 3, 32, 32)``."""
    background = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.3
    frames = background.repeat(12, 1, 1, 1)
    for i in range(12):
        frames[i, :, 8:18, i : i + 10] = 0.9
    return frames


def run(engine: StreamEngine, frames: torch.Tensor) -> list[torch.Tensor]:
    return [o.image for o in engine.stream(frames)]


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))


def refer(engine: StreamEngine, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> StreamEngine:
    """The engine without a cache, whose network is the reference."""
    reference = ReferenceDeepCache(engine.pipe.unet, steps, 0, 0)
    monkeypatch.setattr(
        engine._network, "predict", lambda x, t, inputs: reference(x, t, inputs["encoder_hidden_states"])
    )
    return engine


@pytest.mark.parametrize(
    ("key", "guidance"),
    cells(
        product(("stage", "frame"), GUIDANCES),
        lambda cell: cell in (("stage", GUIDANCES[0]), ("stage", GUIDANCES[2]), ("frame", GUIDANCES[1])),
    ),
)
def test_interval_1_is_exact(key: Any, guidance: Any, engine: Build, movie: torch.Tensor) -> None:
    cached = engine(guidance=guidance, cache=SlotCache(DeepCache(interval=1), key))
    for a, b in zip(run(cached, movie[:5]), run(engine(guidance=guidance), movie[:5]), strict=True):
        assert torch.equal(a, b)
    assert cached.report().replayed_rows == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "interval"),
    cells(product(GUIDANCES, (2, 3)), lambda cell: cell[1] == (2, 3, 2)[GUIDANCES.index(cell[0])]),
)
def test_by_stage_equals_reference(
    guidance: Any, interval: int, engine: Build, movie: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"guidance": guidance, "timestep_indices": (20, 40)}
    cached = engine(cache=DeepCache(interval=interval, branch=0), **settings)
    film = movie[:8]
    computed = {0, 1, *range(1, 8, interval), 8}  # until the pipeline has filled, and when it drains
    reference = refer(engine(**settings), computed, monkeypatch)
    outputs, plain = run(cached, film), run(engine(**settings), film)
    for ours, expected in zip(outputs, run(reference, film), strict=True):
        close(ours, expected)
    assert max((a - b).abs().max() for a, b in zip(outputs, plain, strict=True)) > 1e-3
    assert 0 < cached.report().replayed_rows < cached.report().network_rows


@pytest.mark.parametrize(
    ("guidance", "interval"),
    cells(product(GUIDANCES[:2], (2, 3)), lambda cell: cell[1] == (3, 2)[GUIDANCES.index(cell[0])]),
)
def test_by_frame_equals_reference(
    guidance: Any, interval: int, engine: Build, movie: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame on its own computes at stages 0, interval, ..."""
    settings = {"guidance": guidance, "timestep_indices": (5, 15, 30, 45)}
    cached = engine(cache=SlotCache(DeepCache(interval=interval), "frame"), **settings)
    outputs = run(cached, movie[:5])
    for i in range(5):
        alone = refer(engine(**settings), set(range(0, 4, interval)), monkeypatch)
        close(outputs[i], run(alone, movie[i : i + 1])[0])
    computed = len(range(0, 4, interval)) * (2 if isinstance(guidance, FullGuidance) else 1)
    assert cached.report().computed_rows == 5 * computed


def replays(engine: StreamEngine, frames: Sequence[torch.Tensor] | torch.Tensor, **update: Any) -> list[bool]:
    """Whether each tick reused features; ``update`` happens before the last frame but three."""
    out = []
    for i, frame in enumerate(frames):
        if i == len(frames) - 3 and update:
            engine.update(**update)
        before = engine.report().replayed_rows
        engine.push(frame)
        out.append(engine.report().replayed_rows > before)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ({}, [0, 0, 1, 1, 0, 1, 1, 0, 1]),
        ({"prompt": "a dog"}, [0, 0, 1, 1, 0, 1, 0, 1, 1]),
        ({"prompt": "a dog", "transition": 2}, [0, 0, 1, 1, 0, 1, 0, 0, 1]),
        ({"prompt": "a dog", "at": "new"}, [0, 0, 1, 1, 0, 1, 0, 0, 1]),
        ({"timestep_indices": (10, 20)}, [0, 0, 1, 1, 0, 1, 0, 0, 1]),
        ({"timestep_indices": (10, 20, 40)}, [0, 0, 1, 1, 0, 1, 0, 0, 0]),
        ({"scale": 3.0}, [0, 0, 1, 1, 0, 1, 1, 0, 1]),
        ({"cache": DeepCache(interval=2)}, [0, 0, 1, 1, 0, 1, 0, 1, 0]),
        ({"cache": None}, [0, 0, 1, 1, 0, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_what_makes_every_row_compute(
    update: dict[str, Any], expected: list[int], engine: Build, movie: torch.Tensor
) -> None:
    stream = engine(cache=DeepCache(interval=3), timestep_indices=(20, 40), guidance=FullGuidance(1.5))
    assert replays(stream, movie[:9], **update) == [bool(e) for e in expected]


def test_a_new_scene_computes_until_it_has_passed_all_stages(engine: Build, movie: torch.Tensor) -> None:
    cut = torch.cat([movie[:6], 1 - movie[6:]])
    stream = engine(cache=DeepCache(interval=5), timestep_indices=(20, 40))
    assert replays(stream, cut) == [False, False, True, True, True, True, False, False, True, True, True, True]
    deaf = engine(cache=SlotCache(DeepCache(interval=5), scene_change=1.0), timestep_indices=(20, 40))
    assert replays(deaf, cut) == [False, False, True, True, True, True, False, True, True, True, True, False]


def test_text_to_image_frames_are_scenes_of_their_own(engine: Build) -> None:
    by_stage, by_frame = engine(cache=DeepCache(interval=2)), engine(cache=SlotCache(DeepCache(interval=2), "frame"))
    list(by_stage.stream([None] * 6))
    list(by_frame.stream([None] * 6))
    assert by_stage.report().replayed_rows == 0
    assert by_frame.report().replayed_rows == 6


def test_reset_and_warmup_leave_no_features(engine: Build, movie: torch.Tensor) -> None:
    stream = engine(cache=DeepCache(interval=4))
    first = run(stream, movie[:7])
    stream.reset()
    stream.warmup()
    assert all(torch.equal(a, b) for a, b in zip(run(stream, movie[:7]), first, strict=True))


def hooked(pipe: Any) -> list[str]:
    return [name for name, module in pipe.unet.named_modules() if hooks_of(module)]


@pytest.mark.slow
def test_engines_and_plain_calls_share_a_network(engine: Build, movie: torch.Tensor) -> None:
    pipe = stream_pipelines.sd()
    settings: list[dict[str, Any]] = [
        {"cache": DeepCache(interval=2)},
        {"cache": DeepCache(interval=3, branch=1)},
        {"cache": SlotCache(DeepCache(interval=2), "frame")},
        {},
    ]
    alone = [run(engine(pipe, **s), movie[:6]) for s in settings]
    gc.collect()
    assert hooked(pipe) == []
    engines = [engine(pipe, **s) for s in settings]
    assert len(hooked(pipe)) > 0
    text = pipe.encode_prompt("a", "cpu", 1, False)[0]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = [pipe.unet(x, 500, encoder_hidden_states=text.expand(2, -1, -1)).sample]
        outputs: list[list[torch.Tensor]] = [[] for _ in engines]
        for frame in movie[:6]:
            for e, out in zip(engines, outputs, strict=True):
                out += [o.image for o in e.push(frame)]
            plain.append(pipe.unet(x, 500, encoder_hidden_states=text.expand(2, -1, -1)).sample)
    for e, out, expected in zip(engines, outputs, alone, strict=True):
        out += [o.image for o in e.flush()]
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
        e.close()
    assert all(torch.equal(p, plain[0]) for p in plain)
    assert hooked(pipe) == []


def test_an_engine_that_is_forgotten_leaves_no_hooks(engine: Build) -> None:
    pipe = stream_pipelines.sd()
    stream = engine(pipe, cache=DeepCache(interval=2))
    assert hooked(pipe)
    del stream
    gc.collect()
    assert hooked(pipe) == []


def test_what_rests_is_skipped_whatever_was_found_of_it(engine: Build, movie: torch.Tensor) -> None:
    stream = engine(guidance=OneTimeNegative(1.6, 0.7), timestep_indices=(10, 40), cache=EasyCache(4.0))
    assert any(replays(stream, movie[:1].repeat(6, 1, 1, 1)))


def test_taylor_and_threshold_work_by_stage(engine: Build, movie: torch.Tensor) -> None:
    still = movie[:1].repeat(6, 1, 1, 1)
    for cache in (DeepCache(interval=2, forecast=Taylor(1)), DeepCache(schedule=Threshold(0.5))):
        stream = engine(cache=cache, timestep_indices=(20, 40))
        for ours, expected in zip(run(stream, still), run(engine(timestep_indices=(20, 40)), still), strict=True):
            close(ours, expected)  # nothing moves, so that reuse is exact
        assert stream.report().replayed_rows > 0


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: "deepcache", TypeError, "cache must be a method such as DeepCache"),
        (lambda: DeepCache(branch=40), ValueError, "branch of UNet2DConditionModel"),
        (lambda: DeepCache(schedule=Quadratic(3)), ValueError, "Quadratic"),
        (lambda: TGate(gate=3), ValueError, "TGate changes what the network is called with"),
        (lambda: SlotCache(DeepCache(2), "row"), ValueError, "key must be one of stage, frame; got 'row'"),
        (lambda: SlotCache(DeepCache(2), scene_change=2.0), ValueError, "scene_change must be a number in"),
        (lambda: TextKVCache(), ValueError, "TextKVCache is what every stream does by itself"),
    ],
)
def test_caches_that_do_not_fit(build: Any, error: type[Exception], match: str, engine: Build) -> None:
    with pytest.raises(error, match=match):
        engine(cache=build())
    stream = engine(cache=DeepCache(interval=2))
    with pytest.raises(error, match=match):
        stream.update(cache=build())
    assert stream.config.cache == SlotCache(DeepCache(interval=2))


def test_an_accelerated_pipeline_is_refused(engine: Build, frames: torch.Tensor) -> None:
    pipe = stream_pipelines.sd()
    stream, words = engine(pipe, timestep_indices=(25,)), "accelerated already: detach that handle"
    (before,) = stream.push(frames[0])
    with accelerate(pipe, DeepCache(2)):
        for cache in (DeepCache(2), None):
            with pytest.raises(RuntimeError, match=words):
                engine(pipe, cache=cache)
        with pytest.raises(RuntimeError, match=words):  # its calls would be taken for those of a run
            stream.push(frames[0])
    (after,) = stream.push(frames[0])
    assert torch.equal(after.image, before.image)


def test_a_cache_travels_as_a_dictionary() -> None:
    cache = SlotCache(DeepCache(interval=2, branch=1), "frame", 0.2)
    assert SlotCache.from_dict(cache.to_dict()) == cache


METHODS = (
    DeepCache(interval=2),
    DeepCache(interval=5),
    DeepCache(schedule=Threshold(0.2)),
    DeepCache(interval=2, forecast=Taylor(2)),
)
KEYS = ("stage", "frame")


@pytest.mark.parametrize(
    ("key", "method"),
    cells(product(KEYS, METHODS), lambda cell: KEYS.index(cell[0]) == METHODS.index(cell[1]) % 2),
)
def test_a_frame_that_is_not_finite_spoils_no_other(
    method: DeepCache, key: Any, engine: Build, movie: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = engine(cache=SlotCache(method, key), timestep_indices=(10, 20, 30, 40))
    outputs = []
    for i, frame in enumerate(movie[:8]):
        with monkeypatch.context() as patch:
            if i == 5:
                encode = stream._codec.encode
                patch.setattr(stream._codec, "encode", lambda x, encode=encode: encode(x) * float("nan"))
            outputs += stream.push(frame)
    outputs += stream.flush()
    assert [o.frame_id for o in outputs] == [i for i in range(8) if i != 5]
    assert stream.report().frames_not_finite == 1


def test_one_frame_of_a_buffer_may_change_the_scene(engine: Build, movie: torch.Tensor) -> None:
    stream = engine(cache=DeepCache(interval=9), timestep_indices=(20, 40), frame_buffer=4)
    dark, bright = movie[:1] * 0.5, movie[:1] * 0.5 + 0.3
    shown = [dark] * 4, [dark] * 4, [dark] * 4, [dark, dark, dark, bright]
    assert replays(stream, [torch.cat(buffer) for buffer in shown]) == [False, False, True, False]


@pytest.mark.parametrize("key", ["stage", "frame"])
def test_reused_rows_are_counted_on_when_the_cache_changes(key: Any, engine: Build, movie: torch.Tensor) -> None:
    stream = engine(cache=SlotCache(DeepCache(interval=2), key), timestep_indices=(20, 40))
    stream.warmup()
    assert (stream.report().computed_rows, stream.report().replayed_rows) == (0, 0)
    for frame in movie[:6]:
        stream.push(frame)
    before = stream.report().replayed_rows
    assert before > 0
    stream.update(cache=None)
    stream.push(movie[6])
    assert stream.report().replayed_rows == before


def test_a_network_in_a_stream_is_not_copied(engine: Build) -> None:
    pipe = stream_pipelines.sd()
    with engine(pipe), pytest.raises(RuntimeError, match=r"close\(\) on the streams that use it, first"):
        copy.deepcopy(pipe.unet)
    copy.deepcopy(pipe.unet)


def test_a_scene_ends_where_a_picture_differs_by_more_than_the_threshold() -> None:
    scenes = Scenes(0.1)  # of pixel values in [0, 1], where frames have [-1, 1]
    assert [scenes.of(torch.full((1, 3, 2, 2), value)) for value in (0.0, 0.19, 0.4)] == [1, 1, 2]
