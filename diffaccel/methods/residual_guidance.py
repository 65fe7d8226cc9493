"""Residual classifier-free guidance (StreamDiffusion, arXiv 2312.12491, section 3.2) for ordinary sampling."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffaccel.config.checks import check, number, one_of, whole
from diffaccel.config.words import A_CACHE
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.host import Host
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.run import Run
from diffaccel.runtime.wrapper import Inner, Wrapper, map_output, prediction, require_one
from diffaccel.sampling.guidance import virtual_negative
from diffaccel.sampling.noise_levels import NoiseLevels

NEGATIVES = ("one-time", "self")
HELD = ("estimate", "difference")
FEW = 8  # calls of a run up to which z serves without being renewed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResidualGuidance(Method):
    """Replace the negative prediction of classifier-free guidance by a virtual one that costs nothing.

    The virtual negative noise is (x_t - alpha_t z) / sigma_t, the one that would have made x_t from a clean latent z
    (equation 5 of the paper). T sampling steps take T + 1 or T network rows per picture instead of 2 T.

    As z does not follow the picture, the pipeline's guidance_scale acts more strongly than in ordinary guidance: the
    paper uses 1.2 to 1.4 with few steps. In runs of many steps z grows stale, which a warning tells: `renew` keeps it
    fresh, at a price.

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
        super().__post_init__()
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
        return _VirtualNegative(self, channels_last=layout.channels_last)


@dataclass
class _Held:
    """What is kept of a run.

    Attributes:
        levels: noise levels of its scheduler.
        negative: clean estimate of the negative rows, ``(rows, C, ...)``, None before there is one.
        positive: that of the positive rows in the same step.
        latest: step and clean estimate of the last positive rows, where guidance makes two calls.
        output: an output of the network, for its form.
    """

    levels: NoiseLevels
    negative: torch.Tensor | None = None
    positive: torch.Tensor | None = None
    latest: tuple[int | None, torch.Tensor | None] = (None, None)
    output: Any = None


class _VirtualNegative(Wrapper):
    """Runs the positive rows alone, and answers for the negative ones with the virtual negative prediction."""

    reads_roles: ClassVar[bool] = True

    def __init__(self, method: ResidualGuidance, *, channels_last: bool) -> None:
        self.method, self.ends, self.channels_last = method, method.ends, channels_last
        self.told = False

    def start_run(self, run: Run, total: int | None) -> None:
        """Refuse runs whose noise levels or start are not known, and say where z grows stale."""
        if run.host.scheduler is None:
            owner = "a bare network" if run.host.pipe is None else type(run.host.pipe).__name__
            raise ValueError(
                f"ResidualGuidance needs a scheduler, and {owner} has none by that name: pass a pipeline that has one "
                "to accelerate(), or leave ResidualGuidance out"
            )
        levels, table = NoiseLevels(run.host.scheduler), run.host.table
        late = table is not None and total is not None and total < table.numel()
        if late and table is not None and run.begin(table) == 0:
            late = total != run.total()  # a run that only ends early, and is all this network's
        if late and self.method.negative == "self":
            raise ValueError(
                "ResidualGuidance(negative='self') is for runs that start from pure noise, and this one starts from a "
                "picture, whose latents the pipeline does not show: use negative='one-time'"
            )
        if table is not None and self.method.negative == "self" and self.method.delta != 1.0:
            alpha, _ = levels.at(table[0], torch.zeros(1, device=table.device))
            check(
                float(alpha) > 1e-6,
                f"delta={self.method.delta} is undefined in the first call of this run, which sees pure noise (alpha = "
                "0): use delta=1, or negative='one-time'",
            )
        if not self.told and self.method.renew is None and total is not None and total > FEW:
            self.told = True
            logger.warning(
                "residual guidance takes what it knows of the negative prompt at the start for all %d calls of a run, "
                "which spoils pictures: negative='one-time', renew=3, held='difference' keeps it fresh",
                total,
            )

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:
        """One network call."""
        if not call.roles:
            check(
                call.step != 0,
                "ResidualGuidance replaces the negative half of classifier-free guidance, which is off, or the "
                "pipeline does not tell: set guidance_scale > 1, say accelerate(..., guided=True) if each call stacks "
                "[negative; positive] halves, or leave it out",
            )
            return network(call)
        if self.method.negative == "self" and self.ends.computes(call.step, call.total):
            return network(call)
        held = memory.notes.get((self, call.view))
        if held is None:
            held = memory.notes[self, call.view] = _Held(NoiseLevels(call.run.host.scheduler))
        positive, negative = call.rows_of("positive"), call.rows_of("negative")

        def one(call: Call) -> Any:
            output = network(call)
            require_one(output, "ResidualGuidance")
            return output

        if positive and negative:
            return self._stacked(call, held, one)
        return self._positive(call, held, one) if positive else self._negative(call, held, one)

    def _is_due(self, call: Call, held: _Held) -> bool:
        """Whether the negative prompt is to be computed."""
        if self.method.negative == "self":
            return False
        renewed = self.method.renew is not None and call.step is not None and call.step % self.method.renew == 0
        return held.negative is None or renewed or self.ends.computes(call.step, call.total)

    def _stacked(self, call: Call, held: _Held, network: Inner) -> Any:
        """A call that has both halves."""
        positive, negative = call.rows_of("positive"), call.rows_of("negative")
        if self._is_due(call, held):
            output = network(call)
            clean = self._clean(prediction(output), call, held)
            held.negative, held.positive = clean[negative].detach(), clean[positive].detach()
            return output
        alone = call.positive()

        def both(predicted: torch.Tensor) -> torch.Tensor:  # (rows, C, ...) -> (2 * rows, C, ...)
            halves = [self._virtual(predicted, alone, held, self._clean(predicted, alone, held)), predicted]
            order = torch.tensor([*negative, *positive], device=predicted.device).argsort()
            return torch.cat(halves).index_select(0, order)

        return map_output(both, network(alone))

    def _positive(self, call: Call, held: _Held, network: Inner) -> Any:
        """The positive call of two."""
        held.output = network(call)
        held.latest = call.step, self._clean(prediction(held.output), call, held)
        return held.output

    def _negative(self, call: Call, held: _Held, network: Inner) -> Any:
        """The negative call of two: computed where it is due, else answered without the network."""
        if self._is_due(call, held) or held.output is None:
            held.output = output = network(call)
            if self._is_due(call, held):
                held.negative = self._clean(prediction(output), call, held).detach()
                positive = self._latest(call, held)
                held.positive = None if positive is None else positive.detach()
                return output
        template = prediction(held.output)
        return map_output(lambda _: self._virtual(template, call, held, self._latest(call, held)), held.output)

    def _latest(self, call: Call, held: _Held) -> torch.Tensor | None:
        """Clean estimate of the positive call in this step.

        Raises:
            ValueError: where it is needed, and comes only after the negative one.
        """
        step, clean = held.latest
        if not self._follows:
            return None
        check(
            step == call.step,
            "held='difference' needs the positive prediction of a step before the negative one, which this pipeline "
            "makes first: use held='estimate'",
        )
        return clean

    @property
    def _follows(self) -> bool:
        return self.method.held == "difference"

    def _clean(self, predicted: torch.Tensor, call: Call, held: _Held) -> torch.Tensor:
        x, alpha, sigma = self._noisy(predicted, call, held)
        return held.levels.clean(self._narrowed(predicted, x), x, alpha, sigma)

    def _virtual(self, predicted: torch.Tensor, call: Call, held: _Held, positive: torch.Tensor | None) -> torch.Tensor:
        """The virtual negative prediction, in the shape of `predicted`."""
        x, alpha, sigma = self._noisy(predicted, call, held)
        start = torch.zeros_like(x) if held.negative is None else held.negative
        if self._follows and positive is not None and held.positive is not None:
            start = start - held.positive + positive
        noise = virtual_negative(x, start, alpha, sigma)
        delta = self.method.delta
        if delta != 1.0:
            noise = delta * noise
            start = (x - sigma * noise) / alpha
        negative = predicted.clone()  # channels beyond the prediction, a learned variance, stay the positive ones
        self._narrowed(negative, x).copy_(held.levels.predict(noise, start, alpha, sigma))
        return negative

    def _noisy(
        self, predicted: torch.Tensor, call: Call, held: _Held
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The noisy sample without channels of other inputs, alpha and sigma."""
        x = self._narrowed(call.inputs.sample, predicted)
        return x, *held.levels.at(call.run.timestep_of(call.inputs.timestep), x)

    def _narrowed(self, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """A view of `value` without the channels at the end that another tensor lacks.

        They are the last dimension of tokens, ``(rows, tokens, C)``; of pictures and videos one before height and
        width, unless the network has them last.
        """
        differs = [dim for dim, (one, two) in enumerate(zip(value.shape, other.shape, strict=True)) if one != two]
        last = value.dim() == 3 or self.channels_last
        channels = range(value.dim() - 1, value.dim()) if last else range(1, value.dim() - 2)
        if len(differs) > 1 or not set(differs).issubset(channels):
            raise ValueError(
                f"a network that makes {tuple(other.shape)} of {tuple(value.shape)} does not predict its noise: use a "
                f"method that does not need it, such as {A_CACHE}"
            )
        for dim in differs:
            value = value.narrow(dim, 0, min(value.shape[dim], other.shape[dim]))
        return value
