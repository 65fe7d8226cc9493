"""Learned routers: how much each unit's new output counts in each network call; `train_routers` writes them."""

from dataclasses import dataclass
from typing import ClassVar

from diffaccel.config import Config, StoredConfig, kind
from diffaccel.config.checks import check, number, one_of, whole
from diffaccel.methods.recipe import GuidanceScales
from diffaccel.reuse.forecast import Forecast

OBJECTIVES = ("harmonica", "l2c")


@dataclass(frozen=True)
class RouterTraining(Config):
    """How routers are trained.

    Args:
        objective: "harmonica" (arXiv 2410.01723) or "l2c", Learning-to-Cache (arXiv 2406.01733).
        beta: price of computing, in the units of the objective's error; more of it computes less.
        threshold: a unit computes where its weight is above, in [0, 1).
        learning_rate: of AdamW.
        runs: sampling runs to train on.
        refresh: runs between two estimates of what an error in each call does to the final sample; "harmonica" alone.
        batch_size: pictures of a run.
        seed: of first weights, prompts and noise.
    """

    objective: str = "harmonica"
    beta: float = 7e-8
    threshold: float = 0.1
    learning_rate: float = 0.05
    runs: int = 250
    refresh: int = 25
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("objective", self.objective, OBJECTIVES)
        number("beta", self.beta, 0.0)
        number("threshold", self.threshold, 0.0)
        check(self.threshold < 1, f"threshold must be below 1, as no weight is above that; got {self.threshold}")
        number("learning_rate", self.learning_rate, 0.0)
        for name in ("runs", "refresh", "batch_size"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0)


@dataclass(frozen=True)
class Routers(StoredConfig):
    """Which unit computes in which call, for one network, sampler, number of calls and guidance.

    Args:
        model: class name of the network.
        fingerprint: hash of its configuration.
        sampler: class name of the scheduler.
        sampler_fingerprint: hash of its configuration.
        guidance: scales of guidance by the names of the pipeline's arguments.
        units: modules whose outputs leave the attentions and feed-forward networks that have a router.
        weights: for each call a weight in [0, 1] for each unit, (calls, units).
        threshold: a unit computes where its weight is above; the first call always computes.
        forecast: carries what is stored to the calls that reuse it; None replays it unchanged.
        training: how they were trained, if they were.
        curve: (run, objective, fraction of units that compute) in the course of training.
    """

    _origin: ClassVar[str] = "a file of routers written by diffaccel.train_routers"

    model: str
    fingerprint: str
    sampler: str
    sampler_fingerprint: str
    guidance: GuidanceScales
    units: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    threshold: float = 0.1
    forecast: Forecast | None = None
    training: RouterTraining | None = None
    curve: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        check(bool(self.weights), "routers need the weights of at least one call")
        check(len(set(self.units)) == len(self.units) > 0, f"units must be different names; got {self.units}")
        pairs = all(isinstance(pair, tuple) and len(pair) == 2 for pair in self.guidance)
        check(pairs, f"guidance must be pairs of a name and a scale; got {self.guidance}")
        for call, row in enumerate(self.weights):
            check(len(row) == len(self.units), f"call {call} has {len(row)} weights for {len(self.units)} units")
            for weight in row:
                number(f"weights of call {call}", weight, 0.0, 1.0)
        number("threshold", self.threshold, 0.0)
        kind("forecast", self.forecast, Forecast)
        kind("training", self.training, RouterTraining)

    @property
    def total(self) -> int:
        """Network calls of a run."""
        return len(self.weights)

    def computed(self) -> dict[str, tuple[int, ...]]:
        """For each unit the calls in which it computes."""
        return {
            name: tuple(call for call, row in enumerate(self.weights) if call == 0 or row[index] > self.threshold)
            for index, name in enumerate(self.units)
        }
