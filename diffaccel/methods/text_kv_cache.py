"""Keys and values of a prompt do not depend on the timestep: compute them once per prompt."""

from dataclasses import dataclass

from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.reuse.branch import Branch, Part
from diffaccel.reuse.schedule import WhilePromptLasts


@dataclass(frozen=True)
class TextKVCache(Method):
    """Project the prompt to the keys and values of all cross-attentions once, and reuse them. Lossless.

    A prompt is new if another tensor is given as conditioning, or the same one was written to.
    """

    def parts(self, layout: Layout) -> list[Part]:
        """One part: the projections."""
        if not layout.conditioning_only:
            raise UnsupportedModelError(f"TextKVCache needs cross-attention to a prompt; {layout.model} has none")
        return [Part(Branch(layout.conditioning_only), WhilePromptLasts())]

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:
        """The same in a ControlNet."""
        return [(Part(Branch(layout.conditioning_only), WhilePromptLasts()), None)] if layout.conditioning_only else []
