"""On an accelerator everything stays on it: tensors that say they are elsewhere give the CPU's results, and never meet
one that was made on the CPU.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stream_pipelines
import torch
from cells import cells
from PIL import Image
from second_device import DEVICE, MixedDevicesError, There, second_device
from tiny_networks import generate, pipeline, sd_unet

from diffaccel import (
    BlockCache,
    CausalContext,
    CrossFrame,
    DeepCache,
    EasyCache,
    FeatureInheritance,
    FullGuidance,
    IntervalCache,
    MotionBlend,
    Newton,
    OneTimeNegative,
    Region,
    ResidualGuidance,
    SelfNegative,
    SimilarityFilter,
    SlotCache,
    StreamEngine,
    StreamHost,
    Taylor,
    TextKVCache,
    TGate,
    Threshold,
    TokenReduction,
    Uniform,
    VideoEngine,
    accelerate,
    calibrate,
    models,
    train_routers,
)
from diffaccel.batch.jobs import Job
from diffaccel.batch.render import Renderer

JOB = Job(id="a", prompt="a red heart", seed=7, model="tiny", dtype="float32", steps=4, guidance_scale=2.0)
JOBS = {
    "plain": JOB,
    "cached": replace(JOB, cache="deepcache:interval=2,branch=0"),
    "self-negative": replace(JOB, guidance="self"),
    "ancestral": replace(JOB, scheduler="euler a"),
    "stochastic": replace(JOB, scheduler="dpm++ 2m sde karras"),
    "few steps": replace(JOB, scheduler="lcm"),
    "long": replace(JOB, prompt="a red heart " * 30, long_prompts=True),
    "weights": replace(JOB, prompt="a (red:1.3) heart", prompt_weights=True),
    "from a picture": replace(JOB, init_image="start.png", strength=0.6),
    "inpainting": replace(JOB, init_image="start.png", mask_image="mask.png", strength=0.6),
}
METHODS = {
    "DeepCache": DeepCache(2),
    "Taylor": DeepCache(2, forecast=Taylor(2)),
    "Newton": DeepCache(2, forecast=Newton(2)),
    "Threshold": DeepCache(schedule=Threshold(0.1)),
    "FeatureInheritance": FeatureInheritance(interval=2),
    "TGate": TGate(gate=3),
    "TextKVCache": TextKVCache(),
    "ResidualGuidance": ResidualGuidance(renew=2),
    "EasyCache": EasyCache(threshold=0.1),
    "merge": TokenReduction(min_tokens=16),
    "pool": TokenReduction("pool", min_tokens=16),
}
DEEP = DeepCache(schedule=Threshold(0.15, max_reuse=2), forecast=Taylor(2))
STREAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full guidance, cached": {"guidance": FullGuidance(1.5), "cache": SlotCache(DEEP)},
    "one-time negative, by frame": {"guidance": OneTimeNegative(1.5), "cache": SlotCache(DeepCache(2), key="frame")},
    "blends": {"prompt": [("a cat", 0.5), ("a dog", 0.5)], "blend": "slerp", "seed": [(0, 0.5), (1, 0.5)]},
    "buffer": {"frame_buffer": 2, "shared_noise": True, "feedback": 0.3},
    "one after the other": {"stream_batch": False, "similarity": SimilarityFilter(0.9)},
    "steadiness": {"steadiness": CrossFrame(frames=2)},
    "smoothing": {"smoothing": MotionBlend(tolerance=0.5), "output_type": "pt"},
    "regions": {"regions": [Region("a dog", Image.new("L", (32, 32), 255))]},
}
FAMILIES = ("sd", "sdxl", "sd3", "flux", "sana", "pixart", "z_image")


def here(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().as_subclass(torch.Tensor)


def same_on_both(work: Callable[[], torch.Tensor], *pipes: Any, near: float = 1e-4) -> None:
    """Assert that work on some pipelines gives on the second device what it gives on the CPU."""
    expected = work()
    with second_device(*pipes):
        assert pipes[0]._execution_device == DEVICE
        result = here(work())
    assert result.shape == expected.shape
    assert (result - here(expected)).abs().max() < near


def test_tensors_of_two_devices_do_not_mix() -> None:
    x = torch.ones(2)
    with second_device():
        there = x.to(DEVICE)
        assert isinstance(there, There)
        assert torch.zeros(2, device=DEVICE).device == DEVICE
        assert here(there * 2 + torch.tensor(1.0)).tolist() == [3.0, 3.0]
        assert (there + torch.zeros(2, device=there.device)).device == DEVICE
        with pytest.raises(MixedDevicesError, match=r"\(2,\) on xpu:0, \(2,\) on cpu"):
            there + x
        with pytest.raises(TypeError, match="copy it to the CPU"):
            np.asarray(there)
        assert not isinstance(there.cpu(), There)


def test_a_tensor_left_on_the_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(sd_unet())
    monkeypatch.setattr(type(pipe), "prepare_latents", lambda self, *a, **k: torch.zeros(1, 4, 16, 16))
    with second_device(pipe), pytest.raises(MixedDevicesError):
        generate(pipe, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", cells(METHODS, quick={"Taylor", "ResidualGuidance"}.__contains__))
def test_methods(name: str) -> None:
    pipe = pipeline(sd_unet())

    def work() -> torch.Tensor:
        with accelerate(pipe, METHODS[name]):
            return generate(pipe, steps=5, guidance_scale=2.0)

    same_on_both(work, pipe)


def run(pipe: Any, **changes: Any) -> torch.Tensor:
    """Latents of a stream on a pipeline."""
    settings = {"prompt": "a cat", "timestep_indices": (10, 25, 40), "height": 32, "width": 32, "seed": 2}
    engine = StreamEngine(pipe, **{"output_type": "latent", **settings, **changes})
    frames = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return torch.stack([here(out.image) for out in engine.stream(frames)])


@pytest.mark.slow
@pytest.mark.parametrize("name", cells(STREAMS, quick={"full guidance, cached", "blends"}.__contains__))
def test_streams(name: str) -> None:
    pipe = stream_pipelines.sd()
    same_on_both(lambda: run(pipe, **STREAMS[name]), pipe)


@pytest.mark.parametrize("family", cells(FAMILIES, quick=lambda family: False))
def test_families_of_streams(family: str) -> None:
    pipe = getattr(stream_pipelines, family)()
    cache = BlockCache(threshold=0.3) if hasattr(pipe, "transformer") else SlotCache(DeepCache(2))
    same_on_both(lambda: run(pipe, guidance=SelfNegative(1.5), cache=cache), pipe)


@pytest.mark.slow
def test_streams_of_one_host() -> None:
    pipe = stream_pipelines.sd()

    def work() -> torch.Tensor:
        host, found = StreamHost(pipe), {}

        def play(name: str, **changes: Any) -> None:
            found[name] = run(pipe, host=host, **changes)

        threads = [
            threading.Thread(target=play, args=("a",)),
            threading.Thread(target=play, args=("b",), kwargs=STREAMS["full guidance, cached"]),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        host.close()
        return torch.cat([found["a"], found["b"]])

    same_on_both(work, pipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", cells(JOBS, quick={"cached"}.__contains__))
def test_batches_that_decode_on_another_thread(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("start.png")
    Image.new("L", (32, 32), 255).save("mask.png")
    pipe = models.load(tiny_sd, device="cpu")

    def work() -> torch.Tensor:
        with Renderer(pipe) as renderer:
            renderer.encode_ahead([JOBS[name]])
            finish, pictures = renderer.start([JOBS[name]]), []
            thread = threading.Thread(target=lambda: pictures.extend(finish().images))
            thread.start()
            thread.join()
            return torch.tensor(np.asarray(pictures[0], dtype=np.float32))

    same_on_both(work, pipe, near=1.5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("offload", [False, True])
def test_videos(offload: bool) -> None:
    pipe = models.load("emoji-video", device="cpu")

    def work() -> torch.Tensor:
        context = CausalContext(window=4, refresh="prompt", offload=offload)
        engine = VideoEngine(
            pipe,
            prompt="a cat",
            chunk=4,
            num_steps=2,
            guidance=FullGuidance(2.0),
            context=context,
            cache=DeepCache(2),
            height=64,
            width=64,
            output_type="latent",
        )
        first = engine.next().frames
        engine.update(prompt="a red heart")
        return torch.stack([here(frame) for frame in (*first, *engine.next().frames)])

    same_on_both(work, pipe)


@pytest.mark.exhaustive
def test_calibration_and_routers(tmp_path: Path) -> None:
    pipe = models.load("emoji-dit", device="cpu")
    arguments = {"num_inference_steps": 3, "use_resolution_binning": False, "clean_caption": False}
    with second_device(pipe), accelerate(pipe, IntervalCache(schedule=Uniform(2))):
        pipe("a heart", output_type="latent", **arguments)
    with second_device(pipe):
        assert calibrate(pipe, ["a heart"], **arguments).kinds
        with torch.enable_grad():
            routers = train_routers(
                pipe, ["a heart"], runs=1, batch_size=1, refresh=1, path=tmp_path / "r.json", **arguments
            )
    assert len(routers.weights) == 3
