"""StreamHost: what a stream shows does not depend on who else is there."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from test_every_method_in_streams import Case, close, pipeline, table
from test_stream_controlnet import controlled, net

from diffaccel import (
    DeepCache,
    FeatureInheritance,
    FullGuidance,
    HostFull,
    NoGuidance,
    OneTimeNegative,
    SelfNegative,
    SlotCache,
    StreamEngine,
    StreamHost,
    Taylor,
    TokenReduction,
)
from diffaccel.methods.base import Method

SETTINGS: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "timestep_indices": (5, 15, 30, 45),
    "height": 32,
    "width": 32,
    "seed": 2,
    "output_type": "latent",
}
ROOMY = 64


@pytest.fixture(scope="module")
def movies() -> list[torch.Tensor]:
    """Films of six frames, each of a square that moves its own way over a still background."""
    films = []
    for k in range(4):
        frames = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(k)).mul(0.3).repeat(6, 1, 1, 1)
        for i in range(6):
            frames[i, :, 4 + 2 * k : 14 + 2 * k, (k + 1) * i % 20 : (k + 1) * i % 20 + 10] = 0.9
        films.append(frames)
    return films


def painted(engine: StreamEngine, frames: torch.Tensor) -> torch.Tensor:
    with engine:
        return torch.stack([output.image for output in engine.stream(frames)])


def together(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What functions return that run at the same time, each on a thread of its own; raises what one of them raises."""
    results: list[Any] = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def run(k: int) -> None:
        barrier.wait()
        try:
            results[k] = works[k]()
        except BaseException as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def in_company(
    pipe: Any, settings: Sequence[dict[str, Any]], films: Sequence[torch.Tensor], wait: float
) -> tuple[list[Any], StreamHost]:
    """The films, painted by streams of one host."""
    with StreamHost(pipe, ROOMY, wait=wait) as host:
        engines = [host.open(**SETTINGS | own) for own in settings]
        return together([lambda e=e, f=f: painted(e, f) for e, f in zip(engines, films, strict=True)]), host


def hold(pipe: Any, settings: Sequence[dict[str, Any]], films: Sequence[torch.Tensor], wait: float = 0.3) -> StreamHost:
    """Streams in one host show what each shows alone."""
    shown, host = in_company(pipe, settings, films, wait)
    for own, film, ours in zip(settings, films, shown, strict=True):
        close(ours, painted(StreamEngine(pipe, **SETTINGS | own), film))
    return host


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "key"), table(3))
def test_every_method_beside_streams_without_it(case: Case, name: str, key: str, movies: list[torch.Tensor]) -> None:
    pipe = pipeline(name)
    method = case.reuse if isinstance(case.reuse, Method) else case.reuse(pipe)
    cached = SlotCache(method, key)  # type: ignore[arg-type]
    settings: list[dict[str, Any]] = [
        {"cache": cached, "guidance": FullGuidance(1.5)},
        {"prompt": "a red dog", "guidance": SelfNegative(1.3), "seed": 5},
        {"cache": cached, "prompt": "a star", "timestep_indices": (5, 15, 30, 45)},
    ]
    host = hold(pipe, settings, movies[:3], wait=0.01)
    assert host.report().streams_per_call["network"] > 1


@pytest.mark.slow
def test_fewer_tokens_beside_streams_that_read_all(movies: list[torch.Tensor]) -> None:
    settings: list[dict[str, Any]] = [
        {"cache": TokenReduction(min_tokens=4, interval=2)},
        {"prompt": "a red dog"},
        {"cache": TokenReduction("pool", min_tokens=4), "prompt": "a star"},
        {"cache": TokenReduction(min_tokens=4, ratio=0.25, score="informativity")},
    ]
    assert hold(pipeline("sd"), settings, movies).report().streams_per_call["network"] > 1.5


def test_frames_of_any_stage_prompt_guidance_seed_and_cache_share_a_call(movies: list[torch.Tensor]) -> None:
    settings: list[dict[str, Any]] = [
        {"cache": DeepCache(2, forecast=Taylor(1)), "guidance": OneTimeNegative(1.5)},
        {"cache": FeatureInheritance("layer", 0, 2), "timestep_indices": (10, 40), "prompt": {"a dog": 1, "a cat": 2}},
        {"timestep_indices": (20,), "guidance": FullGuidance(2.0), "frame_buffer": 2},
        {"cache": SlotCache(DeepCache(2), "frame"), "seed": 9, "guidance": SelfNegative(1.2, 0.8)},
    ]
    host = hold(pipeline("sd"), settings, movies)
    report = host.report()
    assert report.streams_per_call["network"] > 1.5  # the cache by frame makes a second call in each tick
    assert set(report.calls) == {"network", "encode"}


@pytest.mark.slow
@pytest.mark.parametrize("name", cells(("sdxl", "sana", "z_image", "flux", "sd3"), ("sdxl", "flux").__contains__))
def test_every_family_shares_calls(name: str, movies: list[torch.Tensor]) -> None:
    settings = [{"prompt": "a cat"}, {"prompt": "a red heart and a blue star", "seed": 4, "output_type": "pt"}]
    films = [movie[:4] for movie in movies[:2]]
    assert hold(pipeline(name), settings, films).report().streams_per_call["network"] > 1.3


# What goes wrong in one stream is nobody else's business.


def beside(host: StreamHost, other: Callable[[StreamEngine], Any], film: torch.Tensor, **settings: Any) -> torch.Tensor:
    """What a stream shows beside another one that does something, each on its own thread."""
    engine, company = host.open(**SETTINGS | settings), host.open(**SETTINGS | {"prompt": "a red dog", "seed": 7})
    shown, _ = together([lambda: painted(engine, film), lambda: other(company)])
    return shown


CACHED = {"cache": SlotCache(DeepCache(3, forecast=Taylor(1)))}


def goes_early(engine: StreamEngine) -> None:
    for _ in range(3):
        engine.push(torch.rand(3, 32, 32))
    engine.close()


def changes(engine: StreamEngine) -> None:
    for k in range(4):
        engine.push(torch.rand(3, 32, 32))
        engine.update(prompt=f"a star {k}", cache=DeepCache(2 + k % 2), seed=k, guidance=FullGuidance(1.0 + k))
    engine.close()


def pushes_nothing(engine: StreamEngine) -> None:
    time.sleep(0.05)
    engine.close()


def pushes_rubbish(engine: StreamEngine) -> None:
    for _ in range(4):
        with pytest.raises(ValueError, match="shape"):
            engine.push(torch.rand(4, 32, 32))


@pytest.mark.parametrize("other", [goes_early, changes, pushes_nothing, pushes_rubbish], ids=lambda f: f.__name__)
def test_others_change_nothing(other: Callable[[StreamEngine], Any], movies: list[torch.Tensor]) -> None:
    pipe = pipeline("sd")
    with StreamHost(pipe, ROOMY, wait=0.01) as host:
        ours = beside(host, other, movies[0], **CACHED)
    close(ours, painted(StreamEngine(pipe, **SETTINGS | CACHED), movies[0]))


def test_a_stream_that_fails_fails_alone(movies: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows break shared calls in the middle, when half of the modules have run and stored."""
    pipe, wrong = pipeline("sd"), 13.0
    layer = pipe.unet.up_blocks[-1]
    whole = layer.forward

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if bool((latents[0][:, 0, 0, 0] == wrong).any()):
            raise RuntimeError("a bad day")
        return whole(hidden_states, *args, **kwargs)

    latents: list[torch.Tensor] = []
    convolve = pipe.unet.conv_in.forward

    def note(sample: torch.Tensor) -> torch.Tensor:
        latents[:] = [sample]
        return convolve(sample)

    def fails(engine: StreamEngine) -> None:
        bad = torch.full((4, 4, 4), wrong) / engine._course.settings.stages.entry_scale
        for _ in range(3):
            with pytest.raises(RuntimeError, match="a bad day"):
                engine.push(latents=bad)
        assert engine.report().frames_dropped == 3

    expected = painted(StreamEngine(pipe, **SETTINGS | CACHED), movies[0])
    monkeypatch.setattr(layer, "forward", forward)
    monkeypatch.setattr(pipe.unet.conv_in, "forward", note)
    with StreamHost(pipe, ROOMY, wait=0.01) as host:
        close(beside(host, fails, movies[0], **CACHED), expected)


def test_nan_stays_in_its_stream(movies: list[torch.Tensor]) -> None:
    pipe = pipeline("sd")

    def spoilt(engine: StreamEngine) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine._intake._codec, "encode", lambda pixels: torch.full((len(pixels), 4, 4, 4), torch.nan))
            for _ in range(4):
                engine.push(torch.rand(3, 32, 32))
        assert engine.report().frames_not_finite > 0

    with StreamHost(pipe, ROOMY, wait=0.01) as host:
        ours = beside(host, spoilt, movies[0], **CACHED)
    close(ours, painted(StreamEngine(pipe, **SETTINGS | CACHED), movies[0]))


def test_streams_of_other_sizes_take_turns(movies: list[torch.Tensor]) -> None:
    """Two of one size and one of another, all as fast as they can, are served alike."""
    with StreamHost(pipeline("sd"), ROOMY, wait=0.01) as host:
        engines = [host.open(**SETTINGS | {"width": width}) for width in (32, 32, 64)]
        served = [0, 0, 0]

        def push(k: int) -> None:
            while min(served) < 8:
                engines[k].push(torch.zeros(3, 32, engines[k].config.width))
                served[k] += 1

        together([lambda k=k: push(k) for k in range(3)])
    assert max(served) / min(served) <= 1.5, served  # 1.2 over a longer time: scripts/check_reliability.py live


def test_room_is_refused_and_given_back() -> None:
    with StreamHost(pipeline("sd"), max_rows=10) as host:
        four = host.open(**SETTINGS)
        eight = host.open(**SETTINGS | {"guidance": OneTimeNegative(1.2)})  # 4 + 1
        with pytest.raises(HostFull, match="this stream has 4 rows, and 2 other streams of this host take 9 of max_ro"):
            host.open(**SETTINGS)
        with pytest.raises(HostFull, match="8 rows"):
            four.update(guidance=FullGuidance(2.0))
        assert four.config.guidance == NoGuidance()
        four.update(timestep_indices=(20, 40))
        assert host.report().rows == 7
        with pytest.raises(TypeError, match="wrong"):
            host.open(**SETTINGS | {"timestep_indices": (5,), "wrong": 1})
        eight.close()
        assert (host.report().streams, host.report().rows) == (1, 2)
        host.open(**SETTINGS | {"timestep_indices": (5, 6, 7, 8, 9, 10, 11, 12)})


def test_who_asks_for_much_leaves_room_for_those_to_come() -> None:
    pipe = stream_pipelines.sd()
    host = StreamHost(pipe, max_rows=12, places=4, place_rows=2)
    small = SETTINGS | {"guidance": NoGuidance(), "negative_prompt": ""}
    greedy = host.open(**small | {"timestep_indices": (5, 15, 30, 45)})
    with pytest.raises(HostFull, match="and 6 are kept for streams to come"):
        greedy.update(timestep_indices=(5, 10, 15, 20, 25, 30, 45))
    greedy.update(timestep_indices=(5, 10, 15, 20, 30, 45))
    engines = [host.open(**small | {"timestep_indices": (5, 30)}) for _ in range(3)]  # everybody's place is there
    assert host.report().rows == 12
    engines.pop().close()
    greedy.update(timestep_indices=(5, 10, 15, 20, 45))  # less is always let
    greedy.update(timestep_indices=(5, 10, 15, 20, 30, 45))
    with pytest.raises(HostFull):
        engines[0].update(timestep_indices=(5, 15, 30))
    host.close()
    tight = StreamHost(pipe, max_rows=6, places=4, place_rows=2)  # has no room for so many: keeps none
    assert tight.open(**small | {"timestep_indices": (5, 10, 15, 20, 30, 45)}).latency == 5
    tight.close()


def test_a_closed_host_and_another_pipeline_are_refused() -> None:
    host = StreamHost(pipeline("sd"))
    engine = host.open(**SETTINGS)
    with pytest.raises(ValueError, match="pipeline is not the host's"):
        StreamEngine(stream_pipelines.sd(), **SETTINGS, host=host)
    host.close()
    host.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.push(torch.zeros(3, 32, 32))
    with pytest.raises(RuntimeError, match="StreamHost is closed"):
        host.open(**SETTINGS)
    for bad in ({"max_rows": 0}, {"wait": -1.0}, {"wait": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            StreamHost(pipeline("sd"), **bad)  # type: ignore[arg-type]


def test_a_stream_that_names_its_host_is_one_of_the_hosts() -> None:
    pipe = stream_pipelines.sd()
    host = StreamHost(pipe)
    opened = host.open(**SETTINGS)
    named = StreamEngine(pipe, **SETTINGS | {"width": 64}, host=host)
    assert host.report().apart == {"32 x 32": 1, "64 x 32": 1}
    host.close()
    for engine in (opened, named):
        with pytest.raises(RuntimeError, match="StreamEngine is closed"):
            engine.push(torch.rand(3, 32, 64))


def test_streams_of_two_hosts_on_one_pipeline_know_nothing_of_each_other(movies: list[torch.Tensor]) -> None:
    pipe = pipeline("sd")
    with StreamHost(pipe, ROOMY, wait=0.01) as one, StreamHost(pipe, ROOMY, wait=0.01) as two:

        def come_and_go() -> None:
            for k in range(5):
                with two.open(**SETTINGS | {"prompt": f"a star {k}", "cache": DeepCache(2 + k % 2)}) as engine:
                    engine.push(movies[1][k])
                    engine.update(cache=None if k % 2 else FeatureInheritance("layer", 0, 2))

        ours, _ = together([lambda: painted(one.open(**SETTINGS | CACHED), movies[0]), come_and_go])
    close(ours, painted(StreamEngine(pipe, **SETTINGS | CACHED), movies[0]))


def test_a_host_that_is_closed_beside_threads_that_push_tells_them(movies: list[torch.Tensor]) -> None:
    host = StreamHost(pipeline("sd"), ROOMY, wait=0.01)
    engines, pushed = [host.open(**SETTINGS | {"seed": k}) for k in range(2)], threading.Event()
    told: list[str] = []

    def push(engine: StreamEngine) -> None:
        while True:
            try:
                engine.push(movies[0][0])
            except RuntimeError as error:
                told.append(str(error))
                return
            pushed.set()

    def close_it() -> None:
        assert pushed.wait(30)
        host.close()

    together([lambda: push(engines[0]), lambda: push(engines[1]), close_it])
    assert told == ["this StreamEngine is closed: build a new one"] * 2
    assert host.report().streams == 0


def test_updates_from_other_threads_wait_for_the_tick(movies: list[torch.Tensor]) -> None:
    """Two threads push and one changes settings, all of one stream."""
    with StreamHost(pipeline("sd"), ROOMY, wait=0.01) as host:
        engine, shown = host.open(**SETTINGS), []

        def push() -> None:
            shown.extend(out for frame in movies[0] for out in engine.push(frame))

        def change() -> None:
            for k in range(6):
                engine.update(prompt=f"a star {k}", guidance=FullGuidance(1.0 + k % 2), seed=k)

        together([push, push, change])
        shown.extend(engine.flush())
    assert sorted(out.frame_id for out in shown) == list(range(2 * len(movies[0])))
    assert all(out.image.isfinite().all() for out in shown)


def test_a_controlnet_for_another_autoencoder_is_refused_and_others_go_on(movies: list[torch.Tensor]) -> None:
    pipe = controlled()
    pipe.controlnet = net(pipe.unet, 1, 4)
    with (
        StreamHost(pipe, ROOMY) as host,
        pytest.raises(ValueError, match=r"control images 4 times .* pictures 8 times"),
    ):
        host.open(**SETTINGS)
    with StreamHost(pipeline("sd")) as host:
        engine = host.open(**SETTINGS)
        with pytest.raises(TypeError, match="str is not an image autoencoder"):
            host.open(**SETTINGS | {"vae": "tiny"})
        for frame in movies[0]:
            engine.push(frame)
        assert engine.report().frames_out == 3


def test_streams_that_share_no_call_are_told_by_what_sets_them_apart() -> None:
    pipe = pipeline("sd")
    words = torch.zeros(1, 5, pipe.unet.config.cross_attention_dim)
    with StreamHost(pipe, ROOMY) as host:
        kept = [host.open(**SETTINGS | own) for own in ({}, {"seed": 4, "cache": DeepCache(2)}, {"width": 64})]
        assert str(host.report()).endswith("these take turns: 2 streams of 32 x 32, 1 stream of 64 x 32")
        kept.append(host.open(**SETTINGS | {"prompt": None, "prompt_embeds": words}))
        assert host.report().apart == {"32 x 32, 77 tokens": 2, "64 x 32, 77 tokens": 1, "32 x 32, 5 tokens": 1}
    assert host.report().apart == {}


def test_a_stream_alone_waits_for_nobody(movies: list[torch.Tensor]) -> None:
    with StreamHost(pipeline("sd"), wait=1.0) as host:
        engine = host.open(**SETTINGS)
        gone = host.open(**SETTINGS | {"prompt": "a dog"})
        begin = time.monotonic()
        together([lambda: engine.push(movies[0][0]), lambda: gone.push(movies[0][0])])
        first = time.monotonic() - begin
        gone.close()
        begin = time.monotonic()
        for frame in movies[0][:2]:
            engine.push(frame)
        assert time.monotonic() - begin < 1.9 + 2 * first  # it would wait a second twice, to encode and to denoise


def test_streams_used_from_one_thread_do_not_wait_for_each_other(movies: list[torch.Tensor]) -> None:
    with StreamHost(pipeline("sd"), wait=1.0) as host:
        engines = [host.open(**SETTINGS | {"timestep_indices": (10, 40), "seed": k}) for k in range(3)]
        begin = time.monotonic()
        shown = [[out.image for frame in movies[0] for out in engine.push(frame)] for engine in engines]
        for frame in movies[0]:
            for engine in engines:
                engine.push(frame)
        assert time.monotonic() - begin < 30  # some sixty calls, each of which would wait a second
        assert [len(images) for images in shown] == [5, 5, 5]


def test_whoever_is_told_of_calls_and_raises_stops_nobody(movies: list[torch.Tensor]) -> None:
    def tell(_kind: str, _rows: int) -> None:
        raise RuntimeError("no disk left")

    with StreamHost(pipeline("sd"), on_call=tell) as host:
        engines = [host.open(**SETTINGS), host.open(**SETTINGS)]

        def push(engine: StreamEngine) -> None:
            with pytest.raises(RuntimeError, match="no disk left"):
                engine.push(movies[0][0])

        together([lambda e=e: push(e) for e in engines])


@pytest.mark.slow
def test_control_scales_of_streams_share_a_call(movies: list[torch.Tensor]) -> None:
    pipe = controlled()
    settings = [{"controlnet_scale": 0.7}, {"controlnet_scale": 0.0}, {"controlnet_scale": 1.2, "cache": DeepCache(2)}]
    host = hold(pipe, [own | {"control": "edges"} for own in settings], movies[:3])
    assert host.report().streams_per_call["network"] > 2
