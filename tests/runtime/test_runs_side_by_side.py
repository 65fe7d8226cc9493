"""Runs beside each other: other pipelines, schedulers and threads do not read what is not theirs."""

import copy
import threading
from typing import Any

import diffusers
import pytest
import torch
from runtime_calls import EVERY_SECOND, dit, dit_inputs, replayed, run_calls, same
from tiny_networks import generate, pipeline, sd_unet
from walk_parts import ddim
from walk_unets import SMALL

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache, TGate


def test_copies_of_a_pipeline_with_their_own_schedulers() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    other = copy.copy(pipe)
    other.scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    runs = [(pipe, 6), (other, 4), (pipe, 6), (other, 4)]
    with accelerate(pipe, DeepCache(interval=2)):
        one, two, three, four = (generate(p, steps) for p, steps in runs)
    with accelerate(other, DeepCache(interval=2)):
        alone = generate(other, 4)
    assert torch.equal(one, three)
    assert torch.equal(two, four)
    assert torch.equal(two, alone)


def test_another_pipeline_brings_its_own_guidance_and_length() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.scheduler = ddim()
    img2img.set_progress_bar_config(disable=True)
    given = {"image": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), "strength": 0.5}
    with accelerate(img2img, TGate(gate=2, self_interval=1)):
        expected = generate(img2img, 8, **given)
    with accelerate(pipe, TGate(gate=2, self_interval=1)):
        generate(pipe, 5, guidance_scale=1.0)  # leaves a pipeline that says it is not guided
        assert torch.equal(generate(img2img, 8, **given), expected)
        with pytest.raises(ValueError, match="gate must be <= 1"):
            generate(img2img, 2, **given)


def test_schedulers_keep_their_class_and_copies_their_own_steps() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    cls = type(pipe.scheduler)
    before = cls.step, cls.set_timesteps
    with accelerate(pipe, DeepCache(interval=2)) as handle:
        assert type(pipe.scheduler) is cls
        generate(pipe, 4)
        copied = copy.deepcopy(pipe.scheduler)
        copied.set_timesteps(3)  # is nobody's run
        assert (handle.report().computed, handle.report().replayed) == (2, 2)
    assert (cls.step, cls.set_timesteps) == before


def test_a_scheduler_for_each_request_is_not_kept() -> None:
    import gc
    import weakref

    pipe, alive = pipeline(sd_unet(**SMALL)), []
    with accelerate(pipe, DeepCache(interval=2)):
        for _ in range(3):
            request = copy.copy(pipe)
            request.scheduler = ddim()
            generate(request, 2)
            alive.append(weakref.ref(request.scheduler))
            del request
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


@pytest.mark.parametrize("own_schedulers", [True, False])
def test_overlapping_runs_in_threads(own_schedulers: bool) -> None:
    """DDIM's scheduler remembers no picture, so that plain runs may share one, too."""
    pipe = pipeline(sd_unet(**SMALL))
    with accelerate(pipe, DeepCache(interval=2)):
        expected = [generate(pipe, 6, seed) for seed in range(3)]
        found: dict[int, Any] = {}

        def work(seed: int) -> None:
            mine = copy.copy(pipe)
            if own_schedulers:
                mine.scheduler = ddim()
            found[seed] = generate(mine, 6, seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [0, 1, 2]
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(3))


def test_alternating_requests_in_one_thread() -> None:
    """A run that is called from within another run's callback, as a server with coroutines does."""
    pipe = pipeline(sd_unet(**SMALL))
    other = copy.copy(pipe)
    other.scheduler = ddim()
    with accelerate(pipe, DeepCache(interval=2)):
        alone = generate(pipe, 5, 0), generate(other, 4, 1)
        inner: list[torch.Tensor] = []

        def between(p: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if step in (0, 1):
                inner.append(generate(other, 4, 1))
            return kwargs

        outer = generate(pipe, 5, 0, callback_on_step_end=between)
    assert torch.equal(outer, alone[0])
    assert all(torch.equal(one, alone[1]) for one in inner)


def test_one_scheduler_in_two_runs_at_once_is_not_silently_wrong() -> None:
    """Here plain sampling is broken, too; features must still not cross from one picture to the other."""
    network, seen = dit(), []
    network.register_forward_hook(lambda *a: seen.append(1))
    with accelerate(network, EVERY_SECOND) as handle:
        a, b = dit_inputs(0), dit_inputs(1)
        calls = [(900, a), (900, b), (700, a), (700, b)]
        found = run_calls(network, calls)
        assert handle.report().replayed == 2
    plain = run_calls(dit(), calls)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])
    replaying = dit()
    replayed(replaying, [("a", False), ("b", False), ("a", True), ("b", True)])
    same(found, run_calls(replaying, calls))
