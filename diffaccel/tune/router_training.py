"""Train routers for `LearnedCache`: run after run of a pipeline, resumable, with the same result at the same seed."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffaccel.attach.handle import accelerate
from diffaccel.config.checks import check
from diffaccel.config.files import write_atomically
from diffaccel.methods.profile import sampler_of
from diffaccel.methods.routers import Routers, RouterTraining
from diffaccel.networks import layout_of
from diffaccel.tune.influence import influences
from diffaccel.tune.probing import denoiser_of
from diffaccel.tune.router_inputs import PictureInputs, RunInputs
from diffaccel.tune.router_steps import _TrainRouters
from diffaccel.tune.trainee import Trainee
from diffaccel.tune.unroll import frozen

log = logging.getLogger(__name__)
BETAS = {"harmonica": 7e-8, "l2c": 5e-6}  # as published
GLANCES = 64  # numbers of each weight by which networks are told apart
HASHED = {
    "inputs": "its prompts, seed, batch size or settings of a run are others",
    "weights": "its weights are others, as of another model or with a LoRA",
}
POINTS = 100  # of the curve in a file of routers, at most


@dataclass(frozen=True)
class TrainingPoint:
    """How far a training is.

    Attributes:
        run: runs so far.
        runs: runs in all.
        loss: mean objective of the last run's updates.
        computed: fraction of all units, in all calls, that compute.
    """

    run: int
    runs: int
    loss: float
    computed: float


def _log(point: TrainingPoint) -> None:
    log.info("run %d of %d: objective %.3g, %.1f %% compute", point.run, point.runs, point.loss, 100 * point.computed)


def train_routers(
    pipe: Any,
    prompts: Sequence[PictureInputs] | None = None,
    *,
    objective: str = "harmonica",
    beta: float | None = None,
    threshold: float = 0.1,
    learning_rate: float = 0.05,
    runs: int = 250,
    refresh: int = 25,
    batch_size: int = 8,
    seed: int = 0,
    path: str | Path | None = None,
    guided: bool | None = None,
    progress: Callable[[TrainingPoint], None] = _log,
    **settings: Any,
) -> Routers:
    """Learn which attentions and feed-forward networks compute in which calls, for `LearnedCache`.

    Every unit u has a router w = sigmoid(p) in every call t but the first, and gives w new + (1 - w) cached, where the
    cache is refreshed by that if w > threshold. AdamW lowers lambda_t |student - teacher|^2 + beta sum_u w, one update
    for each call; the squares are means over guided outputs.

    - "harmonica" (arXiv 2410.01723): the sampler follows the student. lambda_t is how far the cache in call t moves the
      final sample, estimated anew every `refresh` runs.
    - "l2c" (arXiv 2406.01733): only every second call is trained, against a cache that is one call old; lambda = 1. The
      paper makes its latents of photographs and noise, this of plain runs of the pipeline.

    A run costs about three plain ones, and the memory of one network call with its activations. Guidance in two calls
    is trained call by call, each prediction by itself.

    Args:
        pipe: a pipeline with one denoiser that is made of transformer blocks, with the sampler to train for.
        prompts: for each picture a prompt, or arguments such as {"class_labels": [207]}; None draws class labels.
        objective: "harmonica" or "l2c".
        beta: price of computing; None takes the published one, 7e-8 or 5e-6, which fits the published networks.
        threshold: a unit computes where w is above.
        learning_rate: of AdamW; the papers' is 0.01, for thousands of runs.
        runs: sampling runs in all.
        refresh: runs between two estimates of lambda, and between two states that are written.
        batch_size: pictures of a run.
        seed: of first weights, prompts and noise.
        path: where to write the routers as JSON. The state of the training is kept beside it with the ending
            `.safetensors`; with the same arguments, or more `runs`, training goes on from there.
        guided: whether calls stack [negative; positive] halves; None finds out, as `accelerate`.
        progress: told after each run.
        settings: further arguments of every run, such as num_inference_steps, which the routers are bound to.

    Raises:
        UnsupportedModelError: if the denoiser has no attentions or feed-forward networks that are known by name.
        ValueError: if a value is out of range, or `path` has the state of another training.
    """
    check(
        path is None or Path(path).suffix != ".safetensors",
        f"the state of the training is kept in {path}: name the routers otherwise, as {Path(path or '').stem}.json",
    )
    price = BETAS.get(objective, 0.0) if beta is None else beta
    training = RouterTraining(objective, price, threshold, learning_rate, runs, refresh, batch_size, seed)
    inputs = RunInputs(pipe, prompts, batch_size, seed, settings)
    loop = _Training(pipe, training, inputs, None if path is None else Path(path), guided)
    with _at_work(pipe):
        loop.go_on(progress)
    routers = loop.routers()
    if path is not None:
        routers.save(path)
    return routers


class _Training:
    """A training under way."""

    def __init__(
        self, pipe: Any, training: RouterTraining, inputs: RunInputs, path: Path | None, guided: bool | None
    ) -> None:
        self.pipe, self.training, self.inputs, self.guided = pipe, training, inputs, guided
        self.layout = layout_of(denoiser_of(pipe))
        self.method = _TrainRouters(lambda total, units: Trainee(total, units, training))
        self.curve: list[tuple[float, float, float]] = []
        self.file = None if path is None else path.with_suffix(".safetensors")
        if self.file is not None and self.file.exists():
            self._load(self.file)

    def go_on(self, progress: Callable[[TrainingPoint], None]) -> None:
        """Train up to the last run."""
        if self.method.trainee is None:
            self._look()
        while len(self.curve) < self.training.runs:
            done = len(self.curve)
            self._estimate(done)
            until = min(self.training.runs, (done // self.training.refresh + 1) * self.training.refresh)
            with accelerate(self.pipe, self.method, guided=self.guided):
                for run in range(done, until):
                    progress(self._run(run))
            self._save()

    def _look(self) -> None:
        """Make a run that teaches nothing but how many calls there are."""
        self.method.looks = True
        with accelerate(self.pipe, self.method, guided=self.guided):
            self.pipe(**self.inputs.of(0))
        self.method.looks = False

    def _run(self, run: int) -> TrainingPoint:
        """One run of the pipeline."""
        self.method.losses.clear()
        self.pipe(**self.inputs.of(run))
        losses, trainee = self.method.losses, self.method.trainee
        assert trainee is not None
        if not losses:
            raise ValueError(
                f"nothing could be learned from a run of {type(self.pipe).__name__}: it makes one call, or its calls "
                "could not be told apart"
            )
        weights = trainee.weights()
        weights[0] = 1.0
        computed = (weights > self.training.threshold).float().mean().item()
        self.curve.append((float(run + 1), sum(losses) / len(losses), computed))
        return TrainingPoint(run + 1, self.training.runs, *self.curve[-1][1:])

    def _estimate(self, run: int) -> None:
        """Estimate lambda anew where it is due."""
        trainee = self.method.trainee
        assert trainee is not None
        if run % self.training.refresh or self.training.objective != "harmonica":
            return
        sample = partial(_final, self.pipe, self.inputs, run)
        trainee.influence = influences(self.pipe, self.routers(), sample)

    def routers(self) -> Routers:
        """The routers as they are now."""
        trainee = self.method.trainee
        assert trainee is not None
        rows = trainee.weights()
        rows[0] = 1.0
        return Routers(
            self.layout.model,
            self.layout.fingerprint,
            *sampler_of(self.pipe.scheduler),
            guidance=self.method.guidance,
            units=self.method.units or tuple(unit.branch.replayed[0] for unit in self.layout.units),
            weights=tuple(tuple(round(weight, 5) for weight in row) for row in rows.tolist()),
            threshold=self.training.threshold,
            training=self.training,
            curve=_thinned(self.curve),
        )

    def _identity(self) -> dict[str, str]:
        """What a state must share with the training that goes on from it."""
        own = replace(self.training, runs=1).to_dict() | {"inputs": self.inputs.fingerprint()}
        own |= {"network": f"{self.layout.model} {self.layout.fingerprint}"}
        own |= {"sampler": " ".join(sampler_of(self.pipe.scheduler)), "weights": _glance(denoiser_of(self.pipe))}
        return {name: json.dumps(value) for name, value in own.items()}

    def _save(self) -> None:
        """Write the state, whole or not at all."""
        if self.file is None:
            return
        trainee = self.method.trainee
        assert trainee is not None
        tensors = trainee.state() | {"curve": torch.tensor(self.curve, dtype=torch.float64)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        facts = self._identity() | {"guidance": json.dumps(self.method.guidance)}
        write_atomically(self.file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, facts))

    def _load(self, file: Path) -> None:
        """Go on from a state."""
        facts, tensors = _state_in(file)
        for name, value in self._identity().items():
            found = facts.get(name)
            other = HASHED.get(name, f"its {name} is {found}, and here it is {value}")
            check(
                found == value,
                f"{file} is the state of another training: {other}; name another path, or delete that file to begin "
                "anew",
            )
        self.method.guidance = tuple((name, value) for name, value in json.loads(facts["guidance"]))
        self.curve = [tuple(row) for row in tensors.pop("curve").tolist()]
        check(
            len(self.curve) <= self.training.runs,
            f"{file} is the state after {len(self.curve)} runs, and {self.training.runs} are asked for: ask for as "
            "many, or name another path",
        )
        self.method.trainee = Trainee(len(tensors["logits"]), tensors["logits"].shape[1], self.training)
        self.method.trainee.load(tensors)


def _state_in(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Facts and tensors of a state. Raises ValueError where a file of that name is something else."""
    strange = f"{file} is no state of a training, which would be kept there beside the routers: name another path"
    try:
        with safe_open(file, "pt") as stored:
            facts = stored.metadata() or {}
            check("inputs" in facts, strange)
            return facts, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{strange} ({error})") from error


def _final(pipe: Any, inputs: RunInputs, run: int) -> torch.Tensor:
    """The final samples of a run: latents, or an array of pictures where a pipeline gives no latents."""
    return torch.as_tensor(next(iter(pipe(**inputs.of(run)).values()))).float()


def _glance(network: torch.nn.Module) -> str:
    """A hash of a few of each weight's numbers: another model of the same kind, or a LoRA, has others."""
    taken = hashlib.sha256()
    for weight in (weight for weight in network.parameters() if not weight.is_meta):
        flat = weight.detach().reshape(-1)
        few = flat[:: max(1, len(flat) // GLANCES)][:GLANCES].to("cpu", torch.float32)
        taken.update(few.numpy().tobytes())
    return taken.hexdigest()[:16]


def _thinned(curve: Sequence[tuple[float, float, float]]) -> tuple[tuple[float, ...], ...]:
    """Means of neighbouring points, at most POINTS of them, each at its last run."""
    each = max(1, -(-len(curve) // POINTS))
    groups = [curve[start : start + each] for start in range(0, len(curve), each)]
    return tuple(
        (group[-1][0], *(float(f"{sum(values) / len(group):.6g}") for values in list(zip(*group, strict=True))[1:]))
        for group in groups
    )


@contextmanager
def _at_work(pipe: Any) -> Iterator[None]:
    """No gradients of the pipeline's own weights, and none of its progress bars, within."""
    bars: Mapping[str, Any] = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**bars, "disable": True})
    try:
        with frozen(pipe):
            yield
    finally:
        pipe.set_progress_bar_config(**bars)
