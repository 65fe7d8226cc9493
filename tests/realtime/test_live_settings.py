"""From controls to a stream: every control reaches the engine, on UNets and transformers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionInpaintPipeline
from pydantic import ValidationError

from diffaccel.methods import DeepCache, IntervalCache
from diffaccel.realtime.controls import READS_NEGATIVE
from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.offers import Offers, Painter
from diffaccel.realtime.remarks import cut_off, unread_negative
from diffaccel.realtime.settings import (
    MOST_PIXELS,
    MOTION,
    Controls,
    LiveSettings,
    open_engine,
    picture_size,
    sizes,
    stream_arguments,
)
from diffaccel.reuse.schedule import Threshold
from diffaccel.sampling.guidance import FullGuidance, NoGuidance, OneTimeNegative, SelfNegative
from diffaccel.stream.host import StreamHost

SMALL = LiveSettings(width=64, height=32)


def test_a_model_that_paints_under_masks_is_refused_at_once(pipe: Any) -> None:
    own = {name: value for name, value in pipe.unet.config.items() if name != "_use_default_values"}
    parts = {**pipe.components, "unet": type(pipe.unet).from_config({**own, "in_channels": 9})}
    inpainting = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(ValueError, match="StableDiffusionInpaintPipeline needs a mask with every frame"):
        open_engine(inpainting, SMALL)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def painted(pipe: Any, controls: Controls) -> np.ndarray:
    """The picture of one frame."""
    stream = EngineStream(pipe, replace(SMALL, controls=controls))
    outputs = stream.push(pixels(0), frame_id=0) + stream.flush()
    stream.close()
    return np.asarray(outputs[-1].image)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"second_prompt": "a dog", "blend": 0.5},
        {"strength": 0.9},
        {"steps": 3},
        {"seed": 1},
        {"seed_blend": 0.4, "second_seed": 7},
        {"guidance": "none"},
        {"guidance": "full"},
        {"guidance_scale": 3.0},
    ],
)
def test_a_control_changes_the_picture_as_it_does_from_the_start(pipe: Any, change: dict[str, Any]) -> None:
    base, other = Controls(similarity=False, cache=1), Controls(similarity=False, cache=1, **change)
    stream = EngineStream(pipe, replace(SMALL, controls=base))
    stream.configure(other)
    changed = np.asarray((stream.push(pixels(0), frame_id=0) + stream.flush())[-1].image)
    stream.close()
    np.testing.assert_array_equal(changed, painted(pipe, other))
    assert np.abs(changed.astype(int) - painted(pipe, base)).max() > 0


def test_guidance_kinds() -> None:
    pipe = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(block_out_channels=(1, 2, 3, 4))))
    kinds = {"self": SelfNegative(2), "one-time": OneTimeNegative(2), "full": FullGuidance(2), "none": NoGuidance()}
    for kind, guidance in kinds.items():
        controls = Controls.model_validate({"guidance": kind, "guidance_scale": 2})
        assert stream_arguments(pipe, controls)["guidance"] == guidance
        assert guidance.reads_negative_prompt == (kind in READS_NEGATIVE)


def test_cache_follows_the_network() -> None:
    unet = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(block_out_channels=(1, 2, 3, 4))))
    assert isinstance(stream_arguments(unet, Controls(cache=4))["cache"].method, DeepCache)
    assert stream_arguments(unet, Controls(cache=4))["cache"].method.schedule == Threshold(MOTION, max_reuse=3)
    assert isinstance(stream_arguments(SimpleNamespace(), Controls())["cache"].method, IntervalCache)
    assert stream_arguments(unet, Controls(cache=1))["cache"] is None


def test_a_still_input_is_skipped(pipe: Any) -> None:
    stream = EngineStream(pipe, SMALL)
    outputs = [output for n in range(6) for output in stream.push(pixels(0), frame_id=n)]
    assert any(output.skipped for output in outputs)
    stream.configure(Controls(similarity=False))
    assert not any(output.skipped for n in range(6) for output in stream.push(pixels(0), frame_id=6 + n))
    stream.close()


@pytest.mark.slow
def test_two_streams_on_one_pipeline_do_not_meet(pipe: Any) -> None:
    controls = Controls(similarity=False)
    one, two = (EngineStream(pipe, replace(SMALL, controls=controls)) for _ in range(2))
    mixed = []
    for n in range(8):
        mixed += [np.asarray(output.image) for output in one.push(pixels(n), frame_id=n)]
        two.push(pixels(100 + n), frame_id=n)
    one.close()
    alone = EngineStream(pipe, replace(SMALL, controls=controls))
    expected = [np.asarray(output.image) for n in range(8) for output in alone.push(pixels(n), frame_id=n)]
    np.testing.assert_array_equal(mixed, expected)
    two.close()
    alone.close()


def test_size_is_the_models_unless_asked(pipe: Any) -> None:
    own = picture_size(pipe, LiveSettings())
    assert own[0] == own[1] > 0
    assert picture_size(pipe, LiveSettings(width=96)) == (96, 96)
    assert picture_size(pipe, SMALL) == (64, 32)


def test_a_size_that_another_model_does_not_paint_in_is_said(pipe: Any) -> None:
    host = StreamHost(pipe)
    offers = Offers(SMALL, pipe, host)
    offers._painters["other"] = Painter(pipe, host, LiveSettings())
    for model, size, said in (
        ("other", "64x32", "other paints in its own size, 32 x 32, until you choose another."),
        ("other", "96x64", ""),
        (offers.first, "64x32", ""),
    ):
        assert offers.remark(Controls(model=model, picture_size=size)) == said
    host.close()


@pytest.mark.parametrize("change", [{"strength": float("inf")}, {"steps": 0}, {"blend": 1.1}, {"guidance": "dog"}])
def test_bad_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Controls(**change)


def test_the_page_knows_how_to_draw_every_control() -> None:
    for name, field in Controls.model_json_schema()["properties"].items():
        assert field["title"], name
        assert field["description"], name
        assert field["type"] in ("string", "integer", "number", "boolean"), name
        assert "default" in field, name
        if field["type"] in ("integer", "number"):
            assert field["minimum"] < field["maximum"], name
        for other in field.get("needs", {}):
            assert other in Controls.model_fields


def test_what_no_text_encoder_reads_of_a_prompt_is_named(pipe: Any) -> None:
    limit = pipe.tokenizer.model_max_length
    words = " ".join(f"cat{number}" for number in range(3 * limit))
    tokens = pipe.tokenizer(words).input_ids
    lost = cut_off(pipe, words)
    assert cut_off(pipe, "a cat") == ""
    read = pipe.tokenizer(words, truncation=True, max_length=limit).input_ids
    assert pipe.tokenizer(lost, add_special_tokens=False).input_ids == tokens[len(read) - 1 : -1]
    stream = EngineStream(pipe, SMALL)
    assert stream.remark(Controls(prompt="a cat", negative_prompt=words)) == ""
    told = stream.remark(Controls(prompt="a cat", negative_prompt=words, guidance="full"))
    assert told.startswith("Negative prompt is too long for this model, which does not read “")
    assert stream.remark(Controls(prompt="a (cat:1.3)")).endswith("(word:1.3) and BREAK are drawn as text.")
    stream.close()


def test_a_negative_prompt_that_the_guidance_does_not_read_is_named() -> None:
    unread = Controls(negative_prompt="blurry", guidance="self")
    assert "--negative-prompt changes nothing with --guidance self" in unread_negative(unread)
    assert unread_negative(Controls(negative_prompt="blurry", guidance="full")) == ""
    assert unread_negative(Controls(guidance="none")) == ""


def test_the_longest_of_several_encoders_counts() -> None:
    class Words:
        def __init__(self, limit: int) -> None:
            self.model_max_length = limit

        def __call__(self, text: str, **_: object) -> Any:
            return SimpleNamespace(input_ids=[*text.split(), "end"])

        def decode(self, tokens: list[str], **_: object) -> str:
            return " ".join(token for token in tokens if token != "end")

    class CLIPWords(Words):
        pass

    class Pipe:
        tokenizer, tokenizer_2 = CLIPWords(3), Words(10**30)

        def encode_prompt(self, prompt: str, max_sequence_length: int = 5) -> None:
            pass

    assert cut_off(Pipe(), "a b c d") == ""
    assert cut_off(Pipe(), "a b c d e f") == "e f"
    Pipe.tokenizer_2 = CLIPWords(3)
    assert cut_off(Pipe(), "a b c d") == "c d"


def test_another_size_is_another_stream_and_the_rest_goes_on(pipe: Any) -> None:
    controls = Controls(similarity=False, steps=2)
    stream = EngineStream(pipe, replace(SMALL, controls=controls))
    stream.push(pixels(0), frame_id=0)
    assert stream.frames_in_flight == 1
    stream.configure(controls.model_copy(update={"picture_size": "32x64", "prompt": "a dog"}))
    assert stream.frames_in_flight == 0
    outputs = [output for n in range(1, 4) for output in stream.push(pixels(n), frame_id=n)]
    assert {np.asarray(output.image).shape for output in outputs} == {(64, 32, 3)}
    other = controls.model_copy(update={"prompt": "a dog"})
    alone = EngineStream(pipe, replace(SMALL, width=32, height=64, controls=other))
    expected = [output for n in range(1, 4) for output in alone.push(pixels(n), frame_id=n)]
    np.testing.assert_array_equal(outputs[0].image, expected[0].image)
    for wrong, words in (("2048x2048", "too large here"), ("33x64", "must be a multiple of")):
        with pytest.raises(ValueError, match=words):
            stream.configure(controls.model_copy(update={"picture_size": wrong}))
    stream.configure(controls.model_copy(update={"seed": 4, "picture_size": "32x64"}))
    assert stream.push(pixels(4), frame_id=4)
    stream.close()
    alone.close()


def test_sizes_are_of_every_shape_and_not_too_large() -> None:
    offered = sizes(512, 512)
    assert offered[0] == "512x512"
    assert {"608x448", "448x608", "672x384", "384x672", "1024x1024"} <= set(offered)
    for size in sizes(128, 128):
        width, height = map(int, size.split("x"))
        assert width % 32 == height % 32 == 0
        assert width * height <= MOST_PIXELS * 128**2  # or it would be refused
        assert Controls(picture_size=size).picture_size == size
    for bad in ("12", "0x64", "64x64x64", "ax64", "99999x64"):
        with pytest.raises(ValidationError):
            Controls(picture_size=bad)


def test_paths_lead_to_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "net", "one.safetensors", "glow.safetensors"):
        Path(name).mkdir()
    given = LiveSettings(
        model="model", vae="none", lora="one.safetensors=0.5 + emoji-lcm-lora", embeddings="glow.safetensors=<glow>",
        controlnet=("net",), offers=("emoji-sd-small", "model"), offered_loras=(("one", "one.safetensors"),),
    )  # fmt: skip
    found, here = given.located(), tmp_path.resolve()
    assert (found.model, found.vae, found.controlnet) == (f"{here}/model", "none", (f"{here}/net",))
    assert found.lora == f"{here}/one.safetensors=0.5 + emoji-lcm-lora"
    assert found.embeddings == f"{here}/glow.safetensors=<glow>"
    assert found.offers == ("emoji-sd-small", f"{here}/model")
    assert found.offered_loras == (("one", f"{here}/one.safetensors"),)
    assert LiveSettings().located() == LiveSettings()
