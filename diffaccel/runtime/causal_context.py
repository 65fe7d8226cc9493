"""What a chunk of a video sees of the frames before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from diffaccel.config import Config
from diffaccel.config.checks import check, one_of, whole
from diffaccel.networks.causal import CausalLayout

Refresh = Literal["never", "prompt", "chunk"]
CommitWhen = Literal["clean", "last-step", "latest"]
Positions = Literal["auto", "absolute", "cyclic", "relative"]


@dataclass(frozen=True)
class CausalContext(Config):
    """Keys and values of earlier frames, kept for the chunks that follow (Ca2-VDM, arXiv 2411.16375).

    Args:
        window: how many frames before its chunk a frame sees; None for all, whose memory grows with the video.
        sink: how many of the first frames it sees as well, however far back they are (LongLive, arXiv 2509.22622).
        refresh: when kept frames are computed anew: "never", on a new "prompt" under that prompt, or before every
            "chunk", so that nothing is left of frames that are seen no more.
        commit: what later chunks see of a chunk: its "clean" frames in a call at timestep 0, or what its "last-step"
            made of the frames, which saves that call and is less exact. In a stream batch there are no such calls, and
            each stage sees frames as noisy as its own; or, with "latest", as far denoised as they are by then (Block
            Cascading, arXiv 2511.20426).
        positions: "absolute" counts frames from the start of the video, as far as the network has positions; "cyclic"
            begins again when they are used up; "relative" counts from the oldest frame that is seen. "auto" is relative
            where keys are turned by positions, and cyclic where positions are added to hidden states.
        offload: keep keys and values in the machine's memory, and bring those of one attention at a time to the device.

    Raises:
        ValueError: for values out of range.
    """

    window: int | None = 4
    sink: int = 0
    refresh: Refresh = "never"
    commit: CommitWhen = "clean"
    positions: Positions = "auto"
    offload: bool = False

    def __post_init__(self) -> None:
        whole("window", self.window, 1, optional=True)
        whole("sink", self.sink, 0)
        one_of("refresh", self.refresh, get_args(Refresh))
        one_of("commit", self.commit, get_args(CommitWhen))
        one_of("positions", self.positions, get_args(Positions))
        check(
            self.refresh == "never" or self.window is not None,
            f"refresh={self.refresh!r} computes all kept frames anew: give a window",
        )

    def numbering(self, layout: CausalLayout) -> Positions:
        """Which positions frames get in a network."""
        return ("cyclic" if layout.baked else "relative") if self.positions == "auto" else self.positions

    def seen(self, held: tuple[int, ...], first: int) -> tuple[int, ...]:
        """Which of the kept frames a chunk sees that begins at `first`."""
        start = 0 if self.window is None else first - self.window
        return tuple(n for n in held if n < first and (n < self.sink or n >= start))

    def kept(self, held: tuple[int, ...], last: int, frames: int) -> tuple[int, ...]:
        """Which frames the chunk of so many frames that ends with `last` sees, its own among them."""
        first = last + 1 - frames
        return (*self.seen(held, first), *(n for n in held if n >= first))

    def check_fit(self, layout: CausalLayout, chunk: int) -> None:
        """Raise ValueError where a network and chunks of so many frames cannot have this context."""
        check(
            self.window is None or self.window >= chunk,
            f"window={self.window} is shorter than a chunk of {chunk} frames: give window={chunk} or more, or smaller "
            "chunks",
        )
        numbering, name = self.numbering(layout), layout.model
        if not layout.baked:
            check(numbering != "cyclic", f"{name} turns keys by their positions: give positions='relative'")
        elif numbering == "relative":
            check(
                self.refresh == "chunk",
                f"{name} adds positions to hidden states, so kept frames cannot be numbered anew: give "
                "refresh='chunk', or positions='cyclic'",
            )
        if numbering == "cyclic":
            check(
                self.sink == 0,
                "sink needs positions='relative' or 'absolute': cyclic ones come round to those of a sink",
            )
        self._check_length(layout, numbering, chunk)

    def _check_length(self, layout: CausalLayout, numbering: Positions, chunk: int) -> None:
        if self.window is None:
            check(
                numbering != "cyclic",
                f"{layout.model} has {layout.length} positions, which all frames of a video do not fit: give window="
                f"{layout.length - chunk}",
            )
            return
        needed = self.window + chunk + (self.sink if numbering == "relative" else 0)
        smaller = "smaller chunks, and a smaller window" if 2 * chunk > layout.length else "a smaller window"
        check(
            needed <= layout.length,
            f"{layout.model} has {layout.length} positions, and a window of {self.window}, a chunk of {chunk} and a "
            f"sink of {self.sink} frames need {needed}: give {smaller}",
        )
