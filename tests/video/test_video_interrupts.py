"""What is raised in the middle of a video leaves no trace: the next call goes on as if nothing had been."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from causal_reference import seeded
from test_video_engine import engine_of, latents_of
from test_video_experts import engine_of as experts_of

from diffaccel import CausalContext, VideoEngine
from diffaccel.sampling.samplers import LCM, TCD, EulerAncestral, Sampler


class Stop:
    """Raises when a module runs for the n-th time."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.left = 0
        module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def halted(engine: VideoEngine, module: torch.nn.Module, at: int) -> None:
    stop = Stop(module)
    stop.left = at
    with pytest.raises(KeyboardInterrupt):
        engine.next()
    stop.left = 0


def chunks_of(engine: VideoEngine, count: int) -> torch.Tensor:
    return torch.cat([chunk.latents for chunk in islice(engine, count)])


def test_a_context_that_is_computed_anew_goes_on_wherever_it_was_stopped() -> None:
    context = CausalContext(window=6, refresh="chunk")
    whole, engine = (engine_of("wan", context=context) for _ in range(2))
    expected, found = chunks_of(whole, 5), [chunks_of(engine, 3)]
    for at in (1, 2):  # the first piece of the window, and the second one
        halted(engine, engine.pipe.transformer.blocks[1], at)
        found.append(engine.next().latents)
    assert torch.allclose(torch.cat(found), expected, atol=1e-5)


@pytest.mark.parametrize("at", [2, 4, 6, 8])
def test_given_frames_of_a_stream_batch_are_kept_as_if_nothing_had_been_raised(at: int) -> None:
    pictures = [np.random.default_rng(k).random((64, 64, 3)) for k in range(9)]
    whole, engine = (engine_of("wan", stream_batch=True, given=pictures) for _ in range(2))
    halted(engine, engine.pipe.transformer.blocks[1], at)
    assert torch.allclose(chunks_of(engine, 2), chunks_of(whole, 2), atol=1e-5)


def test_given_frames_are_not_kept_twice() -> None:
    pictures = [np.random.default_rng(k).random((64, 64, 3)) for k in range(12)]
    whole, engine = (engine_of("motion", given=pictures) for _ in range(2))
    halted(engine, engine.pipe.unet.mid_block, 4)
    assert engine._video.history.written == 9
    assert torch.allclose(chunks_of(engine, 2), chunks_of(whole, 2), atol=1e-5)


@pytest.mark.parametrize("batch", [False, True])
def test_what_the_second_expert_raises_leaves_the_first_ones_frames_as_they_were(batch: bool) -> None:
    whole, engine = (experts_of(stream_batch=batch) for _ in range(2))
    expected, found = chunks_of(whole, 6), [chunks_of(engine, 3)]
    for _ in range(2):
        halted(engine, engine.pipe.transformer_2.blocks[1], 1)
        found.append(engine.next().latents)
    found.append(engine.next().latents)
    assert torch.allclose(torch.cat(found), expected, atol=1e-5)


def test_a_step_that_raises_behind_the_last_one_loses_no_chunk() -> None:
    whole, engine = engine_of("motion"), engine_of("motion")

    def stop(step: int, _: float, latents: torch.Tensor) -> torch.Tensor:
        if step == 1:
            raise KeyboardInterrupt
        return latents

    engine.on_step = stop
    with pytest.raises(KeyboardInterrupt):
        engine.next()
    engine.on_step = None
    first = engine.next()
    assert (first.index, first.first) == (0, 0)
    assert torch.allclose(torch.cat([first.latents, engine.next().latents]), chunks_of(whole, 2), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [LCM(), TCD(eta=1.0), EulerAncestral()])
def test_steps_that_add_noise_add_other_noise_to_every_chunk(sampler: Sampler) -> None:
    engine, again = (engine_of("motion", sampler=sampler) for _ in range(2))
    added = []

    def on_step(step: int, _: float, latents: torch.Tensor) -> torch.Tensor:
        slot = engine._video.batch.slots[0] if step == 0 else None
        if slot is not None:
            added.append(slot.settings.stages.noise_of(1))
        return latents

    engine.on_step = on_step
    assert torch.equal(latents_of(engine, 3), latents_of(again, 3))
    begun = [engine._video.noise(k, 3) for k in range(3)]
    for k, one in enumerate(added):
        others = [*added[:k], *begun]
        assert all(float((one * other).mean().abs()) < 0.3 for other in others)
    assert len(added) == 3


def remembering() -> Any:
    """An autoencoder that decodes every frame with those before it in mind."""
    from diffusers import AutoencoderKLWan

    return seeded(lambda: AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
    ))  # fmt: skip


def test_a_reset_that_raises_leaves_the_video_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, engine = (engine_of("wan", vae=remembering(), output_type="pt") for _ in range(2))
    expected = [whole.next().frames for _ in range(2)]
    found = [engine.next().frames]

    def refused(*_: Any) -> None:
        raise RuntimeError("is accelerated already")

    with monkeypatch.context() as patched:
        patched.setattr("diffaccel.video.filming.Experts", refused)
        with pytest.raises(RuntimeError, match="accelerated already"):
            engine.reset()
    found.append(engine.next().frames)
    assert [len(frames) for frames in found] == [9, 12]
    for made, right in zip(found, expected, strict=True):
        assert torch.allclose(torch.stack(made), torch.stack(right), atol=1e-5)


def test_pictures_cannot_follow_latents_where_the_autoencoder_remembers() -> None:
    engine = engine_of("wan", vae=remembering())
    engine.update(output_type="np")
    assert [(len(chunk.frames), chunk.first) for chunk in islice(engine, 2)] == [(9, 0), (12, 9)]
    with pytest.raises(ValueError, match=r"'latent' cannot follow 'np'.*reset\(\) the engine"):
        engine.update(output_type="latent")
    engine.update(output_type="pt")
    engine.reset()
    engine.update(output_type="latent")
    assert [(len(chunk.frames), chunk.first) for chunk in islice(engine, 2)] == [(3, 0), (3, 9)]
    assert engine.report().pictures == 21
    assert (engine.pictures_next, engine.frames_for(5)) == (12, 2)
