"""LoRAs that each stream follows as strongly as it says: what the pipeline paints with its adapters set so."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from peft import LoraConfig
from stream_pipelines import Build
from test_stream_host import hold

from diffaccel import DeepCache, FullGuidance, StreamEngine


def with_loras(pipe: Any, names: Sequence[str]) -> Any:
    """A pipeline with the LoRAs one and two of random weights, in layers whose names end so."""
    network = getattr(pipe, "unet", None) or pipe.transformer
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a second adapter
        torch.manual_seed(1)
        for name in ("one", "two"):
            config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=list(names))
            network.add_adapter(config, name)
    network.set_adapters(["one", "two"], [1.0, 1.0])
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return with_loras(stream_pipelines.sd(), ("to_q", "to_k", "to_out.0", "conv1", "time_emb_proj"))


def painted(engine: StreamEngine, frames: torch.Tensor) -> torch.Tensor:
    with engine:
        return torch.stack([output.image for output in engine.stream(frames)])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    cells(
        [{}, {"guidance": FullGuidance(1.5)}, {"stream_batch": False}, {"cache": DeepCache(2)}],
        lambda settings: "guidance" in settings or "cache" in settings,
    ),
)
def test_a_scale_is_what_the_pipeline_would_set(
    pipe: Any, engine: Build, frames: torch.Tensor, settings: dict[str, Any]
) -> None:
    shown = {}
    for scales in ({"one": 0.4, "two": 0.0}, {"two": 1.6}):
        shown[str(scales)] = painted(engine(pipe, lora=scales, **settings), frames[:3])
        pipe.unet.set_adapters(["one", "two"], [scales.get("one", 1.0), scales["two"]])
        close(shown[str(scales)], painted(engine(pipe, **settings), frames[:3]))
        pipe.unet.set_adapters(["one", "two"], [1.0, 1.0])
    assert not torch.allclose(*shown.values(), atol=1e-2)


def test_a_transformer(engine: Build, frames: torch.Tensor) -> None:
    plain = painted(engine(stream_pipelines.sd3()), frames[:3])
    pipe = with_loras(stream_pipelines.sd3(), ("to_q", "to_v"))
    close(painted(engine(pipe, lora={"one": 0.0, "two": 0.0}), frames[:3]), plain)
    whole = painted(engine(pipe), frames[:3])
    close(painted(engine(pipe, lora={"one": 1.0}), frames[:3]), whole)
    assert not torch.allclose(plain, whole, atol=1e-3)


@pytest.mark.slow
def test_streams_of_a_host_follow_their_own(pipe: Any, frames: torch.Tensor) -> None:
    settings: list[dict[str, Any]] = [
        {"lora": {"one": 0.3, "two": 0.0}},
        {"lora": {"two": 1.5}, "prompt": "a star", "cache": DeepCache(2), "guidance": FullGuidance(1.5)},
        {"prompt": "a red dog"},
    ]
    films = [frames[k : k + 4] for k in range(3)]
    assert hold(pipe, settings, films).report().streams_per_call["network"] > 1.5


@pytest.mark.slow
def test_scales_change_live_for_new_frames_and_slowly(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    frames = frames[:7]
    plain, weak = painted(engine(pipe), frames), painted(engine(pipe, lora={"one": 0.2}), frames)
    with engine(pipe) as stream:
        shown = [o.image for f in frames[:4] for o in stream.push(f)]
        stream.update(lora={"one": 0.2}, at="new")
        shown += [o.image for f in frames[4:] for o in stream.push(f)] + [o.image for o in stream.flush()]
    close(torch.stack(shown), torch.cat([plain[:4], weak[4:]]))
    with engine(pipe) as stream:
        stream.update(lora={"one": 0.2}, transition=3)
        shown = [o.image for o in stream.stream(frames)]
    close(torch.stack(shown[5:]), weak[5:])


def test_scales_move_in_a_straight_line_whatever_prompts_do(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    with engine(pipe, blend="slerp", lora={"one": 1.0, "two": 0.0}) as stream:
        stream.update(lora={"one": 0.0, "two": 1.0}, transition=4)
        stream.push(frames[0])
        assert stream._course.settings.positive.tensors["lora_scales"].tolist() == [[0.75, 0.25]]


def test_what_cannot_be_followed_is_refused_by_name(pipe: Any, engine: Build) -> None:
    with pytest.raises(ValueError, match=r"no LoRA 'on' .did you mean one.*it has one, two"):
        engine(pipe, lora={"on": 1.0})
    with pytest.raises(ValueError, match=r"it has none; load_lora_weights"):
        engine(lora={"one": 1.0})
    with pytest.raises(ValueError, match="scale of LoRA 'one'"):
        engine(pipe, lora={"one": -1.0})
    for wrong in ("one", {1: 0.5}):
        with pytest.raises(TypeError, match="lora must map names"):
            engine(pipe, lora=wrong)
    pipe.unet.set_adapters(["two"], [1.0])
    try:
        with pytest.raises(ValueError, match=r"'one' is not at work: pipe\.set_adapters"):
            engine(pipe, lora={"one": 1.0})
    finally:
        pipe.unet.set_adapters(["one", "two"], [1.0, 1.0])


def test_a_scale_for_all_streams_puts_no_lora_to_rest(engine: Build, frames: torch.Tensor) -> None:
    pipe = with_loras(stream_pipelines.sd(), ("to_q",))
    with engine(pipe, lora={"two": 0.5}) as stream, engine(pipe, cache=DeepCache(2)) as other:
        for scales, error, words in (
            ({"one": 0.3}, ValueError, r"lora_scale=\{'one': 0.3\} leaves out two, .* give its scale, too, or 0"),
            ({"one": 0.3, "twoo": 1.0}, ValueError, "names 'twoo' .did you mean two.*LoRAs are one, two"),
            (0.3, TypeError, "lora_scale must map names of adapters to scales, not 0.3"),
        ):
            for each in (stream, other):
                with pytest.raises(error, match=words):
                    each.update(cache=DeepCache(3), lora_scale=scales)
        assert pipe.get_active_adapters() == ["one", "two"]
        stream.push(frames[0])
        other.update(lora_scale={"one": 0.0, "two": 1.0})
        stream.push(frames[0])


def test_loras_that_cannot_be_followed_any_more_are_refused(engine: Build, frames: torch.Tensor) -> None:
    pipe = with_loras(stream_pipelines.sd(), ("to_q",))
    with engine(pipe, lora={"two": 0.5}) as stream:
        stream.push(frames[0])
        pipe.unet.set_adapters(["two"], [0.8])
        stream.push(frames[0])
        stream.update(lora={"two": 0.4})
        pipe.unet.set_adapters(["one"], [1.0])
        with pytest.raises(ValueError, match="'two' is not at work"):
            stream.push(frames[0])
        pipe.unet.set_adapters(["one", "two"], [1.0, 1.0])
        pipe.fuse_lora()
        with pytest.raises(ValueError, match=r"'two' is fused into the weights of all rows: pipe\.unfuse_lora"):
            stream.push(frames[0])
        pipe.unfuse_lora()
        stream.push(frames[0])
        pipe.unload_lora_weights()
        with pytest.raises(ValueError, match="'two' was unloaded since"):
            stream.push(frames[0])
        stream.update(lora=None)
        stream.push(frames[0])


def test_a_dora_is_refused_by_name(engine: Build) -> None:
    pipe = stream_pipelines.sd()
    config = LoraConfig(r=2, use_dora=True, init_lora_weights=False, target_modules=["to_q"])
    with torch.random.fork_rng():
        pipe.unet.add_adapter(config, "ink")
    with pytest.raises(ValueError, match=r"LoRA 'ink' is a DoRA, .* cannot be scaled by rows: leave it out"):
        engine(pipe, lora={"ink": 0.5})
    stream = engine(pipe)  # which paints as the pipeline has it
    with pytest.raises(ValueError, match="'ink' is a DoRA"):
        stream.update(lora={"ink": 0.5})
    assert stream.config.lora is None
