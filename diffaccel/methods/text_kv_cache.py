"""Keys and values of a prompt do not depend on the timestep: compute them once per prompt."""

from dataclasses import dataclass

from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout
from diffaccel.reuse.schedule import Once
from diffaccel.runtime.act import Part
from diffaccel.runtime.projection_act import Projection


@dataclass(frozen=True)
class TextKVCache(Method):
    """Project the prompt to the keys and values of all cross-attentions once, and reuse them. Lossless.

    A prompt is new if another tensor is given as conditioning, or the same one was written to. What is stored holds as
    long as the weights do that made it, and the scales of their adapters. Networks that are given no prompt, as that of
    AudioLDM, whose cross-attentions attend to the sample, compute everything.
    """

    @property
    def no_stream(self) -> str | None:
        """Streams do so by themselves."""
        return "is what every stream does by itself: leave it out"

    def parts(self, layout: Layout) -> list[Part]:
        """One part: the projections."""
        layout.require("TextKVCache", "conditioning_only")
        return [_projected(layout)]

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:
        """The same in a ControlNet."""
        return [(_projected(layout), None)] if layout.conditioning_only else []


def _projected(layout: Layout) -> Part:
    act = Projection(layout.conditioning_only, layout.conditioning_path, of_prompt=True)
    return Part(act, Once(), lifetime="prompt")
