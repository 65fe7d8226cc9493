"""Embeddings in place of a prompt, and encoders whose last layers do not count: as the stock pipelines take them."""

from typing import Any

import pytest
import stream_pipelines
import torch
from diffusers import FluxPipeline

from diffaccel import Region
from diffaccel.sampling.guidance import FullGuidance, NoGuidance
from diffaccel.stream.engine import StreamEngine

STEPS = 3
NAMES = {
    "sd": ("prompt_embeds",),
    "sdxl": ("prompt_embeds", "pooled_prompt_embeds"),
    "sd3": ("prompt_embeds", "pooled_prompt_embeds"),
    "pixart": ("prompt_embeds", "prompt_attention_mask"),
}


def family(name: str) -> Any:
    pipe = getattr(stream_pipelines, name)()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeds_of(pipe: Any, text: str, name: str) -> dict[str, torch.Tensor]:
    """What the pipeline encodes, by the names under which it takes it, a bit moved so that no text says it."""
    found = pipe.encode_prompt(text, do_classifier_free_guidance=False, device="cpu", **ARGUMENTS.get(name, {}))
    picked = {"sd": (0,), "pixart": (0, 1)}.get(name, (0, 2))
    parts = dict(zip(NAMES[name], (found[k] for k in picked), strict=True))
    return {part: value * 1.25 if value.is_floating_point() else value for part, value in parts.items()}


ARGUMENTS: dict[str, Any] = {
    "sd": {"num_images_per_prompt": 1},
    "sd3": {"prompt_2": None, "prompt_3": None},
    "pixart": {"clean_caption": False},
}


def engine_of(pipe: Any, **settings: Any) -> StreamEngine:
    return StreamEngine(
        pipe, timestep_indices=range(STEPS), num_inference_steps=STEPS, height=32, width=32, seed=3,
        output_type="latent", **settings,
    )  # fmt: skip


def ours(engine: StreamEngine, latents: torch.Tensor) -> list[torch.Tensor]:
    return [o.image for x in latents for o in engine.push(latents=x)] + [o.image for o in engine.flush()]


def stock(pipe: Any, latents: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """Finished latents ``(1, C, h, w)`` of the stock pipeline."""
    generator = torch.Generator().manual_seed(3)
    torch.randn(latents.shape, generator=generator)
    if type(pipe).__name__ == "PixArtAlphaPipeline":
        arguments |= {"clean_caption": False, "use_resolution_binning": False, "negative_prompt": None}
    if "clip_skip" in arguments and not hasattr(pipe.text_encoder, "text_model"):  # transformers 5
        vars(pipe.text_encoder)["text_model"] = pipe.text_encoder
    found: torch.Tensor = pipe(
        latents=latents, generator=generator, num_inference_steps=STEPS, output_type="latent", height=32, width=32,
        **arguments,
    ).images  # fmt: skip
    return found


def drawn(engine: StreamEngine, frames: int = 2) -> torch.Tensor:
    return torch.randn(frames, *engine._builder.latent_shape, generator=torch.Generator().manual_seed(5))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_embeddings_paint_what_the_stock_pipeline_paints(name: str) -> None:
    pipe = family(name)
    told, other = embeds_of(pipe, "a red cat", name), embeds_of(pipe, "blurred", name)
    negative = {f"negative_{part}": value for part, value in other.items()}
    for guidance, scale, more in ((NoGuidance(), 1.0, {}), (FullGuidance(2.5), 2.5, negative)):
        asked = {"prompt_embeds": told} | ({"negative_prompt_embeds": other} if more else {})
        engine = engine_of(pipe, guidance=guidance, **asked)
        latents = drawn(engine)
        expected = [stock(pipe, x[None], **told, **more, guidance_scale=scale)[0] for x in latents]
        sequential = engine_of(pipe, guidance=guidance, stream_batch=False, prompt_embeds=told,
                               **({"negative_prompt_embeds": other} if more else {}))  # fmt: skip
        for found in (ours(engine, latents), ours(sequential, latents)):
            for image, wanted in zip(found, expected, strict=True):
                close(image, wanted)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_layers_of_clip_are_skipped_as_the_stock_pipeline_does(name: str) -> None:
    pipe = family(name)
    skipping = engine_of(pipe, prompt="a red cat", clip_skip=1, guidance=FullGuidance(2.0))
    latents = drawn(skipping, 1)
    expected = stock(pipe, latents, prompt="a red cat", negative_prompt="", clip_skip=1, guidance_scale=2.0)
    if name == "sdxl":  # for which an empty negative prompt is none
        expected = stock(pipe, latents, prompt="a red cat", clip_skip=1, guidance_scale=2.0)
    plain = ours(engine_of(pipe, prompt="a red cat", guidance=FullGuidance(2.0)), latents)[0]
    (found,) = ours(skipping, latents)
    close(found, expected[0])
    assert not torch.allclose(found, plain, atol=1e-3)


def test_a_prompt_and_embeddings_replace_each_other() -> None:
    pipe = family("sd")
    engine = engine_of(pipe, prompt="a red cat")
    embeds = embeds_of(pipe, "a dog", "sd")["prompt_embeds"]
    latents = drawn(engine, 1)
    words = ours(engine, latents)[0]
    engine.update(prompt_embeds=embeds)
    close(ours(engine, latents)[0], ours(engine_of(pipe, prompt_embeds=embeds), latents)[0])
    engine.update(prompt="a red cat")
    close(ours(engine, latents)[0], words)
    engine.update(prompt_embeds=embeds, transition=2)
    halfway = ours(engine, latents)[0]
    assert not torch.allclose(halfway, words, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, TypeError, "give prompt, or prompt_embeds"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 77, 32)}, ValueError, "give one of them, not both"),
        ({"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, 77, 32)}, ValueError,
         "negative_prompt_embeds stand in for negative_prompt"),
        ({"prompt_embeds": torch.zeros(1, 77, 31)}, ValueError, r"are \(1, tokens, 32\), not \(1, 77, 31\)"),
        ({"prompt_embeds": torch.zeros(2, 77, 32)}, ValueError, r"not \(2, 77, 32\)"),
        ({"prompt_embeds": torch.zeros(77, 32)}, ValueError, r"not \(77, 32\)"),
        ({"prompt_embeds": {"pooled_prompt_embeds": torch.zeros(1, 32)}}, ValueError, "is told prompt_embeds: give"),
        ({"prompt_embeds": "a cat"}, TypeError, "must be a tensor, or a mapping of names to tensors, not str"),
        ({"prompt_embeds": torch.full((1, 77, 32), torch.nan)}, ValueError, "not finite"),
        ({"prompt": "a", "clip_skip": -1}, ValueError, "clip_skip"),
        ({"prompt": "a", "clip_skip": 99}, ValueError, "clip_skip must be below"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        engine_of(family("sd"), **settings)


def test_embeddings_stay_what_they_were_when_they_were_given() -> None:
    pipe = family("sd")
    embeds = embeds_of(pipe, "a dog", "sd")["prompt_embeds"]
    engine, other = engine_of(pipe, prompt_embeds=embeds), embeds * 2
    latents = drawn(engine, 1)
    before = ours(engine, latents)[0]
    embeds.mul_(2)
    close(ours(engine, latents)[0], before)
    engine.update(prompt_embeds=embeds)
    close(ours(engine, latents)[0], ours(engine_of(pipe, prompt_embeds=other), latents)[0])


def test_prompts_of_other_lengths_are_refused_where_rows_share_calls() -> None:
    pipe = family("sd")
    embeds = embeds_of(pipe, "a dog", "sd")["prompt_embeds"]
    long, region = torch.cat([embeds, embeds], 1), Region("a cat", torch.ones(32, 32))
    for name, settings in (
        ("the negative prompt", {"guidance": FullGuidance(2.0)}), ("the region 'a cat'", {"regions": [region]})
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} has 77 tokens and the prompt 154"):
            engine_of(pipe, prompt_embeds=long, **settings)
    engine = engine_of(pipe, prompt="a red cat")
    latents = drawn(engine, 1)
    for how in ({"at": "new"}, {"transition": 3}):
        with pytest.raises(ValueError, match="have 77 and 154: change all at once"):
            engine.update(prompt_embeds=long, **how)
    engine.push(latents=latents[0])
    engine.update(prompt_embeds=long)
    assert len(ours(engine, latents)) == 2
    z_image = engine_of(family("z_image"), prompt="a cat")
    with pytest.raises(ValueError, match="change all at once"):
        z_image.update(prompt="a red heart and a blue star", transition=3)
    z_image.update(prompt="a red heart and a blue star", at="new")


def test_a_distilled_network_is_told_its_scale_and_others_are_not() -> None:
    pipe = stream_pipelines.flux(guidance_embeds=True)
    pipe.set_progress_bar_config(disable=True)
    engine = engine_of(pipe, prompt="a red cat", embedded_guidance_scale=6.0)
    latents = drawn(engine, 1)
    packed = latents.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    expected = stock(pipe, packed, prompt="a red cat", guidance_scale=6.0)
    expected = FluxPipeline._unpack_latents(expected, 32, 32, pipe.vae_scale_factor)
    close(ours(engine, latents)[0], expected[0])
    with pytest.raises(ValueError, match=r"embedded_guidance_scale must be a number in \[0\.0, 100\.0\]; got nan"):
        engine.update(embedded_guidance_scale=float("nan"))
    for name in ("sd", "flux"):
        with pytest.raises(ValueError, match=r"embedded_guidance_scale=6\.0 is for networks that guidance was"):
            engine_of(family(name), prompt="a red cat", embedded_guidance_scale=6.0)


def test_encoders_without_clip_have_nothing_to_skip() -> None:
    with pytest.raises(ValueError, match="knows no clip_skip"):
        engine_of(family("pixart"), prompt="a", clip_skip=1)
    with pytest.raises(ValueError, match="is told prompt_embeds, pooled_prompt_embeds: give these"):
        engine_of(family("sdxl"), prompt_embeds=torch.zeros(1, 77, 64))
