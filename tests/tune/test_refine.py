"""Refined weights: gradients against differences, recipes against a replay by other code, and what is kept."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler

from diffaccel import Profile, accelerate, models
from diffaccel.cli import main
from diffaccel.measure.quality import Quality
from diffaccel.measure.workload import Workload
from diffaccel.methods import DeepCache, Recipe, Reuse
from diffaccel.methods.files import load_methods
from diffaccel.methods.profile import sampler_of
from diffaccel.methods.recipe import OUTPUT, Evidence
from diffaccel.networks import layout_of
from diffaccel.tune import Refinement, Tuned, Tuner, refine, to_text
from diffaccel.tune.baselines import Baseline, FixedSettings
from diffaccel.tune.budget import Budget, Score
from diffaccel.tune.graph_memory import graph_memory
from diffaccel.tune.minimax import minimax_steps
from diffaccel.tune.probing import Bench, score_of
from diffaccel.tune.refine import _Learner, apart, difference_basis, widened
from diffaccel.tune.search import Found
from diffaccel.tune.space import COMPUTE, Space
from diffaccel.tune.unroll import Batch, Unrolled, frozen, latents_of, survey

STEPS = 5
SETTINGS = {"num_inference_steps": STEPS, "guidance_scale": 2.0}
QUIET: dict[str, Any] = {"progress": lambda _: None}
LITTLE = Refinement(rounds=1, pictures=2, probes=3, iterations=2, batch=1)


@pytest.fixture(scope="module")
def unet_pipe(tiny_pipe: Any) -> Any:
    tiny_pipe.scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    return tiny_pipe


@pytest.fixture(scope="module")
def transformer() -> Any:
    pipe = models.load("emoji-dit", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def recipe_of(pipe: Any, *reuses: Reuse) -> Recipe:
    layout = layout_of(pipe.components.get("unet") or pipe.components["transformer"])
    return Recipe(layout.model, layout.fingerprint, *sampler_of(pipe.scheduler), STEPS, reuses)


@pytest.fixture(scope="module")
def of_unet(unet_pipe: Any) -> Recipe:
    line = (1.5, -0.5)
    return recipe_of(
        unet_pipe,
        Reuse(1, "branch 0"),
        Reuse(2, "output"),
        Reuse(4, "branch 0", line),
    )


@pytest.fixture(scope="module")
def of_transformer(transformer: Any) -> Recipe:
    return recipe_of(
        transformer,
        Reuse(1, "units 0-1"),
        Reuse(1, "blocks 2-3"),
        Reuse(3, "units 0-1", (2.0, -1.0)),
        Reuse(4, "blocks 2-3", (1.7, -0.6)),
    )


def batch_of(pipe: Any, *prompts: str) -> Batch:
    workload = Workload(prompts, settings=SETTINGS)
    return Batch(prompts, tuple(range(7, 7 + len(prompts))), workload.arguments(pipe))


def given(recipe: Recipe) -> torch.Tensor:
    return torch.tensor([[weight for reuse in recipe.reuses for weight in reuse.weights]])


def with_weights(recipe: Recipe, values: torch.Tensor) -> Recipe:
    flat = iter(values.flatten().tolist())
    return replace(
        recipe, reuses=tuple(replace(r, weights=tuple(next(flat) for _ in r.weights)) for r in recipe.reuses)
    )


def log_errors(latents: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    return (latents - plain).double().square().flatten(1).mean(1).log()


@pytest.mark.parametrize("kind", ["unet_pipe", pytest.param("transformer", marks=pytest.mark.slow)])
def test_gradients_are_those_of_differences_kept_or_computed_again(kind: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(kind)
    recipe = request.getfixturevalue("of_unet" if kind == "unet_pipe" else "of_transformer")
    recipe, batch = (
        apart(recipe, layout_of(pipe.components.get("unet") or pipe.components["transformer"])),
        batch_of(pipe, "ab", "cd"),
    )
    plain, gradients, found = latents_of(pipe, batch), [], torch.zeros(())
    for again in (False, True):
        with Unrolled(pipe, recipe, again=again) as unrolled:
            values = given(recipe).repeat(2, 1).requires_grad_(True)  # each picture has weights of its own
            found = unrolled.latents(values, batch)
            gradients += torch.autograd.grad(log_errors(found, plain).sum(), values)
    assert torch.equal(*gradients)
    with accelerate(pipe, Profile(recipe)):
        torch.testing.assert_close(found.detach(), latents_of(pipe, batch), rtol=1e-4, atol=1e-5)
    columns = {0, int(gradients[0][1].abs().argmax())}
    for column, picture in itertools.product(columns, (0, 1)):
        errors = []
        with Unrolled(pipe, recipe, again=False) as unrolled:
            for sign in (1, -1):
                moved = given(recipe).repeat(2, 1)
                moved[picture, column] += sign * 4e-3
                errors.append(log_errors(unrolled.latents(moved, batch), plain)[picture])
        slope = float(errors[0] - errors[1]) / 8e-3
        assert slope == pytest.approx(float(gradients[0][picture, column]), rel=0.03, abs=0.02)


@contextmanager
def replayed_by_hand(transformer: torch.nn.Module, recipe: Recipe) -> Iterator[None]:
    """Forward hooks that put weighted sums of earlier outputs in place of what units and ranges of blocks compute."""
    layout, call = layout_of(transformer), itertools.count()
    now, entered, handles = [-1], {}, []

    def begin(*_: Any) -> None:
        now[0] = next(call)

    handles.append(transformer.register_forward_pre_hook(begin))
    for what in recipe.parts:
        weights, past = recipe.at(what), []
        kind, _, rest = what.partition(" ")
        if kind == "unit":
            block, _, child = rest.partition(".")
            module = transformer.get_submodule(f"{layout.blocks[int(block)]}.{child}")

            def swap(_: Any, __: Any, output: Any, weights: Any = weights, past: Any = past) -> Any:
                if now[0] not in weights:
                    past.insert(0, output)
                    return output
                return sum(w * x for w, x in zip(weights[now[0]], past, strict=False))

            handles.append(module.register_forward_hook(swap))
            continue
        first, last = (transformer.get_submodule(layout.blocks[int(n)]) for n in rest.split("-"))

        def enter(_: Any, args: Any, kwargs: Any, what: str = what) -> None:
            entered[what] = kwargs.get("hidden_states", args[0] if args else None)

        def leave(_: Any, __: Any, output: Any, what: str = what, weights: Any = weights, past: Any = past) -> Any:
            if now[0] not in weights:
                past.insert(0, output - entered[what])
                return output
            return entered[what] + sum(w * x for w, x in zip(weights[now[0]], past, strict=False))

        handles += [first.register_forward_pre_hook(enter, with_kwargs=True), last.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_refined_recipe_is_what_a_replay_by_hand_gives(
    transformer: Any, of_transformer: Recipe, dtype: torch.dtype
) -> None:
    wide = widened(
        apart(of_transformer, layout_of(transformer.transformer)),
        survey(
            transformer, apart(of_transformer, layout_of(transformer.transformer)), batch_of(transformer, "ab")
        ).depths,
    )
    noise = 0.05 * torch.randn(given(wide).shape, generator=torch.Generator().manual_seed(0))
    recipe, batch = with_weights(wide, given(wide) + noise), batch_of(transformer, "ab", "cd")
    assert {reuse.what.split()[0] for reuse in recipe.reuses} == {"unit", "blocks"}
    assert {len(reuse.weights) for reuse in recipe.reuses} == {1, 2, 3}
    transformer.to(dtype)
    try:
        with torch.no_grad(), replayed_by_hand(transformer.transformer, recipe):
            expected = latents_of(transformer, batch)
        with accelerate(transformer, Profile(recipe)) as handle:
            found = latents_of(transformer, batch)
            assert handle.report().macs_saved > 0.1
    finally:
        transformer.to(torch.float32)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(found, expected, **close)


def test_nothing_refined_is_nothing_changed(unet_pipe: Any, of_unet: Recipe) -> None:
    workload = Workload(("ab",), settings=SETTINGS)
    assert refine(unet_pipe, of_unet, workload, Refinement(rounds=0, iterations=0), **QUIET) == of_unet
    empty = replace(of_unet, reuses=())
    assert refine(unet_pipe, empty, workload, LITTLE, **QUIET) == empty
    single = survey(unet_pipe, of_unet, batch_of(unet_pipe, "ab"))
    wide = widened(of_unet, single.depths)
    with accelerate(unet_pipe, Profile(of_unet)):
        before = latents_of(unet_pipe, batch_of(unet_pipe, "ab", "cd"))
    with accelerate(unet_pipe, Profile(wide)):
        assert torch.equal(latents_of(unet_pipe, batch_of(unet_pipe, "ab", "cd")), before)


@pytest.mark.slow
def test_refining_is_better_on_its_pictures_fixed_by_its_seed_and_leaves_no_trace(
    unet_pipe: Any, of_unet: Recipe
) -> None:
    workload, said = Workload(("ab", "cd"), settings=SETTINGS), list[str]()
    batch = batch_of(unet_pipe, "ab", "cd")
    plain = latents_of(unet_pipe, batch)
    how = Refinement(rounds=1, pictures=2, probes=6, iterations=0)
    found = refine(unet_pipe, of_unet, workload, how, seed=3, progress=said.append)
    assert found == refine(unet_pipe, of_unet, workload, how, seed=3, **QUIET)
    assert "MB for autograd's graph of 2 pictures" in said[0]
    assert torch.equal(latents_of(unet_pipe, batch), plain)
    assert all(p.requires_grad for p in unet_pipe.unet.parameters())
    assert all(p.grad is None for p in unet_pipe.unet.parameters())
    errors = []
    for recipe in (of_unet, found):
        with accelerate(unet_pipe, Profile(recipe)):
            errors.append(float(log_errors(latents_of(unet_pipe, batch), plain).mean()))
    assert errors[1] < errors[0]


@pytest.mark.slow
def test_adam_moves_and_memory_can_be_short(unet_pipe: Any, of_unet: Recipe) -> None:
    workload, said = Workload(("ab", "cd"), settings=SETTINGS), list[str]()
    how = Refinement(rounds=1, pictures=2, probes=4, iterations=3, batch=2, memory=1.0)
    short = refine(unet_pipe, of_unet, workload, how, progress=said.append)
    assert "computed again in the backward pass" in said[0]
    assert short == refine(unet_pipe, of_unet, workload, replace(how, memory=1e12), **QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet_pipe", "transformer"])
def test_the_memory_that_is_told_is_what_the_graph_takes(kind: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(kind)
    recipe = request.getfixturevalue("of_unet" if kind == "unet_pipe" else "of_transformer")
    recipe, batch = (
        apart(recipe, layout_of(pipe.components.get("unet") or pipe.components["transformer"])),
        batch_of(pipe, "ab"),
    )
    need, kept = graph_memory(pipe, recipe, survey(pipe, recipe, batch)), dict[int, torch.UntypedStorage]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor if tensor._base is None else tensor._base
        if not isinstance(own, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    values = given(recipe).requires_grad_(True)
    with (
        frozen(pipe),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        Unrolled(pipe, recipe, again=False) as run,
    ):
        latents = run.latents(values, batch)
    taken = sum(storage.nbytes() for storage in kept.values())
    assert latents.requires_grad
    assert 0.6 < (need.whole + need.features) / taken < 1.7
    assert need.call < need.whole


def test_the_basis_is_differences_of_features() -> None:
    basis = difference_basis({"a": {1: range(0, 1)}, "b": {2: range(1, 4)}})
    features = np.array([10.0, 7.0, 5.0, 4.0])
    assert (features @ basis).tolist() == [10.0, 7.0, 7.0 - 5.0, 7.0 - 2 * 5.0 + 4.0]


def test_a_minimax_path_is_the_best_of_all_paths() -> None:
    total, generator = 6, np.random.default_rng(1)
    weights = {(a, b): float(generator.integers(1, 9)) for a in range(total) for b in range(a + 1, total + 1)}

    def price(steps: tuple[int, ...]) -> list[float]:
        return sorted((weights[edge] for edge in itertools.pairwise((*steps, total))), reverse=True)

    found = minimax_steps(weights, total)
    assert set(found) == set(range(1, total + 1))
    for count, steps in found.items():
        every = [(0, *rest) for rest in itertools.combinations(range(1, total), count - 1)]
        assert price(steps) == min(map(price, every))


@pytest.mark.parametrize("what", ["unit 3", "units 0-1.attn1", "branch 0.attn1", "unit x.attn1", "unit 0-1.attn1"])
def test_bad_names_are_refused(what: str) -> None:
    with pytest.raises(ValueError, match="what must"):
        Reuse(1, what)


def test_single_units_are_named_drawn_and_kept_apart(transformer: Any) -> None:
    recipe = recipe_of(transformer, Reuse(1, "unit 1.attn1"), Reuse(2, "unit 1.ff"))
    assert "blocks 1-1 █▒▒██" in to_text(recipe)
    with accelerate(transformer, Profile(recipe)) as handle:
        latents_of(transformer, batch_of(transformer, "ab"))
        assert 0 < handle.report().macs_saved < 0.05
    for other, words in ((Reuse(1, "units 0-2"), "alone and within"), (Reuse(1, "unit 1.norm"), "no attention")):
        with pytest.raises((ValueError, TypeError), match=words):
            accelerate(transformer, Profile(replace(recipe, reuses=(*recipe.reuses, other))))


def test_a_fixed_setting_that_wins_is_what_is_written(unet_pipe: Any, of_unet: Recipe, tmp_path: Path) -> None:
    evidence = Evidence("min_psnr 20", met=False, macs=0.5, psnr=19.0, ssim=0.5, search_psnr=19.0)
    score, quality = Score(0.4, 25.0, 0.9), Quality(10.0, 9.0, 0.1, 0.1)
    tuned = Tuned(replace(of_unet, evidence=evidence), Score(0.5, 19.0, 0.5), (), None, quality)
    for winner in (
        Baseline("deepcache:interval=3", score, method=DeepCache(3)),
        Baseline("2 steps", score, steps=2, calls=2),
    ):
        won = replace(tuned, winner=winner)
        won.save(tmp_path / "profile.json")
        assert won.met
        assert json.loads((tmp_path / "profile.json").read_text())["evidence"]["psnr"] == 25.0
        (method,) = load_methods(tmp_path / "profile.json")
        batch = batch_of(unet_pipe, "ab")
        batch = replace(batch, arguments={**batch.arguments, "num_inference_steps": winner.steps or STEPS})
        with accelerate(unet_pipe, winner.method or method):
            expected = latents_of(unet_pipe, batch)
        with accelerate(unet_pipe, method):
            assert torch.equal(latents_of(unet_pipe, batch), expected)


@pytest.mark.slow
def test_tuning_keeps_refined_weights_only_where_validation_confirms_them(
    unet_pipe: Any, of_unet: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = Tuner(unet_pipe, ("ab", "cd", "efg"), refinement=LITTLE, **QUIET, **SETTINGS)
    asked: list[Any] = []
    worse = replace(of_unet, reuses=tuple(replace(reuse, weights=(0.5,)) for reuse in of_unet.reuses))
    better = replace(of_unet, reuses=of_unet.reuses[:1])

    for answer, kept in ((worse, of_unet), (better, better)):

        def answered(_: Any, recipe: Recipe, workload: Workload, *__: Any, answer: Any = answer, **___: Any) -> Recipe:
            asked.append((recipe, workload))
            return answer

        monkeypatch.setattr("diffaccel.tune.tuner.refine", answered)
        found, gain = tuner._refined(of_unet, 0.5, Budget(max_macs=0.5))
        assert found == kept
        assert (gain > 0) == (kept is answer)
    scores = [tuner.validation.score_of(recipe, 0.5).psnr for recipe in (of_unet, better)]
    assert gain == scores[1] - scores[0]
    learned = asked[0][1]
    others = (*tuner.validation.workload.seeds, *tuner.split.held_out.seeds, *tuner.split.seen.seeds)
    assert not set(learned.seeds) & set(others)
    tuner.refinement = None
    assert tuner._refined(of_unet, 0.5, Budget(max_macs=0.5)) == (of_unet, 0.0)


class Linear:
    """Latents (pictures, values) that are linear in two weights, as a stand-in for a pipeline."""

    def __init__(self, slope: torch.Tensor, best: torch.Tensor) -> None:
        self.places, self.count = {"a": {1: range(2)}}, 2
        self.slope, self.best = slope, best
        self.unseen = self.next(2)

    def latents(self, values: torch.Tensor, batch: Any) -> torch.Tensor:
        return values.expand(2, -1) @ self.slope

    def next(self, count: int) -> Any:
        return None, (self.best @ self.slope).expand(count, -1)


def learner_of(linear: Linear, rounds: int) -> _Learner:
    how = Refinement(rounds=rounds, pictures=2, probes=3, iterations=0)
    stand_in: Any = linear
    return _Learner(stand_in, stand_in, how, torch.Generator().manual_seed(0), lambda _: None)


def test_equations_of_every_round_are_of_the_way_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    best, start = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    learner = learner_of(Linear(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)), best), rounds=3)
    asked: list[Any] = []
    ways = learner._ways
    monkeypatch.setattr(learner, "_ways", lambda *equations: (asked.append(equations), ways(*equations))[1])
    found = learner.learned(start)
    assert [len(side) for _, side in asked] == [6, 12, 18]
    for matrix, side in asked:
        np.testing.assert_allclose(matrix @ (best - start)[0].numpy(), side, atol=1e-4)
    assert (found - best).norm() < 0.6 * (start - best).norm()


def test_weights_that_matter_to_nothing_stay() -> None:
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(learner_of(Linear(torch.zeros(2, 5), torch.ones(1, 2)), rounds=2).learned(start), start)


@pytest.mark.parametrize(
    ("kind", "macs", "calls"),
    [(PNDMScheduler, 0.6, 3), (PNDMScheduler, 0.5, 1), (HeunDiscreteScheduler, 0.5, 3)],  # of 5, 5 and 7 in 4 steps
)
def test_fewer_steps_cost_their_network_calls_and_are_written_for_as_many(
    unet_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, macs: float, calls: int
) -> None:
    more = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    monkeypatch.setattr(unet_pipe, "scheduler", kind.from_config(unet_pipe.scheduler.config, **more))
    workload = Workload(("ab",), settings={**SETTINGS, "num_inference_steps": 4})
    bench = Bench(unet_pipe, workload, workload.pictures(unet_pipe))
    total = len(unet_pipe.scheduler.timesteps)
    layout = layout_of(unet_pipe.unet)
    fixed = FixedSettings(unet_pipe, bench, Space(layout, (), grams={OUTPUT: np.eye(total)}))
    monkeypatch.setattr(fixed, "_candidates", lambda _: iter(()))
    (found,) = fixed.within(macs)
    assert (found.calls, found.score.macs) == (calls, calls / total)
    recipe = Recipe(layout.model, layout.fingerprint, *sampler_of(unet_pipe.scheduler), total, ())
    evidence = Evidence("max_macs 0.5", met=True, macs=0.5, psnr=19.0, ssim=0.5, search_psnr=19.0)
    quality = Quality(10.0, 9.0, 0.1, 0.1)
    won = Tuned(replace(recipe, evidence=evidence), found.score, (), found, quality)
    won.save(tmp_path / "profile.json")
    with accelerate(unet_pipe, *load_methods(tmp_path / "profile.json")) as handle:
        workload.pictures(unet_pipe, num_inference_steps=found.steps)
        assert handle.report().computed == calls


@pytest.mark.parametrize(("searched", "refined", "met"), [(29.0, 31.0, True), (31.0, 29.0, True), (29.0, 29.5, False)])
def test_a_budget_holds_or_not_for_the_recipe_that_is_told(
    unet_pipe: Any, of_unet: Recipe, monkeypatch: pytest.MonkeyPatch, searched: float, refined: float, met: bool
) -> None:
    tuner = Tuner(unet_pipe, ("ab", "cd", "efg"), refinement=LITTLE, **QUIET, **SETTINGS)
    better = replace(of_unet, reuses=of_unet.reuses[:1])
    held = {of_unet: Score(0.5, searched, 0.9), better: Score(0.5, refined, 0.9)}
    plan, asked = (COMPUTE,) * STEPS, list[float]()

    def cheapest(budget: Budget, below: float) -> None:
        asked.append(below)

    space = SimpleNamespace(macs=lambda _: 0.5, recipe=lambda *_: of_unet, grams={OUTPUT: np.eye(STEPS)})
    stood_in = {
        "known": SimpleNamespace(space=space, bench=SimpleNamespace(runs=0, score=lambda *_: held[of_unet])),
        "held_out": SimpleNamespace(score=lambda *_: held[of_unet], score_of=lambda recipe, _: held[recipe]),
        "validation": SimpleNamespace(score_of=lambda recipe, _: Score(0.5, 40.0 + (recipe == better), 0.9)),
        "fixed": SimpleNamespace(within=lambda _: [], cheapest=cheapest),
        "floor": Quality(10.0, 9.0, 0.1, 0.1),
    }
    tuner.__dict__.update(stood_in)
    monkeypatch.setattr(tuner, "_chosen", lambda *_: (Found(plan, held[of_unet], held[of_unet], ()), plan))
    monkeypatch.setattr("diffaccel.tune.tuner.refine", lambda *_, **__: better)
    tuned = tuner.tune(Budget(min_psnr=30.0))
    assert tuned.met is met
    assert tuned.score.psnr == max(searched, refined)
    assert tuned.recipe.evidence is not None
    assert (tuned.recipe.evidence.refined > 0) == (refined > searched)
    assert asked == [0.5 if met else 1.0]  # where it is missed, a fixed setting at any cost may hold it


@pytest.mark.parametrize(
    ("rival", "words"),
    [(30.0, "of no higher cost: 2 steps, 40.0%"), (50.0, "within the budget: dearer, 60.0%, 50.0 dB")],
)
def test_a_quality_that_nothing_cheaper_holds_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rival: float, words: str
) -> None:
    evidence = Evidence("min_psnr 99", met=False, macs=0.5, psnr=90.0, ssim=1.0, search_psnr=99.0)
    found = Recipe("network", "f", "sampler", "f", 3, (Reuse(2, OUTPUT),), evidence)
    fixed = Baseline("2 steps", Score(0.4, 40.0, 0.9)), Baseline("dearer", Score(0.6, rival, 0.9))
    tuned = Tuned(found, Score(0.5, 90.0, 1.0), fixed, None, Quality(10.0, 9.0, 0.1, 0.1))
    monkeypatch.setattr("diffaccel.tune.tune", lambda *_, **__: tuned)
    monkeypatch.setattr("diffaccel.cli.subject.Subject.load", lambda *_: None)
    arguments = ["tune", "--min-psnr", "99", "--prompts", "a cat", "-o", str(tmp_path / "p.json")]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 1
    assert "nothing that saves work was found to hold --min-psnr 99: the above is the closest found" in told.stderr
    assert f"best fixed setting {words}" in told.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("late", [False, True])
def test_what_the_clock_refutes_is_not_the_result(
    unet_pipe: Any, of_unet: Recipe, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    said: list[str] = []
    tuner = Tuner(unet_pipe, ("ab", "cd", "efg"), refinement=LITTLE, progress=said.append, **SETTINGS)
    better = replace(of_unet, reuses=of_unet.reuses[:1])
    plan, score, steps = (COMPUTE,) * STEPS, Score(0.5, 30.0, 0.9), Baseline("2 steps", Score(0.5, 60.0, 1.0), steps=2)
    space = SimpleNamespace(macs=lambda _: 0.5, recipe=lambda *_: of_unet, grams={OUTPUT: np.eye(STEPS)})
    scored = lambda recipe, _: replace(score, psnr=30.0 + (recipe == better))  # noqa: E731
    bench = SimpleNamespace(score=lambda *_: score, score_of=scored)
    fixed = SimpleNamespace(within=lambda _: [steps], again=lambda *_: steps)
    tuner.__dict__ |= {"known": SimpleNamespace(space=space, bench=SimpleNamespace(runs=0, score=bench.score))}
    tuner.__dict__ |= {"held_out": bench, "validation": bench, "fixed": fixed, "floor": Quality(10.0, 9.0, 0.1, 0.1)}
    monkeypatch.setattr(tuner, "_chosen", lambda *_: (Found(plan, score, score, ()), plan))
    monkeypatch.setattr(tuner, "_as_cost", lambda _: Budget(max_macs=0.5))
    monkeypatch.setattr("diffaccel.tune.tuner.refine", lambda *_, **__: better)
    slow = [(Profile(better), {}), (None, {"num_inference_steps": 2})] if late else []
    times = lambda method=None, **changes: 2.0 if (method, changes) in slow else 0.5  # noqa: E731
    monkeypatch.setattr(tuner, "_seconds", times)
    tuned = tuner.tune(Budget(max_time=1.0))
    assert replace(tuned.recipe, evidence=None) == (of_unet if late else better)
    assert tuned.winner == (None if late else steps)
    assert any("2 steps does better, and takes longer than max_time 1" in line for line in said) is late
    assert tuned.met
    assert tuned.recipe.evidence is not None
    assert tuned.recipe.evidence.settings == f"num_inference_steps={STEPS}, guidance_scale=2.0"


def test_refined_weights_are_kept_by_the_likeness_that_is_asked_for(
    unet_pipe: Any, of_unet: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = Tuner(unet_pipe, ("ab", "cd", "efg"), refinement=LITTLE, **QUIET, **SETTINGS)
    refined = replace(of_unet, reuses=of_unet.reuses[:1])
    scores = {of_unet: Score(0.5, 30.0, 0.9), refined: Score(0.5, 31.0, 0.8)}
    tuner.__dict__["validation"] = SimpleNamespace(score_of=lambda recipe, _: scores[recipe])
    monkeypatch.setattr("diffaccel.tune.tuner.refine", lambda *_, **__: refined)
    assert tuner._refined(of_unet, 0.5, Budget(min_ssim=0.85)) == (of_unet, 0.0)
    assert tuner._refined(of_unet, 0.5, Budget(min_psnr=30.5)) == (refined, 1.0)


def test_pictures_that_overflowed_are_like_nothing() -> None:
    plain = torch.rand(2, 3, 16, 16)
    assert score_of(0.5, torch.full_like(plain, float("nan")), plain) == Score(0.5, 0.0, 0.0)
