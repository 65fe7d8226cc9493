"""Keys and values of prompts: projected once per prompt, and never stale."""

import copy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from stream_pipelines import Build
from test_stream_update import lora

from diffaccel import DeepCache, FullGuidance, SelfNegative, SlotCache
from diffaccel._diffusers import hooks_of
from diffaccel.networks import layout_of
from diffaccel.runtime.attachment import ActHook
from diffaccel.stream.machine import prompt_parts


@pytest.fixture
def own(sd: Any) -> Any:
    """A pipeline whose weights a test may change."""
    pipe = copy.copy(sd)
    pipe.unet = copy.deepcopy(sd.unet)
    return pipe


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that projections are really computed on, call by call."""
    seen: list[int] = []
    original = ActHook.original

    def counted(self: ActHook, prompt: torch.Tensor) -> torch.Tensor:
        seen.append(len(prompt))
        return original(self, prompt)

    monkeypatch.setattr(ActHook, "original", counted)
    return seen


def test_projected_once_per_prompt(own: Any, engine: Build, frames: torch.Tensor, rows: list[int]) -> None:
    stream = engine(own)
    for frame in frames[:3]:  # fills the three stages
        stream.push(frame)
    rows.clear()
    for frame in frames[3:]:
        stream.push(frame)
    assert rows == []
    stream.update(prompt="a dog")
    stream.push(frames[0])
    stream.push(frames[1])
    assert rows == [1] * len(layout_of(own.unet).conditioning_only)  # three rows share one prompt


@pytest.mark.parametrize(
    ("guidance", "cache"),
    cells(
        product((SelfNegative(1.4), FullGuidance(2.0)), (None, DeepCache(2), SlotCache(DeepCache(2), "frame"))),
        lambda cell: isinstance(cell[0], SelfNegative) == isinstance(cell[1], DeepCache),
    ),
)
def test_lossless(
    guidance: Any, cache: Any, own: Any, engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[torch.Tensor]:
        with engine(own, guidance=guidance, cache=cache) as stream:
            pictures = [o.image for frame in frames[:4] for o in stream.push(frame)]
            stream.update(prompt={"a dog": 1.0, "a cat": 0.5}, at="new")
            return pictures + [o.image for o in stream.stream(frames[4:7])]

    ours = run()
    monkeypatch.setattr("diffaccel.stream.machine.prompt_parts", lambda _: [])
    for a, b in zip(ours, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_nothing_within_compiled_code_is_hooked(own: Any) -> None:
    """A hook that asks what weights are would break the graph, block by block."""
    assert prompt_parts(own.unet)
    block = next(m for name, m in own.unet.named_modules() if name.endswith("transformer_blocks.0"))
    block._compiled_call_impl = block.forward  # as Module.compile leaves it
    assert prompt_parts(own.unet) == []
    block._compiled_call_impl = None
    own.unet.forward = SimpleNamespace(_torchdynamo_orig_callable=own.unet.forward)  # as torch.compile does
    assert prompt_parts(own.unet) == []


def test_written_weights_are_noticed(own: Any, engine: Build, frames: torch.Tensor) -> None:
    stream = engine(own)
    stream.push(frames[0])
    stream.flush()
    with torch.no_grad():
        for name in layout_of(own.unet).conditioning_only:
            own.unet.get_submodule(name).weight.mul_(3.0)
    stream.reset()
    ours = [o.image for o in stream.stream(frames[:4])]
    for a, b in zip(ours, engine(own).stream(frames[:4]), strict=True):
        assert torch.equal(a, b.image)


@pytest.mark.parametrize("loaded_first", [True, False])
def test_adapters_that_are_merged_while_the_stream_runs_are_noticed(
    loaded_first: bool, engine: Build, frames: torch.Tensor
) -> None:
    """Merging writes to weights so that they do not tell."""
    pipe = stream_pipelines.sd()
    if loaded_first:
        lora(pipe)
    stream = engine(pipe, timestep_indices=(20,))
    if not loaded_first:
        lora(pipe)
    for act in (pipe.fuse_lora, pipe.unfuse_lora, pipe.fuse_lora):
        stream.push(frames[0])
        act()
        ours, anew = (s.push(frames[1])[0].image for s in (stream, engine(pipe, timestep_indices=(20,))))
        torch.testing.assert_close(ours, anew, rtol=0, atol=1e-5)


def test_nothing_remains(own: Any, engine: Build, frames: torch.Tensor) -> None:
    names = layout_of(own.unet).conditioning_only
    with engine(own) as stream, engine(own) as other:
        stream.push(frames[0])
        stream.close()
        assert hooks_of(own.unet.get_submodule(names[0]))
        other.push(frames[0])
    assert not any(hooks_of(own.unet.get_submodule(name)) for name in names)
