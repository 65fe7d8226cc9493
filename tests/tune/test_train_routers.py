"""Training routers: the mix against hooks of torch, the objectives against their formulas, and whole trainings."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stream_pipelines
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DPMSolverMultistepScheduler
from safetensors.torch import save_file
from tiny_transformers import TRANSFORMERS

from diffaccel import LearnedCache, Routers, accelerate, train_routers
from diffaccel.cli import main
from diffaccel.methods import RouterTraining
from diffaccel.methods.profile import sampler_of
from diffaccel.networks import layout_of
from diffaccel.runtime.mix_act import Gates
from diffaccel.tune.influence import influences
from diffaccel.tune.router_picture import to_svg
from diffaccel.tune.router_steps import _TrainRouters, guided
from diffaccel.tune.router_training import TrainingPoint
from diffaccel.tune.trainee import Trainee

CALLS = 4
PROMPTS = ("a cat", "a dog", "a red heart")
SETTINGS: dict[str, Any] = {
    "num_inference_steps": CALLS, "guidance_scale": 2.0, "height": 32, "width": 32,
    "batch_size": 2, "learning_rate": 0.5, "progress": lambda _: None,
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = stream_pipelines.pixart()
    pipe.scheduler = DDIMScheduler()
    return pipe


def mix_by_hooks(model: Any, names: tuple[str, ...], cached: dict[str, torch.Tensor], w: torch.Tensor) -> list[Any]:
    """Forward hooks that mix the outputs of modules with what is in `cached`, and replace that where w > 0.1."""

    def hook(index: int, name: str) -> Any:
        def after(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            made = output if name not in cached else w[index] * output + (1 - w[index]) * cached[name]
            if name not in cached or w[index] > 0.1:
                cached[name] = made.detach()
            return made

        return after

    return [model.get_submodule(name).register_forward_hook(hook(i, name)) for i, name in enumerate(names)]


def test_a_mix_and_its_gradient_equal_hooks_of_torch() -> None:
    tiny = TRANSFORMERS["PixArtTransformer2DModel"]
    model, inputs = tiny.build("PixArtTransformer2DModel"), tiny.inputs(2, torch.Generator().manual_seed(0))
    first, time = inputs["hidden_states"], torch.full((2,), 900.0)
    calls = [{**inputs, "hidden_states": first * (1 + 0.2 * i), "timestep": time - 200 * i} for i in range(3)]
    names = tuple(unit.branch.replayed[0] for unit in layout_of(model).units)
    weights = torch.rand(len(calls), len(names), generator=torch.Generator().manual_seed(1))
    weights[:, ::3] *= 0.1  # these are mixed, and not cached

    def gradients(run: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        outputs, found = [], []
        for inputs, row in zip(calls, weights, strict=True):
            w = row.clone().requires_grad_()
            output = run(inputs, w)
            outputs.append(output.detach())
            found += torch.autograd.grad(output.square().mean(), w) if output.requires_grad else []
        return outputs, found

    cached: dict[str, torch.Tensor] = {}

    def reference(inputs: dict[str, Any], w: torch.Tensor) -> torch.Tensor:
        hooks = mix_by_hooks(model, names, cached, w)
        try:
            return model(**inputs).sample
        finally:
            for hook in hooks:
                hook.remove()

    method = _TrainRouters(lambda total, units: Trainee(total, units, RouterTraining()))
    method.wrapper = lambda layout, host: None  # type: ignore[method-assign, assignment, return-value]  # the act alone

    def ours(inputs: dict[str, Any], w: torch.Tensor) -> torch.Tensor:
        plain = method.gates.stand_aside() or model(**inputs).sample  # changes nothing that is cached
        method.gates.set(w, 0.1)
        output = model(**inputs).sample
        assert (plain - output).abs().max() > 1e-6 or inputs is calls[0]
        return output

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    expected = gradients(reference)
    with accelerate(model, method):
        found = gradients(ours)
    assert len(found[1]) == len(calls) - 1
    for a, b in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gates_stand_aside_until_they_are_set() -> None:
    gates = Gates()
    assert gates.weights is None
    gates.set(torch.tensor([0.05, 0.2]), 0.1)
    assert gates.refreshes == (False, True)


@pytest.mark.parametrize("objective", ["harmonica", "l2c"])
def test_an_update_is_that_of_the_formula(objective: str) -> None:
    trainee = Trainee(3, 2, RouterTraining(objective, beta=0.3, learning_rate=0.1))
    trainee.influence = torch.tensor([0.0, 2.0, 1.0])
    before = trainee.logits[1].detach().clone()
    w = torch.sigmoid(trainee.logits[1])
    loss = trainee.learn(1, w, (w * torch.tensor([1.0, -4.0])).sum() ** 2)
    p = before.clone().requires_grad_()
    expected = 2.0 * (torch.sigmoid(p) @ torch.tensor([1.0, -4.0])) ** 2 + 0.3 * torch.sigmoid(p).sum()
    (gradient,) = torch.autograd.grad(expected, p)
    assert loss == pytest.approx(expected.item())
    torch.testing.assert_close(trainee.logits[1].detach(), before - 0.1 * gradient.sign())  # Adam's first step
    assert [trainee.learns(call) for call in range(3)] == [False, True, objective == "harmonica"]
    trainee.logits[1].data.fill_(4.99)
    for _ in range(5):
        w = torch.sigmoid(trainee.logits[1])
        trainee.learn(1, w, -100 * w.sum())
    assert trainee.logits[1].max() == 5.0


def test_influences_are_distances_between_successive_samples(pipe: Any) -> None:
    layout = layout_of(pipe.transformer)
    units = tuple(unit.branch.replayed[0] for unit in layout.units)
    guidance = (("guidance_scale", 2.0),)
    rows = ((1.0,) * len(units), (0.0,) * len(units), (1.0,) * len(units), (0.0, 1.0) * (len(units) // 2))
    routers = Routers(layout.model, layout.fingerprint, *sampler_of(pipe.scheduler), guidance, units, rows)

    def sample() -> torch.Tensor:
        return pipe(
            "a cat", num_inference_steps=4, guidance_scale=2.0, height=32, width=32, use_resolution_binning=False,
            clean_caption=False, output_type="latent", generator=torch.Generator().manual_seed(3),
        ).images  # fmt: skip

    found = influences(pipe, routers, sample)
    plain = sample()
    with accelerate(pipe, LearnedCache(replace(routers, weights=(*rows[:2], rows[0], rows[0])))):
        first = sample()
    with accelerate(pipe, LearnedCache(routers)):
        both = sample()
    expected = [0.0, (first - plain).square().mean(), 0.0, (both - first).square().mean()]
    assert expected[1] > 0 < expected[3]
    torch.testing.assert_close(found, torch.tensor([float(x) for x in expected]))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["harmonica", "l2c"])
def test_training_lowers_its_own_objective_and_deploys(pipe: Any, objective: str, tmp_path: Path) -> None:
    points: list[TrainingPoint] = []
    settings = SETTINGS | {"progress": points.append}
    before = [p.requires_grad for p in pipe.transformer.parameters()]
    made = train_routers(
        pipe, PROMPTS, objective=objective, beta=1e-3, runs=16, refresh=100, path=tmp_path / "r.json", **settings
    )
    assert [p.requires_grad for p in pipe.transformer.parameters()] == before
    losses = [point.loss for point in points]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert [point.run for point in points] == list(range(1, 17))
    assert Routers.load(tmp_path / "r.json") == made
    assert made.guidance == (("guidance_scale", 2.0),)
    assert made.total == CALLS
    assert made.curve[-1][2] == pytest.approx(points[-1].computed)
    assert set(made.weights[0]) == {1.0}
    if objective == "l2c":
        assert all(set(row) == {1.0} for row in made.weights[::2])
    with accelerate(pipe, LearnedCache(tmp_path / "r.json")) as handle:
        pipe(
            "a cat", num_inference_steps=CALLS, guidance_scale=2.0, height=32, width=32, use_resolution_binning=False,
            clean_caption=False, output_type="latent",
        )  # fmt: skip
        assert handle.report().replayed > 0


@pytest.mark.slow
def test_a_larger_beta_never_computes_more_on_average(pipe: Any) -> None:
    amounts = []
    for beta in (0.0, 1e-4, 1e-1):
        made = train_routers(pipe, PROMPTS, beta=beta, runs=6, refresh=3, **SETTINGS)
        amounts.append(sum(len(calls) for calls in made.computed().values()))
    assert amounts == sorted(amounts, reverse=True)
    assert amounts[-1] < 0.8 * amounts[0]


@pytest.mark.slow
def test_resuming_equals_an_uninterrupted_training(pipe: Any, tmp_path: Path) -> None:
    options = SETTINGS | {"refresh": 2, "beta": 1e-5}
    whole = train_routers(pipe, PROMPTS, runs=5, path=tmp_path / "whole.json", **options)
    path = tmp_path / "r.json"

    def interrupted(point: TrainingPoint) -> None:
        if point.run == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_routers(pipe, PROMPTS, runs=5, path=path, **options | {"progress": interrupted})
    assert not path.exists()
    points: list[TrainingPoint] = []
    resumed = train_routers(pipe, PROMPTS, runs=5, path=path, **options | {"progress": points.append})
    assert [point.run for point in points] == [3, 4, 5]
    assert resumed == whole == Routers.load(path)
    assert path.read_text() == (tmp_path / "whole.json").read_text()
    assert train_routers(pipe, PROMPTS, runs=5, path=path, **options) == whole  # nothing is left to do
    with pytest.raises(ValueError, match=r"r\.safetensors is the state of another training: its beta is 1e-05"):
        train_routers(pipe, PROMPTS, runs=5, path=path, **options | {"beta": 1e-4})
    with pytest.raises(ValueError, match=r"another training: its prompts, seed, batch size or settings of a run are"):
        train_routers(pipe, PROMPTS[:1], runs=5, path=path, **options)
    with pytest.raises(ValueError, match=r"the state after 5 runs, and 3 are asked for"):
        train_routers(pipe, PROMPTS, runs=3, path=path, **options)
    weight = pipe.transformer.transformer_blocks[0].attn1.to_q.weight.data
    own = weight.clone()
    weight += 1e-3  # as a LoRA does that is merged into it
    with pytest.raises(ValueError, match=r"another training: its weights"):
        train_routers(pipe, PROMPTS, runs=5, path=path, **options)
    weight.copy_(own)
    pipe.scheduler, before = DPMSolverMultistepScheduler(), pipe.scheduler
    try:
        with pytest.raises(ValueError, match=r"another training: its sampler is .*DDIM"):
            train_routers(pipe, PROMPTS, runs=5, path=path, **options)
    finally:
        pipe.scheduler = before


def test_class_labels_are_drawn_where_there_are_no_prompts() -> None:
    tiny = TRANSFORMERS["DiTTransformer2DModel"]
    dit = replace(tiny, config={**tiny.config, "num_embeds_ada_norm": 1000}).build("DiTTransformer2DModel")
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipe = DiTPipeline(dit, vae, DDIMScheduler(clip_sample=False))

    def trained(*given: Any) -> Routers:
        options: dict[str, Any] = {"runs": 2, "batch_size": 2, "num_inference_steps": 3, "progress": lambda _: None}
        return train_routers(pipe, *given, objective="l2c", **options)

    made = trained()
    assert made == trained()
    assert made != trained([{"class_labels": [7]}])
    assert made.total == 3
    assert made.guidance == (("guidance_scale", 4.0),)


def test_files_of_others_are_left_as_they_are(pipe: Any, tmp_path: Path) -> None:
    lora, broken = tmp_path / "lora.safetensors", tmp_path / "broken.safetensors"
    save_file({"weight": torch.ones(2)}, lora)
    broken.write_bytes(b"half")
    (tmp_path / "r.tmp").write_text("of another program")
    for file in (lora, broken):
        before = file.read_bytes()
        with pytest.raises(ValueError, match=f"{file.name} is no state of a training.*name another path"):
            train_routers(pipe, PROMPTS, runs=1, path=file.with_suffix(".json"), **SETTINGS)
        with pytest.raises(ValueError, match=f"name the routers otherwise, as {file.stem}.json"):
            train_routers(pipe, PROMPTS, runs=1, path=file, **SETTINGS)
        assert file.read_bytes() == before
    train_routers(pipe, PROMPTS, runs=1, path=tmp_path / "r.json", **SETTINGS)
    assert (tmp_path / "r.tmp").read_text() == "of another program"


def test_bad_arguments_are_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="takes no class labels that could be drawn: give train_routers some prompts"):
        train_routers(pipe, None, **SETTINGS)
    with pytest.raises(ValueError, match="at least one prompt"):
        train_routers(pipe, [], **SETTINGS)
    with pytest.raises(ValueError, match="objective must be one of"):
        train_routers(pipe, PROMPTS, objective="best", **SETTINGS)
    with pytest.raises(ValueError, match="nothing could be learned"):
        train_routers(pipe, PROMPTS, **SETTINGS | {"num_inference_steps": 1})


def test_guided_predictions_leave_out_a_learned_variance() -> None:
    predicted = torch.arange(2 * 8 * 2 * 2.0).reshape(2, 8, 2, 2)

    class Call:
        class inputs:
            sample = torch.zeros(2, 4, 2, 2)

        @staticmethod
        def rows_of(role: str) -> list[int]:
            return [0] if role == "negative" else [1]

    found = guided(Call, (predicted,), 3.0)  # type: ignore[arg-type]
    torch.testing.assert_close(found, predicted[:1, :4] + 3 * (predicted[1:, :4] - predicted[:1, :4]))
    assert torch.equal(guided(Call, (predicted,), None), predicted[:, :4])  # type: ignore[arg-type]


def test_a_picture_shows_how_objective_and_computing_went() -> None:
    routers = Routers("Net", "0", "DDIM", "0", (), ("block.0.ff",), ((1.0,), (0.05,)))
    assert "polyline" not in to_svg(routers)
    drawing = to_svg(replace(routers, curve=((5.0, 1e-3, 1.0), (10.0, 1e-5, 0.5), (15.0, 1e-4, 0.0))))
    shares, objectives = (
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline points="([^"]+)"', drawing)
    )
    top, bottom = shares[0][1], shares[-1][1]
    assert [y for _, y in shares] == pytest.approx([top, (top + bottom) / 2, bottom])
    assert [y for _, y in objectives] == pytest.approx([top, bottom, (top + bottom) / 2])  # in logarithms
    assert [x for x, _ in shares] == [x for x, _ in objectives] == sorted(x for x, _ in shares)
    for text in ("run 5", "run 15", "1e-05 to 1e-03"):
        assert f">{text}<" in drawing
    end, legend = re.search(r'<text x="([\d.]+)"[^>]*>(dark: computes[^<]+)<', drawing).groups()  # type: ignore[union-attr]
    assert float(end) >= 6 * len(legend)  # it ends there, and begins within the drawing


def test_the_command_writes_routers_and_a_picture(tmp_path: Path) -> None:
    stream_pipelines.pixart().save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--scheduler", "ddim", "--prompts", "a cat", "--size", "32"]
    arguments += ["--steps", "3", "--runs", "2", "--batch-size", "1", "--beta", "0.5", "--learning-rate", "2", "-q"]
    arguments += ["-o", str(tmp_path / "out" / "r.json"), "--picture", str(tmp_path / "r.svg")]
    result = CliRunner().invoke(main, ["train-cache", *arguments])
    assert result.exit_code == 0, result.output
    made = Routers.load(tmp_path / "out" / "r.json")
    assert made.total == 3
    assert made.training is not None
    assert made.training.runs == 2
    assert re.search(r"r\.json: \d+\.\d% of \d+ units in 3 calls compute", result.output)
    drawing = (tmp_path / "r.svg").read_text()
    assert drawing.count("<title>call ") == 3 * len(made.units)
    assert "block 1 cross-attention" in drawing
    assert drawing.count("<polyline") == 2
    (tmp_path / "folder").mkdir()
    result = CliRunner().invoke(main, ["train-cache", "-o", str(tmp_path / "folder")])
    assert result.exit_code == 2
    assert "is a folder; name a file in it" in result.output


def test_a_network_without_units_is_refused_in_a_sentence(tiny_sd: Path) -> None:
    arguments = ["train-cache", "--model", str(tiny_sd), "--prompts", "a cat", "--size", "32", "--steps", "3", "-q"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: training routers needs transformer blocks")
