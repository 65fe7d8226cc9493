"""Control for diffusion transformers: small adapters that add what a control image asks for to a frozen network."""

from diffaccel.control.attach import Attached, attach
from diffaccel.control.relactrl import RelaCtrlAdapter, channel_groups, default_relevance, placed_blocks

__all__ = ["Attached", "RelaCtrlAdapter", "attach", "channel_groups", "default_relevance", "placed_blocks"]
