"""What is measured: prompts at fixed seeds under fixed settings, run again and again on one pipeline."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch

from diffaccel.config.checks import check, whole
from diffaccel.measure.quality import as_tensor
from diffaccel.sampling.seeds import generator_of

WANTED = "what is measured are pictures of prompts, so give a pipeline that makes these"


@dataclass(frozen=True)
class Workload:
    """Pictures to make: every prompt at every seed.

    Args:
        prompts: at least one.
        seeds: of the noise, at least one; picture i of a seed has noise of its own.
        settings: further arguments of the pipeline, such as num_inference_steps and guidance_scale.
        batch_size: prompts per call of the pipeline, >= 1.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    batch_size: int = 16

    def __post_init__(self) -> None:
        check(bool(self.prompts), "a workload needs at least one prompt; got none")
        check(bool(self.seeds), "a workload needs at least one seed; got none")
        whole("batch_size", self.batch_size, 1)

    @property
    def truth(self) -> tuple[str, ...]:
        """The prompt of each picture."""
        return self.prompts * len(self.seeds)

    def first(self, count: int = 1) -> "Workload":
        """The first prompts alone, at the first seed."""
        return replace(self, prompts=self.prompts[:count], seeds=self.seeds[:1])

    @staticmethod
    def seed_of(seed: int, index: int) -> int:
        """Seed of the noise of picture `index` of one of the seeds."""
        return seed * 100_003 + index

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """Arguments of every call of a pipeline, the prompts and the noise aside."""
        return {**_needed(pipe), **self.settings}

    def pictures(self, pipe: Any, **changes: Any) -> torch.Tensor:
        """All pictures, (seeds * prompts, 3, height, width) in [0, 1], on the CPU.

        Args:
            pipe: a diffusers pipeline that takes prompts.
            changes: settings of this run that differ.

        Raises:
            ValueError: if it takes no prompts, or makes something else of them.
        """
        kind, takes = type(pipe).__name__, inspect.signature(pipe.__call__).parameters.values()
        prompted = any(each.name == "prompt" or each.kind is each.VAR_KEYWORD for each in takes)
        check(prompted, f"{kind} takes no prompts: {WANTED}")
        settings = {**self.arguments(pipe), **changes, "output_type": "pt"}
        parts = []
        for seed in self.seeds:
            for start in range(0, len(self.prompts), self.batch_size):
                prompts = list(self.prompts[start : start + self.batch_size])
                noise = [generator_of(self.seed_of(seed, start + i)) for i, _ in enumerate(prompts)]
                made = pipe(prompt=prompts, generator=noise, **settings)
                check(hasattr(made, "images"), f"{kind} makes no pictures: {WANTED}")
                parts.append(as_tensor(made.images))
        return torch.cat(parts)


def other_seeds(workload: Workload) -> Workload:
    """The same prompts and settings with noise that has nothing to do with the workload's."""
    return replace(workload, seeds=tuple(max(workload.seeds) + 1 + index for index in range(len(workload.seeds))))


def _needed(pipe: Any) -> dict[str, Any]:
    """What PixArt needs to draw any size, and not to say in every call that a package is missing."""
    takes = inspect.signature(pipe.__call__).parameters
    needed = {"use_resolution_binning": False}  # it looks up its standard sizes otherwise, which not every network has
    if find_spec("bs4") is None:
        needed["clean_caption"] = False
    return {name: value for name, value in needed.items() if name in takes}
