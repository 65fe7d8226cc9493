"""What diffusers promises of a pipeline's call holds for every custom one, plain and while features are reused."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stock_cases import CASES, EVERY, Case

from diffaccel import accelerate
from diffaccel.methods import Method

ALL = pytest.mark.parametrize("case", EVERY)
NAMES = {case.name: case for case in CASES}
EMBEDDINGS = {
    "sd": ("prompt_embeds", "negative_prompt_embeds"),
    "sdxl": ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    "sd3": ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    "flux": ("prompt_embeds", "pooled_prompt_embeds"),
    "pixart": (
        "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask",
    ),
    "sana": ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
    "animatediff": ("prompt_embeds", "negative_prompt_embeds"),
}  # fmt: skip
_MADE: dict[str, tuple[Any, Any]] = {}


def pipes(case: Case) -> tuple[Any, Any]:
    """The stock pipeline and the custom one on the same networks, built once."""
    if case.name not in _MADE:
        stock = case.build()
        _MADE[case.name] = stock, case.custom.from_pipe(stock)
    return _MADE[case.name]


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def outcome(case: Case, pipe: Any, **options: Any) -> Any:
    """Pictures, or the error: clip_skip of some stock pipelines is broken in combination with newer transformers."""
    try:
        return case.run(pipe, **options)
    except AttributeError as error:
        if "clip_skip" not in options:
            raise
        return str(error)


VARIATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "without guidance": lambda: {"guidance_scale": 1.0},
    "more guidance": lambda: {"guidance_scale": 7.5},
    "a list of generators": lambda: {"num_images_per_prompt": 2, "generator": seeds(2)},
    "a list of one generator": lambda: {"generator": seeds(1)},
    "several videos": lambda: {"num_videos_per_prompt": 2},
    "clip_skip": lambda: {"clip_skip": 1},
    "negative_prompt": lambda: {"negative_prompt": "a dog"},
    "eta": lambda: {"eta": 1.0},
}


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("variation", VARIATIONS)
def test_arguments_mean_what_they_mean_in_the_stock_pipeline(case: Case, variation: str) -> None:
    stock, custom = pipes(case)
    if not set(VARIATIONS[variation]()) <= parameters(stock.__call__):
        assert set(VARIATIONS[variation]()) - parameters(custom.__call__)
        return
    short = {"num_inference_steps": 2}
    expected = outcome(case, stock, **VARIATIONS[variation](), **short)
    found = outcome(case, custom, **VARIATIONS[variation](), **short)
    assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@ALL
def test_signatures(case: Case) -> None:
    stock, custom = pipes(case)
    assert parameters(custom.__call__) == parameters(stock.__call__) | {"cache", "guidance", "gate"} | case.own
    assert parameters(type(custom).__init__) == parameters(type(stock).__init__)


@ALL
def test_output_types(case: Case) -> None:
    _, custom = pipes(case)
    short = {**case.call, "num_inference_steps": 1}
    found = {}
    for kind in ("pt", "np", "pil", "latent"):
        output = custom(**short | {"output_type": kind, "generator": seeds(1)[0]})
        found[kind] = output[0]
        assert found[kind] is (output.frames if "frames" in output else output.images)
        returned = custom(**short | {"output_type": kind, "generator": seeds(1)[0]}, return_dict=False)
        assert isinstance(returned, tuple) or kind == "latent" or case.name == "svd"
    assert isinstance(found["latent"], torch.Tensor)
    arrays = torch.from_numpy(np.asarray(found["np"]))
    tensors = found["pt"] if isinstance(found["pt"], torch.Tensor) else torch.stack(list(found["pt"]))
    assert torch.equal(arrays.movedim(-1, -3), tensors.cpu())
    pictures = found["pil"][0] if isinstance(found["pil"][0], list) else found["pil"]
    assert [p.size for p in pictures] == [(32, 32)] * len(pictures)


@ALL
def test_latents(case: Case) -> None:
    stock, custom = pipes(case)
    if "latents" not in parameters(stock.__call__):
        return
    start = case.run(stock, num_inference_steps=1, output_type="latent")
    start = start[None] if case.name == "svd" else start  # whose call returns the videos alone, not in a tuple
    first = case.run(custom, latents=start, num_inference_steps=2)
    assert torch.equal(first, case.run(stock, latents=start, num_inference_steps=2))
    assert not torch.equal(first, case.run(stock, latents=start * 0.9, num_inference_steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_prompt_embeds(name: str) -> None:
    case = NAMES[name]
    _, custom = pipes(case)
    wanted = {
        "prompt": "a cat", "prompt_2": None, "prompt_3": None, "device": "cpu", "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True, "clean_caption": False,
    }  # fmt: skip
    known = parameters(custom.encode_prompt)
    with torch.no_grad():
        encoded = custom.encode_prompt(**{key: value for key, value in wanted.items() if key in known})
    embeddings = dict(zip(EMBEDDINGS[name], encoded, strict=False))
    call = parameters(custom.__call__)
    unused = {"negative_prompt": None, "complex_human_instruction": None}
    alike = {name: value for name, value in unused.items() if name in call and name != "negative_prompt"}
    for cache in (None, case.cache):
        rest = {name: value for name, value in unused.items() if name in call}
        given = case.run(custom, prompt=None, cache=cache, **rest, **embeddings)
        assert torch.equal(given, case.run(custom, cache=cache, **alike))


@ALL
def test_callbacks_see_and_change_tensors(case: Case) -> None:
    stock, custom = pipes(case)
    if "callback_on_step_end" not in parameters(stock.__call__):
        assert "callback_on_step_end" not in parameters(custom.__call__)
        return
    seen: list[int] = []

    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(step)
        return {"latents": tensors["latents"] * (0.5 if step == 1 else 1.0)}

    options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents"]}
    plain = case.run(custom, **options)
    assert seen == [0, 1, 2, 3]
    assert torch.equal(plain, case.run(stock, **options))
    assert not torch.equal(plain, case.run(stock))
    with accelerate(stock, Method.from_dict(case.cache)):
        expected = case.run(stock, **options)
    assert torch.equal(case.run(custom, cache=case.cache, **options), expected)


@ALL
def test_interrupted_runs_leave_nothing_behind(case: Case) -> None:
    stock, custom = pipes(case)
    if not hasattr(stock, "interrupt"):
        assert not hasattr(custom, "interrupt")
        return
    expected = case.run(custom, cache=case.cache)
    seen: list[int] = []

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(step)
        pipe._interrupt = step == 1
        return tensors

    custom.enable_feature_cache(case.cache)
    try:
        interrupted = case.run(custom, callback_on_step_end=stop)
        assert seen == [0, 1]
        assert not torch.equal(interrupted, expected)
        assert torch.equal(case.run(custom), expected)
    finally:
        custom.disable_feature_cache()


def test_progress_bars_are_configured_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    _, custom = pipes(NAMES["sd"])
    custom.set_progress_bar_config(disable=False, desc="painting")
    custom(**NAMES["sd"].call, cache=NAMES["sd"].cache)
    assert "painting: 100%" in capsys.readouterr().err
    custom.set_progress_bar_config(disable=True)
    custom(**NAMES["sd"].call)
    assert not capsys.readouterr().err
