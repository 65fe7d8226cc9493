"""How much memory a context takes, known before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from diffaccel.networks.causal import CausalLayout
from diffaccel.networks.network import Network
from diffaccel.video.config import VideoConfig


def context_bytes(
    network: Network, layout: CausalLayout, config: VideoConfig, size: tuple[int, int]
) -> tuple[int, int]:
    """Bytes of kept keys and values, and of the windows gathered from them.

    Args:
        network: what keeps them.
        layout: where its frames meet.
        config: of the video; without a window, those of one chunk.
        size: height and width of latents.
    """
    context = config.context
    rows = 1 + config.guidance.reads_negative_prompt
    stages = config.num_steps if config.stream_batch else 1
    frames = config.frames_seen * rows * stages
    widths = {name: int(network.model.get_submodule(name).inner_dim) for name in layout.attention}
    # bytes of each attention's keys and values, of all frames
    each = [2 * layout.tokens(name, *size) * width * frames * network.dtype.itemsize for name, width in widths.items()]
    return sum(each), max(each) if context.offload else sum(each)


def require_memory(device: torch.device, planned: Sequence[tuple[int, int]], config: VideoConfig) -> None:
    """Raise `MemoryError` where the context of a video will not fit.

    Args:
        device: where the networks are.
        planned: for each of them bytes of kept keys and values, and of the windows gathered from them.
        config: of the video.
    """
    kept, windows = map(sum, zip(*planned, strict=True))
    machine = int(psutil.virtual_memory().available)
    on_device = windows if config.context.offload else kept + windows
    free = machine if device.type != "cuda" else int(torch.cuda.mem_get_info(device)[0])
    for where, needed, there in (
        (f"on {device}", on_device, free),
        ("in the machine's memory", kept if config.context.offload else 0, machine),
    ):
        if needed > there:
            offload = "" if config.context.offload or device.type == "cpu" else ", or offload=True"
            raise MemoryError(
                f"keys and values of a window of {config.context.window} and a chunk of {config.chunk} take "
                f"{needed / 2**30:.1f} GiB, and {there / 2**30:.1f} GiB are free {where}: give a smaller window"
                f"{offload}"
            )
