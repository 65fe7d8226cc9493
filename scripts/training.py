"""What every training script shares: a resumable loop, its learning rate, the optimiser, a moving average.

A run lives in one folder: `checkpoint.pt` (written atomically every minute) and `log.jsonl`. Starting the same
command again goes on where it stopped; with another `--steps` the decay simply starts earlier or later, so a run can
be cut short well.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False


def save_shard(file: Path, tensors: dict[str, torch.Tensor], captions: Iterable[str] = ()) -> None:
    """Write samples, and their captions in its metadata, as a safetensors file, whole or not at all."""
    temporary = file.with_suffix(f".{os.getpid()}")
    save_file(tensors, temporary, metadata={"captions": "\n".join(captions)})
    temporary.replace(file)


def wsd(step: int, steps: int, warmup: int = 100, decay: float = 0.3) -> float:
    """Warm-up, constant, linear decay over the last `decay` of the run: a factor in (0, 1]."""
    return min(1.0, (step + 1) / warmup) * min(1.0, max(steps - step, 1) / max(1.0, decay * steps))


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz for weights of two and more dimensions (Jordan et al., 2024).

    The update's size is matched to AdamW's (0.2 sqrt(max(rows, columns)), Liu et al., arXiv 2502.16982), so both share
    a learning rate.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def orthogonalise(g: torch.Tensor, iterations: int = 5) -> torch.Tensor:
        """The nearest semi-orthogonal matrix to (rows, columns) `g`, approximately."""
        x = (g.bfloat16() if has_fast_bf16(g.device) else g.float()) / (g.norm() + 1e-7)
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        for _ in range(iterations):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x.T if tall else x).to(g.dtype)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p.grad)
                momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"]).reshape(len(p), -1)
                update = self.orthogonalise(update) * (0.2 * max(update.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.reshape(p.shape), alpha=-group["lr"])


def optimisers(model: nn.Module, lr: float, weight_decay: float, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for hidden weight matrices and AdamW for the rest."""
    hidden, rest = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        outer = any(word in name for word in ("embedding", "conv_in", "conv_out", "pos_embed"))
        (hidden if muon and p.ndim >= 2 and min(len(p), p[0].numel()) > 8 and not outer else rest).append(p)
    result: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, 0.99),
        )
    ]
    if hidden:
        result.append(Muon(hidden, lr, weight_decay=weight_decay))
    return result


@dataclass
class Run:
    """A resumable training run of `model`.

    `loss(step)` computes the loss of one step (and its logged parts), from nothing but the step number and the seed.
    """

    folder: Path
    model: nn.Module
    loss: Callable[[int], tuple[torch.Tensor, dict[str, float]]]
    optimisers: list[torch.optim.Optimizer]
    lr: float
    steps: int
    warmup: int = 100
    clip: float = 1.0
    ema_decay: float = 0.999
    every: Callable[[int], None] | None = None
    every_steps: int = 1000
    ema: nn.Module = field(init=False)
    step: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        file = self.folder / "checkpoint.pt"
        if file.exists():
            state = torch.load(file, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            for optimiser, stored in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(stored)
            self.step = state["step"]

    def save(self) -> None:
        """Write the checkpoint under a temporary name, then rename it."""
        temporary = self.folder / "checkpoint.tmp"
        torch.save(
            {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "step": self.step,
                "optimisers": [o.state_dict() for o in self.optimisers],
            },
            temporary,
        )
        temporary.replace(self.folder / "checkpoint.pt")

    def log(self, **values: float) -> None:
        """Append one line to log.jsonl and print it."""
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def train(self) -> None:
        """Go on to the last step."""
        saved, started, first, sums = time.time(), time.time(), self.step, {}
        while self.step < self.steps:
            lr = self.lr * wsd(self.step, self.steps, self.warmup)
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = lr
            value, parts = self.loss(self.step)
            value.backward()
            torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], self.clip)
            for optimiser in self.optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            self.step += 1
            self._average()
            for name, part in {"loss": value.item(), **parts}.items():
                sums[name] = sums.get(name, 0.0) + part
            if self.step % 100 == 0:
                self.log(
                    step=self.step,
                    lr=lr,
                    seconds=(time.time() - started) / (self.step - first) * 100,
                    **{name: total / 100 for name, total in sums.items()},
                )
                sums = {}
            if self.every and (self.step % self.every_steps == 0 or self.step == self.steps):
                self.every(self.step)
            if time.time() - saved > 60 or self.step == self.steps:
                self.save()
                saved = time.time()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, p in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            if p.requires_grad:
                mean.lerp_(p, 1 - decay)
        for mean, p in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            mean.copy_(p)
