"""Decoding at another time gives the same pictures, and is left alone where a pipeline does more than decode."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import stream_pipelines
import torch

from diffaccel import models
from diffaccel.batch.decoding import Decoding


@pytest.fixture
def pipe(tiny_sd: Path) -> Any:
    pipe = models.load(tiny_sd)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(seed: int = 0, size: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    fixed = {"prompt": ["a", "b"], "num_inference_steps": 2, "output_type": "np", "width": size, "height": size}
    return {**fixed, "generator": generator}


def decoded(pipe: Any) -> list[int]:
    """Counts the pictures that the autoencoder decodes, one entry a call."""
    calls: list[int] = []
    pipe.vae.decoder.register_forward_hook(lambda _module, args, _output: calls.append(len(args[0])))
    return calls


def on_a_thread(run: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    return results[0]


def test_second_call_of_a_size_leaves_decoding_for_later(pipe: Any) -> None:
    expected = [pipe(**arguments(seed)).images for seed in range(3)]
    calls, decoding = decoded(pipe), Decoding()
    first = decoding(pipe, arguments(0))
    assert calls == [2]
    second, third = decoding(pipe, arguments(1)), decoding(pipe, arguments(2))
    assert calls == [2]
    pictures = [on_a_thread(finish).pictures for finish in (first, second, third)]
    assert calls == [2, 2, 2]
    assert all(np.array_equal(one, other) for one, other in zip(pictures, expected, strict=True))
    assert np.array_equal(pipe(**arguments(1)).images, expected[1])


def test_without_overlap_everything_is_done_at_once(pipe: Any) -> None:
    calls, decoding = decoded(pipe), Decoding(overlap=False)
    for _ in range(2):
        decoding(pipe, arguments())
    assert calls == [2, 2]


def test_every_picture_size_is_watched_once(pipe: Any) -> None:
    calls, decoding = decoded(pipe), Decoding()
    for size in (32, 48, 32, 48):
        decoding(pipe, arguments(size=size))
    assert calls == [2, 2]


def test_a_pipeline_that_looks_at_its_pictures_decodes_at_once(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "run_safety_checker", lambda image, *_: (image * 0.5, None))
    calls, decoding = decoded(pipe), Decoding()
    pictures = [decoding(pipe, arguments())().pictures for _ in range(2)]
    assert calls == [2, 2]
    assert np.array_equal(*pictures)


def test_what_goes_wrong_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    decoding = Decoding()
    decoding(pipe, arguments())
    with pytest.raises(ValueError, match="divisible by 8"):
        decoding(pipe, arguments(size=33))
    assert "decode" not in vars(pipe.vae)
    assert "postprocess" not in vars(pipe.image_processor)


@pytest.mark.filterwarnings("ignore:`upcast_vae`")
def test_an_autoencoder_that_is_in_float32_for_its_calls_alone_decodes_at_once() -> None:
    pipe = stream_pipelines.sdxl()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.half()
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae.config.force_upcast
    expected, decoding = [pipe(**arguments(seed)).images for seed in range(3)], Decoding()
    finishes = [decoding(pipe, arguments(seed)) for seed in range(3)]
    pictures = [on_a_thread(finish).pictures for finish in finishes]
    assert all(np.array_equal(one, other) for one, other in zip(pictures, expected, strict=True))
