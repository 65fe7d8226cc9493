"""How much memory autograd's graph of a recipe's run takes, found out on tensors without storage before it is built."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.attach.cost import CostModel
from diffaccel.attach.plan import plan
from diffaccel.methods.profile import Profile
from diffaccel.methods.recipe import Recipe
from diffaccel.networks.inputs import Signature
from diffaccel.tune.probing import denoiser_of
from diffaccel.tune.unroll import RecipeSurvey


@dataclass(frozen=True)
class GraphMemory:
    """Bytes for one picture; a batch takes as many times as much.

    Attributes:
        whole: where the graph of all calls is kept.
        call: of the call that takes most, which is all that is kept at a time where calls are computed again.
        features: stored features of the whole run, which are kept in either case.
    """

    whole: int
    call: int
    features: int

    def text(self, pictures: int, *, again: bool) -> str:
        """For people."""
        kept = self.whole if not again else self.call
        size = pictures * (kept + self.features) / 1e6
        way = ", as network calls are computed again in the backward pass" if again else ""
        return f"about {size:,.0f} MB for autograd's graph of {pictures} pictures{way}"


def graph_memory(pipe: Any, recipe: Recipe, seen: RecipeSurvey) -> GraphMemory:
    """What a run of a recipe takes.

    Args:
        pipe: the pipeline.
        recipe: what is reused.
        seen: a run of it with one picture.

    Raises:
        UncountableError: for a network that reads values of its inputs, as Lumina 2 does of its masks.
    """
    model = denoiser_of(pipe)
    for example in seen.tally.examples.values():
        Signature(model).bind((), dict(example)).sample.requires_grad_(True)
    cost = CostModel(model, plan(model, [Profile(recipe)]), graph_bytes)
    cost.macs(seen.tally)
    first = min(reuse.call for reuse in recipe.reuses)  # before it nothing depends on a weight
    calls = [cost.of(call)[0] for call in seen.tally.tracer.calls if (call.step or 0) >= first]
    size = next(model.parameters()).element_size() / 4  # they are counted in single precision
    return GraphMemory(int(sum(calls) * size), int(max(calls) * size), seen.features)


def graph_bytes(function: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of a function's intermediate results, parameters and views of them aside."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor if tensor._base is None else tensor._base
        if not isinstance(own, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    del output
    return sum(storage.nbytes() for storage in kept.values())
