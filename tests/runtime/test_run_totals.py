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


def total(pipe: Any, network: str, *, several: bool) -> int | None:
    return Run(Host(pipe), None, waits=False).total(network, several)


def scheduler(steps: int) -> Any:
    return SimpleNamespace(timesteps=torch.arange(steps, 0, -1))


def test_networks_beside_each_other_are_called_in_every_step() -> None:
    pipe = Several(scheduler=scheduler(7), unconditional_transformer=object())
    for name in ("transformer", "unconditional_transformer"):
        assert total(pipe, name, several=True) == 7
    assert total(Several(scheduler=scheduler(7)), "prior", several=True) is None


def test_an_announcement_that_is_no_count_of_timesteps_is_not_believed() -> None:
    told = {"scheduler": scheduler(4), "_num_timesteps": 8}
    assert total(AceStepPipeline(**told), "transformer", several=False) == 4
    assert total(Several(**told), "transformer", several=False) == 8


def test_a_run_that_ends_before_its_table_begins_at_its_start() -> None:
    pipe = Several(scheduler=scheduler(10), _num_timesteps=8)
    table = pipe.scheduler.timesteps
    for opening, begin, calls in ((table[0], 0, 8), (table[4].expand(2), 4, 6), (torch.tensor([8.0]), 2, 8)):
        run = Run(Host(pipe), None, waits=False)
        run.opening = opening
        assert (run.begin(table), run.total(None, several=False)) == (begin, calls)
