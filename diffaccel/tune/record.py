"""Record how the features of a run resemble each other: one Gram matrix over network calls for each reusable part."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffaccel.attach.handle import accelerate
from diffaccel.methods.base import Method
from diffaccel.methods.profile import act_of, guidance_of_call
from diffaccel.methods.recipe import OUTPUT, UNITS, GuidanceScales
from diffaccel.networks import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.host import Host
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.run import Run
from diffaccel.runtime.trees import tensors_in
from diffaccel.runtime.wrapper import Inner, Wrapper, prediction
from diffaccel.tune.blend import Gram

COORDINATES = 1 << 16  # of each part, evenly spaced in each of its features: enough for an angle between two


def record(pipe: Any, run: Callable[[], Any], names: Sequence[str]) -> tuple[dict[str, Gram], GuidanceScales]:
    """The Gram matrix of each part in `names` and of the output, over all runs that `run` makes; their guidance."""
    method = _Record(names)
    with accelerate(pipe, method):
        run()
    return {name: inner.gram() for name, inner in method.products.items()}, method.guidance


class _Products(Forecast):
    """Stands where a forecast would, computes everything, and adds up the inner products of features.

    Args:
        modules: whose features are kept apart.
    """

    def __init__(self, modules: int = 1) -> None:
        self.coordinates = max(1, COORDINATES // modules)
        self.sums: dict[tuple[int, int], float] = {}

    def update(self, history: Any, feature: Any, step: int) -> Any:
        """The history, (call, coordinates) of all calls so far."""
        values = _coordinates(feature, self.coordinates)
        past: list[tuple[int, torch.Tensor]] = [*(history or []), (step, values)]
        products = torch.stack([other for _, other in past]) @ values
        for (earlier, _), product in zip(past, products.tolist(), strict=True):
            self.sums[earlier, step] = self.sums.get((earlier, step), 0.0) + product
        return past

    def gram(self) -> Gram:
        """The matrix, (calls, calls), of mean square one."""
        calls = 1 + max(step for _, step in self.sums)
        matrix: Gram = np.zeros((calls, calls))
        for (earlier, step), value in self.sums.items():
            matrix[earlier, step] = matrix[step, earlier] = value
        matrix /= max(float(np.trace(matrix)) / calls, 1e-30)
        return matrix


class _Record(Method):
    """Computes everything, and records every part, and the guidance."""

    def __init__(self, names: Sequence[str]) -> None:
        self.guidance: GuidanceScales = ()
        self.recorded = tuple(names)
        self.products = {OUTPUT: _Products()}

    def parts(self, layout: Layout) -> list[Part]:
        """One part for each name."""
        acts = {name: act_of(name, layout) for name in self.recorded}
        apart = {name: act.slots if name.startswith(UNITS) else 1 for name, act in acts.items()}
        for name, count in apart.items():
            self.products.setdefault(name, _Products(count))
        return [Part(act, Always(), self.products[name]) for name, act in acts.items()]

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Records the output."""
        return _RecordOutput(self)


class _RecordOutput(Wrapper):
    """Records the network's prediction."""

    order = 9

    def __init__(self, method: _Record) -> None:
        self.method, self.products = method, method.products[OUTPUT]

    def start_run(self, run: Run, total: int | None) -> None:  # noqa: ARG002
        """Take note of the guidance."""
        self.method.guidance = guidance_of_call()

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:
        """One network call."""
        output, key = network(call), (self, call.lanes["run"])
        memory.notes[key] = self.products.update(memory.notes.get(key), prediction(output), call.step or 0)
        return output


def _coordinates(feature: Any, count: int) -> torch.Tensor:
    """About `count` coordinates of a feature as doubles on the CPU."""
    flat = torch.cat([tensor.flatten() for tensor in tensors_in(feature)])
    stride = max(1, flat.numel() // count)
    return flat[::stride].to("cpu", torch.float64)
