"""A still scene follows every change at once: a frame is skipped only for one painted under the same settings."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise, product
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from stream_pipelines import Build

from diffaccel.sampling.guidance import FullGuidance
from diffaccel.stream.similarity import SimilarityFilter


@pytest.fixture
def engine(engine: Build) -> Iterator[Build]:
    """Builds engines that are closed at the end."""
    with ExitStack() as stack:
        yield lambda *given, **changes: stack.enter_context(engine(*given, **changes))


ALWAYS = SimilarityFilter(-1.0, max_skip=1000)
CHANGES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "a dog"},
    "seed": {"seed": 7},
    "strength": {"timestep_indices": (20, 45)},
    "guidance": {"guidance": FullGuidance(3.0)},
    "noise between stages": {"add_noise": False},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "name"),
    cells(product(("all", "new"), CHANGES), lambda cell: cell[0] == ("all", "new")[list(CHANGES).index(cell[1]) % 2]),
)
def test_a_still_scene_follows_a_change(engine: Build, frames: torch.Tensor, name: str, at: str) -> None:
    stream = engine(similarity=ALWAYS)
    for _ in range(8):
        stream.push(frames[0])
    stream.update(at=at, **CHANGES[name])
    shown = [output for _ in range(5) for output in stream.push(frames[0])][-1].image
    expected = list(engine(**CHANGES[name]).stream([frames[0]] * 3))[-1].image
    torch.testing.assert_close(shown, expected)
    assert stream.report().frames_skipped > 5


@pytest.mark.parametrize("at", ["all", "new"])
def test_a_still_scene_follows_a_transition_to_its_end(engine: Build, frames: torch.Tensor, at: str) -> None:
    stream = engine(similarity=ALWAYS, timestep_indices=(30,))
    for _ in range(4):
        stream.push(frames[0])
    stream.update(at=at, transition=4, prompt="a dog")
    pictures = [output.image for _ in range(12) for output in stream.push(frames[0])]
    (expected,) = (output.image for output in engine(timestep_indices=(30,), prompt="a dog").push(frames[0]))
    torch.testing.assert_close(pictures[-1], expected)
    assert sum(not torch.equal(a, b) for a, b in pairwise(pictures)) == 3
    assert stream.report().frames_skipped >= 3 + 6


def test_a_change_of_a_loras_scale_is_seen(frames: torch.Tensor, engine: Build) -> None:
    from peft import LoraConfig

    pipe = stream_pipelines.sd()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    stream = engine(pipe, similarity=ALWAYS, timestep_indices=(30,))
    before = [output.image for _ in range(4) for output in stream.push(frames[0])][-1]
    stream.update(lora_scale={"style": 4.0})
    after = [output.image for _ in range(2) for output in stream.push(frames[0])][-1]
    assert not torch.equal(before, after)


@pytest.fixture
def scenes() -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures that the filter below takes for two scenes."""
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))
    return picture, 1 - picture


def shown(stream: Any, *given: Any, **options: Any) -> tuple[bool, torch.Tensor]:
    """Whether the last frame was skipped, and its picture."""
    output = [output for frame in given for output in stream.push(frame, **options)][-1]
    return output.skipped, output.image


ALIKE = {"similarity": SimilarityFilter(0.5, max_skip=1000), "timestep_indices": (30,)}


@pytest.mark.parametrize("trouble", ["fails", "makes no numbers"])
def test_no_frame_is_skipped_for_one_that_was_not_painted(engine: Build, scenes: Any, trouble: str) -> None:
    stream, (_, expected) = engine(**ALIKE), shown(engine(timestep_indices=(30,)), scenes[1])
    stream.push(scenes[0])
    predict = stream._denoiser.predict

    def troubled(tick: Any) -> torch.Tensor:
        assert trouble != "fails", trouble
        return predict(tick) * float("nan")

    stream._denoiser.predict = troubled
    with pytest.raises(AssertionError) if trouble == "fails" else ExitStack():
        assert stream.push(scenes[1]) == []
    stream._denoiser.predict = predict
    skipped, picture = shown(stream, scenes[1])
    assert not skipped
    torch.testing.assert_close(picture, expected)
    assert shown(stream, scenes[1])[0]


def test_no_frame_is_skipped_for_one_that_was_dropped(engine: Build, scenes: Any) -> None:
    stream = engine(**ALIKE | {"timestep_indices": (20, 30, 40)})
    stream.push(scenes[0].expand(3, -1, -1, -1))
    for _ in stream.stream([scenes[1]] * 9):
        break
    outputs = list(stream.stream([scenes[1]] * 4))
    expected = next(iter(engine(timestep_indices=(20, 30, 40)).stream([scenes[1]])))
    assert [output.skipped for output in outputs].count(False) == 1
    torch.testing.assert_close(outputs[-1].image, expected.image)


def test_frames_of_other_noise_or_behind_one_without_a_picture_are_not_skipped(engine: Build, scenes: Any) -> None:
    stream = engine(**ALIKE)
    noises = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    (_, first), (again, same) = (shown(stream, scenes[0], latents=noises[0]) for _ in range(2))
    skipped, other = shown(stream, scenes[0], latents=noises[1])
    assert (again, skipped) == (True, False)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    stream.push(scenes[0])
    shown(stream, None)
    skipped, behind = shown(stream, scenes[0])
    assert not skipped
    torch.testing.assert_close(behind, shown(engine(timestep_indices=(30,)), scenes[0])[1])


def test_an_autoencoder_of_other_channels_is_refused_at_once(engine: Build) -> None:
    with pytest.raises(ValueError, match="AutoencoderKL makes latents of 16 channels, and the network takes 4"):
        engine(vae=stream_pipelines._kl(16))


def test_ip_adapter_layers_of_transformers_are_refused_at_once(engine: Build) -> None:
    pipe = stream_pipelines.sd3()
    pipe.transformer.image_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"IP-Adapter layers.*pipe\.unload_ip_adapter\(\)"):
        engine(pipe)


def test_a_frame_that_may_not_be_written_to_is_no_warning(engine: Build) -> None:
    pixels = (torch.rand(32, 32, 3) * 255).byte().numpy()
    pixels.flags.writeable = False
    engine(timestep_indices=(30,)).push(pixels)
