"""Encoder propagation (Faster Diffusion, arXiv 2312.09608): the encoder of a UNet changes less than its decoder."""

from dataclasses import dataclass

from diffaccel.config import kind
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import ScaledSteps, Schedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.replay_act import Replay

KEY_STEPS = ScaledSteps((0, 1, 2, 3, 5, 10, 15, 25, 35), of=50)


@dataclass(frozen=True)
class EncoderPropagation(Method):
    """Run the encoder at key steps only, and the decoder on its stored skip features at all others.

    Between key steps the network no longer sees its input: its output changes with the timestep alone (section 3.2 of
    the paper). A ControlNet, whose residuals enter with the skip features, runs at key steps only, too.

    The paper also runs the decoder of several non-key steps as one batch (its parallel denoising), which shortens the
    wait on a device that one step does not fill. Here each runs when the sampler asks for it: a sampler asks for one
    prediction at a time, and a batch made ahead would have to guess its coming timesteps, prompts and ControlNet
    scales, which callbacks may change between steps. The number of operations is the same; pictures do not differ.

    Args:
        schedule: the key steps; None takes the paper's, 0 1 2 3 5 10 15 25 35 of 50, stretched to the run.
        forecast: carries the stored features forward; None replays them unchanged.
    """

    schedule: Schedule | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        kind("schedule", self.schedule, Schedule)
        kind("forecast", self.forecast, Forecast)

    def parts(self, layout: Layout) -> list[Part]:
        """One part: the encoder."""
        layout.require("EncoderPropagation", "encoder")
        assert layout.encoder is not None
        return [Part(Replay(layout.encoder), self.schedule or KEY_STEPS, self.forecast)]

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:
        """The residuals of a ControlNet."""
        return [] if layout.encoder is None else [(part, 0) for part in self.parts(layout)]
