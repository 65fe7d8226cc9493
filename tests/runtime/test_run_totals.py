"""How many calls a run makes of a network, where a pipeline has several, or announces another number."""

from types import SimpleNamespace
from typing import Any

import torch

from diffaccel.runtime.host import Host
from diffaccel.runtime.run import Run


class Several(SimpleNamespace):
    """A pipeline that is nothing but what it tells."""

    __hash__ = object.__hash__


class AceStepPipeline(Several):
    """One that announces its argument, whatever its timesteps."""


class WanTransformer3DModel:
    """A denoiser by name."""


def totals(**told: Any) -> list[int | None]:
    """Of both denoisers of a pipeline."""
    networks = {name: WanTransformer3DModel() for name in ("transformer", "other")}
    pipe = Several(components=networks, **told)
    return [Run(Host(pipe), None, waits=False).total(network) for network in networks.values()]


def scheduler(steps: int) -> Any:
    return SimpleNamespace(timesteps=torch.arange(steps, 0, -1))


def test_networks_beside_each_other_are_called_in_every_step() -> None:
    assert totals(scheduler=scheduler(7), unconditional_transformer=object()) == [7, 7]
    assert totals(scheduler=scheduler(7)) == [None, None]


def test_an_announcement_that_is_no_count_of_timesteps_is_not_believed() -> None:
    told = {"scheduler": scheduler(4), "_num_timesteps": 8}
    assert Run(Host(AceStepPipeline(**told)), None, waits=False).total() == 4
    assert Run(Host(Several(**told)), None, waits=False).total() == 8


def test_a_run_that_ends_before_its_table_begins_at_its_start() -> None:
    pipe = Several(scheduler=scheduler(10), _num_timesteps=8)
    table = pipe.scheduler.timesteps
    for opening, begin, calls in ((table[0], 0, 8), (table[4].expand(2), 4, 6), (torch.tensor([8.0]), 2, 8)):
        run = Run(Host(pipe), None, waits=False)
        run.opening = opening
        assert (run.begin(table), run.total()) == (begin, calls)
