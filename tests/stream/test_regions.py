"""Prompts for parts of the picture, and words that were learned: as by hand, as the stock pipeline, and one by one."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from peft import LoraConfig
from stream_pipelines import Build
from stream_reference import clean_latents, noises, text
from test_stream_host import hold, in_company

from diffaccel import (
    CrossFrame,
    DeepCache,
    FullGuidance,
    HostFull,
    OneTimeNegative,
    Region,
    SelfNegative,
    SlotCache,
    StreamEngine,
    StreamHost,
)


def half(left: bool) -> torch.Tensor:
    mask = torch.zeros(32, 32)
    mask[:, :16] = left
    mask[:, 16:] = not left
    return mask


def corner() -> torch.Tensor:
    mask = torch.zeros(32, 32)
    mask[:16, 8:] = 1
    return mask


def painted(engine: StreamEngine, frames: torch.Tensor) -> torch.Tensor:
    with engine:
        return torch.stack([output.image for output in engine.stream(frames)])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def by_hand(pipe: Any, frames: torch.Tensor, timesteps: list[int], scale: float) -> torch.Tensor:
    """A cat everywhere but on the left (a dog) and in a corner (a star), which share where they overlap."""
    acp = pipe.scheduler.alphas_cumprod.double().sqrt()
    levels = [(acp[t].item(), (1 - acp[t] ** 2).sqrt().item()) for t in timesteps]
    noise = noises(2, len(timesteps), 1, (4, 4, 4))[:, 0]
    prompts = {name: text(pipe, name) for name in ("a cat", "a dog", "a star", "blurry")}
    share = {"a cat": torch.ones(4, 4), "a dog": torch.zeros(4, 4), "a star": torch.zeros(4, 4)}
    share["a dog"][:, :2] = 1
    share["a star"][:2, 1:] = 1
    both = (share["a dog"] + share["a star"]).clamp_min(1)
    share = {name: mask / both for name, mask in share.items()}
    share["a cat"] = 1 - share["a dog"] - share["a star"]
    results = []
    for clean in clean_latents(pipe, frames):
        x = levels[0][0] * clean + levels[0][1] * noise[0]
        for i, (t, (a, b)) in enumerate(zip(timesteps, levels, strict=True)):
            with torch.no_grad():
                made = {n: pipe.unet(x[None], t, encoder_hidden_states=p).sample[0] for n, p in prompts.items()}
            eps = sum(mask * made[name] for name, mask in share.items())
            eps = made["blurry"] + scale * (eps - made["blurry"])
            s = 10.0 * t
            out = s / (s * s + 0.25) ** 0.5 * (x - b * eps) / a + 0.25 / (s * s + 0.25) * x
            if i + 1 < len(timesteps):
                x = levels[i + 1][0] * out + levels[i + 1][1] * noise[i + 1]
        results.append(out)
    return torch.stack(results).float()


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "scale"), [(True, 1.0), (True, 1.8), (False, 1.8)])
def test_equals_predictions_composed_by_hand(
    sd: Any, engine: Build, frames: torch.Tensor, batch: bool, scale: float
) -> None:
    regions = [Region("a dog", half(True)), Region("a star", corner())]
    guidance = {} if scale == 1 else {"guidance": FullGuidance(scale)}
    stream = engine(regions=regions, stream_batch=batch, **guidance)
    timesteps = [int(t) for t in stream._course.settings.stages.timesteps]
    close(painted(stream, frames[:3]), by_hand(sd, frames[:3], timesteps, scale))


def test_a_region_of_all_is_a_prompt_for_all(engine: Build, frames: torch.Tensor) -> None:
    whole = Region("a dog", torch.ones(32, 32))
    close(painted(engine(regions=[whole]), frames[:3]), painted(engine(prompt="a dog"), frames[:3]))
    nowhere = Region("a dog", torch.zeros(32, 32))
    close(painted(engine(regions=[nowhere]), frames[:3]), painted(engine(), frames[:3]))
    alike = [Region("a cat", half(True)), Region("a cat", half(False))]
    close(painted(engine(regions=alike), frames[:3]), painted(engine(), frames[:3]))


@pytest.mark.parametrize(
    ("guidance", "cache"),
    cells(
        product((SelfNegative(1.4), OneTimeNegative(1.4, 0.5)), (None, SlotCache(DeepCache(2), "frame"))),
        lambda cell: isinstance(cell[0], SelfNegative) == isinstance(cell[1], SlotCache),
    ),
)
def test_the_stream_batch_gives_what_the_sequential_mode_gives(
    engine: Build, frames: torch.Tensor, guidance: Any, cache: Any
) -> None:
    settings = {"regions": [Region("a dog", half(True))], "guidance": guidance, "frame_buffer": 2, "cache": cache}
    ours, theirs = (painted(engine(**settings, stream_batch=batch), frames[:5]) for batch in (True, False))
    close(ours, theirs)


@pytest.mark.slow
def test_streams_of_a_host_have_their_own_regions(frames: torch.Tensor) -> None:
    settings: list[dict[str, Any]] = [
        {"regions": [Region("a dog", half(True))]},
        {"regions": [Region("a star", half(False))], "cache": DeepCache(2), "steadiness": CrossFrame(2)},
        {"prompt": "a red heart"},
    ]
    films = [frames[k : k + 4] for k in range(3)]
    assert hold(stream_pipelines.sd(), settings, films).report().streams_per_call["network"] > 1.5


def test_regions_change_live(engine: Build, frames: torch.Tensor) -> None:
    plain, parted = painted(engine(), frames), painted(engine(regions=[Region("a dog", half(True))]), frames)
    with engine() as stream:
        shown = [o.image for f in frames[:3] for o in stream.push(f)]
        stream.update(regions=[Region("a dog", half(True))], at="new")
        shown += [o.image for f in frames[3:6] for o in stream.push(f)]
        stream.update(regions=(), at="new")
        shown += [o.image for f in frames[6:] for o in stream.push(f)] + [o.image for o in stream.flush()]
    close(torch.stack(shown), torch.cat([plain[:3], parted[3:6], plain[6:]]))


def test_what_does_not_fit_is_refused_by_name(engine: Build) -> None:
    with pytest.raises(ValueError, match=r"region 'a dog' is 16 x 32 pixels, .* 32 x 32: give one mask of that size"):
        engine(regions=[Region("a dog", half(True)[:, :16])])
    with pytest.raises(TypeError, match="the mask cannot be used"):
        engine(regions=[Region("a dog", "left")])
    speck = torch.zeros(32, 32)
    speck[3, 3] = 1  # between the points that latents show
    with pytest.raises(ValueError, match="region 'a dog' has too little white for latents of 4 x 4"):
        engine(regions=[Region("a dog", speck)])
    with pytest.raises(TypeError, match=r"a prompt is text, .* not None"):
        engine(regions=[Region(None, half(True))])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="regions must be a sequence of Region objects"):
        engine(regions=[("a dog", half(True))])
    with StreamHost(stream_pipelines.sd(), max_rows=5) as host, pytest.raises(HostFull, match="6 rows"):
        host.open(
            prompt="a cat", timestep_indices=(10, 25, 40), height=32, width=32, regions=[Region("a dog", half(True))]
        )


def test_learned_words_are_read_as_the_stock_pipeline_reads_them() -> None:
    pipe = stream_pipelines.sd()
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    vectors = 3 * torch.randn(3, width, generator=torch.Generator().manual_seed(4))
    pipe.load_textual_inversion({"<made>": vectors}, token="<made>")
    noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(5))
    chance = torch.Generator().manual_seed(3)
    torch.randn(1, 4, 4, 4, generator=chance)
    stock = pipe(
        "a <made> cat", latents=noise[None], generator=chance, num_inference_steps=4, guidance_scale=1.0, height=32,
        width=32, output_type="latent",
    ).images[0]  # fmt: skip
    settings = {"timestep_indices": range(4), "num_inference_steps": 4, "height": 32, "width": 32, "seed": 3}
    shown = {}
    for prompt in ("a <made> cat", "a cat"):
        with StreamEngine(pipe, prompt=prompt, output_type="latent", **settings) as stream:
            (output,) = stream.push(latents=noise) + stream.flush()
            shown[prompt] = output.image
    close(shown["a <made> cat"], stock)
    assert not torch.allclose(shown["a cat"], stock, atol=1e-3)


def test_a_prompt_is_read_anew_where_what_reads_it_changed(engine: Build) -> None:
    pipe = stream_pipelines.sd()
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    layers = LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, target_modules=["q_proj", "v_proj"])

    def told(stream: StreamEngine) -> torch.Tensor:
        return stream._course.settings.positive.tensors["encoder_hidden_states"]

    changes: list[Callable[[StreamEngine], Any]] = [
        lambda _: pipe.load_textual_inversion({"<made>": torch.randn(2, width)}, token="<made>"),
        lambda _: pipe.text_encoder.add_adapter(layers, "ink"),
        lambda other: other.update(lora_scale={"ink": 0.3}),
    ]
    with engine(pipe, prompt="a <made> cat") as stream, engine(pipe) as other:
        for change in changes:
            before = told(stream)
            change(other)
            stream.update(seed=3)
            with engine(pipe, prompt="a <made> cat") as fresh:
                assert torch.equal(told(stream), told(fresh))
            assert not torch.equal(told(stream), before)
        before = stream._course.settings.positive
        stream.update(seed=4)
        assert stream._course.settings.positive is before


@pytest.mark.slow
def test_a_learned_word_of_one_stream_changes_nothing_in_another(frames: torch.Tensor) -> None:
    pipe = stream_pipelines.sd()
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    plain = stream_pipelines.sd()
    vectors = 3 * torch.randn(2, width, generator=torch.Generator().manual_seed(4))
    pipe.load_textual_inversion({"<made>": vectors}, token="<made>")
    settings = [{"prompt": "a <made> cat"}, {"prompt": "a cat", "guidance": FullGuidance(1.5), "seed": 4}]
    films = [frames[:4], frames[2:6]]
    assert hold(pipe, settings, films).report().streams_per_call["network"] > 1.3
    (shown,), _ = in_company(pipe, settings[1:], films[1:], 0.0)
    (untouched,), _ = in_company(plain, settings[1:], films[1:], 0.0)
    close(shown, untouched)
