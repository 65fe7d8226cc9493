"""Control for diffusion transformers: small adapters that add what a control image asks for to a frozen network."""

from diffaccel.control.attach import CONTROL, Attached, attach, attached_to
from diffaccel.control.relactrl import RelaCtrlAdapter, channel_groups, default_relevance, placed_blocks

__all__ = [
    "CONTROL",
    "Attached",
    "RelaCtrlAdapter",
    "attach",
    "attached_to",
    "channel_groups",
    "default_relevance",
    "placed_blocks",
]
