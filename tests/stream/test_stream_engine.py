"""The engine as a library: every frame accounted for, bad input refused, the stream going on."""

import gc
import time
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from stream_pipelines import Build

from diffaccel.sampling.guidance import FullGuidance, OneTimeNegative, SelfNegative
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.similarity import SimilarityFilter

ALWAYS = SimilarityFilter(threshold=-1.0, max_skip=1000)  # skips equal frames with certainty


def account(stream: StreamEngine) -> tuple[int, ...]:
    """Frames in, out, skipped, dropped, not finite, in flight; the first is the sum of the others."""
    r = stream.report()
    rest = (r.frames_out, r.frames_skipped, r.frames_dropped, r.frames_not_finite, r.frames_in_flight)
    assert r.frames_in == sum(rest)
    return (r.frames_in, *rest)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("frame_buffer", [1, 2, 3])
def test_every_frame_comes_out_once_and_in_order(
    stages: int, frame_buffer: int, engine: Build, frames: torch.Tensor
) -> None:
    stream = engine(timestep_indices=(10, 25, 40)[:stages], frame_buffer=frame_buffer)
    assert stream.latency == stages - 1
    seen = []
    for i, frame in enumerate(frames[:8]):
        seen += [o.frame_id for o in stream.push(frame)]
        groups = (i + 1) // frame_buffer
        assert len(seen) == max(0, groups - stream.latency) * frame_buffer
    assert account(stream) == (8, len(seen), 0, 0, 0, 8 - len(seen))
    seen += [o.frame_id for o in stream.flush()]
    assert seen == list(range(8))
    assert account(stream) == (8, 8, 0, 0, 0, 0)
    assert stream.flush() == []


def test_a_batch_is_pushed_frame_by_frame(engine: Build, frames: torch.Tensor) -> None:
    one, other = engine(), engine()
    batch = one.push(frames[:5]) + one.flush()
    single = [o for f in frames[:5] for o in other.push(f)] + other.flush()
    assert [o.frame_id for o in batch] == [0, 1, 2, 3, 4]
    assert all(torch.equal(a.image, b.image) for a, b in zip(batch, single, strict=True))


def test_given_numbers_must_rise(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(timestep_indices=(30,))
    assert stream.push(frames[0], frame_id=7)[0].frame_id == 7
    assert stream.push(frames[0])[0].frame_id == 8
    with pytest.raises(ValueError, match="frame_id must rise: 8 is below 9"):
        stream.push(frames[0], frame_id=8)
    assert account(stream) == (2, 2, 0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_output_types(kind: str, engine: Build, frames: torch.Tensor) -> None:
    image = engine(timestep_indices=(30,), output_type=kind).push(frames[0])[0].image
    reference = engine(timestep_indices=(30,), output_type="pt").push(frames[0])[0].image
    if kind == "pil":
        assert image.size == (32, 32)
        assert np.abs(np.asarray(image) / 255 - reference.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    elif kind == "np":
        assert np.array_equal(image, reference.permute(1, 2, 0).numpy())
    else:
        assert image.shape == ((3, 32, 32) if kind == "pt" else (4, 4, 4))


def test_every_input_form_gives_the_same_picture(engine: Build) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    forms: list[Any] = [
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
        pixels,
        pixels.astype(np.float32) / 255,
        chw,
        chw.float() / 255,
        chw.double()[None] / 255,
    ]
    outputs = [engine(timestep_indices=(30,)).push(form)[0].image for form in forms]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-4)


BAD_FRAMES: list[tuple[Any, type[Exception], str]] = [
    ("picture.png", TypeError, "must be a PIL image, a numpy array or a tensor, not str"),
    (np.zeros((32, 32), np.uint8), ValueError, r"shape \(H, W, 3\) or \(frames, H, W, 3\), not \(32, 32\)"),
    (np.zeros((32, 32, 4), np.uint8), ValueError, r"not \(32, 32, 4\)"),
    (np.zeros((32, 32, 3), np.int64), TypeError, r"uint8 or floating point in \[0, 1\], not torch.int64"),
    (np.full((32, 32, 3), 255.0), ValueError, r"must lie in \[0, 1\], found 255.0 to 255.0: pass uint8"),
    (np.full((32, 32, 3), np.nan), ValueError, r"must lie in \[0, 1\], found nan"),
    (torch.full((3, 32, 32), -0.5), ValueError, r"found -0.5"),
    (torch.zeros(32, 32, 3), ValueError, r"shape \(3, H, W\) or \(frames, 3, H, W\), not \(32, 32, 3\)"),
    (torch.zeros(3, 0, 32), ValueError, "the frame is empty"),
    (Image.new("I", (32, 32)), ValueError, r"image mode 'I' is not a picture of 8 bits a channel: scale its values"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("frame", "error", "match"), BAD_FRAMES)
def test_a_bad_frame_is_refused_and_the_stream_goes_on(
    frame: Any, error: type[Exception], match: str, engine: Build, frames: torch.Tensor
) -> None:
    stream, plain = engine(), engine()
    outputs = []
    for i, good in enumerate(frames[:2]):
        if i == 1:
            with pytest.raises(error, match=match):
                stream.push(frame)
        outputs += stream.push(good)
    outputs += stream.flush()
    expected = list(plain.stream(frames[:2]))
    assert [o.frame_id for o in outputs] == [0, 1]
    assert all(torch.equal(a.image, b.image) for a, b in zip(outputs, expected, strict=True))
    assert account(stream) == (2, 2, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("latents", "error", "match"),
    [
        (
            torch.zeros(4, 8, 8),
            ValueError,
            r"latents must have the shape \(4, 4, 4\), or frames of it, not \(4, 8, 8\)",
        ),
        (torch.full((4, 4, 4), float("inf")), ValueError, "latents must be finite"),
        (torch.zeros(4, 4, 4, dtype=torch.int32), TypeError, "must be a floating-point tensor, not torch.int32"),
        ("noise", TypeError, "must be a floating-point tensor, not str"),
    ],
)
def test_bad_latents(latents: Any, error: type[Exception], match: str, engine: Build) -> None:
    with pytest.raises(error, match=match):
        engine().push(latents=latents)


def test_pictures_and_latents_must_match(engine: Build, frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="3 pictures need as many latents, not 2"):
        engine().push(frames[:3], latents=torch.zeros(2, 4, 4, 4))


def test_one_frame_buffer_cannot_mix(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(frame_buffer=2)
    stream.push(frames[0])
    with pytest.raises(ValueError, match="cannot mix pictures and text-to-image frames"):
        stream.push()
    assert account(stream) == (2, 0, 0, 2, 0, 0)
    assert [o.frame_id for o in stream.stream(frames[:4])] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"height": 33}, ValueError, "height must be a multiple of 8 for this model, not 33: try 32"),
        ({"width": 0}, ValueError, "width must be an integer >= 1; got 0"),
        ({"frame_buffer": 0}, ValueError, "frame_buffer must be an integer >= 1; got 0"),
        ({"timestep_indices": ()}, ValueError, "non-empty sequence of integers"),
        ({"timestep_indices": (1.5,)}, ValueError, "non-empty sequence of integers"),
        ({"timestep_indices": (40, 10)}, ValueError, "must ascend"),
        ({"timestep_indices": None}, ValueError, r"give timestep_indices=.*, or strength= and num_steps="),
        ({"num_steps": 2}, ValueError, "not both"),
        ({"fit": "zoom"}, ValueError, "fit must be one of crop, pad, stretch; got 'zoom'"),
        ({"num_inference_steps": 70}, ValueError, "reduce `num_inference_steps` to a value smaller than 50"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], match: str, engine: Build) -> None:
    with pytest.raises(error, match=match):
        engine(**settings)


def test_pipelines_that_cannot_stream(engine: Build, sd: Any) -> None:
    class Other:
        unet = torch.nn.Linear(1, 1)

    with pytest.raises(TypeError, match=r"Other cannot stream: .*UNet2DConditionModel, SD3Transformer2DModel"):
        engine(Other())
    five = UNet2DConditionModel.from_config(sd.unet.config, in_channels=5)
    inpaint = StableDiffusionInpaintPipeline(**sd.components | {"unet": five}, requires_safety_checker=False)
    with pytest.raises(ValueError, match="takes 5 input channels"):
        engine(inpaint)
    edm = StableDiffusionImg2ImgPipeline(
        **sd.components | {"scheduler": EDMEulerScheduler()}, requires_safety_checker=False
    )
    with pytest.raises(ValueError, match="EDMEulerScheduler cannot step row by row: pass sampler="):
        engine(edm)


@pytest.mark.parametrize("scheduler", [PNDMScheduler, DPMSolverMultistepScheduler])
def test_multistep_schedulers_become_lcm(scheduler: Any, engine: Build, sd: Any, frames: torch.Tensor) -> None:
    other = StableDiffusionImg2ImgPipeline(
        **sd.components | {"scheduler": scheduler.from_config(sd.scheduler.config)}, requires_safety_checker=False
    )
    stream = engine(other)
    assert stream.report().sampler == "LCM"
    outputs, expected = list(stream.stream(frames[:3])), list(engine().stream(frames[:3]))
    assert all(torch.equal(a.image, b.image) for a, b in zip(outputs, expected, strict=True))


class Flaky(torch.nn.Module):
    """A network that raises, or gives NaN, in chosen calls."""

    def __init__(self, unet: Any, raises: set[int] = frozenset(), poisons: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__()
        self.unet, self.raises, self.poisons, self.calls = unet, raises, poisons, 0

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls in self.raises:
            raise torch.OutOfMemoryError("the network is out of memory")
        (out,) = self.unet(sample, *args, **kwargs)
        if self.calls in self.poisons:
            out = torch.cat([out[:-1], out[-1:] * float("nan")])
        return (out,)


def flaky(engine: Build, monkeypatch: pytest.MonkeyPatch, **kind: Any) -> StreamEngine:
    stream = engine()
    model = Flaky(stream.pipe.unet, **kind)
    model.config, model.dtype = stream.pipe.unet.config, torch.float32
    monkeypatch.setattr(type(stream._network), "model", property(lambda self: model))
    return stream


def test_an_exception_in_the_network_loses_one_frame(
    engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {o.frame_id: o.image for o in engine().stream(frames)}
    stream = flaky(engine, monkeypatch, raises={5})
    outputs = []
    for i, frame in enumerate(frames):
        if i == 4:
            with pytest.raises(torch.OutOfMemoryError, match="the network is out of memory"):
                stream.push(frame)
        else:
            outputs += stream.push(frame)
    outputs += stream.flush()
    assert [o.frame_id for o in outputs] == [0, 1, 2, 3, 5, 6, 7, 8]
    for output in outputs:
        torch.testing.assert_close(output.image, expected[output.frame_id], rtol=0, atol=1e-3)
    assert account(stream) == (9, 8, 0, 1, 0, 0)


def test_nan_is_counted_and_never_delivered(
    engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {o.frame_id: o.image for o in engine().stream(frames)}
    outputs = list((stream := flaky(engine, monkeypatch, poisons={5})).stream(frames))
    assert [o.frame_id for o in outputs] == [0, 1, 3, 4, 5, 6, 7, 8]  # call 5 finishes frame 2
    for output in outputs:
        torch.testing.assert_close(output.image, expected[output.frame_id], rtol=0, atol=1e-3)
    assert account(stream) == (9, 8, 0, 0, 1, 0)


def test_skipped_frames_show_the_last_picture_and_frames_in_flight_drain(engine: Build, frames: torch.Tensor) -> None:
    expected = {o.frame_id: o.image for o in engine().stream(frames[:4])}
    stream = engine(similarity=ALWAYS)
    shown: list[Any] = []
    for frame in frames[:4]:
        shown += stream.push(frame)
    assert [o.frame_id for o in shown] == [0, 1]
    for k in range(4):  # the motion stops
        outputs = stream.push(frames[3])
        assert [(o.frame_id, o.skipped) for o in outputs] == ([(2 + k, False)] if k < 2 else []) + [(4 + k, True)]
        shown += outputs
        assert outputs[-1].image is next(o.image for o in reversed(shown) if not o.skipped)
    torch.testing.assert_close(shown[-1].image, expected[3], rtol=0, atol=1e-3)  # of the last frame that was seen
    assert account(stream) == (8, 4, 4, 0, 0, 0)
    calls = stream.report().network_calls
    stream.push(frames[3])
    assert stream.report().network_calls == calls


def test_nothing_is_skipped_before_there_is_a_picture(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(similarity=ALWAYS)
    outputs = [o for _ in range(3) for o in stream.push(frames[0])]
    assert [(o.frame_id, o.skipped) for o in outputs] == [(0, False)]
    assert stream.report().frames_skipped == 0


def test_a_skip_enters_a_waiting_partial_buffer(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(similarity=ALWAYS, frame_buffer=2, timestep_indices=(30,))
    assert [o.frame_id for o in stream.push(frames[:3])] == [0, 1]
    outputs = stream.push(frames[2])
    assert [(o.frame_id, o.skipped) for o in outputs] == [(2, False), (3, True)]
    assert outputs[1].image is outputs[0].image


def test_same_frames_same_skips(engine: Build, frames: torch.Tensor) -> None:
    def skips(seed: int) -> list[bool]:
        stream = engine(timestep_indices=(30,), similarity=SimilarityFilter(0.0, 5, seed=seed))
        generator = torch.Generator().manual_seed(0)
        still = [(frames[0] + 0.3 * torch.rand(3, 32, 32, generator=generator)).clamp(0, 1) for _ in range(40)]
        return [stream.push(f)[-1].skipped for f in still]

    assert skips(0) == skips(0) != skips(1)
    assert 0 < sum(skips(0)) < 40


def test_reset_forgets_frames_and_keeps_settings(engine: Build, frames: torch.Tensor) -> None:
    stream = engine()
    first = list(stream.stream(frames[:4]))
    stream.update(prompt="a dog", at="new")
    stream.update(prompt="a cat")
    stream.push(frames[5])
    stream.reset()
    assert account(stream) == (0, 0, 0, 0, 0, 0)
    again = list(stream.stream(frames[:4]))
    assert all(torch.equal(a.image, b.image) and a.frame_id == b.frame_id for a, b in zip(first, again, strict=True))


def test_reset_in_a_transition_arrives(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(timestep_indices=(30,))
    stream.update(prompt="a dog", transition=5)
    stream.push(frames[0])
    stream.reset()
    expected = engine(timestep_indices=(30,), prompt="a dog").push(frames[0])[0]
    assert torch.equal(stream.push(frames[0])[0].image, expected.image)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [SelfNegative(1.3), OneTimeNegative(1.3), FullGuidance(1.3)])
def test_warmup_changes_nothing(guidance: Any, engine: Build, frames: torch.Tensor) -> None:
    warm, cold = engine(guidance=guidance), engine(guidance=guidance)
    warm.push(frames[0])
    cold.push(frames[0])
    before = account(warm)
    warm.warmup()
    assert account(warm) == before
    pairs = zip(warm.stream(frames[1:4]), cold.stream(frames[1:4]), strict=True)
    assert all(torch.equal(a.image, b.image) and a.frame_id == b.frame_id for a, b in pairs)


def test_closed_engines_refuse(engine: Build, frames: torch.Tensor) -> None:
    with engine() as stream:
        stream.push(frames[0])
    stream.close()
    assert account(stream) == (1, 0, 0, 1, 0, 0)
    for use in (stream.push, stream.flush, stream.reset, stream.warmup, lambda: stream.update(seed=1)):
        with pytest.raises(RuntimeError, match="this StreamEngine is closed: build a new one"):
            use()


def test_report(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(output_type="pil")
    outputs = list(stream.stream(frames))
    report = stream.report()
    assert set(report.tick_ms) == {"preprocess", "encode", "denoise", "decode", "post", "total"}
    for times in report.tick_ms.values():
        assert 0 <= times["median"] <= times["p95"]
    assert report.latency_frames == 2
    assert report.latency_ms["median"] >= outputs[4].timings["denoise"] > 0
    assert report.ticks == report.network_calls == 11
    assert report.to_dict()["frames_out"] == 9
    assert str(report).startswith("9 frames in, 9 out, 0 skipped, 0 dropped, 0 not finite, 0 in flight; LCM, latency 2")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_wrong_sizes_are_fitted(fit: str, engine: Build) -> None:
    stream = engine(timestep_indices=(30,), fit=fit)
    for size in [(64, 32), (31, 77), (32, 32), (5, 300)]:
        assert len(stream.push(Image.new("RGB", size, "red"))) == 1


@pytest.mark.slow
def test_memory_stays_level(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(timestep_indices=(20, 40), guidance=OneTimeNegative(1.2))

    def tensors_after(count: int) -> int:
        for i in range(count):
            stream.update(at="new" if i % 2 else "all", prompt=["a cat", "a dog", "a star"][i % 3])
            stream.push(frames[i % 9])
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    first = tensors_after(12)
    assert tensors_after(24) <= first + 5


def test_overhead_around_the_network_is_small(engine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = engine(timestep_indices=(5, 15, 30, 45), guidance=SelfNegative(1.4, 0.5))
    monkeypatch.setattr(stream._network, "predict", lambda latents, timesteps, inputs: latents)
    clean = torch.zeros(1, 4, 4, 4)
    monkeypatch.setattr(stream._codec, "encode", lambda pixels: clean)
    frame = np.zeros((32, 32, 3), np.uint8)
    times = []
    for _ in range(60):
        start = time.thread_time()
        stream.push(frame)
        times.append(time.thread_time() - start)
    assert sorted(times)[30] < 0.003  # about 1 ms on a quiet machine, which scripts/bench.py measures


def test_what_is_finished_is_not_lost_when_a_later_frame_raises(
    engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = flaky(engine, monkeypatch, raises={5})
    with pytest.raises(torch.OutOfMemoryError):
        stream.push(frames[:6])
    assert account(stream) == (6, 2, 0, 2, 0, 2)
    assert [o.frame_id for o in stream.push(frames[6])] == [0, 1, 2]
    assert [o.frame_id for o in stream.flush()] == [3, 6]


def test_a_skipped_frame_is_not_lost_when_the_tick_raises(
    engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = flaky(engine, monkeypatch, raises={5})
    stream.update(similarity=ALWAYS)
    for frame in frames[:4]:
        stream.push(frame)
    with pytest.raises(torch.OutOfMemoryError):
        stream.push(frames[3])
    assert account(stream) == (5, 2, 1, 0, 0, 2)
    assert [(o.frame_id, o.skipped) for o in stream.flush()] == [(4, True), (2, False), (3, False)]


def test_sequential_mode_finishes_a_buffer_that_a_skip_lets_enter(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(similarity=ALWAYS, frame_buffer=2, stream_batch=False)
    stream.push(frames[:2])
    assert stream.push(frames[2]) == []
    assert [(o.frame_id, o.skipped) for o in stream.push(frames[2])] == [(2, False), (3, True)]
    assert stream.frames_in_flight == 0


def test_a_stream_that_is_left_early_leaves_nothing_to_the_next(engine: Any, frames: Any) -> None:
    stream = engine()
    for output in stream.stream(frames[:4]):
        assert output.frame_id == 0
        break
    assert stream.frames_in_flight == 0
    assert [output.frame_id for output in stream.stream(frames[:2])] == [3, 4]


def test_no_tick_keeps_a_graph_and_inference_mode_may_come_and_go(
    engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    forward = UNet2DConditionModel.forward

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        modes.append(torch.is_grad_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noted)
    stream, plain = engine(), engine()
    assert all(parameter.requires_grad for parameter in stream.pipe.unet.parameters())
    found = []
    for index, frame in enumerate(frames[:6]):
        with torch.inference_mode(index % 2 == 0):
            found += stream.push(frame)
    assert all(torch.equal(a.image, b.image) for a, b in zip(found, plain.stream(frames[:6]), strict=False))
    assert not any(modes)
    assert modes
