"""A method for each stage of a run: each stage is a run of its own methods, and nothing goes from one to the next."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from cells import cells
from method_cases import CASES, Case, reference
from test_controlnet import build
from tiny_networks import generate, network_inputs, picture_unet, pipeline
from tiny_transformers import TRANSFORMERS

from diffaccel import (
    BlockCache,
    ControlCache,
    DeepCache,
    EasyCache,
    FeatureInheritance,
    IntervalCache,
    NetworkSwitch,
    ResidualGuidance,
    Staged,
    Steps,
    Taylor,
    TextKVCache,
    TGate,
    UnsupportedModelError,
    accelerate,
)
from diffaccel._diffusers import hooks_of
from diffaccel.methods import Method, parse
from diffaccel.reuse.schedule import Always, Uniform

STEPS = 8


def latents(pipe: Any, *methods: Method, **options: Any) -> torch.Tensor:
    if not methods:
        return generate(pipe, STEPS, **options)
    with accelerate(pipe, *methods):
        return generate(pipe, STEPS, **options)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline(picture_unet())


@pytest.mark.slow
def test_stages_that_reuse_nothing_are_the_plain_run(pipe: Any) -> None:
    plain = latents(pipe)
    assert torch.equal(latents(pipe, Staged([DeepCache(1), FeatureInheritance(interval=1)])), plain)
    assert torch.equal(latents(pipe, Staged([DeepCache(2), DeepCache(2)], warmup=STEPS)), plain)
    assert torch.equal(latents(pipe), plain)


@pytest.mark.slow
@pytest.mark.parametrize("at", [0.5, 4])
def test_the_same_method_twice_begins_anew(pipe: Any, at: float) -> None:
    """Calls are counted in the run; the first one of a stage has nothing to reuse."""
    ours = latents(pipe, Staged([DeepCache(2), DeepCache(3)], at=at))
    assert torch.equal(ours, latents(pipe, DeepCache(schedule=Steps((0, 2, 4, 6)))))
    three = latents(pipe, Staged([DeepCache(9)] * 3, at=(0.25, 0.6)))
    assert torch.equal(three, latents(pipe, DeepCache(schedule=Steps((0, 2, 5)))))


def test_a_forecast_forgets_the_stage_before(pipe: Any) -> None:
    cache = DeepCache(schedule=Uniform(2), forecast=Taylor(1))
    ours = latents(pipe, Staged([cache, DeepCache(schedule=Uniform(2), forecast=Taylor(1))], at=4))
    assert not torch.equal(ours, latents(pipe, cache))


def with_reference(first: Case, second: Case, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A run in two stages, and the same with torch's hooks in place of ours."""
    model = picture_unet()
    inputs, calls = network_inputs(model), range(STEPS)
    samples = [inputs["sample"] * (1 - 0.1 * i) for i in calls]

    def run(tell: Any = lambda index: None) -> torch.Tensor:
        outputs = []
        for i, t in enumerate(torch.linspace(900, 100, STEPS)):
            tell(i)
            outputs.append(model(timestep=t, **{**inputs, "sample": samples[i]}).sample)
        return torch.stack(outputs)

    with torch.no_grad(), accelerate(model, Staged([first.reuse, second.reuse], at=at)):
        ours = run()
    with torch.no_grad(), ExitStack() as stack:
        one = stack.enter_context(reference(model, first))
        other = stack.enter_context(reference(model, second))

        def tell(index: int) -> None:
            one(index if index < at else first.computed[0])
            other(index if index > at else second.computed[0])

        return ours, run(tell)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"), cells([(0, 2), (2, 0), (1, 4), (4, 3)], {(0, 2), (4, 3)}.__contains__, "{0[0]}-{0[1]}".format)
)
def test_two_methods_equal_their_references(one: int, other: int) -> None:
    """Calls outside of its stage compute for a method's reference; schedules list calls 0 and 2 of the run."""
    ours, expected = with_reference(CASES[one], CASES[other], at=1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    ours, expected = with_reference(CASES[one], CASES[other], at=4)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "FluxTransformer2DModel"])
def test_on_transformers(name: str) -> None:
    tiny = TRANSFORMERS[name]
    model, inputs = tiny.build(name), tiny.inputs(2, torch.Generator().manual_seed(0))

    def run(*methods: Method) -> torch.Tensor:
        with torch.no_grad(), accelerate(model, *methods):
            calls = [{**inputs, tiny.timestep: torch.full((2,), 900.0 - 100 * i)} for i in range(6)]
            return torch.stack([model(**call).sample for call in calls])

    plain = run(IntervalCache(schedule=Always()))
    staged = run(Staged([IntervalCache(schedule=Uniform(3)), BlockCache(threshold=0.0)], at=3))
    torch.testing.assert_close(staged[3:], plain[3:])
    assert torch.equal(staged[:3], run(IntervalCache(schedule=Uniform(3)))[:3])
    assert not torch.equal(staged[1], plain[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", [TextKVCache(), EasyCache(0.3), ResidualGuidance(), DeepCache(2, branch=1)])
def test_methods_beside_it_are_in_every_stage(pipe: Any, method: Method) -> None:
    """Where both stages reuse nothing else, the whole is the method begun anew."""
    ours = latents(pipe, Staged([FeatureInheritance("unit", interval=1)] * 2, at=4), method)
    assert torch.isfinite(ours).all()
    if isinstance(method, TextKVCache):
        assert torch.equal(ours, latents(pipe))
    if isinstance(method, DeepCache):
        assert torch.equal(ours, latents(pipe, method))  # call 4 computes in any case


def test_several_methods_in_a_stage_and_rows_dropped_in_one(pipe: Any) -> None:
    rows: list[int] = []
    hook = pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    latents(pipe, Staged([DeepCache(2), (TGate(gate=6), TextKVCache())], at=4))
    hook.remove()
    assert rows == [2] * 6 + [1] * 2
    with pytest.raises(ValueError, match="from call 3 on another method needs what the same network stored before"):
        latents(pipe, Staged([DeepCache(2), TGate(gate=3)], at=4))


@pytest.mark.slow
def test_the_report_counts_all_stages(pipe: Any) -> None:
    with accelerate(pipe, Staged([DeepCache(2), FeatureInheritance(interval=2)], at=4)) as handle:
        latents(pipe)
        report = handle.report()
    assert (report.computed, report.replayed, report.switched) == (4, 4, 0)
    assert report.methods == {"DeepCache": (2, 2), "FeatureInheritance": (2, 2)}
    assert sorted(row.step for row in report.calls) == list(range(STEPS))
    assert {row.network for row in report.calls} == {"unet"}
    shares = []
    for method in (DeepCache(2), FeatureInheritance(interval=2)):
        with accelerate(pipe, method) as handle:
            latents(pipe)
            shares.append(handle.report())
    assert report.macs_plain == shares[0].macs_plain
    assert report.macs == (shares[0].macs + shares[1].macs) // 2


def test_memory_of_a_stage_ends_with_it(pipe: Any) -> None:
    held: list[list[int]] = []
    with accelerate(pipe, Staged([DeepCache(2), FeatureInheritance(interval=2)], at=4)) as handle:
        watch = lambda *_, **__: held.append([seat.nbytes() for seat in handle._seats]) or {}  # noqa: E731
        latents(pipe, callback_on_step_end=watch)
    assert all(first > 0 and second == 0 for _, first, second in held[:4])
    assert all(first == 0 and second > 0 for _, first, second in held[4:-1])


def test_nothing_stays_on_the_network(pipe: Any) -> None:
    before = [list(module.__dict__) for module in pipe.unet.modules()]
    with accelerate(pipe, Staged([DeepCache(2), DeepCache(3)])) as handle:
        with handle.suspended():
            assert not any(hooks_of(module) for module in pipe.unet.modules())
        ours = latents(pipe)
    assert torch.equal(ours, latents(pipe, DeepCache(schedule=Steps((0, 2, 4, 6)))))
    assert [list(module.__dict__) for module in pipe.unet.modules()] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": [DeepCache(2)]}, "1 stages need at= for all but the first, 0"),
        ({"methods": [DeepCache(2), "deepcache"]}, "methods must be methods such as DeepCache"),
        ({"methods": [DeepCache(2), NetworkSwitch("emoji-sd-small")]}, "NetworkSwitch has turns of its own"),
        ({"methods": [DeepCache(2), ControlCache(2)]}, "ControlCache works on ControlNets"),
        ({"methods": [DeepCache(2)] * 2, "at": 1.5}, "at must be shares between 0 and 1, or whole calls"),
        ({"methods": [DeepCache(2)] * 3, "at": (0.5, 0.2)}, "at must be ascending"),
        ({"methods": [DeepCache(2)] * 3, "at": (0.5, 6)}, "all shares or all calls"),
    ],
)
def test_values_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Staged(**arguments)


def test_what_does_not_fit_is_refused(pipe: Any) -> None:
    halves = Staged([DeepCache(2), DeepCache(3)])
    with accelerate(pipe.unet, halves), pytest.raises(ValueError, match=r"0.5 is a share of a run whose length"):
        pipe.unet(timestep=9, **network_inputs(pipe.unet))
    with pytest.raises(ValueError, match="begin elsewhere"):
        latents(pipe, Staged([DeepCache(2), DeepCache(3)], at=STEPS))
    with pytest.raises(ValueError, match="Staged and NetworkSwitch cannot work together"):
        accelerate(pipe, halves, NetworkSwitch(picture_unet()))
    with pytest.raises(ValueError, match="Staged and Staged cannot work together"):
        accelerate(pipe, halves, Staged([DeepCache(4), DeepCache(3)]))
    with pytest.raises(ValueError, match="DeepCache and DeepCache cannot work together"):
        accelerate(pipe, halves, DeepCache(4))
    with pytest.raises(UnsupportedModelError, match="BlockCache needs"):
        accelerate(pipe, Staged([DeepCache(2), BlockCache()]))
    with pytest.raises(ValueError, match="Staged cannot work with a ControlNet"):
        accelerate(build(1), halves)
    with accelerate(pipe, halves) as handle, pytest.raises(ValueError, match="belong to no run"), handle.forced(True):
        pass


def test_it_has_text() -> None:
    read = parse("staged:methods=[deepcache(2),[deepcache(3),textkvcache]],at=[0.4]")
    assert read == Staged((DeepCache(2), (DeepCache(3), TextKVCache())), at=0.4)
    assert parse(read.to_text()) == read
    assert Method.from_dict(read.to_dict()) == read
