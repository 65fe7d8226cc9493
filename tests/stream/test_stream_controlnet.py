"""ControlNets in the stream batch: the right image for the right frame, one call a tick, every setting live."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import stream_pipelines
import stream_reference
import torch
from cells import cells
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from stream_pipelines import Build

from diffaccel import DeepCache, SimilarityFilter
from diffaccel._diffusers import hooks_of
from diffaccel.methods import EncoderPropagation
from diffaccel.reuse.schedule import Uniform
from diffaccel.sampling.guidance import FullGuidance, Guidance, NoGuidance, OneTimeNegative, SelfNegative
from diffaccel.stream.control import CONTROLS, edges
from diffaccel.stream.controlnet import ControlNets
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.slot_cache import SlotCache
from diffaccel.stream.work import WorkRunner
from diffaccel.stream.worker import StreamWorker

GUIDANCES = [NoGuidance(), FullGuidance(1.8), SelfNegative(1.4, 0.5), OneTimeNegative(1.6, 0.7)]
STAGES = {1: (30,), 2: (20, 40), 3: (10, 25, 40)}


def net(unet: Any, seed: int, factor: int = 8, **config: Any) -> ControlNetModel:
    """A ControlNet of the UNet's shape that matters."""
    channels = (4, 8, 8, 8) if factor == 8 else (4, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
        made.register_to_config(**config)
        for zero in (*made.controlnet_down_blocks, made.controlnet_mid_block):
            torch.nn.init.normal_(zero.weight, std=0.1)
        for convolution in made.controlnet_cond_embedding.modules():
            if isinstance(convolution, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(convolution.weight, a=0.3)
    return made.eval()


def controlled(
    seeds: Sequence[int] = (1,), kind: Any = StableDiffusionControlNetPipeline, base: Any = None, **config: Any
) -> Any:
    base = base or stream_pipelines.sd()
    nets = [net(base.unet, seed, base.vae_scale_factor, **config) for seed in seeds]
    options = {} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    pipe = kind(**base.components, **options, controlnet=nets if len(nets) > 1 else nets[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return controlled()


@pytest.fixture(scope="module")
def two() -> Any:
    return controlled((1, 2))


def test_frames_that_wait_keep_what_was_pushed(pipe: Any, engine: Build, controls: torch.Tensor) -> None:
    """Cameras and renderers write every picture into the same buffer."""
    noises = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    picture, noise, shown = torch.empty(3, 32, 32), torch.empty(4, 4, 4), {}
    for reused in (False, True):
        stream = engine(pipe, frame_buffer=2, timestep_indices=(30,), similarity=SimilarityFilter(0.9))
        outputs = []
        for control, own in zip(controls, noises, strict=False):
            picture.copy_(control), noise.copy_(own)
            outputs += stream.push(latents=noise if reused else own, control=picture if reused else control)
        shown[reused] = torch.stack([output.image for output in outputs])
    assert torch.equal(shown[True], shown[False])


@pytest.fixture(scope="module")
def controls() -> torch.Tensor:
    """A bar that moves: six control images ``(6, 3, 32, 32)``."""
    images = torch.zeros(6, 3, 32, 32)
    for i in range(6):
        images[i, :, :, 4 * i : 4 * i + 6] = 1
    return images


def run(engine: StreamEngine, frames: Sequence[Any], controls: Sequence[Any] | None = None) -> dict[int, torch.Tensor]:
    """Every finished frame by its number."""
    given = controls if controls is not None else [None] * len(frames)
    outputs = [o for f, c in zip(frames, given, strict=True) for o in engine.push(f, control=c)] + engine.flush()
    return {o.frame_id: o.image for o in outputs}


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))


def same(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for i in a:
        close(a[i], b[i])


def differ(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> list[bool]:
    return [bool((a[i] - b[i]).abs().max() > 1e-3 * b[i].abs().max()) for i in sorted(a)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "guidance"),
    cells(product((1, 2, 3), GUIDANCES), lambda cell: cell[0] == (1, 2, 3, 3)[GUIDANCES.index(cell[1])]),
)
def test_equals_sequential_mode(
    stages: int, guidance: Guidance, pipe: Any, engine: Build, frames: Any, controls: Any
) -> None:
    frame_buffer = 1 + (stages + GUIDANCES.index(guidance)) % 2
    settings = {"timestep_indices": STAGES[stages], "frame_buffer": frame_buffer, "guidance": guidance}
    settings["controlnet_scale"] = 4.0
    batch = run(engine(pipe, **settings), frames[:4], controls[:4])
    same(batch, run(engine(pipe, stream_batch=False, **settings), frames[:4], controls[:4]))
    still = run(engine(pipe, **settings), frames[:4], controls[:1].expand(4, -1, -1, -1))
    assert differ(batch, still) == [False, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guidance"),
    cells(
        product(("two", "xl", "pooled", "bgr"), (NoGuidance(), FullGuidance(1.8))),
        lambda cell: (cell[0] in ("two", "pooled")) == isinstance(cell[1], FullGuidance),
    ),
)
def test_equals_sequential_mode_on_other_kinds(
    name: str, guidance: Guidance, two: Any, engine: Build, frames: Any, controls: Any
) -> None:
    kinds = {
        "two": lambda: two,
        "xl": lambda: controlled(kind=StableDiffusionXLControlNetPipeline, base=stream_pipelines.sdxl()),
        "pooled": lambda: controlled(global_pool_conditions=True),
        "bgr": lambda: controlled(controlnet_conditioning_channel_order="bgr"),
    }
    pipe = kinds[name]()
    given = [(c, c.flip(-1)) if name == "two" else c * torch.tensor([1.0, 0.5, 0.0])[:, None, None] for c in controls]
    settings = {"guidance": guidance, "controlnet_scale": (0.7, 0.4) if name == "two" else 0.7}
    batch = run(engine(pipe, **settings), frames[:3], given[:3])
    same(batch, run(engine(pipe, stream_batch=False, **settings), frames[:3], given[:3]))
    assert all(differ(batch, run(engine(pipe, **settings | {"controlnet_scale": 0.0}), frames[:3], given[:3])))


@pytest.mark.parametrize(
    ("stages", "guidance"),
    cells(product((1, 3), GUIDANCES), lambda cell: cell[0] == (1, 3, 1, 3)[GUIDANCES.index(cell[1])]),
)
def test_equals_independent_reference(
    stages: int, guidance: Guidance, pipe: Any, engine: Build, frames: Any, controls: Any, monkeypatch: Any
) -> None:
    """One frame at a time, its ControlNet called beside the UNet as in the stock pipeline."""
    kinds = {NoGuidance: "none", FullGuidance: "full", SelfNegative: "self", OneTimeNegative: "once"}
    settings = {"timestep_indices": STAGES[stages], "guidance": guidance, "controlnet_scale": 0.8}
    outputs = run(engine(pipe, **settings), frames[:3], controls[:3])
    noise = stream_reference.noises(2, stages, 1, (4, 4, 4))
    grid = engine(pipe, **settings)._course.settings.stages
    prompt, negative = stream_reference.text(pipe, "a cat"), stream_reference.text(pipe, "blurry")
    for i in range(3):
        steps = [
            stream_reference.Step(
                int(level.timestep), noise[k, 0], prompt, negative, kinds[type(guidance)],
                getattr(guidance, "scale", 1.0), getattr(guidance, "delta", 1.0),
            )
            for k, level in enumerate(grid.levels)
        ]  # fmt: skip
        plain = Beside(pipe, controls[i : i + 1], 0.8)
        close(
            outputs[i], stream_reference.lcm(plain, stream_reference.clean_latents(pipe, frames[i : i + 1])[0], steps)
        )


class Beside:
    """A pipeline whose UNet calls the ControlNet first."""

    def __init__(self, pipe: Any, image: torch.Tensor, scale: float) -> None:
        self.scheduler, self._pipe, self._image, self._scale = pipe.scheduler, pipe, image, scale

    def unet(self, x: torch.Tensor, t: Any, encoder_hidden_states: torch.Tensor, return_dict: bool) -> Any:
        told = {"encoder_hidden_states": encoder_hidden_states, "return_dict": False}
        down, middle = self._pipe.controlnet(x, t, controlnet_cond=self._image, conditioning_scale=self._scale, **told)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self._pipe.unet(x, t, **told, **added)


@pytest.mark.parametrize(
    ("guidance_scale", "pooled"), [(1.0, False), (2.0, False), (2.0, True)], ids=["plain", "guided", "pooled"]
)
def test_draws_what_the_stock_pipeline_draws(guidance_scale: float, pooled: bool, controls: Any) -> None:
    base = stream_pipelines.sd(DDIMScheduler, clip_sample=False)
    pipe = controlled((1, 2), base=base, global_pool_conditions=pooled)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    images = [controls[1:2], controls[2:3]]
    arguments = {"guidance_scale": guidance_scale, "controlnet_conditioning_scale": [0.5, 0.9], "latents": noise}
    expected = pipe("a cat", image=images, num_inference_steps=4, output_type="latent", **arguments).images[0]
    guidance = FullGuidance(guidance_scale) if guidance_scale > 1 else NoGuidance()
    engine = StreamEngine(
        pipe, prompt="a cat", timestep_indices=range(4), num_inference_steps=4, height=32, width=32,
        guidance=guidance, controlnet_scale=(0.5, 0.9), output_type="latent",
    )  # fmt: skip
    outputs = engine.push(latents=noise, control=images) + engine.flush()
    close(outputs[0].image, expected)


def test_scale_0_is_the_plain_engine_and_costs_no_call(engine: Build, pipe: Any, frames: Any, controls: Any) -> None:
    calls = counted(pipe)
    without = run(engine(pipe, controlnet_scale=0.0), frames[:4], controls[:4])
    assert calls == []
    plain = run(engine(), frames[:4])
    assert all(torch.equal(without[i], plain[i]) for i in plain)


def counted(pipe: Any) -> list[int]:
    """Rows of the ControlNet's calls, from now on."""
    rows: list[int] = []
    pipe.controlnet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


def test_one_call_a_tick_on_all_rows_and_one_embedding_a_frame(engine: Build, frames: Any, controls: Any) -> None:
    pipe = controlled()
    rows, embedded = counted(pipe), []
    stream = engine(pipe, guidance=FullGuidance(1.5))
    pipe.controlnet.controlnet_cond_embedding.conv_in.register_forward_pre_hook(lambda m, a: embedded.append(len(a[0])))
    run(stream, frames[:4], controls[:4])
    assert rows == [2, 4, 6, 6, 4, 2]
    assert embedded == [1, 1, 1, 1]


@pytest.mark.parametrize("given", ["tensor", "array", "picture", "large"])
def test_control_images_are_pictures_of_any_kind(
    given: str, engine: Build, pipe: Any, frames: Any, controls: Any
) -> None:
    pixels = (controls[:3].movedim(1, -1).numpy() * 255).astype(np.uint8)
    kinds = {
        "tensor": controls[:3],
        "array": pixels,
        "picture": [Image.fromarray(p) for p in pixels],
        "large": [Image.fromarray(p).resize((64, 64), Image.Resampling.NEAREST) for p in pixels],
    }
    expected = run(engine(pipe, timestep_indices=(30,)), frames[:3], controls[:3])
    found = run(engine(pipe, timestep_indices=(30,)), frames[:3], kinds[given])
    assert set(found) == set(expected)
    if given != "large":  # resized and back is not quite the same
        same(found, expected)


def test_several_frames_at_once(engine: Build, pipe: Any, frames: Any, controls: Any) -> None:
    stream = engine(pipe)
    outputs = stream.push(frames[:4], control=controls[:4]) + stream.flush()
    same({o.frame_id: o.image for o in outputs}, run(engine(pipe), frames[:4], controls[:4]))


@pytest.mark.parametrize(
    "control",
    ["edges", "identity", "canny", lambda picture: 1 - picture],
    ids=["edges", "identity", "canny", "own function"],
)
def test_control_images_are_made_from_the_frames(control: Any, engine: Build, pipe: Any, controls: Any) -> None:
    function = CONTROLS[control] if isinstance(control, str) else control
    settings, few = {"timestep_indices": (30,)}, controls[:2]
    made = run(engine(pipe, control=control, **settings), few)
    same(made, run(engine(pipe, **settings), few, [function(c) for c in few]))
    assert all(differ(made, run(engine(pipe, controlnet_scale=0.0, **settings), few, few)))


def test_each_controlnet_has_its_own_function(engine: Build, two: Any, controls: Any) -> None:
    settings, few = {"timestep_indices": (30,)}, controls[:2]
    made = run(engine(two, control=("edges", "identity"), **settings), few)
    same(made, run(engine(two, **settings), few, [(edges(c), c) for c in few]))
    one = run(engine(two, control="edges", **settings), few)
    same(one, run(engine(two, **settings), few, [edges(c) for c in few]))
    assert all(differ(made, one))


def test_edges_are_white_where_the_picture_changes() -> None:
    picture = torch.zeros(3, 8, 8)
    picture[:, :, 4:] = 0.25
    found = edges(picture)
    assert found.shape == (3, 8, 8)
    assert torch.equal(found[:, :, 3:5], torch.full((3, 8, 2), 0.5))
    assert found[:, :, :3].max() == found[:, :, 5:].max() == 0
    assert torch.allclose(edges(picture.transpose(1, 2)), found.transpose(1, 2))
    assert edges(torch.rand(3, 5, 7)).max() <= 1


def test_text_to_image_frames_bring_their_control(engine: Build, pipe: Any, controls: Any) -> None:
    settings = {"guidance": OneTimeNegative(1.5), "control": "edges"}
    found = run(engine(pipe, **settings), [None] * 4, controls[:4])
    same(found, run(engine(pipe, stream_batch=False, **settings), [None] * 4, controls[:4]))
    with pytest.raises(ValueError, match="a text-to-image frame has no picture to make a control image from"):
        engine(pipe, **settings).push()


def test_the_control_of_one_frame_is_seen_in_that_frame_alone(
    engine: Build, pipe: Any, frames: Any, controls: Any
) -> None:
    other = controls[:5].clone()
    other[2] = 1 - other[2]
    for buffer in (1, 2):
        a, b = (run(engine(pipe, frame_buffer=buffer), frames[:5], c) for c in (controls[:5], other))
        assert differ(a, b) == [False, False, True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["all", "new"])
def test_the_scale_changes_live(at: Any, engine: Build, pipe: Any, frames: Any, controls: Any) -> None:
    stream = engine(pipe)
    outputs = [o for k in range(3) for o in stream.push(frames[k], control=controls[k])]
    stream.update(controlnet_scale=0.3, at=at)
    outputs += [o for k in range(3, 6) for o in stream.push(frames[k], control=controls[k])] + stream.flush()
    found = {o.frame_id: o.image for o in outputs}
    before, after = (run(engine(pipe, controlnet_scale=s), frames[:6], controls) for s in (1.0, 0.3))
    if at == "new":
        assert differ(found, before) == [False] * 3 + [True] * 3
        assert differ(found, after) == [True] * 3 + [False] * 3
    else:
        assert differ(found, before) == [False] + [True] * 5
        assert differ(found, after) == [True] * 3 + [False] * 3


def test_the_scale_moves_in_a_transition(engine: Build, pipe: Any, frames: Any, controls: Any) -> None:
    stream = engine(pipe, timestep_indices=(30,))
    stream.update(controlnet_scale=0.5, transition=2, at="new")
    found = run(stream, frames[:3], controls[:3])
    for k, scale in enumerate((0.75, 0.5, 0.5)):
        expected = run(engine(pipe, timestep_indices=(30,), controlnet_scale=scale), frames[:3], controls[:3])
        close(found[k], expected[k])


def test_the_control_function_changes_live(engine: Build, pipe: Any, frames: Any) -> None:
    stream = engine(pipe, control="edges", timestep_indices=(30,))
    first = stream.push(frames[0])[0].image
    stream.update(control="identity")
    second = stream.push(frames[0])[0].image
    one, two = (engine(pipe, control=c, timestep_indices=(30,)).push(frames[0])[0].image for c in ("edges", "identity"))
    close(first, one)
    close(second, two)
    assert (one - two).abs().max() > 1e-3


def movie(count: int) -> torch.Tensor:
    frames = torch.full((count, 3, 32, 32), 0.2)
    for i in range(count):
        frames[i, :, 8:20, i : i + 12] = 0.9
    return frames


CACHES = [
    *(SlotCache(DeepCache(interval=2, branch=branch), key) for branch in (0, 2, 3) for key in ("stage", "frame")),
    *(SlotCache(EncoderPropagation(Uniform(2)), key) for key in ("stage", "frame")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nets", "cache"),
    cells(
        [*((1, cache) for cache in CACHES), (2, CACHES[0]), (2, CACHES[1])],
        lambda cell: cell in ((1, CACHES[4]), (1, CACHES[-1]), (2, CACHES[1])),
    ),
)
def test_a_cache_leaves_out_only_what_is_not_read(
    nets: int, cache: SlotCache, engine: Build, two: Any, pipe: Any
) -> None:
    """With hooks on the UNet alone, ControlNets compute in full, and the pictures are the same for DeepCache."""
    chosen = pipe if nets == 1 else two
    settings = {"cache": cache, "control": "edges", "guidance": FullGuidance(1.5)}
    stream = engine(chosen, **settings)
    found = run(stream, movie(5))
    assert stream.report().replayed_rows > 0
    if isinstance(cache.method, DeepCache):
        full = engine(chosen, **settings)
        full._denoiser._control.close()
        full._denoiser._control = ControlNets(chosen, (), WorkRunner())
        same(found, run(full, movie(5)))
    plain = run(engine(chosen, **settings | {"cache": None}), movie(5))
    assert any(not torch.equal(found[i], plain[i]) for i in plain)


def test_a_cache_saves_the_controlnets_deep_layers(engine: Build, frames: Any) -> None:
    pipe = controlled()
    rows, deep = counted(pipe), []
    pipe.controlnet.mid_block.resnets[0].register_forward_pre_hook(lambda m, a: deep.append(len(a[0])))
    stream = engine(pipe, cache=DeepCache(interval=2), control="edges", timestep_indices=(20, 40))
    run(stream, movie(6))
    assert len(rows) == stream.report().network_calls == 7
    assert sum(deep) == stream.report().computed_rows < sum(rows)


def test_a_change_of_the_scale_makes_a_cache_compute(engine: Build, pipe: Any) -> None:
    for key in ("stage", "frame"):
        cache = SlotCache(DeepCache(interval=9), key)
        stream = engine(pipe, cache=cache, control="edges", timestep_indices=(20, 40), controlnet_scale=0.0)
        for frame in movie(4):
            stream.push(frame)
        computed = stream.report().computed_rows
        stream.update(controlnet_scale=1.0)
        stream.push(movie(5)[4])
        assert stream.report().computed_rows == computed + 2
        stream.flush()


def test_frames_with_and_without_effect_share_a_cache(engine: Build, pipe: Any) -> None:
    cache = SlotCache(DeepCache(interval=2), "frame")
    stream = engine(pipe, cache=cache, control="edges", controlnet_scale=0.0)
    frames = movie(6)
    outputs = [o for f in frames[:2] for o in stream.push(f)]
    stream.update(controlnet_scale=1.0, at="new")
    outputs += [o for f in frames[2:] for o in stream.push(f)] + stream.flush()
    alone = [run(engine(pipe, cache=cache, control="edges", controlnet_scale=s), frames) for s in (0.0, 1.0)]
    for o in outputs:
        close(o.image, alone[o.frame_id >= 2][o.frame_id])


def test_a_still_picture_with_a_moving_control_is_no_still_frame(
    engine: Build, pipe: Any, frames: Any, controls: Any
) -> None:
    settings = {"similarity": SimilarityFilter(0.99, max_skip=9), "timestep_indices": (30,)}
    still = engine(pipe, **settings)
    outputs = [o for _ in range(4) for o in still.push(frames[0], control=controls[0])]
    assert [o.skipped for o in outputs] == [False, True, True, True]
    moving = engine(pipe, **settings)
    assert not any(o.skipped for c in controls for o in moving.push(frames[0], control=c))


def test_a_frame_buffer_takes_frames_with_and_without_control_images(
    engine: Build, pipe: Any, frames: Any, controls: Any
) -> None:
    for cache in (None, DeepCache(interval=2)):
        settings = {"frame_buffer": 2, "control": "edges", "cache": cache}
        given = [controls[0], None, None, controls[3]]
        explicit = [c if c is not None else edges(f) for c, f in zip(given, frames[:4], strict=True)]
        same(run(engine(pipe, **settings), frames[:4], given), run(engine(pipe, **settings), frames[:4], explicit))


def test_a_frame_that_waits_without_a_control_is_dropped_in_words(engine: Build, pipe: Any, frames: Any) -> None:
    stream = engine(pipe, control="edges", frame_buffer=2)
    stream.push(frames[0])
    stream.update(control=None)
    with pytest.raises(ValueError, match="needs a control image: give it with the frame"):
        stream.flush()
    assert stream.report().frames_dropped == 1


@pytest.mark.parametrize("control", [None, "edges"])
def test_warmup_needs_no_control(control: Any, engine: Build, pipe: Any, frames: Any, controls: Any) -> None:
    stream = engine(pipe, control=control)
    stream.warmup()
    same(run(stream, frames[:2], controls[:2]), run(engine(pipe), frames[:2], controls[:2]))
    assert "control" in stream.report().tick_ms


def test_a_worker_takes_control_images(engine: Build, pipe: Any, frames: Any, controls: Any) -> None:
    with StreamWorker(engine(pipe), input_size=4) as worker:
        for frame, control in zip(frames[:3], controls[:3], strict=True):
            worker.put(frame, control=control)
        worker.close(flush=True)
        found = {o.frame_id: o.image for o in worker}
    same(found, run(engine(pipe), frames[:3], controls[:3]))


def test_hooks_leave_with_the_engine(engine: Build, frames: Any) -> None:
    pipe = controlled()
    stream = engine(pipe, control="edges", cache=DeepCache(interval=2))
    hooked = [name for name, module in pipe.controlnet.named_modules() if hooks_of(module)]
    assert "controlnet_cond_embedding" in hooked
    assert "mid_block" in hooked
    stream.close()
    assert not [name for name, module in pipe.controlnet.named_modules() if hooks_of(module)]


def test_image_to_image_pipelines_stream_as_well(engine: Build, pipe: Any, frames: Any) -> None:
    other = StableDiffusionControlNetImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    same(run(engine(other, control="edges"), frames[:3]), run(engine(pipe, control="edges"), frames[:3]))


def nothing(picture: torch.Tensor) -> Any:
    return None


def doubled(picture: torch.Tensor) -> Any:
    return torch.stack([picture, picture])


@pytest.mark.parametrize(
    ("settings", "push", "error", "words"),
    [
        ({}, {}, ValueError, r"needs a control image: give it with the frame, as control=\.\.\., or"),
        ({}, {"control": [torch.zeros(3, 32, 32)] * 2}, ValueError, "1 ControlNets need as many control images, not 2"),
        ({}, {"control": torch.zeros(2, 3, 32, 32)}, ValueError, "1 frames need as many control images, not 2"),
        ({}, {"control": torch.full((3, 32, 32), 2.0)}, ValueError, r"control image cannot be used: .* \[0, 1\]"),
        ({}, {"control": "edges"}, TypeError, "control image cannot be used: .* not str"),
        ({"control": nothing}, {}, TypeError, "control image cannot be used: .* not NoneType"),
        ({"control": doubled}, {}, ValueError, "a control function must give one picture, not 2"),
    ],
)
def test_frames_that_cannot_be_used(
    settings: dict[str, Any], push: Any, error: Any, words: str, engine: Build, pipe: Any, frames: Any, controls: Any
) -> None:
    stream = engine(pipe, **settings)
    with pytest.raises(error, match=words):
        stream.push(frames[0], **push)
    stream.push(frames[1], control=controls[1])
    report = (stream.flush(), stream.report())[1]
    assert report.frames_in == report.frames_out + report.frames_dropped
    assert report.frames_out == 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"control": "depth"}, ValueError, "one of edges, canny, identity, not 'depth'"),
        ({"control": 3}, TypeError, "one of edges, canny, identity, not 3"),
        ({"control": ("edges", "canny")}, ValueError, "1 ControlNets need as many control functions, not 2"),
        ({"controlnet_scale": "much"}, TypeError, "controlnet_scale must be a number"),
        ({"controlnet_scale": float("nan")}, ValueError, "controlnet_scale must be finite"),
        ({"controlnet_scale": (1.0, 2.0)}, ValueError, "1 ControlNets need as many values of controlnet_scale, not 2"),
    ],
)
def test_settings_that_do_not_fit(
    settings: dict[str, Any], error: Any, words: str, engine: Build, pipe: Any, frames: Any
) -> None:
    with pytest.raises(error, match=words):
        engine(pipe, **settings)
    stream = engine(pipe, control="edges")
    with pytest.raises(error, match=words):
        stream.update(**settings)
    assert len([*stream.push(frames[0]), *stream.flush()]) == 1


@pytest.mark.parametrize(
    ("settings", "push"), [({"control": "edges"}, {}), ({"controlnet_scale": 0.5}, {}), ({}, {"control": "frame"})]
)
def test_a_pipeline_without_controlnet_says_so(settings: Any, push: Any, engine: Build, frames: Any) -> None:
    with pytest.raises(ValueError, match="this pipeline has none: leave"):
        engine(**settings).push(frames[0], **dict.fromkeys(push, frames[0]))


def test_canny_without_opencv_names_the_extra(engine: Build, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffaccel.stream.control.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'diffaccel\[camera\]', or use control='edges'"):
        engine(pipe, control="canny")


def test_networks_that_do_not_fit_are_named(engine: Build) -> None:
    base = stream_pipelines.sd()
    pipe = controlled(base=base)
    pipe.controlnet = net(stream_pipelines.sdxl().unet, 1)
    with pytest.raises(ValueError, match="made for another kind of network: its cross_attention_dim is 64"):
        engine(pipe)
    pipe.controlnet = MultiControlNetModel([base.unet])
    with pytest.raises(TypeError, match="UNet2DConditionModel cannot stream: StreamEngine runs ControlNetModel"):
        engine(pipe)
