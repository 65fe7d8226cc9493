"""MagCache, TeaCache, SpeCa and the aligned forecast against references without hooks of ours, and diffusers' own."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from cells import cells
from diffusers import MagCacheConfig, TaylorSeerCacheConfig, apply_mag_cache, apply_taylorseer_cache
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.hooks.sea_cache import _apply_sea_filter
from test_transformer_settings import pictures, pipe  # noqa: F401 - a fixture
from test_transformers import CALLS, ROWS, build, close, equal, outputs, outputs_of, row, run_inputs
from tiny_transformers import TRANSFORMERS
from transformer_reference import PROMPT_FIRST, ReferenceBlocks

from diffaccel import (
    Aligned,
    BlockCache,
    CalibratedCache,
    IntervalCache,
    MagCache,
    MagCurve,
    SeaFilter,
    SpeCa,
    Steps,
    Taylor,
    TeaCache,
    TeaCurve,
    Threshold,
    accelerate,
    calibrate,
)
from diffaccel.methods import DeepCache, Method, load_methods
from diffaccel.methods.curves import published
from diffaccel.methods.mag_cache import mag_steps, nearest
from diffaccel.networks import UnsupportedModelError, layout_of

FAMILIES = ("PixArtTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "DiTTransformer2DModel")
TABLE = cells(FAMILIES, {"PixArtTransformer2DModel", "FluxTransformer2DModel"}.__contains__)
RATIOS = (1.0, 1.05, 1.02, 0.97, 1.1, 0.8)


def mag_curve(model: Any) -> MagCurve:
    layout = layout_of(model)
    return MagCurve(layout.model, layout.fingerprint, "this test", RATIOS)


def by_rows(model: Any, references: list[Any], calls: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Outputs of one reference for each row."""
    taken = [[row(call, j) for call in calls] for j in range(ROWS)]
    return [torch.cat(results) for results in zip(*map(outputs_of, references, taken), strict=True)]


def test_the_calls_that_mag_cache_computes() -> None:
    """Written out: products 1.02, 1.02 * 0.97, ... from the first call after the retained ones on."""
    assert mag_steps(RATIOS, 0.05, 3, 2, 6) == (0, 1, 4, 5)  # |1-1.02| + |1-0.9894| = 0.031; + |1-1.088| is too much
    assert mag_steps(RATIOS, 0.05, 1, 2, 6) == (0, 1, 3, 4, 5)
    assert mag_steps(RATIOS, 9.0, 9, 1, 5) == (0, 5)
    assert mag_steps(RATIOS, 0.0, 9, 0, 6) == (0, 1, 2, 3, 4, 5)
    assert nearest((1.0, 2.0, 3.0, 4.0), 7)[::2] == (1.0, 2.0, 3.0, 4.0)
    assert nearest((1.0, 2.0), 1) == (2.0,)


@pytest.mark.parametrize("name", FAMILIES)
def test_mag_cache_equals_the_reference(name: str) -> None:
    model, calls = build(name), run_inputs(name)
    blocks = list(layout_of(model).blocks)
    reference = ReferenceBlocks(
        model, blocks, 0, lambda step: set(range(len(blocks))), lambda step, *_: step in (0, 1, 4, 5)
    )
    with accelerate(model, MagCache(mag_curve(model), 0.05, retention=0.3, total=CALLS)) as handle:
        close(outputs(model, calls), outputs_of(reference, calls))
    assert (handle.report().computed, handle.report().replayed) == (4, 2)


def modulated(model: Any, calls: list[dict[str, Any]]) -> list[torch.Tensor]:
    """What the attention of the first block is given, by a plain run."""
    first = layout_of(model).blocks[0]
    name = next(n for n in ("attn", "attn1") if hasattr(model.get_submodule(first), n))
    seen: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    hook = model.get_submodule(f"{first}.{name}").register_forward_pre_hook(note, with_kwargs=True)
    outputs(model, calls)
    hook.remove()
    return seen


def accumulated(seen: list[torch.Tensor], threshold: float, polynomial: Any) -> list[bool]:
    """Which calls compute."""
    total, decisions = 0.0, []
    for i, now in enumerate(seen):
        if i > 0:
            total += float(polynomial(float((now - seen[i - 1]).abs().mean() / seen[i - 1].abs().mean())))
        decisions.append(i == 0 or not total < threshold)
        total = 0.0 if decisions[-1] else total
    return decisions


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", TABLE)
def test_tea_cache_equals_the_reference(name: str, order: int) -> None:
    model, calls = build(name), run_inputs(name)
    layout, blocks = layout_of(model), list(layout_of(model).blocks)
    coefficients = (2.0, 0.5, 0.01)
    curve = TeaCurve(layout.model, layout.fingerprint, "this test", coefficients)
    seen = [modulated(model, [row(call, j) for call in calls]) for j in range(ROWS)]
    firsts = [np.poly1d(coefficients)(float((s[1] - s[0]).abs().mean() / s[0].abs().mean())) for s in seen]
    threshold = 1.5 * max(firsts)
    decisions = [accumulated(s, threshold, np.poly1d(coefficients)) for s in seen]
    assert all(0 < sum(d) < CALLS for d in decisions)
    references = [
        ReferenceBlocks(model, blocks, 0, lambda step: set(range(len(blocks))), lambda step, *_, d=d: d[step], order)
        for d in decisions
    ]
    method = TeaCache(curve, threshold, forecast=Taylor(order) if order else None)
    with accelerate(model, method):
        close(outputs(model, calls), by_rows(model, references, calls))


class CheckedBlocks(ReferenceBlocks):
    """Skips all blocks but the last, and compares what that adds with its forecast."""

    error = 0.0

    def block(self, index: int, module: Any, args: Any, kwargs: Any) -> Any:
        output = super().block(index, module, args, kwargs)
        if index == len(self.blocks) - 1:
            if self.compute:
                self.error = 0.0
                return output
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            main = 1 if not isinstance(output, torch.Tensor) and type(module).__name__ in PROMPT_FIRST else 0
            real = (output if isinstance(output, torch.Tensor) else output[main]) - given["hidden_states"]
            missed = real - self.expected(self.residuals[index][main])
            self.error = float(missed.float().norm() / real.float().norm())
        return output


@pytest.mark.parametrize("name", TABLE)
def test_speca_equals_the_reference(name: str) -> None:
    model, calls = build(name), run_inputs(name)
    blocks = list(layout_of(model).blocks)

    threshold = 0.2
    references = [
        CheckedBlocks(model, blocks, 0, lambda step: set(range(len(blocks) - 1)), None, 1) for _ in range(ROWS)
    ]
    for one in references:
        one.decide = lambda step, change, age, one=one: step == 0 or age >= 3 or not one.error <= threshold
    expected = by_rows(model, references, calls)
    with accelerate(model, SpeCa(threshold, max_consecutive=3)):
        close(outputs(model, calls), expected)
    assert any(not all(one.computed) for one in references)
    with pytest.raises(ValueError, match=r"decay=0\.5 needs the number"), accelerate(model, SpeCa(decay=0.5)):
        outputs(model, calls)


class AlignedBlocks(ReferenceBlocks):
    """Carries what the middle blocks add as far as the front blocks have gone."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.fronts: list[torch.Tensor] = []

    def judge(self, hidden: torch.Tensor) -> None:
        super().judge(hidden)
        self.now = hidden - self.arrived
        if self.compute:
            self.fronts.append(self.now)

    def expected(self, past: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
        if len(past) < 2:
            return past[-1][1]
        before, latest = self.fronts[-2:]
        gamma = float((self.now - before).abs().mean() / (latest - before).abs().mean())
        return past[-2][1] + min(max(gamma, 1.0), 1.5) * (past[-1][1] - past[-2][1])


@pytest.mark.parametrize("name", TABLE)
def test_the_aligned_forecast_equals_the_reference(name: str) -> None:
    model, calls = build(name), run_inputs(name)
    blocks = list(layout_of(model).blocks)
    references = [
        AlignedBlocks(
            model, blocks, 1, lambda step: set(range(1, len(blocks))), lambda step, c, age: step < 2 or age >= 2
        )
        for _ in range(ROWS)
    ]
    with accelerate(model, BlockCache(threshold=99.0, warmup=2, max_consecutive=2, forecast=Aligned())):
        ours = outputs(model, calls)
    close(ours, by_rows(model, references, calls))
    with accelerate(model, BlockCache(threshold=99.0, warmup=2, max_consecutive=2)):
        assert not equal(ours, outputs(model, calls))
    for method in (
        IntervalCache(3, total=CALLS, forecast=Aligned()),
        MagCache(mag_curve(model), total=6, forecast=Aligned()),
    ):
        with pytest.raises(ValueError, match="Aligned goes by what front blocks measure"):
            accelerate(model, method)


@pytest.mark.parametrize("name", TABLE)
def test_half_precision(name: str) -> None:
    """Reusing nothing is bit-equal in bfloat16, too, and reuse keeps its dtype."""
    model = TRANSFORMERS[name].build(name).to(torch.bfloat16)
    calls = [
        {k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() and "timestep" not in k else v
         for k, v in call.items()}
        for call in run_inputs(name)
    ]  # fmt: skip
    plain = outputs(model, calls)
    curve = mag_curve(model)
    for never, reuse in (
        (MagCache(curve, 0.0, total=CALLS), MagCache(curve, 9.0, total=CALLS)),
        (TeaCache(threshold=0.0), TeaCache(threshold=9.0)),
        (SpeCa(threshold=0.0), SpeCa(threshold=9.0)),
        (BlockCache(threshold=0.0, forecast=Aligned()), BlockCache(threshold=9.0, warmup=2, forecast=Aligned())),
    ):
        with accelerate(model, never):
            assert equal(outputs(model, calls), plain), never
        with accelerate(model, reuse) as handle:
            ours = outputs(model, calls)
        assert all(x.dtype == torch.bfloat16 and x.isfinite().all() for x in ours)
        assert handle.report().replayed > 0


def flux_row() -> tuple[Any, list[dict[str, Any]]]:
    model = build("FluxTransformer2DModel")
    calls = run_inputs("FluxTransformer2DModel")
    return model, [
        {k: v[1:2].clone() if isinstance(v, torch.Tensor) and "ids" not in k else v for k, v in call.items()}
        for call in calls
    ]


def without_theirs(model: Any, calls: list[dict[str, Any]], apply: Any) -> list[torch.Tensor]:
    """Outputs with a cache of diffusers, which is taken off again."""
    apply(model)
    HookRegistry.check_if_exists_or_initialize(model)
    _set_cache_context(model, CacheContext("only"))
    theirs = outputs(model, calls)
    _set_cache_context(model, None)
    for module in model.modules():
        hooks = module.__dict__.get("_diffusers_hook")
        for name in list(hooks.hooks) if hooks is not None else ():
            hooks.remove_hook(name, recurse=False)
    return theirs


def test_mag_cache_equals_that_of_diffusers() -> None:
    model, calls = flux_row()
    for threshold in (0.03, 0.2):
        config = MagCacheConfig(threshold, 2, 0.3, CALLS, list(RATIOS))
        theirs = without_theirs(model, calls, lambda m, config=config: apply_mag_cache(m, config))
        with accelerate(model, MagCache(mag_curve(model), threshold, 2, retention=0.3, total=CALLS)) as handle:
            for a, b in zip(outputs(model, calls), theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert handle.report().replayed > 0


def test_taylor_on_intervals_equals_taylorseer_of_diffusers() -> None:
    """On the modules that IntervalCache replays, at the calls that diffusers computes: 0 to 2, and 4."""
    name = "PixArtTransformer2DModel"
    model = TRANSFORMERS[name].build(name)  # its own: a cache of diffusers leaves its registry behind
    calls = [row(call, 1) for call in run_inputs(name)]
    config = TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=3,
        max_order=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|attn2|ff)"],
    )
    theirs = without_theirs(model, calls, lambda m: apply_taylorseer_cache(m, config))
    with accelerate(model, IntervalCache(schedule=Steps((0, 1, 2, 4)), forecast=Taylor(1))) as handle:
        for a, b in zip(outputs(model, calls), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert handle.report().replayed == 2


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_the_sea_filter_equals_that_of_diffusers(sigma: float) -> None:
    video = torch.randn(2, 3, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    levels = torch.full((1, 1, 1, 1, 1), sigma)
    ours = SeaFilter(power=2.5).of(video, 1 - levels, levels)
    for one, sample in zip(ours, video, strict=True):
        theirs = _apply_sea_filter(sample.movedim(0, -1), sigma, 2.5).movedim(-1, 0)
        torch.testing.assert_close(one, theirs, rtol=1e-4, atol=1e-5)


def test_the_sea_filter_guards_a_pipeline(pipe: Any) -> None:  # noqa: F811
    """Calls that compute are those that the formula gives, written out for each row of DDIM's samples."""
    seen: list[tuple[torch.Tensor, float]] = []
    ran: list[int] = []
    threshold = 0.35
    attention = pipe.transformer.transformer_blocks[1].attn1
    hook = attention.register_forward_hook(lambda module, args, output: ran.append(len(seen) - 1))
    with accelerate(pipe, TeaCache(measure=SeaFilter(2.0), threshold=threshold, per_row=False)):
        forward = pipe.transformer.forward

        def noting(hidden_states: torch.Tensor, timestep: torch.Tensor, **kwargs: Any) -> Any:
            seen.append((hidden_states.clone(), float(timestep.flatten()[0])))
            return forward(hidden_states, timestep=timestep, **kwargs)

        pipe.transformer.__dict__["forward"] = noting
        pictures(pipe, steps=8)
        pipe.transformer.__dict__["forward"] = forward
    hook.remove()
    signal = pipe.scheduler.alphas_cumprod
    filtered = []
    for x, t in seen:
        a, s = float(signal[int(t)]) ** 0.5, (1 - float(signal[int(t)])) ** 0.5
        gain = np.ones(x.shape[2:])
        for axis in (0, 1):
            power = 1 / (np.abs(np.fft.fftfreq(x.shape[2 + axis])) ** 2.0 + 1e-16)
            one = a * power / (a * a * power + s * s)
            gain = gain * one.reshape([-1 if i == axis else 1 for i in range(2)])
        filtered.append(torch.from_numpy(np.fft.ifft2(np.fft.fft2(x.numpy()) * (gain / gain.mean())).real))
    decisions = accumulated(filtered, threshold, lambda change: change)
    assert ran == [i for i, computes in enumerate(decisions) if computes]
    assert 1 < len(ran) < 8


def test_a_threshold_may_look_at_the_signal_alone(pipe: Any) -> None:  # noqa: F811
    plain = pictures(pipe)
    filtered = IntervalCache(schedule=Threshold(0.0, measure=SeaFilter()))
    with accelerate(pipe, filtered):
        assert (pictures(pipe) == plain).all()
    counts = []
    for measure in (None, SeaFilter(1.0)):
        with accelerate(pipe, IntervalCache(schedule=Threshold(0.2, measure=measure))) as handle:
            pictures(pipe)
            counts.append(handle.report().computed)
    assert counts[0] != counts[1]
    model, calls = build("DiTTransformer2DModel"), run_inputs("DiTTransformer2DModel")
    with accelerate(model, filtered), pytest.raises(ValueError, match="noise level of this network call is not known"):
        outputs(model, calls)
    model, calls = flux_row()
    with pytest.raises(ValueError, match="SeaFilter needs latents laid out in space"):
        SeaFilter().of(calls[0]["hidden_states"], torch.ones(1, 1, 1), torch.ones(1, 1, 1))


def test_curves_are_measured_written_and_loaded(pipe: Any, tmp_path: Any) -> None:  # noqa: F811
    prompts = [{"class_labels": [1]}, {"class_labels": [2]}]
    settings = {"num_inference_steps": 6, "output_type": "np"}
    mag = calibrate(pipe, prompts, path=tmp_path / "mag.json", method="magcache", **settings)
    tea = calibrate(pipe, prompts, path=tmp_path / "tea.json", method="teacache", **settings)
    assert isinstance(mag, MagCurve)
    assert mag.ratios[0] == 1.0
    assert len(mag.ratios) == 6
    assert all(0.2 < ratio < 5 for ratio in mag.ratios)
    assert isinstance(tea, TeaCurve)
    assert len(tea.coefficients) == 5
    assert load_methods(tmp_path / "mag.json") == (MagCache(mag),)
    assert load_methods(tmp_path / "tea.json") == (TeaCache(tea),)
    assert MagCache(str(tmp_path / "mag.json"), 0.1).written_out() == MagCache(mag, 0.1)
    assert TeaCache(str(tmp_path / "tea.json")).written_out() == TeaCache(tea)
    assert MagCache("flux").written_out() == MagCache("flux")
    plain = pictures(pipe)
    for method in (MagCache(str(tmp_path / "mag.json"), 9.0), TeaCache(str(tmp_path / "tea.json"), 9.0)):
        with accelerate(pipe, method) as handle:
            assert not (pictures(pipe) == plain).all()
            assert handle.report().replayed > 0
    with pytest.raises(
        ValueError, match=r"is of DiTTransformer2DModel with configuration \w+, and the network is PixA"
    ):
        accelerate(build("PixArtTransformer2DModel"), MagCache(mag))


def test_mean_ratios_are_those_of_the_residual(pipe: Any) -> None:  # noqa: F811
    """Against a run with torch's own hooks."""
    blocks = pipe.transformer.transformer_blocks
    entering, residuals = [], []
    hooks = [
        blocks[0].register_forward_pre_hook(lambda m, a: entering.append(a[0].clone())),
        blocks[-1].register_forward_hook(lambda m, a, o: residuals.append(o - entering[-1])),
    ]
    generator = torch.Generator().manual_seed(4)
    pipe(class_labels=[1], num_inference_steps=4, generator=generator, output_type="np")
    for hook in hooks:
        hook.remove()
    mag = calibrate(pipe, [{"class_labels": [1]}], method="magcache", seed=4, num_inference_steps=4, output_type="np")
    pairs = zip(residuals[1:], residuals, strict=False)
    expected = [1.0, *(float((b.norm(dim=-1) / a.norm(dim=-1)).mean()) for b, a in pairs)]
    assert mag.ratios == pytest.approx(expected, abs=2e-5)


def test_published_curves_say_whence_they_come() -> None:
    for kind in (MagCurve, TeaCurve):
        for name, curve in published(kind).items():
            assert curve.source.startswith("https://github.com/"), name
            assert curve.model.endswith(("Transformer2DModel", "Transformer3DModel"))
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    assert torch.allclose(torch.tensor(published(MagCurve)["flux"].ratios), FLUX_MAG_RATIOS)
    model, calls = build("FluxTransformer2DModel"), run_inputs("FluxTransformer2DModel")
    for method in (MagCache("flux", total=CALLS), TeaCache("flux")):
        with accelerate(model, method):
            outputs(model, calls)
    with pytest.raises(ValueError, match=r"there is no published MagCurve 'fluks'.*known are flux"):
        accelerate(model, MagCache("fluks"))
    with pytest.raises(ValueError, match="FluxTransformer2DModel with configuration as published"):
        accelerate(build("PixArtTransformer2DModel"), TeaCache("flux"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MagCache(""), "curve must be a path"),
        (lambda: MagCache("flux", retention=2.0), "retention must be a number"),
        (lambda: MagCache("flux", max_consecutive=-1), "max_consecutive must be an integer"),
        (lambda: TeaCache(measure=3), "measure must be a measure"),
        (lambda: TeaCache("flux", measure=SeaFilter()), "give one of the two"),
        (lambda: SpeCa(decay=1.5), "decay must be a number"),
        (lambda: SpeCa(threshold=-1.0), "threshold must be a number"),
        (lambda: SeaFilter(power=0.0), "power must be a number"),
        (lambda: Taylor(hermite=2.0), "hermite must be a number"),
        (lambda: Aligned(limit=0.5), "limit must be a number"),
        (lambda: calibrate(None, ["a"], method="tea"), "method must be one of"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_networks_without_blocks_are_refused() -> None:
    from tiny_networks import sd_unet

    unet = sd_unet()
    for method in (MagCache("flux"), TeaCache(), SpeCa()):
        with pytest.raises(
            UnsupportedModelError, match=f"{type(method).__name__} needs .*UNet2DConditionModel has none"
        ):
            accelerate(unet, method)


def test_text_and_dictionaries() -> None:
    methods: list[Method] = [
        MagCache("flux", 0.1, warmup=2),
        TeaCache(measure=SeaFilter(2.0), forecast=Taylor(1, hermite=0.5)),
        SpeCa(0.2, forecast=None),
        BlockCache(forecast=Aligned(2.0)),
        DeepCache(schedule=Threshold(0.1, measure=SeaFilter())),
        CalibratedCache("a.json"),
    ]
    for method in methods:
        assert Method.parse(method.to_text()) == method
        assert Method.from_dict(method.to_dict()) == method


def test_hermite_polynomials_damp_what_is_carried_far() -> None:
    """HiCache's basis written out: sigma 2 sigma k, and sigma^2 (4 sigma^2 k^2 - 2)."""
    forecast, k, sigma = Taylor(2, hermite=0.5), 3, 0.5
    history = None
    values = {step: torch.tensor([float(step**2), 1.0]) for step in (0, 2, 4)}
    for step, value in values.items():
        history = forecast.update(history, value, step)
    d1 = (values[4] - values[2]) / 2
    d2 = (d1 - (values[2] - values[0]) / 2) / 2
    expected = values[4] + d1 * 2 * sigma**2 * k + d2 / 2 * sigma**2 * (4 * sigma**2 * k**2 - 2)
    torch.testing.assert_close(forecast.predict(history, 4 + k), expected)
