"""The training step of routers, taken at every network call that a pipeline makes, so that any pipeline can train them.

HarmoniCa's step-wise denoising training (arXiv 2410.01723, section 4.1): the sampler goes on from the student's own
outputs, and at each of its latents the teacher, the same network without a cache, says what the output should have
been.
Learning-to-Cache (arXiv 2406.01733, section 3.2): the sampler goes on from the teacher's outputs; every second call is
computed and cached, and the call after it is trained.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from diffaccel.config.checks import check
from diffaccel.methods.base import Method
from diffaccel.methods.profile import guidance_of_call
from diffaccel.methods.recipe import GuidanceScales
from diffaccel.networks.layout import Layout
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.host import NEGATIVE, POSITIVE, Host
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.mix_act import Gates, Mix
from diffaccel.runtime.run import Run
from diffaccel.runtime.trees import detached
from diffaccel.runtime.wrapper import Inner, Wrapper, map_output, prediction
from diffaccel.tune.trainee import Trainee


class _TrainRouters(Method):
    """Trains while a pipeline runs.

    Args:
        found: makes the trainee, given network calls and units, once the first run has started.

    Attributes:
        trainee: the routers, from the first run on.
        looks: whether runs are only looked at, to learn how long they are.
        units: names of the units.
        guidance: scales of guidance by name.
        losses: objective of each update so far.
    """

    def __init__(self, found: Callable[[int, int], Trainee]) -> None:
        self._found = found
        self.gates = Gates()
        self.trainee: Trainee | None = None
        self.looks = False
        self.units: tuple[str, ...] = ()
        self.guidance: GuidanceScales = ()
        self.losses: list[float] = []

    def parts(self, layout: Layout) -> list[Part]:
        """One part that mixes the outputs of all units."""
        layout.require("training routers", "units")
        self.units = tuple(unit.branch.replayed[0] for unit in layout.units)
        return [Part(Mix(self.units, self.gates), Always())]

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Runs each call as teacher and as student."""
        return _Student(self)

    def begin(self, total: int | None) -> None:
        """Take note of a run that starts."""
        if total is None:
            raise ValueError("training routers needs a pipeline that tells how many network calls a run has")
        if self.trainee is None:
            self.trainee = self._found(total, len(self.units))
        known = len(self.trainee.logits)
        check(known == total, f"all runs must make the same number of network calls; these made {known} and {total}")
        self.guidance = guidance_of_call()


class _Student(Wrapper):
    """Makes two calls of each: the teacher's, and the student's with mixed outputs, from which it learns."""

    reads_roles = True

    def __init__(self, method: _TrainRouters) -> None:
        self.method, self.gates = method, method.gates

    def start_run(self, run: Run, total: int | None) -> None:  # noqa: ARG002
        """Refuse a run of unknown or another length."""
        self.method.begin(total)

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:  # noqa: ARG002
        """One network call."""
        trainee, index = self.method.trainee, call.step
        assert trainee is not None
        assert index is not None
        threshold = trainee.training.threshold
        if self.method.looks:
            return network(call)
        try:
            if not trainee.learns(index):
                self.gates.set(torch.ones(len(self.method.units)), threshold)
                return network(call)
            self.gates.stand_aside()
            target = network(call)
            with torch.enable_grad():
                weights = torch.sigmoid(trainee.logits[index])
                self.gates.set(weights, threshold)
                output = network(call)
                self._learn(trainee, index, weights, call, output, target)
        finally:
            self.gates.stand_aside()
        return target if trainee.training.objective == "l2c" else map_output(detached, output)

    def _learn(self, trainee: Trainee, index: int, weights: torch.Tensor, call: Call, output: Any, target: Any) -> None:
        """One update, unless nothing was cached, as where guidance begins in mid-run."""
        scale = dict(self.method.guidance).get("guidance_scale")
        error = mean_square(guided(call, output, scale), guided(call, target, scale))
        if error.requires_grad:
            self.method.losses.append(trainee.learn(index, weights, error))


def guided(call: Call, output: Any, scale: float | None) -> Any:
    """What the sampler makes of a prediction: negative + scale (positive - negative), without a learned variance.

    Where guidance is in two calls, or its scale is not known, a prediction stands for itself.
    """
    predicted, sample = prediction(output), call.inputs.sample
    if not isinstance(predicted, torch.Tensor):
        return predicted
    if isinstance(sample, torch.Tensor) and predicted.dim() > 3 and predicted.shape[1] == 2 * sample.shape[1]:
        predicted = predicted[:, : sample.shape[1]]
    negative, positive = call.rows_of(NEGATIVE), call.rows_of(POSITIVE)
    if scale is None or not negative or len(negative) != len(positive):
        return predicted
    return predicted[negative] + scale * (predicted[positive] - predicted[negative])


def mean_square(one: Any, other: Any) -> torch.Tensor:
    """Mean of (a - b)^2 over all values, in single precision."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    squares = [(a.float() - b.float()).square().flatten() for a, b in pairs]
    return torch.cat(squares).mean()
