"""What every method must do in a stream: the table of `tests/methods/test_every_method.py` on the other customer.

(a) reusing nothing is the plain stream; (b) reuse equals a reference without our hooks, by stage and by frame, in the
stream batch and one after another; (c) frames of different prompts do not leak; (d) what cannot work is refused.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from method_cases import BLOCKS, named
from row_reference import RowByRow, Rule
from transformer_reference import UNITS

from diffaccel import (
    Aligned,
    BackLoaded,
    BlockCache,
    CalibratedCache,
    Calibration,
    DeepCache,
    DeltaCache,
    EasyCache,
    EncoderPropagation,
    FeatureInheritance,
    FrontLoaded,
    FullGuidance,
    IntervalCache,
    LearnedCache,
    MagCache,
    MagCurve,
    NetworkSwitch,
    OneTimeNegative,
    PerPrompt,
    Profile,
    Quadratic,
    Recipe,
    ResidualGuidance,
    Routers,
    ScaledSteps,
    SlotCache,
    SpeCa,
    Staged,
    Steps,
    StreamEngine,
    Taylor,
    TeaCache,
    TextKVCache,
    TGate,
    TokenReduction,
    UnsupportedModelError,
    models,
)
from diffaccel.methods import KindSteps, Method, Reuse
from diffaccel.networks import layout_of
from diffaccel.reuse.schedule import Always, Uniform
from diffaccel.sampling.samplers import LCM

STAGES = (5, 15, 30, 45)
TRANSFORMERS = ("pixart", "sd3", "flux")
KEYS = ("stage", "frame")
every_second: Callable[[int], bool] = lambda count: count % 2 == 0  # noqa: E731


def blocks(model: torch.nn.Module) -> list[str]:
    """Transformer blocks in the order in which they run."""
    lists = ("transformer_blocks", "single_transformer_blocks")
    return [f"{name}.{i}" for name in lists for i, _ in enumerate(getattr(model, name, ()))]


def units(*kinds: str) -> Callable[[torch.nn.Module], list[str]]:
    """Attentions and feed-forward networks of some kinds, or of all."""

    def find(model: torch.nn.Module) -> list[str]:
        found = []
        for block in blocks(model):
            children = [name for name, _ in model.get_submodule(block).named_children()]
            if "proj_mlp" in children:
                found += [f"{block}.proj_out"] if not kinds else []
            else:
                found += [f"{block}.{n}" for n in children if n in UNITS and (not kinds or UNITS[n] in kinds)]
        return found

    return find


def last_layer(model: Any) -> list[str]:
    """The last layer of the UNet, whose input from below DeepCache stores at branch 0."""
    return [f"up_blocks.{len(model.up_blocks) - 1}.resnets.{len(model.up_blocks[-1].resnets) - 1}"]


def first_attention(model: Any) -> str:
    """The attention of the first transformer block."""
    return next(f"transformer_blocks.0.{n}" for n in ("attn", "attn1") if hasattr(model.transformer_blocks[0], n))


def mag_curve(pipe: Any) -> MagCurve:
    layout = layout_of(pipe.transformer)
    return MagCurve(layout.model, layout.fingerprint, "this test", (1.0, 0.9, 0.9, 0.9))


@dataclass(frozen=True)
class Case:
    """A method in a stream.

    Attributes:
        never: told to reuse nothing.
        reuse: told to reuse, and what that means (`rule`).
        on: names of pipelines.
        keys: by which it works.
        exact: whether it calls the network on the rows that the plain stream does, so that equal means bit for bit.
    """

    name: str
    never: Any
    reuse: Any
    rule: Rule
    on: tuple[str, ...]
    keys: tuple[str, ...] = KEYS
    exact: bool = True


def calibration(pipe: Any, cross: tuple[int, ...], total: int = len(STAGES)) -> Calibration:
    layout = layout_of(pipe.transformer)
    kinds = (KindSteps("cross_attention", cross),)
    return Calibration(layout.model, layout.fingerprint, total, 0.1, kinds)


def recipe(pipe: Any) -> Recipe:
    layout = layout_of(pipe.unet)
    return Recipe(layout.model, layout.fingerprint, "LCMScheduler", "0", 4, (Reuse(1, "branch 0"),))


def routers(pipe: Any) -> Routers:
    layout = layout_of(pipe.transformer)
    names = tuple(unit.branch.replayed[0] for unit in layout.units)
    return Routers(layout.model, layout.fingerprint, "LCMScheduler", "0", (), names, ((1.0,) * len(names),) * 4)


def rear_then_front(count: int, stages: int) -> range:
    """Of two blocks the last one early, the first one from the middle on."""
    return range(1, 2) if count < stages // 2 else range(1)


UNET_CASES = [
    Case("deepcache", DeepCache(1), DeepCache(2), Rule(last_layer, every_second, "input"), ("sd",)),
    Case(
        "deepcache, taylor",
        DeepCache(1, forecast=Taylor(1)),
        DeepCache(2, forecast=Taylor(1)),
        Rule(last_layer, every_second, "input", order=1),
        ("sd",),
    ),
    Case(
        "featureinheritance",
        FeatureInheritance("block", 0, 1),
        FeatureInheritance("block", 0, 2),
        Rule(named(BLOCKS), every_second),
        ("sd",),
    ),
    Case(
        "featureinheritance, layers",
        FeatureInheritance("layer", 0, 1),
        FeatureInheritance("layer", 0, 2),
        Rule(named(rf"({BLOCKS})\.(resnets|attentions)\.\d+"), every_second),
        ("sd",),
    ),
    Case(
        "featureinheritance, units",
        FeatureInheritance("unit", 0, 1),
        FeatureInheritance("unit", 0, 2),
        Rule(named(rf"({BLOCKS})\..*\.(attn1|attn2|ff)"), every_second),
        ("sd",),
    ),
    Case(
        "encoderpropagation",
        EncoderPropagation(Always()),
        EncoderPropagation(Uniform(2)),
        Rule(named(r"conv_in|mid_block|down_blocks\.\d+"), every_second),
        ("sd",),
    ),
    Case(
        "tokenreduction",
        TokenReduction("pool", ratio=0),
        TokenReduction("pool", min_tokens=4),
        Rule(named(r".*\.attn1\.to_[kv]"), lambda count: False, "pooled"),
        ("sd",),
    ),
]
TRANSFORMER_CASES = [
    Case(
        "tokenreduction",
        TokenReduction("pool", ratio=0),
        TokenReduction("pool", min_tokens=4),
        Rule(named(r".*\.(attn|attn1)\.to_[kv]"), lambda count: False, "pooled"),
        ("pixart", "sd3"),
    ),
    Case(
        "intervalcache",
        IntervalCache(schedule=Always()),
        IntervalCache(schedule=Uniform(2)),
        Rule(units(), every_second),
        TRANSFORMERS,
    ),
    Case(
        "intervalcache, a schedule per prompt",
        IntervalCache(schedule=PerPrompt(Always(), Always())),
        IntervalCache(schedule=PerPrompt(Uniform(2), Uniform(3))),
        Rule(units(), every_second, negative=lambda count: count % 3 == 0),
        ("pixart",),
    ),
    Case(
        "intervalcache, taylor",
        IntervalCache(schedule=Always(), forecast=Taylor(1)),
        IntervalCache(schedule=Uniform(2), forecast=Taylor(1)),
        Rule(units(), every_second, order=1),
        ("pixart",),
    ),
    Case(
        "intervalcache, the last stage too",
        IntervalCache(1),
        IntervalCache(2),
        Rule(units(), lambda count: count in (0, 2, 3)),
        TRANSFORMERS,
        ("frame",),
    ),
    Case(
        "blockcache",
        BlockCache(threshold=0.0),
        BlockCache(threshold=0.3),
        Rule(blocks, lambda count: False, "residual", front=1, threshold=0.3),
        TRANSFORMERS,
        exact=False,
    ),
    Case(
        "blockcache, taylor",
        BlockCache(threshold=0.0, forecast=Taylor(1)),
        BlockCache(threshold=0.3, forecast=Taylor(1)),
        Rule(blocks, lambda count: False, "residual", order=1, front=1, threshold=0.3),
        ("pixart",),
        exact=False,
    ),
    Case(
        "blockcache, aligned",
        BlockCache(threshold=0.0, forecast=Aligned()),
        BlockCache(threshold=0.3, forecast=Aligned(limit=1.0)),
        Rule(blocks, lambda count: False, "residual", front=1, threshold=0.3),
        ("pixart",),
        exact=False,
    ),
    Case(
        "magcache",
        lambda pipe: MagCache(mag_curve(pipe), threshold=0.0),
        lambda pipe: MagCache(mag_curve(pipe), threshold=9.0, max_consecutive=2, retention=0.0),
        Rule(blocks, lambda count: count in (0, 3), "residual"),
        TRANSFORMERS,
        ("frame",),
    ),
    Case(
        "teacache",
        TeaCache(threshold=0.0),
        TeaCache(threshold=0.5, forecast=Taylor(1)),
        Rule(blocks, lambda count: False, "residual", order=1, probe=first_attention, threshold=0.5),
        TRANSFORMERS,
        exact=False,
    ),
    Case(
        "speca",
        SpeCa(threshold=0.0),
        SpeCa(threshold=0.1, max_consecutive=99, forecast=None),
        Rule(blocks, lambda count: False, "residual", threshold=0.1, check=True),
        TRANSFORMERS,
        exact=False,
    ),
    Case(
        "deltacache",
        DeltaCache(1),
        DeltaCache(2),
        Rule(blocks, lambda count: count in (0, 2), "residual", skipped=rear_then_front),
        TRANSFORMERS,
        ("frame",),
        exact=False,
    ),
    Case(
        "calibratedcache",
        lambda pipe: CalibratedCache(calibration(pipe, (0, 1, 2, 3))),
        lambda pipe: CalibratedCache(calibration(pipe, (0, 3))),
        Rule(units("cross_attention"), lambda count: count in (0, 3)),
        ("pixart",),
        ("frame",),
    ),
]
WHOLE_CASES = [
    Case(
        "easycache",
        EasyCache(threshold=0.0),
        EasyCache(threshold=4.0),
        Rule(lambda model: [], lambda count: False, "network", threshold=4.0),
        ("sd", "pixart"),
    ),
]
CASES = UNET_CASES + TRANSFORMER_CASES + WHOLE_CASES
GUIDANCES = (FullGuidance(1.5), OneTimeNegative(1.5))


def table(turn: int, *settings: Any) -> list[Any]:
    """Every case on its pipelines, by its keys, with each of the settings.

    One cell of each method is quick (variants, in whose names a comma is, have none): pipelines, keys and settings take
    turns, and `turn` says where they begin.
    """
    quick = [
        (case, case.on[i % len(case.on)], case.keys[i % len(case.keys)], *settings[i // 2 % 2 :][:1])
        for i, case in enumerate(CASES, turn)
        if "," not in case.name
    ]
    every = [
        (case, name, key, *setting)
        for case in CASES
        for name in case.on
        for key in case.keys
        for setting in ([(one,) for one in settings] or [()])
    ]
    return cells(every, quick.__contains__, lambda cell: "-".join([cell[0].name, *map(str, cell[1:])]))


@cache
def pipeline(name: str) -> Any:
    pipe = getattr(stream_pipelines, name)()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stream(name: str, cache: Any = None, key: Any = "stage", pipe: Any = None, **changes: Any) -> StreamEngine:
    """A stream on a tiny pipeline."""
    pipe = pipeline(name) if pipe is None else pipe
    if cache is not None:
        method = cache if isinstance(cache, Method) else cache(pipe)
        changes["cache"] = SlotCache(method, key)
    settings: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "blurry", "timestep_indices": STAGES}
    settings |= {"height": 32, "width": 32, "seed": 2, "output_type": "latent"} | changes
    return StreamEngine(pipe, **settings)


def movie() -> torch.Tensor:
    """A square that moves over a still background, ``(5, 3, 32, 32)``."""
    frames = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(0.3).repeat(5, 1, 1, 1)
    for i in range(5):
        frames[i, :, 8:18, i : i + 10] = 0.9
    return frames


def run(engine: StreamEngine) -> torch.Tensor:
    with engine:
        return torch.stack([output.image for output in engine.stream(movie())])


@cache
def plain(name: str, **changes: Any) -> torch.Tensor:
    """What the stream without a cache shows; read-only."""
    return run(stream(name, **changes))


def reference_on(name: str, case: Case, key: str, **changes: Any) -> RowByRow:
    """The reference, on a copy of the network, which it hooks."""
    pipe = copy.copy(pipeline(name))
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, component, copy.deepcopy(getattr(pipe, component)))
    return RowByRow(stream(name, pipe=pipe, **changes), case.rule, key)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "key", "batched"), table(0, True, False))
def test_a_reusing_nothing_is_the_plain_stream(case: Case, name: str, key: str, batched: bool) -> None:
    engine = stream(name, case.never, key, stream_batch=batched)
    ours, expected = run(engine), plain(name, stream_batch=batched)
    assert engine.report().replayed_rows == 0
    if case.exact:
        assert torch.equal(ours, expected)
    else:
        close(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "key", "guidance"), table(1, *GUIDANCES))
def test_b_reuse_equals_the_reference(case: Case, name: str, key: str, guidance: Any) -> None:
    engine = stream(name, case.reuse, key, guidance=guidance)
    ours = run(engine)
    reference = reference_on(name, case, key, guidance=guidance)
    close(ours, run(reference.engine))
    assert case.rule.front or reference.replayed > 0  # what blocks decide by their change may all compute
    if case.rule.front == 0 or engine.report().replayed_rows:
        assert (ours - plain(name, guidance=guidance)).abs().max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "key"), table(2))
def test_c_frames_of_different_prompts_do_not_leak(case: Case, name: str, key: str) -> None:
    """Frames of one prompt come out the same, whatever prompt the frames between them have."""

    def beside(other: str) -> torch.Tensor:
        with stream(name, case.reuse, key) as engine:
            out = {}
            for i, frame in enumerate(movie()):
                engine.update(prompt=("a cat", other)[i // 2 % 2], at="new")
                out |= {output.frame_id: output.image for output in engine.push(frame)}
            out |= {output.frame_id: output.image for output in engine.flush()}
        return torch.stack([out[i] for i in (0, 1, 4)])

    close(beside("a red heart"), beside("a dog on a hill"))


MADE_OF_RUNS = "computes at places in a run of known length"
REFUSED = [
    ("pixart", lambda pipe: CalibratedCache(calibration(pipe, (0, 3))), "stage", MADE_OF_RUNS),
    ("pixart", DeltaCache(2), "stage", MADE_OF_RUNS),
    ("pixart", lambda pipe: MagCache(mag_curve(pipe)), "stage", MADE_OF_RUNS),
    ("pixart", IntervalCache(2), "stage", MADE_OF_RUNS),
    ("sd", EncoderPropagation(), "stage", MADE_OF_RUNS),
    *(
        ("sd", DeepCache(schedule=schedule), "stage", MADE_OF_RUNS)
        for schedule in (Steps((0, 2)), Quadratic(2), ScaledSteps((0, 2), of=4), FrontLoaded(2), BackLoaded(2))
    ),
    ("sd", TokenReduction(calls=(0.5, 1.0)), "stage", MADE_OF_RUNS),
    ("sd", DeepCache(schedule=Steps((0, 4))), "frame", "steps lists call 4, but the run has 4"),
    ("pixart", DeltaCache(2, gate=5), "frame", "gate must be in 1..4"),
    ("pixart", lambda pipe: CalibratedCache(calibration(pipe, (0, 3), 6)), "frame", "is for 6 network calls"),
    *(("sd", TGate(gate=2), key, "TGate changes what the network is called with") for key in KEYS),
    *(("sd", ResidualGuidance(), key, "ResidualGuidance changes what the network") for key in KEYS),
    *(("sd", lambda pipe: Profile(recipe(pipe)), key, "Profile changes what the network") for key in KEYS),
    *(
        ("pixart", lambda pipe: LearnedCache(routers(pipe)), key, "LearnedCache is trained on whole runs of a pipeline")
        for key in KEYS
    ),
    *(("sd", NetworkSwitch("emoji-sd"), key, "NetworkSwitch gives whole calls to another network") for key in KEYS),
    *(("sd", Staged([DeepCache(2), DeepCache(3)]), key, "Staged takes turns by the calls of a run") for key in KEYS),
    *(("sd", TextKVCache(), key, "TextKVCache is what every stream does by itself") for key in KEYS),
]


@pytest.mark.parametrize(("name", "method", "key", "match"), REFUSED)
def test_d_what_cannot_work_is_refused_at_once(name: str, method: Any, key: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        stream(name, method, key)


@pytest.mark.parametrize(
    "method", [DeepCache(2), FeatureInheritance("block", depth=0), EncoderPropagation(Always())], ids=str
)
def test_d_a_network_without_the_part_is_refused(method: Method) -> None:
    with pytest.raises(UnsupportedModelError, match="PixArtTransformer2DModel"):
        stream("pixart", method)


def test_every_method_is_in_the_table() -> None:
    """One that is public works somewhere, or is refused everywhere."""
    tried = [case.reuse for case in CASES] + [method for _, method, _, _ in REFUSED]
    pipes = {True: pipeline("pixart"), False: pipeline("sd")}
    seen = set()
    for method in tried:
        for pipe in pipes.values() if not isinstance(method, Method) else ():
            with contextlib.suppress(AttributeError):
                seen.add(type(method(pipe)).__name__.lower())
        seen.add(type(method).__name__.lower())
    seen |= {"controlcache"}  # works on ControlNets: `test_stream_control_cache.py`
    assert set(Method.names()) <= seen


@pytest.mark.parametrize("key", KEYS)
def test_a_block_cache_of_threshold_0_on_the_bundled_transformer(key: Any) -> None:
    pipe = models.load("emoji-dit")
    settings = {"pipe": pipe, "timestep_indices": (10, 25, 40), "sampler": LCM()}
    engine = stream("emoji-dit", BlockCache(threshold=0.0), key, **settings)
    close(run(engine), run(stream("emoji-dit", **settings)))
    assert engine.report().replayed_rows == 0
