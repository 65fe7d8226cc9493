"""Reliability of what a session may change to: clips without end, other models, LoRAs; and of streams that are left."""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from reliability.live_clients import megabytes

from diffaccel import models
from diffaccel.realtime.opening import Studio
from diffaccel.realtime.settings import LiveSettings
from diffaccel.stream.engine import StreamEngine

GREY = np.full((128, 128, 3), 128, np.uint8)


def opened(**more: object) -> Studio:
    """The bundled model and what it offers."""
    return Studio.open(LiveSettings(device="cpu", **more), 32, lambda *_: None)  # type: ignore[arg-type]


def check_dream(_model: str, _place: Path, options: argparse.Namespace) -> str:
    """5,000 pictures of one clip under changing words; memory stays level."""
    count = max(40, int(5000 * options.scale))
    studio, levels = opened(), []
    small = studio.controls.model_copy(update={"dream": "words", "steps": 1, "picture_size": "32x32"})
    with studio.host:
        stream = studio.stream(small)
        for number in range(count):
            if number % 40 == 20:
                stream.configure(small.model_copy(update={"prompt": f"picture {number // 40 % 7}"}))
            stream.push(GREY, frame_id=number)
            if number % max(1, count // 10) == 0:
                levels.append(megabytes())
        stream.close()
    grown = levels[-1] - levels[len(levels) // 2]
    said = f"{count} pictures of a clip, memory {grown:+.1f} MB in the second half"
    assert grown <= 10, said
    return said


def check_changes(_model: str, _place: Path, options: argparse.Namespace) -> str:
    """One session changes model and LoRA again and again; another one's pictures do not."""
    rounds = max(1, int(20 * options.scale))
    studio = opened(offers=("emoji-sd-small",), offered_loras=(("lcm", "emoji-lcm-lora"),))
    plain = studio.controls.model_copy(update={"similarity": False, "cache": 1})
    ways = ({"model": "emoji-sd-small"}, {"lora": "lcm"}, {"lora": "lcm", "lora_scale": 0.3}, {})
    level = 0.0
    with studio.host:
        painter, other = studio.stream(plain), studio.stream(plain)
        pictures = [np.asarray(o.image) for k in range(8) for o in painter.push(GREY, frame_id=k)]
        for number in range(rounds * len(ways)):
            other.configure(plain.model_copy(update=ways[number % len(ways)]))
            other.push(GREY, frame_id=number)
            again = [np.asarray(o.image) for o in painter.push(GREY, frame_id=8 + number)][-1]
            apart = np.abs(again.astype(int) - pictures[-1]).max()
            assert apart <= 1, f"the other session's picture changed by {apart} with {ways[number % len(ways)]}"
            if number == len(ways) - 1:
                level = megabytes()
        rows = studio.host.report().rows
    grown = megabytes() - level
    said = f"{rounds * len(ways)} changes of model and LoRA, nobody else's picture changed, memory {grown:+.0f} MB"
    assert rows == 4, f"{said}; {rows} rows are left"
    assert grown <= 60, said
    return said


def check_left(model: str, _place: Path, options: argparse.Namespace) -> str:
    """A stream that is left early leaves no frame to the next one; an autoencoder of other latents is told at once."""
    pipe = models.load(model, device="cpu")
    count = max(3, int(50 * options.scale))
    settings = {"prompt": "a cat", "strength": 1.0, "num_steps": 3, "height": 32, "width": 32}
    engine = StreamEngine(pipe, **settings)
    for _ in range(count):
        first = engine.next_frame_id
        found = list(islice(engine.stream(torch.rand(3, 32, 32) for _ in range(8)), 2))
        assert [output.frame_id for output in found] == [first, first + 1], "a frame of an earlier stream came out"
        assert engine.frames_in_flight == 0
    wide = AutoencoderKL(latent_channels=16, block_out_channels=(8,), norm_num_groups=4)
    try:
        StreamEngine(pipe, vae=wide, **settings)
    except (TypeError, ValueError) as error:
        return f"{count} streams left early, none left a frame; 16 channels: {str(error)[:60]} ..."
    raise AssertionError("an autoencoder with 16 channels was taken")


CHECKS_OF_DREAMS = {"dream": check_dream, "another model": check_changes, "left early": check_left}
