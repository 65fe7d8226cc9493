"""Runs of a recipe whose final latents are differentiable in its blend weights, through all steps.

The recipe is followed by the same acts as `Profile`'s, with weights that are tensors and features that keep autograd's
graph. Where the graph would take too much memory, each network call is computed again in the backward pass
(gradient checkpointing, Chen et al., arXiv 1604.06174), from what was remembered when it began.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from diffaccel.attach.handle import accelerate
from diffaccel.config.checks import check
from diffaccel.methods.base import Method
from diffaccel.methods.profile import Outputs, planned
from diffaccel.methods.recipe import OUTPUT, Recipe
from diffaccel.networks import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.host import Host
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.tally import Tally
from diffaccel.runtime.trees import tensors_in
from diffaccel.runtime.wrapper import Inner, Wrapper, map_output, prediction
from diffaccel.sampling.seeds import generator_of
from diffaccel.tune.space import ORDER


@dataclass(frozen=True)
class Batch:
    """Pictures of one call of a pipeline.

    Attributes:
        prompts: one for each picture.
        noises: the seed of the noise of each.
        arguments: further ones of the call.
    """

    prompts: tuple[str, ...]
    noises: tuple[int, ...]
    arguments: Mapping[str, Any]


@dataclass
class BlendWeights:
    """The blend weights of a recipe as one tensor.

    Attributes:
        places: for each part and call the columns of its weights, the latest feature's first.
        values: (pictures, weights): every picture has weights of its own, so that one backward pass tells gradients of
            all pictures apart.
        rows: rows of the network call that is running; its pictures repeat, as halves of guidance do.
    """

    places: dict[str, dict[int, range]]
    values: torch.Tensor
    rows: int = 1

    def of(self, part: str, call: int, like: torch.Tensor) -> list[torch.Tensor]:
        """Weights for one feature ``(rows * anything, ...)``, each of a shape that multiplies it."""
        each = max(1, like.shape[0] // self.rows)
        row = torch.arange(like.shape[0], device=like.device) // each  # (rows * anything,)
        columns = self.values[:, list(self.places[part][call])]  # (pictures, weights)
        own = columns[row % len(columns)].to(like.dtype)  # (rows * anything, weights)
        return [own[:, j].reshape(-1, *[1] * (like.dim() - 1)) for j in range(own.shape[1])]


class _Learned(Forecast):
    """A blend whose weights are being learned."""

    keeps_graph: ClassVar[bool] = True

    def __init__(self, part: str, weights: BlendWeights) -> None:
        self.part, self.weights = part, weights
        self.depth = max(len(columns) for columns in weights.places[part].values())

    def update(self, history: Any, feature: Any, step: int) -> Any:  # noqa: ARG002
        """The last features, latest first."""
        return [feature, *(history or [])][: self.depth]

    def predict(self, history: Any, step: int) -> Any:
        """The weighted sum for call `step`."""
        count = len(self.weights.places[self.part][step])
        flat = [tree_flatten(feature)[0] for feature in history[:count]]
        form = tree_flatten(history[0])[1]
        return tree_unflatten([self._sum(tensors, step) for tensors in zip(*flat, strict=True)], form)

    def _sum(self, tensors: Sequence[torch.Tensor], step: int) -> torch.Tensor:
        """sum_j w_j x_j, in the order in which `Blend` adds."""
        first, *others = self.weights.of(self.part, step, tensors[0])
        total = tensors[0] * first
        for tensor, weight in zip(tensors[1:], others, strict=True):
            total = total + weight * tensor
        return total


class _Followed(Method):
    """Follows a recipe with forecasts of its own.

    Args:
        recipe: what is reused when.
        forecast: of each part, by its name.
    """

    def __init__(self, recipe: Recipe, forecast: Callable[[str], Forecast]) -> None:
        self.recipe, self.forecast = recipe, forecast

    def parts(self, layout: Layout) -> list[Part]:
        """As those of `Profile`."""
        return planned(self.recipe, layout, self.forecast)

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """As that of `Profile`."""
        return Outputs(self.recipe, blend=self.forecast(OUTPUT) if self.recipe.at(OUTPUT) else None)


class _Unrolled(_Followed):
    """Follows a recipe with weights that are being learned."""

    def __init__(self, recipe: Recipe, weights: BlendWeights, *, again: bool) -> None:
        super().__init__(recipe, lambda part: _Learned(part, weights))
        self.weights, self.again = weights, again

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:
        """The same, around calls that may be computed again."""
        outputs = super().wrapper(layout, host)
        assert isinstance(outputs, Outputs)
        return _Calls(outputs, self.weights, again=self.again)


class _Calls(Wrapper):
    """Network calls whose intermediate results are computed again in the backward pass, or kept."""

    order = 9

    def __init__(self, outputs: Outputs, weights: BlendWeights, *, again: bool) -> None:
        self.outputs, self.weights, self.again = outputs, weights, again

    def start_run(self, run: Any, total: int | None) -> None:
        """Refuse another sampler, and another number of calls."""
        self.outputs.start_run(run, total)

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:
        """One network call, or none."""
        self.weights.rows = call.count
        inner = (lambda call: self._again(call, memory, network)) if self.again else network
        return self.outputs.around(call, memory, inner)

    def _again(self, call: Call, memory: Memory, network: Inner) -> Any:
        """A call that keeps its inputs alone."""
        before = memory.copied_parts()
        form: list[Any] = []

        def run(_: torch.Tensor) -> Any:
            if form:  # in the backward pass, which comes after the run, when other things are remembered
                with memory.at(before):
                    return prediction(network(call))
            output = network(call)
            form.append(map_output(torch.Tensor.detach, output))
            return prediction(output)

        predicted = checkpoint(run, call.inputs.sample, use_reentrant=False, preserve_rng_state=False)
        return map_output(lambda _: predicted, form[0])


class Unrolled:
    """Final latents of a recipe's runs as a function of its weights, within a `with` block.

    Gradients must be taken within the block, and before the next run.

    Args:
        pipe: the pipeline, with the sampler that the recipe is for.
        recipe: its weights are ignored but for their number.
        again: whether calls are computed again in the backward pass, which takes less memory and more time.
    """

    def __init__(self, pipe: Any, recipe: Recipe, *, again: bool) -> None:
        self.pipe = pipe
        self.places = places_of(recipe)
        self.count = sum(len(columns) for calls in self.places.values() for columns in calls.values())
        self._weights = BlendWeights(self.places, torch.zeros(1, self.count))
        self._method = _Unrolled(recipe, self._weights, again=again)
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._held.enter_context(frozen(self.pipe))
        self._held.enter_context(accelerate(self.pipe, self._method))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def latents(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The final latents, (pictures, ...), with a graph where `values` require gradients.

        Args:
            values: (pictures, weights), or (1, weights) for all alike.
            batch: what to run.
        """
        self._weights.values = values
        return latents_of(self.pipe, batch, graph=values.requires_grad)


@dataclass
class RecipeSurvey:
    """What one run of a recipe shows.

    Attributes:
        depths: for each part and call that reuses it how many features are at hand then, `ORDER` at most.
        features: bytes of all features that the run stores, one after the other.
        tally: its network calls.
    """

    depths: dict[tuple[str, int], int] = field(default_factory=dict)
    features: int = 0
    tally: Tally = field(default_factory=Tally)


def survey(pipe: Any, recipe: Recipe, batch: Batch) -> RecipeSurvey:
    """Run a recipe once, with features held."""
    found = RecipeSurvey()
    with accelerate(pipe, _Followed(recipe, lambda part: _Watching(part, found))) as handle:
        latents_of(pipe, batch)
        (found.tally,) = handle.tallies()
    return found


class _Watching(Forecast):
    """Holds features, and takes note of how many there were and how large they are."""

    def __init__(self, part: str, found: RecipeSurvey) -> None:
        self.part, self.found = part, found

    def update(self, history: Any, feature: Any, step: int) -> Any:  # noqa: ARG002
        """The last features, latest first."""
        self.found.features += sum(tensor.nbytes for tensor in tensors_in(feature))
        return [feature, *(history or [])][:ORDER]

    def predict(self, history: Any, step: int) -> Any:
        """The latest, unchanged."""
        self.found.depths[self.part, step] = len(history)
        return history[0]


def places_of(recipe: Recipe) -> dict[str, dict[int, range]]:
    """Where the weights of each part and call are among all of them."""
    places: dict[str, dict[int, range]] = {}
    start = 0
    for reuse in recipe.reuses:
        places.setdefault(reuse.what, {})[reuse.call] = range(start, start + len(reuse.weights))
        start += len(reuse.weights)
    return places


def latents_of(pipe: Any, batch: Batch, *, graph: bool = False) -> torch.Tensor:
    """Final latents of one call of a pipeline, (pictures, ...), within `frozen` where they shall keep the graph.

    Raises:
        ValueError: if the sampler passes no gradient on.
    """
    noise = [generator_of(seed) for seed in batch.noises]
    arguments = {**batch.arguments, "output_type": "latent"}
    call = inspect.unwrap(type(pipe).__call__)  # without torch.no_grad()
    with torch.set_grad_enabled(graph):
        found: torch.Tensor = call(pipe, prompt=list(batch.prompts), generator=noise, **arguments).images
    check(
        found.requires_grad or not graph,
        f"{type(pipe.scheduler).__name__} passes no gradient from step to step, so weights cannot be refined with it: "
        "use another sampler, or tune without refining",
    )
    return found


@contextmanager
def frozen(pipe: Any) -> Iterator[None]:
    """No parameter of a pipeline wants a gradient within."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    wanted = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
