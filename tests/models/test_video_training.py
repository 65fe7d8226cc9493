"""The clips, the measure of motion and the causal network that train_video.py trains and evaluate_video.py judges."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from causal_motion import CausalVideo, cyclic_table, reference, teacher_forcing
from emoji_data import compose, place
from motion_measure import flicker, is_right, moved, shift, swing
from train_video import RESTART, behind, draw_timesteps
from video_data import DRAWINGS, MOTIONS, MOVING, Pose, caption, is_held_out, trajectory

START = {
    "up": Pose(0.6, 0.0, 0.4, 0),
    "down": Pose(0.6, 0.0, -0.4, 0),
    "left": Pose(0.6, 0.4, 0.0, 0),
    "right": Pose(0.6, -0.4, 0.0, 0),
    "bounce": Pose(0.6, 0.0, 0.4, 0),
    "shrink": Pose(0.9, 0.0, 0.0, 0),
}


def clip(motion: str, frames: int = 20) -> tuple[torch.Tensor, tuple[Pose, ...]]:
    """An L of two colours on the path of a motion."""
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[10:118, 10:50] = (200, 30, 30, 255)
    rgba[80:118, 50:110] = (30, 30, 200, 255)
    poses = tuple(trajectory(motion, START.get(motion, Pose(0.55, 0.0, 0.0, 0)), frames))
    white = np.ones(3, np.float32)
    return compose([([place(rgba, p.scale, p.x, p.y, p.degrees)], white) for p in poses]), poses


@pytest.mark.slow
@pytest.mark.parametrize("motion", MOVING)
def test_a_drawn_motion_is_right_and_only_that(motion: str) -> None:
    frames, poses = clip(motion)
    due = shift(poses, motion)
    assert moved(frames, motion) == pytest.approx(due, rel=0.05)
    assert is_right(frames, motion, due)
    assert not is_right(frames[:1].expand(20, -1, -1, -1), motion, due)
    assert not is_right(frames.flip(0), motion, due) or motion in ("sway", "bounce")
    other = [m for m in MOVING if m != motion and is_right(frames, m, shift(clip(m)[1], m))]
    assert other == []


def test_an_empty_frame_is_never_right() -> None:
    frames, poses = clip("up")
    frames[-1] = 1.0
    assert not is_right(frames, "up", shift(poses, "up"))


def test_flicker_is_what_the_path_does_not_explain() -> None:
    frames, poses = clip("sway")
    smooth = flicker(frames, poses)
    shaken = flicker(frames + 0.1 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0)), poses)
    still = flicker(frames, (poses[0],) * len(poses))
    assert smooth < 0.01 < shaken
    assert still > 3 * smooth


def test_swing_ignores_a_trend() -> None:
    steps = np.arange(30)
    assert swing(0.7 * steps + 3 * np.sin(2 * np.pi * steps / 10 + 1), 10) == pytest.approx(3)


def test_what_moves_stops_at_the_edge_and_what_grows_when_it_fills_the_picture() -> None:
    assert trajectory("right", Pose(0.6, 0.0, 0.0, 0), 40)[-1].x == pytest.approx(0.4)
    assert trajectory("grow", Pose(0.6, 0.0, 0.0, 0), 60)[-1].scale == pytest.approx(0.9)
    with pytest.raises(ValueError, match="unknown motion 'melt'; one of up, down"):
        trajectory("melt", Pose(0.6, 0.0, 0.0, 0), 4)


def test_every_drawing_and_every_motion_is_trained_and_held_out() -> None:
    held = np.array([[is_held_out(d, m) for m in MOTIONS] for d in range(len(DRAWINGS))])
    assert (held.sum(1) == 1).all()
    assert dict(zip(MOTIONS, held.sum(0), strict=True)) == dict.fromkeys(MOVING, 4) | {"stay": 0}


def test_captions() -> None:
    assert caption("rocket", "flies up") == "a rocket flies up"
    assert [caption(n, "spins")[:3] for n in ("owl", "umbrella", "unicorn", "ufo")] == ["an ", "an ", "a u", "a u"]


def test_the_table_of_positions_has_no_seam() -> None:
    table = cyclic_table(16, 64)[0]
    products = table @ table.T
    for distance in range(16):
        across = products[torch.arange(16), (torch.arange(16) + distance) % 16]
        assert across.allclose(across[:1].expand(16), atol=1e-4)
    assert products.unique(dim=0).shape[0] == 16


@pytest.mark.parametrize("chunks", [[0, 0, 0, 1, 1, 1], [0, 1, 2, 3], [0, 0, 1, 1, 2]])
def test_teacher_forcing_shows_clean_frames_of_earlier_chunks_and_noisy_ones_of_the_same(chunks: list[int]) -> None:
    rows, mask = teacher_forcing(torch.tensor(chunks))
    past = len(rows) - len(chunks)
    assert rows.tolist() == [*range(past), *range(len(chunks))]
    for i, query in enumerate(rows.tolist()):
        for j, key in enumerate(rows.tolist()):
            earlier, same = chunks[key] < chunks[query], chunks[key] == chunks[query]
            clean_pair, noisy_pair = i < past and j < past, i >= past and j >= past
            expected = (earlier and j < past) or (same and (clean_pair or noisy_pair))
            assert bool(mask[i, j]) == expected


def tiny() -> CausalVideo:
    torch.manual_seed(0)
    shape = {"block_out_channels": (16, 16, 16)}
    image = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        **shape,
    )
    adapter = MotionAdapter(
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=16,
        **shape,
    )
    return CausalVideo.build(image, adapter).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("sizes", "window", "first"), [((4, 4, 4), 8, 0), ((3, 3, 3, 2), 3, 13), ((1, 1, 1), 1, 5)])
def test_kept_frames_equal_one_pass_over_the_prefix(sizes: tuple[int, ...], window: int, first: int) -> None:
    network, rng = tiny(), torch.Generator().manual_seed(1)
    chunks = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    clean = torch.randn(2, len(chunks), 4, 8, 8, generator=rng)
    noisy = torch.randn(2, sizes[-1], 4, 8, 8, generator=rng)
    context, t = torch.randn(2, 5, 8, generator=rng), torch.tensor(450)
    past = len(chunks) - sizes[-1]
    expected = reference(network, clean[:, :past], noisy, t, context, chunks, first, window)

    written = 0
    for size in sizes[:-1]:
        mask = torch.ones(size, min(written, window) + size, dtype=torch.bool)
        times = torch.zeros(2, size, dtype=torch.long)
        positions = first + written + torch.arange(size)
        network(clean[:, written : written + size], times, context, positions, mask, keep=window)
        written += size
    mask = torch.ones(sizes[-1], min(written, window) + sizes[-1], dtype=torch.bool)
    positions = first + written + torch.arange(sizes[-1])
    call = (noisy, t.expand(2, sizes[-1]), context, positions, mask)
    assert network(*call).allclose(expected, atol=1e-5)
    network.forget()
    alone = reference(network, clean[:, :0], noisy, t, context, chunks[past:], first + past)
    assert not alone.allclose(expected, atol=1e-3)


@torch.no_grad()
def test_a_pass_of_teacher_forcing_equals_every_chunk_given_what_came_before() -> None:
    network, rng = tiny(), torch.Generator().manual_seed(2)
    chunks = torch.tensor([0, 0, 1, 1, 2, 2])
    clean, noisy = torch.randn(2, 1, 6, 4, 8, 8, generator=rng)
    context, t = torch.randn(1, 5, 8, generator=rng), torch.tensor(600)
    rows, mask = teacher_forcing(chunks)
    times = torch.cat([torch.zeros(1, 4, dtype=torch.long), t.expand(1, 6)], 1)
    out = network(torch.cat([clean[:, :4], noisy], 1), times, context, rows, mask)[:, 4:]
    for start in (0, 2, 4):
        here = reference(network, clean[:, :start], noisy[:, start : start + 2], t, context, chunks[: start + 2])
        assert out[:, start : start + 2].allclose(here, atol=1e-5)


def test_a_later_chunk_is_behind_by_the_frame_before_it() -> None:
    frames = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[None, :, None, None, None]
    assert behind(frames, torch.tensor([0, 0, 1, 1, 2])).flatten().tolist() == [0, 0, 2 - 4, 2 - 8, 8 - 16]


def test_timesteps_are_one_per_chunk_and_bounded_where_a_frame_is_there_to_start_from() -> None:
    chunks = torch.tensor([0, 0, 1, 1])
    times = draw_timesteps(chunks, 64, np.random.default_rng(0))
    assert (times[:, 0] == times[:, 1]).all()
    assert (times[:, 2] == times[:, 3]).all()
    assert times[:, 0].max() > 900
    assert RESTART < times[:, 2].max() < RESTART + 20
    assert draw_timesteps(chunks, 64, np.random.default_rng(0), None)[:, 2].max() > 900
