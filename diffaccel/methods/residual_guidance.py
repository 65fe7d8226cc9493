"""Residual classifier-free guidance (StreamDiffusion, arXiv 2312.12491, section 3.2) for ordinary sampling."""

from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.config.checks import check, number, one_of, whole
from diffaccel.methods.base import Method
from diffaccel.networks.inputs import Inputs
from diffaccel.networks.layout import Layout
from diffaccel.reuse.branch import Part
from diffaccel.runtime.host import Host
from diffaccel.runtime.run_clock import RunClock
from diffaccel.runtime.state import Context
from diffaccel.runtime.wrapper import Network, Wrapper, map_output, positive_rows
from diffaccel.sampling.guidance import virtual_negative
from diffaccel.sampling.noise_levels import NoiseLevels

NEGATIVES = ("one-time", "self")
HELD = ("estimate", "difference")


@dataclass(frozen=True)
class ResidualGuidance(Method):
    """Replace the negative prediction of classifier-free guidance by a virtual one that costs nothing.

    The virtual negative noise is (x_t - alpha_t z) / sigma_t, the one that would have made x_t from a clean latent z
    (equation 5 of the paper). T sampling steps take T + 1 or T network rows per picture instead of 2 T.

    As z does not follow the picture, the pipeline's guidance_scale acts more strongly than in ordinary guidance: the
    paper uses 1.2 to 1.4 with few steps. In runs of many steps z grows stale: `renew` keeps it fresh, at a price.

    Args:
        negative: "one-time" computes the negative prompt in the first call, and z is its clean estimate there; "self"
            never does, and z is the run's own start without its noise: zero, for a run that starts from pure noise.
        delta: magnitude of the virtual negative noise.
        renew: compute the negative prompt, and with it z, anew in every `renew`-th call; 1 is plain guidance. Goes well
            with a cache of the same interval, which computes in these calls anyway. None is the paper's: never again.
        held: what stays the same between two computed negatives: "estimate" is the paper's, z itself; "difference" is
            that of z to the positive clean estimate, so that z follows the picture, which stays closer to ordinary
            guidance (emoji-sd at 20 steps, renew=3: 38.7 dB instead of 37.2).
    """

    negative: str = "one-time"
    delta: float = 1.0
    renew: int | None = None
    held: str = "estimate"

    def __post_init__(self) -> None:
        one_of("negative", self.negative, NEGATIVES)
        number("delta", self.delta, 0.0)
        if self.renew is not None:
            whole("renew", self.renew, 1)
            check(self.negative == "one-time", "renew is for negative='one-time'; 'self' computes no negative prompt")
        one_of("held", self.held, HELD)
        fits = self.held == "estimate" or self.negative == "one-time"
        check(fits, "held='difference' is for negative='one-time'; 'self' computes no negative prompt")

    def parts(self, layout: Layout) -> list[Part]:  # noqa: ARG002
        """None: no feature is stored."""
        return []

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Drops the negative rows and answers for them."""
        return _VirtualNegative(self, host)


class _VirtualNegative(Wrapper):
    """Runs the positive rows alone, and puts the virtual negative prediction in front of theirs."""

    def __init__(self, method: ResidualGuidance, host: Host) -> None:
        self.method = method
        self.host = host
        self.levels: NoiseLevels | None = None

    def start_run(self, clock: RunClock) -> None:
        """Refuse runs whose guidance, noise levels or start are not known."""
        if self.host.scheduler is None:
            raise ValueError(
                "ResidualGuidance needs the scheduler: pass the pipeline, not its network, to accelerate()"
            )
        if not self.host.guided:
            raise ValueError(
                "ResidualGuidance replaces the negative half of classifier-free guidance, which is off, or the "
                "pipeline does not tell: set guidance_scale > 1, say accelerate(..., guided=True), or leave it out"
            )
        self.levels = NoiseLevels(self.host.scheduler)
        table = self.host.table
        late = table is not None and clock.total is not None and clock.total < table.numel()
        if late and self.method.negative == "self":
            raise ValueError(
                "ResidualGuidance(negative='self') is for runs that start from pure noise, and this one starts from a "
                "picture, whose latents the pipeline does not show: use negative='one-time'"
            )
        if table is not None and self.method.negative == "self" and self.method.delta != 1.0:
            alpha, _ = self.levels.at(table[0], torch.zeros(1, device=table.device))
            check(
                float(alpha) > 1e-6,
                f"delta={self.method.delta} is undefined in the first call of this run, which sees pure noise (alpha = "
                "0): use delta=1, or negative='one-time'",
            )

    def around(self, context: Context, network: Network, inputs: Inputs) -> Any:
        """One network call."""
        if not inputs.guided:
            return network(inputs)
        held = None if self._is_due(context.step) else context.memory.get(self)
        if held is not None or self.method.negative == "self":
            return self._virtually(network, positive_rows(context, inputs), held)
        output = network(inputs)
        map_output(lambda prediction: self._remember(context, prediction, inputs), output)
        return output

    def _is_due(self, step: int) -> bool:
        """Whether the negative prompt is to be computed anew."""
        return self.method.renew is not None and step % self.method.renew == 0

    def _remember(self, context: Context, prediction: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Keep the clean estimate of the negative rows, or how it differs from the positive ones'."""
        x, alpha, sigma = self._noisy(prediction, inputs)
        half = prediction.shape[0] // 2
        assert self.levels is not None
        clean = self.levels.clean(prediction[:, : x.shape[1]], x, alpha, sigma)
        context.memory[self] = clean[:half] - clean[half:] if self._follows else clean[:half]
        return prediction

    @property
    def _follows(self) -> bool:
        return self.method.held == "difference"

    def _virtually(self, network: Network, inputs: Inputs, held: torch.Tensor | None) -> Any:
        """The output for both halves, of which the network computed the second."""
        return map_output(lambda prediction: self._both(prediction, inputs, held), network(inputs))

    def _both(self, prediction: torch.Tensor, inputs: Inputs, held: torch.Tensor | None) -> torch.Tensor:
        """[virtual negative; positive] predictions, (rows, C, ...) -> (2 * rows, C, ...)."""
        x, alpha, sigma = self._noisy(prediction, inputs)
        assert self.levels is not None
        start = torch.zeros_like(x) if held is None else held
        if self._follows:
            start = start + self.levels.clean(prediction[:, : x.shape[1]], x, alpha, sigma)
        noise = virtual_negative(x, start, alpha, sigma)
        delta = self.method.delta
        if delta != 1.0:
            noise = delta * noise
            start = (x - sigma * noise) / alpha
        negative = prediction.clone()  # channels beyond the prediction, a learned variance, stay the positive ones
        negative[:, : x.shape[1]] = self.levels.predict(noise, start, alpha, sigma)
        return torch.cat([negative, prediction])

    def _noisy(self, prediction: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The noisy sample without channels of other inputs, alpha and sigma."""
        x = inputs.sample[:, : min(prediction.shape[1], inputs.sample.shape[1])]
        assert self.levels is not None
        return x, *self.levels.at(inputs.timestep, x)
