"""What chunks cost: far fewer multiply-accumulates than all frames anew at every step, at any length."""

from itertools import islice

import pytest
import torch
from causal_reference import FAMILIES, SIDE, embedded, video_pipe
from diffusers import FlowMatchEulerDiscreteScheduler

from diffaccel import CausalContext, VideoEngine
from diffaccel.attach.macs import count_macs

CHUNKS, CHUNK, STEPS = 10, 3, 8


def engine(context: CausalContext, **settings: object) -> VideoEngine:
    pipe = video_pipe(FAMILIES["wan"], FlowMatchEulerDiscreteScheduler())
    chosen = {"chunk": CHUNK, "num_steps": STEPS, "height": 64, "width": 64, "output_type": "latent"}
    return VideoEngine(pipe, prompt="a cat", context=context, **{**chosen, **settings})  # type: ignore[arg-type]


def macs_of(video: VideoEngine, chunks: int) -> int:
    return count_macs(lambda: list(islice(video, chunks)))


@torch.no_grad()
def macs_anew() -> int:
    """Every step of every chunk on all frames so far."""
    model = FAMILIES["wan"].build()

    def run() -> None:
        for frames in range(CHUNK, (CHUNKS + 1) * CHUNK, CHUNK):
            model(torch.zeros(1, 4, frames, SIDE, SIDE), torch.tensor([500]), embedded("a cat"))

    return STEPS * count_macs(run)


@pytest.mark.slow
def test_ten_chunks_of_eight_steps_cost_less_than_a_quarter_of_a_prefix_computed_anew() -> None:
    anew = macs_anew()
    assert anew / macs_of(engine(CausalContext(window=None)), CHUNKS) >= 4.5
    assert anew / macs_of(engine(CausalContext(window=6)), CHUNKS) >= 4.5


@pytest.mark.slow
def test_a_chunk_behind_a_full_window_costs_the_same_for_ever() -> None:
    video = engine(CausalContext(window=6, sink=1), num_steps=2)
    macs_of(video, 4)
    costs = [macs_of(video, 1) for _ in range(3)]
    list(islice(video, 30))
    assert {*costs, macs_of(video, 1)} == {costs[0]}
    assert video.report().context_frames == 7
