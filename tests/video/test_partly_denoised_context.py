"""In a stream batch, chunks may see the ones before as far denoised as they are by then (Block Cascading)."""

from itertools import islice

import pytest
import torch
from causal_reference import FAMILIES, SIDE, Sight, embedded, one_pass
from test_video_engine import engine_of, latents_of, scheduler_of

from diffaccel import CausalContext

STEPS, CHUNK, WINDOW, CHUNKS = 3, 3, 4, 3


def reference(name: str, noise: list[torch.Tensor], numbering: str) -> list[torch.Tensor]:
    """Every chunk at every stage is a piece of one long sequence, and sees what was there one call earlier."""
    family, scheduler = FAMILIES[name], scheduler_of(FAMILIES[name])
    scheduler.set_timesteps(STEPS)
    states = {(c, 0): noise[c].transpose(0, 1)[None] for c in range(CHUNKS)}
    grids = [scheduler_of(family) for _ in range(CHUNKS)]
    for grid in grids:
        grid.set_timesteps(STEPS)
    done: list[tuple[int, int]] = []
    for tick in range(CHUNKS + STEPS - 1):
        now = [(c, tick - c) for c in range(CHUNKS) if 0 <= tick - c < STEPS]
        pieces = [*done, *now]
        start = {piece: k * CHUNK for k, piece in enumerate(pieces)}
        plan, times = [], []
        for chunk, stage in pieces:
            first = chunk * CHUNK
            seen, positions = [], []
            for frame in range(max(0, first - WINDOW), first):
                other = frame // CHUNK
                latest = min(stage + chunk - other - 1, STEPS - 1)  # what it was at in the call before
                seen.append(start[other, latest] + frame % CHUNK)
                positions.append(frame)
            own = tuple(range(start[chunk, stage], start[chunk, stage] + CHUNK))
            numbers = (*positions, *range(first, first + CHUNK))
            numbers = tuple(range(len(numbers))) if numbering == "relative" else tuple(n % 16 for n in numbers)
            plan.append(Sight(own, tuple(seen), numbers))
            times += [float(scheduler.timesteps[stage])] * CHUNK
        sequence = torch.cat([states[piece] for piece in pieces], 2)
        made = one_pass(family, sequence, torch.tensor(times), embedded("a cat"), plan)
        for chunk, stage in now:
            at = start[chunk, stage]
            states[chunk, stage + 1] = (
                grids[chunk]
                .step(made[:, :, at : at + CHUNK], scheduler.timesteps[stage], states[chunk, stage])
                .prev_sample
            )
        done = pieces
    return [states[c, STEPS] for c in range(CHUNKS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "numbering"), [("motion", "cyclic"), ("latte", "cyclic"), ("wan", "relative")])
def test_chunks_see_the_latest_of_those_before(name: str, numbering: str) -> None:
    context = CausalContext(window=WINDOW, commit="latest")
    engine = engine_of(name, context=context, stream_batch=True, num_steps=STEPS)
    found = [chunk.latents.transpose(0, 1)[None] for chunk in islice(engine, CHUNKS)]
    expected = reference(name, [engine._video.noise(k, CHUNK) for k in range(CHUNKS)], numbering)
    for made, plain in zip(found, expected, strict=True):
        assert torch.allclose(made, plain, atol=1e-4 * float(plain.abs().max()))
    by_stage = engine_of(name, context=CausalContext(window=WINDOW), stream_batch=True, num_steps=STEPS)
    assert not torch.allclose(latents_of(by_stage, CHUNKS)[:, :, -CHUNK:], found[-1], atol=1e-3)
    report = engine.report()
    assert (report.network_calls, report.context_calls) == (CHUNKS + STEPS - 1, 0)


def test_given_frames_are_seen_clean_by_all_stages() -> None:
    given = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    context = CausalContext(window=WINDOW, commit="latest")
    engine = engine_of("wan", context=context, stream_batch=True, num_steps=STEPS, given=given)
    chunk = engine.next()
    assert engine.report().context_calls == STEPS
    plain = engine_of("wan", context=CausalContext(window=WINDOW), given=given, num_steps=STEPS)
    assert torch.allclose(chunk.latents, plain.next().latents, atol=1e-4)  # the first chunk sees nothing but them
    assert chunk.latents.shape == (CHUNK, 4, SIDE, SIDE)
