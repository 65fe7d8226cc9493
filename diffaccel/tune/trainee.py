"""Routers in training: a logit for each call and unit, and the optimiser that moves them."""

from typing import Any

import torch

from diffaccel.methods.routers import RouterTraining
from diffaccel.sampling.seeds import generator_of

LIMIT = 5.0  # of a logit's size, after each update: a router that closed can open again

State = dict[str, torch.Tensor]


class Trainee:
    """Routers w = sigmoid(p), one row p for each network call, each row with optimiser steps of its own.

    Args:
        total: network calls of a run.
        units: number of units.
        training: how to train.

    Attributes:
        logits: p, ``(units,)`` for each call.
        influence: lambda, what an error in each call does to the final sample, ``(calls,)``.
    """

    def __init__(self, total: int, units: int, training: RouterTraining) -> None:
        generator = generator_of(training.seed)
        self.training = training
        self.logits = [torch.nn.Parameter(torch.randn(units, generator=generator)) for _ in range(total)]
        self.optimizer = torch.optim.AdamW(self.logits, lr=training.learning_rate, weight_decay=0.0)
        self.influence = torch.ones(total)

    def learns(self, call: int) -> bool:
        """Whether the routers of a call are trained; those of the others are open."""
        return call % 2 == 1 if self.training.objective == "l2c" else call > 0

    def weights(self) -> torch.Tensor:
        """w of all calls, ``(calls, units)``."""
        rows = [torch.sigmoid(p) if self.learns(call) else torch.ones_like(p) for call, p in enumerate(self.logits)]
        return torch.stack(rows).detach()

    def learn(self, call: int, weights: torch.Tensor, error: torch.Tensor) -> float:
        """One update of the routers of a call; returns the objective lambda error + beta sum w before it.

        Args:
            call: index of the call.
            weights: w of its units, which the error depends on.
            error: mean square error of the output that was made with them.
        """
        loss = self.influence[call].to(error.device) * error + self.training.beta * weights.sum()
        self.optimizer.zero_grad()  # sets to None: rows without a gradient stay where they are
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            self.logits[call].clamp_(-LIMIT, LIMIT)
        return float(loss.detach())

    def state(self) -> State:
        """All that further training depends on."""
        found = {"logits": torch.stack(list(self.logits)).detach(), "influence": self.influence}
        for call, values in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{call}.{name}": value for name, value in values.items()}
        return found

    def load(self, state: State) -> None:
        """Go on where `state` was taken."""
        for p, row in zip(self.logits, state["logits"], strict=True):
            p.data.copy_(row)
        self.influence = state["influence"]
        values: dict[int, dict[str, Any]] = {}
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, call, name = key.split(".")
                values.setdefault(int(call), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": values})
