"""Every cache for transformers on every transformer, against the plain network and a reference without hooks."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from cells import cells
from diffusers import ConfigMixin, ModelMixin
from tiny_transformers import TRANSFORMERS
from transformer_reference import ReferenceBlocks, ReferenceUnits

from diffaccel.attach.handle import accelerate
from diffaccel.methods import (
    BlockCache,
    CalibratedCache,
    Calibration,
    DeltaCache,
    IntervalCache,
    KindSteps,
    MagCache,
    MagCurve,
    SpeCa,
    TeaCache,
)
from diffaccel.methods.tea_cache import first_attention
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.reuse.forecast import Aligned, Taylor
from diffaccel.reuse.schedule import Always

pytestmark = [  # what the networks themselves say
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*CPU autocast:UserWarning"),
]
CALLS = 6
ROWS = 2
NAMES = sorted(TRANSFORMERS)
# Prompts beside the picture, prompts in the same sequence, and videos; every network runs with one of the caches.
TELLING = {"PixArtTransformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel"}
TABLE = cells(NAMES, TELLING.__contains__)


@cache
def build(name: str) -> Any:
    return TRANSFORMERS[name].build(name)


@cache
def plain_run(name: str) -> list[torch.Tensor]:
    return outputs(build(name), run_inputs(name))


def run_inputs(name: str, rows: int = ROWS, seed: int = 3) -> list[dict[str, Any]]:
    """Inputs of one run: row 0 hardly moves, row 1 does, each with timesteps of its own."""
    tiny = TRANSFORMERS[name]
    generator = torch.Generator().manual_seed(seed)
    inputs = tiny.inputs(rows, generator)
    sample = next(iter(inputs))
    speed = torch.tensor([0.01, 0.6, 0.05][:rows])
    calls = []
    for i in range(CALLS):
        moved = [x * (1 + i * v) + i * v * x.roll(1, -1) for x, v in zip(inputs[sample], speed, strict=True)]
        value = torch.stack(moved) if isinstance(inputs[sample], torch.Tensor) else moved
        times = torch.tensor([900.0 - 10 * i, 600.0 - 60 * i, 300.0 - i][:rows])
        calls.append({**inputs, sample: value, tiny.timestep: times})
    return calls


def row(inputs: dict[str, Any], index: int, rows: int = ROWS) -> dict[str, Any]:
    """One row of some inputs, by the tables of the tiny networks rather than by the package's rule."""
    shared = ("img_ids", "txt_ids", "image_rotary_emb", "rotary_embedding")
    taken = {}
    for name, value in inputs.items():
        has_rows = isinstance(value, torch.Tensor | list) and name not in shared and len(value) == rows
        taken[name] = value[index : index + 1] if has_rows else value
        if isinstance(taken[name], torch.Tensor):
            taken[name] = taken[name].clone()
    return taken


def outputs(model: Any, calls: list[dict[str, Any]]) -> list[torch.Tensor]:
    with torch.no_grad():
        results = [model(**call).sample for call in calls]
    return [x if isinstance(x, torch.Tensor) else torch.stack(x) for x in results]


def equal(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def close(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def profile(model: Any, steps: tuple[int, ...]) -> Calibration:
    layout = layout_of(model)
    kinds = sorted({unit.kind for unit in layout.units})
    shifted = {kind: (0, *(s + i % 2 for s in steps[1:])) for i, kind in enumerate(kinds)}
    return Calibration(layout.model, layout.fingerprint, CALLS, 0.1, tuple(KindSteps(k, s) for k, s in shifted.items()))


def always(model: Any) -> list[Any]:
    every = profile(model, (0,))
    kinds = tuple(KindSteps(item.kind, tuple(range(CALLS))) for item in every.kinds)
    full = Calibration(every.model, every.fingerprint, CALLS, 0.0, kinds)
    return [
        BlockCache(threshold=0.0),
        BlockCache(warmup=100, threshold=10.0, forecast=Taylor(1)),
        BlockCache(max_consecutive=0, threshold=10.0, back=1),
        IntervalCache(interval=1, total=CALLS),
        IntervalCache(schedule=Always(), forecast=Taylor(2)),
        DeltaCache(interval=1, gate=3),
        CalibratedCache(full),
        BlockCache(threshold=0.0, forecast=Aligned()),
        MagCache(mag_curve(model), threshold=0.0, total=CALLS),
        *guarded(model, 0.0),
    ]


def mag_curve(model: Any) -> MagCurve:
    layout = layout_of(model)
    return MagCurve(layout.model, layout.fingerprint, "this test", (1.0, 1.05, 1.02, 0.97, 1.1, 0.8))


def guarded(model: Any, threshold: float) -> list[Any]:
    """TeaCache where the first attention is known by name, and SpeCa."""
    try:
        first_attention(layout_of(model))
    except UnsupportedModelError:
        return [SpeCa(threshold)]
    return [SpeCa(threshold), TeaCache(threshold=threshold)]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_never_reusing_is_the_plain_network(name: str) -> None:
    model, calls, plain = build(name), run_inputs(name), plain_run(name)
    for method in always(model):
        with accelerate(model, method):
            assert equal(outputs(model, calls), plain), method


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "front", "back", "order", "per_row"),
    [
        *cells(
            [(name, 1, *setting, True) for name in NAMES for setting in ((0, 0), (1, 1))],
            lambda value: value[0] in TELLING,
            lambda value: "-".join(map(str, value)),
        ),
        ("DiTTransformer2DModel", 2, 0, 2, True),
        ("PixArtTransformer2DModel", 1, 0, 1, False),
    ],
)
def test_block_cache_equals_the_reference(name: str, front: int, back: int, order: int, per_row: bool) -> None:
    model, calls = build(name), run_inputs(name)
    layout = layout_of(model)
    blocks, apart = list(layout.blocks), layout.rows_apart and per_row
    rows = ROWS if apart else 1
    taken = [[row(call, j) for call in calls] for j in range(ROWS)] if apart else [calls]

    def reference(threshold: float) -> list[ReferenceBlocks]:
        def decide(step: int, change: float, age: int) -> bool:
            return step < 2 or not change <= threshold or age >= 3

        middle = set(range(front, len(blocks) - back))
        return [ReferenceBlocks(model, blocks, front, lambda step: middle, decide, order) for _ in range(rows)]

    probes = reference(float("inf"))
    for probe, inputs in zip(probes, taken, strict=True):
        outputs_of(probe, inputs[:3])
    changes = sorted(probe.changes[2] for probe in probes)
    threshold = (changes[0] * changes[-1]) ** 0.5 if rows > 1 else changes[0] * 1.5
    references = reference(threshold)
    expected = [torch.cat(results) for results in zip(*(map(outputs_of, references, taken)), strict=True)]
    forecast = Taylor(order) if order else None
    method = BlockCache(front, back, threshold, warmup=2, max_consecutive=3, forecast=forecast, per_row=per_row)
    with accelerate(model, method):
        close(outputs(model, calls), expected)
    decisions = list(zip(*(reference.computed for reference in references), strict=True))
    assert any(not all(decision) for decision in decisions)
    assert rows == 1 or any(sum(decision) == 1 for decision in decisions)


def outputs_of(reference: Any, calls: list[dict[str, Any]]) -> list[torch.Tensor]:
    results = [reference(**call) for call in calls]
    return [x if isinstance(x, torch.Tensor) else torch.stack(x) for x in results]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "order"), [(name, 0) for name in NAMES] + [("FluxTransformer2DModel", 2)])
def test_interval_cache_equals_the_reference(name: str, order: int) -> None:
    model, calls = build(name), run_inputs(name)
    reference = ReferenceUnits(
        model, list(layout_of(model).blocks), lambda step, kind: step % 3 == 0 or step == CALLS - 1, order
    )
    with accelerate(model, IntervalCache(interval=3, total=CALLS, forecast=Taylor(order) if order else None)):
        close(outputs(model, calls), outputs_of(reference, calls))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        *cells([(name, 2) for name in NAMES], lambda value: value[0] in TELLING, "{0[0]}-{0[1]}".format),
        ("SD3Transformer2DModel", 3),
    ],
)
def test_delta_cache_equals_the_reference(name: str, blocks: int) -> None:
    model, calls = build(name), run_inputs(name)
    names = list(layout_of(model).blocks)
    rear, front = set(range(len(names) - blocks, len(names))), set(range(blocks))
    reference = ReferenceBlocks(
        model, names, 0, lambda step: front if step >= 3 else rear, lambda step, change, age: step % 2 == 0 or step == 3
    )
    with accelerate(model, DeltaCache(interval=2, blocks=blocks, gate=3)):
        close(outputs(model, calls), outputs_of(reference, calls))


@pytest.mark.parametrize("name", TABLE)
def test_calibrated_cache_equals_the_reference(name: str) -> None:
    model, calls = build(name), run_inputs(name)
    measured = profile(model, (0, 2, 4))
    steps = {item.kind: item.steps for item in measured.kinds}
    reference = ReferenceUnits(model, list(layout_of(model).blocks), lambda step, kind: step in steps[kind])
    with accelerate(model, CalibratedCache(measured)):
        close(outputs(model, calls), outputs_of(reference, calls))


def reusing(model: Any) -> list[Any]:
    return [
        BlockCache(threshold=10.0),
        IntervalCache(interval=3, total=CALLS),
        DeltaCache(interval=3, gate=2),
        CalibratedCache(profile(model, (0, 3))),
        BlockCache(threshold=10.0, warmup=2, forecast=Aligned()),
        MagCache(mag_curve(model), threshold=10.0, total=CALLS),
        *guarded(model, 10.0),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_two_runs_are_equal_and_detaching_leaves_nothing(name: str) -> None:
    model, calls = build(name), run_inputs(name)
    before = [list(module.__dict__) for module in model.modules()]
    plain = plain_run(name)
    for method in reusing(model):
        with accelerate(model, method) as handle:
            first = outputs(model, calls)
            handle.reset()
            assert equal(outputs(model, calls), first)
            assert not equal(first, plain)
            assert handle.report().replayed > 0
        for _ in range(3):
            accelerate(model, method).detach()
    assert [list(module.__dict__) for module in model.modules()] == before
    assert equal(outputs(model, calls), plain)


@pytest.mark.parametrize("name", TABLE)
def test_nothing_is_written_in_place(name: str) -> None:
    model, calls = build(name), run_inputs(name)
    same = [calls[0]] * 4
    for method in reusing(model):
        with accelerate(model, method):
            results = outputs(model, same)
        close(results, results[:1] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_rows_do_not_leak(name: str) -> None:
    model, calls = build(name), run_inputs(name, 3)
    if not layout_of(model).rows_apart:
        pytest.skip("rows of this network do not stay apart")
    for method in [*reusing(model), BlockCache(threshold=0.02)]:
        with accelerate(model, method):
            together = outputs(model, calls)
        for j in range(3):
            with accelerate(model, method):
                alone = outputs(model, [row(call, j, 3) for call in calls])
            close([x[j : j + 1] for x in together], alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_contexts_do_not_leak(name: str) -> None:
    """Conditional and unconditional calls that alternate equal two runs of their own."""
    model = build(name)
    runs = {context: run_inputs(name, seed=seed)[:4] for seed, context in enumerate(("cond", "uncond"))}
    intervals = IntervalCache(interval=2, total=4), DeltaCache(interval=2, gate=2)
    for method in (BlockCache(threshold=0.02), *intervals, *guarded(model, 0.05)):
        with accelerate(model, method) as handle:
            alone = {}
            for context, calls in runs.items():
                alone[context] = outputs(model, calls)
                handle.reset()
            both: dict[str, list[torch.Tensor]] = {context: [] for context in runs}
            for pair in zip(*runs.values(), strict=True):
                for context, call in zip(runs, pair, strict=True):
                    with in_context(model, handle, context):
                        both[context] += outputs(model, [call])
        assert all(equal(both[context], alone[context]) for context in runs), method


def in_context(model: Any, handle: Any, name: str) -> Any:
    """As a pipeline says which prediction it computes, where the network can be told."""
    return model.cache_context(name) if hasattr(model, "cache_context") else handle.forced(None, context=name)


def stranger(model: Any) -> Any:
    """The same network, of a class that no table names and that has no known base."""
    bases = (ModelMixin, ConfigMixin)
    cls = type("StrangerTransformer", bases, {"forward": type(model).forward, "config_name": "config.json"})
    other = copy.copy(model)
    other.__class__ = cls
    return other


def test_a_network_of_an_unknown_class_is_found_by_its_lists_of_blocks() -> None:
    calls, known = run_inputs("PixArtTransformer2DModel"), build("PixArtTransformer2DModel")
    unknown = stranger(known)
    assert layout_of(unknown).blocks == layout_of(known).blocks
    assert not layout_of(unknown).rows_apart
    plain = outputs(known, calls)
    for method in (BlockCache(threshold=0.0), IntervalCache(interval=1, total=CALLS)):
        with accelerate(unknown, method):
            assert equal(outputs(unknown, calls), plain)
    for method in (IntervalCache(interval=3, total=CALLS), DeltaCache(interval=3, gate=2)):
        with accelerate(known, method):
            expected = outputs(known, calls)
        with accelerate(unknown, method):
            assert equal(outputs(unknown, calls), expected)


def test_a_network_without_a_list_of_blocks_is_refused() -> None:
    unknown = stranger(build("PixArtTransformer2DModel"))
    unknown._modules = {key: value for key, value in unknown._modules.items() if key != "transformer_blocks"}
    with pytest.raises(UnsupportedModelError, match=r"StrangerTransformer is not a supported denoiser; .*PixArtTransf"):
        accelerate(unknown, BlockCache())
