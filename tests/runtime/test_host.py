"""Which rows see the negative prompt: by what is said, by name, or by the prompts themselves; else it is refused."""

from typing import Any

import pytest
import torch

from diffaccel.runtime.host import NEGATIVE, POSITIVE, Host, _compared, halves

N, P = (NEGATIVE,), (POSITIVE,)


class Pipe:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class StableVideoDiffusionPipeline(Pipe):
    """Named like one whose rows are known to be stacked."""


class I2VGenXLPipeline(Pipe):
    """As above."""


class DiTPipeline(Pipe):
    """Named like one whose rows are known to be stacked otherwise."""


class StableDiffusionGLIGENTextImagePipeline(Pipe):
    """As above."""


class Running:
    """A pipeline's call, with its variables."""

    def __init__(self, guided: bool | None = None, prepared: str | None = None, **variables: torch.Tensor) -> None:
        self.guided, self.prepared = guided, prepared
        negative = variables.get("negative_prompt_embeds")
        self.embeddings = [] if negative is None else [(negative, variables.get("prompt_embeds"))]


def prompts(*seeds: int) -> torch.Tensor:
    return torch.cat([torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_what_is_said_counts_before_everything() -> None:
    assert Host(None, guided=True).roles(None, 4, None, None) == N * 2 + P * 2
    assert Host(Pipe(do_classifier_free_guidance=True), guided=False).roles(None, 4, None, None) == ()
    assert halves(3) == N + P * 2


def test_no_guidance() -> None:
    pipe = Pipe(do_classifier_free_guidance=False)
    assert Host().roles(None, 2, None, None) == ()
    assert Host(pipe).roles(None, 2, "cond", None) == ()
    pipe.do_classifier_free_guidance = True
    assert Host(pipe).roles(None, 2, "cond", Running(guided=False)) == ()


@pytest.mark.parametrize(("name", "role"), [("cond", POSITIVE), ("pred_uncond", NEGATIVE)])
def test_the_pipeline_names_its_calls(name: str, role: str) -> None:
    pipe = Pipe(do_classifier_free_guidance=True)
    assert Host(pipe).roles(None, 2, name, None) == (role, role)


def test_embeddings_of_the_call_are_compared() -> None:
    pipe = Pipe(do_classifier_free_guidance=True)
    running = Running(negative_prompt_embeds=prompts(0), prompt_embeds=prompts(1))
    assert Host(pipe).roles(prompts(0, 1), 2, None, running) == N + P
    assert Host(pipe).roles(prompts(1, 0), 2, None, running) == P + N
    assert Host(pipe).roles(prompts(1), 1, None, running) == P
    assert Host(pipe).roles(prompts(0), 1, None, running) == N


def test_a_call_that_has_a_negative_prompt_is_guided_whatever_it_says() -> None:
    """Some pipelines have neither a property nor a variable that tells of guidance."""
    running = Running(negative_prompt_embeds=prompts(0), prompt_embeds=prompts(1))
    assert Host(Pipe()).roles(prompts(0), 1, None, running) == N
    with pytest.raises(ValueError, match="does not tell which rows see the negative prompt"):
        Host(Pipe()).roles(prompts(2), 1, None, running)


@pytest.mark.parametrize(("prepared", "roles"), [("pred_cond", P), ("pred_uncond", N), ("pred_cond_skip", ())])
def test_the_guider_names_its_calls(prepared: str, roles: tuple[str, ...]) -> None:
    pipe = Pipe()
    assert Host(pipe).roles(prompts(0), 1, None, Running(prepared=prepared)) == roles


def test_what_tells_nothing_is_refused() -> None:
    pipe = Pipe(do_classifier_free_guidance=True)
    with pytest.raises(ValueError, match="does not tell which rows see the negative prompt: say accelerate"):
        Host(pipe).roles(prompts(2, 3), 2, None, Running(negative_prompt_embeds=prompts(0)))
    for kind in (StableVideoDiffusionPipeline, I2VGenXLPipeline):
        stacked = kind(do_classifier_free_guidance=True)
        assert Host(stacked).roles(None, 2, None, None) == N + P
    for other in ("image_guidance_scale", "do_perturbed_attention_guidance"):
        more = Pipe(do_classifier_free_guidance=True, **{other: 1.5})
        for guided in (None, True):
            with pytest.raises(ValueError, match=rf"more than a negative and a positive prediction \({other}\)"):
                Host(more, guided).roles(None, 3, None, None)


@pytest.mark.parametrize("guided", [None, True])
def test_pipelines_that_are_known_to_stack_other_rows_are_refused(guided: bool | None) -> None:
    """DiT stacks the label first: to say that the negative rows are would not make it so."""
    grounded = StableDiffusionGLIGENTextImagePipeline(do_classifier_free_guidance=True)  # halves of two calls
    for pipe in (grounded, DiTPipeline(do_classifier_free_guidance=True)):
        with pytest.raises(ValueError, match=f"{type(pipe).__name__} combines other rows of its calls than"):
            Host(pipe, guided).roles(None, 2, None, None)
    pipe.do_classifier_free_guidance = False
    assert Host(pipe).roles(None, 1, None, None) == ()
    assert Host(DiTPipeline()).roles(None, 2, None, None) == ()  # which methods that need roles refuse


def test_rows_that_cannot_be_the_halves_that_were_told_are_refused() -> None:
    with pytest.raises(ValueError, match="and this one has 3 rows: leave guided out"):
        Host(None, guided=True).roles(None, 3, None, None)
    assert Host(None, guided=True).roles(None, 1, None, None) == P  # where guidance has ended


def test_a_pipeline_that_is_gone_tells_nothing() -> None:
    host = Host(Pipe(scheduler=1))
    assert (host.pipe, host.scheduler, host.table, host.num_timesteps) == (None, None, None, None)


@pytest.mark.parametrize("extra", [1, 2])
def test_rows_that_are_not_pairs_are_refused(extra: int) -> None:
    """Stacks of more than a negative and a positive prompt are not taken for halves."""
    negative, positive, other = prompts(0), prompts(1), prompts(2)
    stacked = torch.cat([negative, positive, *[other] * extra])
    assert _compared(stacked, negative, positive, len(stacked)) == ()
    pairs = torch.cat([negative, positive])
    assert _compared(pairs, negative, pairs, 2) == N + P
    assert _compared(pairs.flip(0), negative, positive, 2) == P + N
    assert _compared(positive, negative, pairs, 1) == P
    assert _compared(negative, negative, positive, 1) == N
    twice = torch.cat([pairs[[0, 0]], pairs[[1, 1]], pairs[[1, 1]]])  # negative, positive, perturbed of two pictures
    assert _compared(twice, pairs[[0, 0]], positive, 6) == ()


def test_padded_and_deeper_embeddings() -> None:
    negative, positive = prompts(0), prompts(1)
    longer = torch.cat([torch.cat([negative, positive]), torch.zeros(2, 3, 8)], dim=1)
    assert _compared(longer, negative, positive, 2) == N + P
    assert _compared(negative[:, None], negative, positive, 1) == N
    assert _compared(torch.zeros(2, 5), negative, positive, 2) == ()
