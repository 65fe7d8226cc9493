"""ControlCache in streams: kept as long as the control image is still, or along a frame's stages; and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import stream_pipelines
import torch
from stream_pipelines import Build
from test_stream_controlnet import close, controlled, counted, run, same

from diffaccel import ControlCache, DeepCache, FullGuidance, SlotCache, UnsupportedModelError
from diffaccel.methods import EncoderPropagation
from diffaccel.reuse.schedule import Uniform

STILL = torch.zeros(3, 32, 32)
STILL[:, 8:20, 4:9] = 1


@pytest.fixture
def pipe() -> Any:
    return controlled()


def override(pipe: Any, computed: Callable[[int], int]) -> list[Any]:
    """All runs, and at each call the residuals are those of the call that `computed` names."""
    outputs = [*pipe.controlnet.controlnet_down_blocks, pipe.controlnet.controlnet_mid_block]
    known: list[list[torch.Tensor]] = [[] for _ in outputs]

    def hook(number: int) -> Callable[..., torch.Tensor]:
        def after(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            known[number].append(output.clone())
            return known[number][computed(len(known[number]) - 1)]

        return after

    return [module.register_forward_hook(hook(number)) for number, module in enumerate(outputs)]


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [None, FullGuidance(1.6)], ids=["no", "full"])
def test_by_stage_a_still_image_is_reused(guidance: Any, pipe: Any, engine: Build, frames: Any) -> None:
    more = {} if guidance is None else {"guidance": guidance}
    settings = {"timestep_indices": (30,), "controlnet_scale": 2.0, **more}
    stills = [STILL.clone() for _ in range(5)]
    plain = run(engine(pipe, **settings), frames[:5], stills)
    same(run(engine(pipe, cache=ControlCache(1), **settings), frames[:5], stills), plain)
    hooks = override(pipe, lambda call: call - call % 2)
    expected = run(engine(pipe, **settings), frames[:5], stills)
    for handle in hooks:
        handle.remove()
    kept = SlotCache(ControlCache(2), scene_change=1.0)
    found = run(engine(pipe, cache=kept, **settings), frames[:5], stills)
    for i in expected:
        close(found[i], expected[i])
    assert any(not torch.equal(found[i], plain[i]) for i in plain)


def test_by_stage_a_moving_image_is_followed(pipe: Any, engine: Build, frames: Any) -> None:
    moving = [STILL.roll(3 * i, -1) for i in range(5)]
    settings = {"timestep_indices": (20, 40), "controlnet_scale": 2.0}
    plain = run(engine(pipe, **settings), frames[:5], moving)
    same(run(engine(pipe, cache=ControlCache(4), **settings), frames[:5], moving), plain)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, DeepCache(schedule=Uniform(2))], ids=["alone", "DeepCache"])
def test_by_frame_it_goes_along_the_stages(cache: Any, pipe: Any, engine: Build, frames: Any) -> None:
    """One frame after the other, with everything computed and overridden, is the reference."""
    moving = [STILL.roll(3 * i, -1) for i in range(4)]
    settings = {"timestep_indices": (10, 25, 40), "controlnet_scale": 2.0}
    control = ControlCache(2)
    kept = SlotCache(control, "frame") if cache is None else SlotCache(cache, "frame", control=control)
    unet = None if cache is None else SlotCache(cache, "frame")
    hooks = override(pipe, lambda call: call - call % 3 % 2)
    expected = run(engine(pipe, stream_batch=False, cache=unet, **settings), frames[:4], moving)
    for handle in hooks:
        handle.remove()
    same(run(engine(pipe, cache=kept, **settings), frames[:4], moving), expected)


def test_a_still_image_is_embedded_once(pipe: Any, engine: Build, frames: Any) -> None:
    rows = counted(pipe)
    embedded: list[int] = []
    pipe.controlnet.controlnet_cond_embedding.conv_in.register_forward_pre_hook(lambda m, a: embedded.append(len(a[0])))
    run(engine(pipe, timestep_indices=(20, 40)), frames[:6], [STILL.clone() for _ in range(6)])
    assert embedded == [1]
    run(engine(pipe, timestep_indices=(20, 40)), frames[:3], [STILL.roll(i, -1) for i in range(3)])
    assert embedded == [1] * 4
    assert len(rows) > 6


def test_what_is_not_finite_is_forgotten(pipe: Any, engine: Build, frames: Any) -> None:
    kept = SlotCache(ControlCache(9), scene_change=1.0)
    stream = engine(pipe, cache=kept, timestep_indices=(30,))
    expected = run(engine(pipe, cache=kept, timestep_indices=(30,)), frames[1:3], [STILL] * 2)
    spoil = pipe.controlnet.mid_block.register_forward_hook(lambda m, a, output: output * float("nan"))
    run(stream, frames[:1], [STILL])
    spoil.remove()
    found = run(stream, frames[1:3], [STILL] * 2)
    for one, other in zip(found.values(), expected.values(), strict=True):
        close(one, other)


def test_what_is_refused(pipe: Any, engine: Build) -> None:
    with pytest.raises(UnsupportedModelError, match="ControlCache needs a ControlNet"):
        engine(stream_pipelines.sd(), cache=ControlCache(2))
    with pytest.raises(ValueError, match="both say when the ControlNet runs"):
        engine(pipe, cache=SlotCache(EncoderPropagation(Uniform(2)), control=ControlCache(2)))
    with pytest.raises(ValueError, match="control must be a method of ControlNets"):
        SlotCache(DeepCache(2), control=DeepCache(2))
    with pytest.raises(ValueError, match="keep of ControlNetModel"):
        engine(pipe, cache=ControlCache(keep=99))
