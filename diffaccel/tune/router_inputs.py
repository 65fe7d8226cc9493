"""What routers are trained on: prompts or class labels in a drawn order, each run with noise of its own."""

import hashlib
import inspect
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from diffaccel.config.checks import check
from diffaccel.measure.workload import Workload
from diffaccel.sampling.seeds import generator_of
from diffaccel.tune.probing import denoiser_of

CLASSES = 1000  # labels that are drawn where there are no prompts, at most

PictureInputs = str | Mapping[str, Any]


class RunInputs:
    """The arguments of every run of a training.

    Args:
        pipe: the pipeline.
        given: for each picture a prompt, or arguments whose values are lists of one, as {"class_labels": [207]}; None
            draws class labels, for pipelines that take these.
        batch_size: pictures of a run.
        seed: of order and noise.
        settings: further arguments of every run.
    """

    def __init__(
        self, pipe: Any, given: Sequence[PictureInputs] | None, batch_size: int, seed: int, settings: Mapping[str, Any]
    ) -> None:
        self.given = _labels(pipe, seed) if given is None else tuple(given)
        check(bool(self.given), "training routers needs at least one prompt; got none")
        self.batch_size, self.seed = batch_size, seed
        self.settings = {**Workload(("",), settings=settings).arguments(pipe), "output_type": "latent"}

    def of(self, run: int) -> dict[str, Any]:
        """Arguments of a run, which depend on nothing but its number."""
        places = range(run * self.batch_size, (run + 1) * self.batch_size)
        given = [self._at(place) for place in places]
        noise = [generator_of(self.seed * 1_000_003 + place) for place in places]
        texts = [each for each in given if isinstance(each, str)]
        own: dict[str, Any] = {"prompt": texts} if texts else {}
        for each in given:
            for name, values in each.items() if isinstance(each, Mapping) else ():
                own[name] = [*own.get(name, []), *values]
        return {**self.settings, **own, "generator": noise}

    def _at(self, place: int) -> PictureInputs:
        """What the picture at a place of all runs, one after the other, is of; each round has an order of its own."""
        turn, index = divmod(place, len(self.given))
        order = list(range(len(self.given)))
        random.Random(f"{self.seed} {turn}").shuffle(order)
        return self.given[order[index]]

    def fingerprint(self) -> str:
        """A hash of all that runs are made of, 16 hexadecimal digits."""
        text = json.dumps([self.given, self.batch_size, self.seed, self.settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _labels(pipe: Any, seed: int) -> tuple[PictureInputs, ...]:
    """Class labels, for a pipeline that takes them."""
    if "class_labels" not in inspect.signature(pipe.__call__).parameters:
        raise ValueError(
            f"{type(pipe).__name__} takes no class labels that could be drawn: give train_routers some prompts; some "
            "dozens of the kind that will be used are enough"
        )
    known = getattr(denoiser_of(pipe).config, "num_embeds_ada_norm", None) or CLASSES
    drawn = random.Random(seed).sample(range(known), min(known, CLASSES))
    return tuple({"class_labels": [label]} for label in drawn)
