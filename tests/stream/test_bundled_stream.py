"""Streams on the bundled models: few-step weights, the small autoencoder, pictures of what was asked for."""

from typing import Any

import pytest
import torch

from diffaccel import (
    DeepCache,
    SelfNegative,
    SlotCache,
    StreamEngine,
    Taylor,
    Threshold,
    models,
)
from diffaccel.measure.accuracy import Judge, captions

THINGS = ("red heart", "burger", "rocket", "tree", "panda", "sunflower", "car", "rainbow")
CLOSE = SlotCache(DeepCache(schedule=Threshold(0.15, max_reuse=3), branch=3, forecast=Taylor(2)))


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = models.load("emoji-sd")
    models.load_lora(pipe, "emoji-lcm-lora")
    pipe.fuse_lora()
    return pipe


def engine(pipe: Any, **settings: Any) -> StreamEngine:
    vae = models.load_vae("emoji-vae-small", dtype=pipe.dtype, device=pipe.device)
    return StreamEngine(pipe, vae=vae, height=128, width=128, output_type="pt", **settings)


def film(frames: int) -> torch.Tensor:
    """A red disc that moves by a pixel a frame, ``(frames, 3, 128, 128)``."""
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    discs = torch.stack([((x - 50 - i) ** 2 + (y - 64) ** 2 < 1100) for i in range(frames)])[:, None]
    return torch.where(discs, torch.tensor([0.9, 0.1, 0.1])[:, None, None], torch.ones(3, 1, 1))


@pytest.mark.slow
def test_four_steps_show_what_was_asked_for(pipe: Any) -> None:
    stream = engine(pipe, prompt=THINGS[0], strength=1.0, num_steps=4)
    pictures = []
    for thing in THINGS:
        stream.update(prompt=thing, at="new")
        pictures += stream.push()
    pictures += stream.flush()
    assert [output.frame_id for output in pictures] == list(range(len(THINGS)))
    accuracy = Judge(captions()).accuracy(torch.stack([output.image for output in pictures]), THINGS)
    assert accuracy.top1 >= 0.75
    assert accuracy.top5 == 1.0


@pytest.mark.slow
def test_batched_and_sequential_streams_agree(pipe: Any) -> None:
    settings = {"prompt": "red heart", "timestep_indices": (25, 40), "guidance": SelfNegative(1.2)}
    both = [[o.image for o in engine(pipe, stream_batch=b, **settings).stream(film(5))] for b in (True, False)]
    for batched, sequential in zip(*both, strict=True):
        torch.testing.assert_close(batched, sequential, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_slot_cache_stays_closer_than_showing_pictures_twice(pipe: Any) -> None:
    settings = {"prompt": "red heart", "timestep_indices": (25, 40)}
    plain, cached = ([o.image for o in engine(pipe, cache=c, **settings).stream(film(14))] for c in (None, CLOSE))
    error = torch.stack([(a - b).square().mean() for a, b in zip(plain, cached, strict=True)]).mean()
    twice = torch.stack([(plain[i] - plain[i - i % 2]).square().mean() for i in range(len(plain))]).mean()
    assert error > 0
    assert 10 * (twice / error).log10() >= 4  # dB
