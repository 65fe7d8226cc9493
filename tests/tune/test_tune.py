"""Tuning: the mathematics against formulas, the choices against the network, and whole runs on tiny pipelines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from diffaccel import DeepCache, IntervalCache, Profile, Steps, Taylor, Uniform, accelerate, models
from diffaccel.cli import main
from diffaccel.measure.quality import compare
from diffaccel.measure.workload import Workload
from diffaccel.methods import Recipe, Reuse
from diffaccel.methods.profile import sampler_of
from diffaccel.methods.recipe import OUTPUT
from diffaccel.networks import layout_of
from diffaccel.tune import Budget, Tuner, to_svg, to_text
from diffaccel.tune.blend import blend, left_over, taylor
from diffaccel.tune.budget import Score
from diffaccel.tune.picture import rows_of
from diffaccel.tune.probing import Calibrated, calibrate
from diffaccel.tune.search import tightened
from diffaccel.tune.space import COMPUTE, Choice, fixed_plans, neighbours, plan_of, space_of
from diffaccel.tune.split import split

pytestmark = pytest.mark.slow

STEPS = 5
PROMPTS = ("ab", "cd", "efg")


@pytest.fixture(scope="module")
def known(tiny_pipe: Any) -> Calibrated:
    return calibrate(tiny_pipe, Workload(PROMPTS[:2], settings={"num_inference_steps": STEPS}), lambda _: None)


@pytest.fixture(scope="module")
def tuner(tiny_pipe: Any) -> Tuner:
    return Tuner(tiny_pipe, PROMPTS, runs=10, progress=lambda _: None, num_inference_steps=STEPS)


def gram_of(features: np.ndarray) -> np.ndarray:
    return features @ features.T


def test_blend_finds_the_least_squares_weights() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 500))
    features = np.stack([one, two, 0.7 * two - 0.2 * one])
    weights = blend(gram_of(features), 2, [1, 0])
    assert weights == pytest.approx((0.7, -0.2), abs=5e-3)  # up to the ridge
    assert left_over(gram_of(features), 2, [1, 0], weights) < 0.01
    expected = np.linalg.norm(features[2] - features[1]) / np.linalg.norm(features[2])
    assert left_over(gram_of(features), 2, [1], (1.0,)) == pytest.approx(expected)


def test_blend_of_equal_features_holds_the_latest() -> None:
    gram = np.ones((3, 3))
    assert blend(gram, 2, [1, 0]) == pytest.approx((1.0, 0.0), abs=1e-2)
    assert blend(gram, 2, [1]) == (1.0,)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_of_an_expansion_are_those_of_taylor(order: int) -> None:
    calls, generator = (0, 2, 3, 7), torch.Generator().manual_seed(0)
    features = {call: torch.randn(5, generator=generator, dtype=torch.float64) for call in calls}
    forecast, history = Taylor(order - 1), None
    for call, feature in features.items():
        history = forecast.update(history, feature, call)
    sources = calls[::-1][:order]
    weights = taylor(9, sources)
    ours = sum(w * features[s] for w, s in zip(weights, sources, strict=True))
    torch.testing.assert_close(ours, forecast.predict(history, 9))
    assert sum(weights) == pytest.approx(1)


def test_grams_are_inner_products_of_the_outputs(tiny_pipe: Any, known: Calibrated) -> None:
    outputs: list[torch.Tensor] = []
    hook = tiny_pipe.unet.register_forward_hook(lambda *args: outputs.append(args[2][0].flatten().double()))
    known.bench.workload.pictures(tiny_pipe)
    hook.remove()
    features = torch.stack(outputs).numpy()
    expected = gram_of(features) / np.mean(np.square(features).sum(1))
    np.testing.assert_allclose(known.space.grams[OUTPUT], expected, rtol=1e-5)


def test_savings_are_those_of_deepcache(tiny_pipe: Any, known: Calibrated) -> None:
    plan = plan_of((0, 2, 4), Choice(("branch 1",), 1), STEPS)
    with accelerate(tiny_pipe, DeepCache(interval=2, branch=1)) as handle:
        fixed = known.bench.workload.pictures(tiny_pipe)
        assert known.space.macs(plan) == pytest.approx(1 - handle.report().macs_saved, abs=1e-6)
    assert torch.equal(known.bench.pictures(known.space, plan), fixed)


def test_sources_follow_what_was_computed(known: Calibrated) -> None:
    reuse = {1: "branch 2", 2: "branch 0", 3: OUTPUT, 4: "branch 0"}
    plan = tuple(Choice((reuse[i],), 3) if i in reuse else COMPUTE for i in range(6))
    found = known.space.sources(plan)
    assert found[0] == {}
    assert found[2] == {"branch 0": (1, 0)}  # call 1 ran what lies above branch 2
    assert found[3] == {OUTPUT: (2, 1, 0)}
    assert found[4] == {"branch 0": (1, 0)}
    assert found[5] == {}


def test_the_model_is_exact_for_what_was_probed(known: Calibrated) -> None:
    plan = tuple(Choice((OUTPUT,), 2) if call == 3 else COMPUTE for call in range(STEPS))
    real = known.bench.score(known.space, plan)
    assert known.model.psnr(plan) == pytest.approx(real.psnr, abs=0.05)


def test_neighbours_differ_little_and_stay_valid(known: Calibrated) -> None:
    plan = plan_of((0, 2), Choice(("branch 0",)), STEPS)
    found = list(neighbours(known.space, plan))
    assert len(found) > 20
    assert all(other[0] == COMPUTE and other != plan for other in found)
    assert all(sum(a != b for a, b in zip(plan, other, strict=True)) <= 2 for other in found)
    assert plan in set(fixed_plans(known.space, STEPS))


@pytest.mark.parametrize(
    ("better", "worse", "budget"),
    [
        (Score(0.4, 31, 0.9), Score(0.5, 40, 0.99), Budget(min_psnr=30)),
        (Score(0.5, 30, 0.9), Score(0.1, 29, 0.9), Budget(min_psnr=30)),
        (Score(0.4, 25, 0.9), Score(0.4, 24, 0.95), Budget(max_macs=0.5)),
        (Score(0.5, 20, 0.5), Score(0.6, 40, 0.9), Budget(max_macs=0.5)),
        (Score(0.4, 20, 0.95), Score(0.3, 30, 0.9), Budget(min_ssim=0.93)),
    ],
)
def test_budgets_order_scores(better: Score, worse: Score, budget: Budget) -> None:
    assert budget.key(better) > budget.key(worse)
    assert budget.holds(better)


@pytest.mark.parametrize(
    "limits", [{}, {"min_psnr": 30.0, "max_macs": 0.5}, {"max_macs": 1.5}, {"min_ssim": float("nan")}]
)
def test_bad_budgets_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"exactly one|must be a number"):
        Budget(**limits)


@pytest.mark.exhaustive
def test_a_cost_is_kept_and_no_fixed_start_is_better(tiny_pipe: Any, tuner: Tuner) -> None:
    tuned = tuner.tune(Budget(max_macs=0.6))
    evidence = tuned.recipe.evidence
    assert evidence is not None
    assert evidence.met
    assert tuned.met
    with accelerate(tiny_pipe, Profile(tuned.recipe)) as handle:
        pictures = tuner.held_out.workload.pictures(tiny_pipe)
        assert 1 - handle.report().macs_saved == pytest.approx(evidence.macs, abs=1e-4)
    assert evidence.macs <= 0.6
    assert torch.equal(tuner.held_out.plain, tuner.held_out.workload.pictures(tiny_pipe))
    assert evidence.psnr < 99
    quality = compare(pictures, tuner.held_out.plain)
    assert quality.psnr == pytest.approx(evidence.psnr, abs=1e-3)
    chosen = max(score.psnr for score in tuner.validation.scores if score.macs <= 0.6)
    assert evidence.validation_psnr == pytest.approx(chosen, abs=1e-4)
    assert len(tuner.validation.scores) >= 3
    names = {baseline.name for baseline in tuned.fixed}
    assert "3 steps" in names
    assert any("forecast" in name for name in names)
    assert all(baseline.score.macs <= 0.6 + 1e-6 for baseline in tuned.fixed)


def test_a_quality_is_kept_at_less_than_full_cost(tuner: Tuner) -> None:
    easy = tuner.tune(Budget(min_psnr=15))
    hard = tuner.tune(Budget(min_psnr=40))
    assert easy.met
    assert easy.score.psnr >= 15
    assert easy.score.macs <= hard.score.macs <= 1
    similar = tuner.tune(Budget(min_ssim=0.5))
    assert similar.score.ssim >= 0.5


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, (1, 1, 1)), (2, (1, 1, 1)), (3, (1, 1, 1)), (12, (4, 4, 4)), (24, (8, 8, 8)), (99, (8, 8, 16))],
)
def test_each_part_of_the_prompts_serves_one_end(count: int, sizes: tuple[int, int, int]) -> None:
    made = split([str(i) for i in range(count)], 5, 8, {})
    parts = (made.seen, made.validation, made.held_out)
    assert tuple(len(part.prompts) for part in parts) == sizes
    assert [seed for part in parts for seed in part.seeds] == [5, 6, 7, 8]
    if count >= 3:
        assert len({prompt for part in parts for prompt in part.prompts}) == sum(sizes)


def test_validation_overrules_a_search_that_fitted_its_prompts(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(max_macs=0.6)
    found, _ = tuner._chosen(budget, 10)
    other = found.starts[1]
    monkeypatch.setattr(tuner.validation, "_seen", {found.plan: Score(0.5, 10.0, 0.5), other: Score(0.5, 98.0, 1.0)})
    assert tuner._chosen(budget, 10)[1] == other


def test_what_cannot_be_met_is_said(tuner: Tuner) -> None:
    with pytest.raises(ValueError, match=r"cannot be met: the first of 5 calls must compute"):
        tuner.tune(Budget(max_macs=0.1))
    with pytest.raises(ValueError, match=r"cannot be met: one network call alone takes"):
        tuner.tune(Budget(max_time=1e-6))


@pytest.mark.exhaustive
def test_a_time_becomes_a_cost(tuner: Tuner) -> None:
    tuned = tuner.tune(Budget(max_time=100.0))
    assert tuned.met
    assert tuned.score.psnr > 50


def test_a_time_that_the_clock_refutes_is_searched_again(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {0: 2.0, 1: 0.9}
    asked: list[Budget] = []

    def chosen(budget: Budget, runs: int) -> tuple[Any, Any]:
        asked.append(budget)
        return found

    found = tuner._chosen(Budget(max_macs=0.6), 10)
    monkeypatch.setattr(tuner, "_chosen", chosen)
    monkeypatch.setattr(tuner, "_as_cost", lambda _: Budget(max_macs=0.6))
    monkeypatch.setattr(tuner, "_seconds", lambda *_, **__: seconds[len(asked) - 1])
    assert tuner.tune(Budget(max_time=1.0)).met
    assert [budget.limit for budget in asked] == pytest.approx([0.6, 0.3])


@pytest.fixture(scope="module")
def transformer() -> Any:
    pipe = models.load("emoji-dit", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def transformer_tuner(transformer: Any) -> Tuner:
    settings = {"num_inference_steps": 6, "guidance_scale": 1.0}
    return Tuner(transformer, ["red heart"], runs=10, progress=lambda _: None, **settings)


@pytest.mark.exhaustive
def test_tuning_a_transformer(transformer: Any, transformer_tuner: Tuner) -> None:
    tuner = transformer_tuner
    tuned = tuner.tune(Budget(max_macs=0.6))
    assert tuned.met
    assert tuner.known.space.parts == tuple(f"{kind} {i}-{i}" for kind in ("blocks", "units") for i in range(6))
    assert any(baseline.name.startswith(("deltacache", "intervalcache", "blockcache")) for baseline in tuned.fixed)
    method = IntervalCache(schedule=Uniform(2), forecast=Taylor(1))
    with accelerate(transformer, method) as handle:
        pictures = tuner.known.bench.workload.pictures(transformer)
        assert 1 - handle.report().macs_saved <= 0.6
    assert tuned.recipe.evidence is not None
    fixed = compare(pictures, tuner.known.bench.plain).psnr
    assert max(score.psnr for score in tuner.known.bench.scores if score.macs <= 0.6) >= fixed - 1e-3


@pytest.mark.parametrize("forecast", [None, Taylor(1), Taylor(2)])
@pytest.mark.parametrize("schedule", [Uniform(3), Steps((0, 1, 4))])
def test_every_interval_cache_is_a_plan(
    transformer: Any, transformer_tuner: Tuner, schedule: Any, forecast: Taylor | None
) -> None:
    space, bench = transformer_tuner.known.space, transformer_tuner.known.bench
    choice = Choice(space.of("units"), 1 + (forecast.order if forecast else 0), taylor=True)
    plan = plan_of(tuple(schedule.computed(6)), choice, 6)
    assert plan in set(fixed_plans(space, 6)) or forecast is None or isinstance(schedule, Steps)
    with accelerate(transformer, IntervalCache(schedule=schedule, forecast=forecast)) as handle:
        pictures = bench.workload.pictures(transformer)
        assert space.macs(plan) == pytest.approx(1 - handle.report().macs_saved, abs=1e-6)
    torch.testing.assert_close(bench.pictures(space, plan), pictures, rtol=0, atol=1e-5)
    assert torch.equal(bench.pictures(space, (COMPUTE,) * 6), bench.plain)


def test_units_are_fresh_where_their_blocks_ran(transformer_tuner: Tuner) -> None:
    reused = {1: ("blocks 0-0",), 2: transformer_tuner.known.space.of("units"), 3: ("blocks 0-0", "blocks 1-1")}
    plan = tuple(Choice(reused.get(call, ()), 3) for call in range(4))
    found = transformer_tuner.known.space.sources(plan)
    assert found[2]["units 0-0"] == (0,)
    assert found[2]["units 1-1"] == (1, 0)
    assert found[3] == {"blocks 0-0": (2, 0), "blocks 1-1": (2, 1, 0)}


def test_a_run_tells_what_errors_count(known: Calibrated) -> None:
    plan = plan_of((0, 2, 4), Choice(("branch 1",), 2, taylor=True), STEPS)
    scales = known.model.scale(plan, 33.0)
    assert list(scales) == [("branch 1", 2, True)]
    assert known.model.psnr(plan, scales) == pytest.approx(33.0)
    like = plan_of((0, 2, 4), Choice(("branch 0",), 2, taylor=True), STEPS)
    difference = known.model.psnr(plan) - 33.0
    assert known.model.psnr(like) - known.model.psnr(like, scales) == pytest.approx(difference)


def test_bad_input_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        Tuner(tiny_pipe, [], num_inference_steps=4)
    with pytest.raises(ValueError, match="needs num_inference_steps"):
        Tuner(tiny_pipe, ["a"])
    with pytest.raises(ValueError, match="one known denoiser is needed"):
        calibrate(type("Empty", (), {"components": {}})(), Workload(("a",)))


def test_space_of_a_unet_has_branches(tiny_pipe: Any) -> None:
    space = space_of(layout_of(tiny_pipe.unet))
    assert space.parts == ("branch 0", "branch 1", "branch 2", "branch 3")
    assert space.choices[0] == ()
    assert space.choices[-1] == (OUTPUT,)


RECIPE = Recipe("M", "f", "S", "s", 4, (Reuse(1, "branch 2"), Reuse(2, "branch 0"), Reuse(3, OUTPUT)))


def test_the_picture_shows_what_computes() -> None:
    assert ["".join(row.cells) for row in rows_of(RECIPE)] == [
        "█···",  # below branch 2
        "██··",  # between branches 2 and 0
        "███·",  # from branch 0 to the output
    ]
    text = to_text(RECIPE)
    assert "0123" in text.splitlines()[0]
    assert [line.split()[-1] for line in text.splitlines()[1:4]] == ["█···", "██··", "███·"]
    svg = to_svg(RECIPE)
    assert svg.count("<rect") == 12
    assert svg.count(": replayed") == 6
    assert "▒" not in text


def test_the_picture_of_blocks() -> None:
    reuses = [(1, "blocks 0-1"), (2, "blocks 2-3"), (2, "blocks 0-1"), (3, "units 0-2"), (4, "output")]
    recipe = Recipe("M", "f", "S", "s", 5, tuple(Reuse(*reuse) for reuse in reuses))
    rows = {row.name: "".join(row.cells) for row in rows_of(recipe)}
    assert rows == {"blocks 3-3": "██·█·", "blocks 2-2": "██·▒·", "blocks 0-1": "█··▒·", "rest": "████·"}
    assert "▒ attentions and feed-forward networks replayed" in to_text(recipe)
    assert to_svg(recipe).count("var(--within") == 2


def test_the_command_writes_a_profile_that_runs(tiny_sd: Path, tmp_path: Path, tiny_pipe: Any) -> None:
    profile = tmp_path / "p.json"
    arguments = ["tune", "--model", str(tiny_sd), "--steps", str(STEPS), "--max-macs", "0.6", "--runs", "10", "-q"]
    for prompt in PROMPTS:
        arguments += ["--prompts", prompt]
    done = CliRunner().invoke(main, [*arguments, "-o", str(profile)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "█" in done.output
    assert json.loads(profile.read_text())["type"] == "recipe"
    recipe = Recipe.load(profile)
    assert (recipe.sampler, recipe.total) == (sampler_of(tiny_pipe.scheduler)[0], STEPS)
    assert recipe.guidance == (("guidance_scale", 7.5),)
    with accelerate(tiny_pipe, Profile(str(profile))) as handle:
        tiny_pipe("ab", num_inference_steps=STEPS, output_type="latent")
        assert handle.report().macs_saved >= 0.4
    drawn = ["generate", "ab", "--model", str(tiny_sd), "--steps", str(STEPS), "--profile", str(profile)]
    done = CliRunner().invoke(main, [*drawn, "-o", str(tmp_path / "pictures")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "pictures").rglob("*.png"))
    impossible = CliRunner().invoke(main, [*arguments, "--max-macs", "0.01"], catch_exceptions=False)
    assert impossible.exit_code == 1
    assert "Error: --max-macs 0.01 cannot be met: the first of " in impossible.output


@pytest.mark.parametrize(("name", "limit", "most"), [("min_psnr", 95.0, 99.0), ("min_ssim", 0.99, 1.0)])
def test_a_quality_that_is_missed_is_raised_to_the_most_there_is(name: str, limit: float, most: float) -> None:
    budget = Budget(**{name: limit})
    assert tightened(budget, budget, Score(1.0, 60.0, 0.9)).limit == most
    assert tightened(budget, budget, Score(1.0, 94.0, 0.985)).limit == pytest.approx(
        limit + {"min_psnr": 1}.get(name, 0.005)
    )


def test_a_fixed_setting_that_holds_a_quality_for_less_is_named(tuner: Tuner) -> None:
    steps = tuner.fixed.steps
    scores = {fewer: tuner.fixed.fewer(fewer).score for fewer in range(1, steps)}
    budget = Budget(min_psnr=min(scores[steps - 1].psnr, scores[steps - 2].psnr) - 1e-3)
    found = tuner.fixed.cheapest(budget, 1.0)
    assert found is not None
    assert budget.holds(found.score)
    assert found.score.macs <= scores[steps - 2].macs
    assert tuner.fixed.cheapest(budget, found.score.macs) is None
    assert tuner.floor.psnr < 100
