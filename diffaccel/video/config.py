"""What a video is asked to be: one frozen, validated configuration; `VideoEngine.update` replaces it as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffaccel.config import kind
from diffaccel.config.checks import check, number, whole
from diffaccel.methods.base import Method
from diffaccel.networks.conditioning import Interpolation
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.sampling.guidance import Guidance, NoGuidance
from diffaccel.sampling.samplers import Sampler
from diffaccel.stream.config import Prompt, StreamConfig, live_changes
from diffaccel.stream.images import Fit, OutputType
from diffaccel.stream.motion import MotionNoise
from diffaccel.stream.slot_cache import SlotCache

FIXED = frozenset({"height", "width", "chunk", "context", "stream_batch", "seed"})
"""Fields that size what is kept, or what has been drawn; all others can change between chunks."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Settings of a video; see `VideoEngine` for their meaning.

    Raises:
        TypeError, ValueError: on construction, naming the value and what is valid.
    """

    prompt: Prompt
    negative_prompt: Prompt = ""
    chunk: int = 4
    num_steps: int = 8
    strength: float = 1.0
    motion: MotionNoise | None = None
    guidance: Guidance = field(default_factory=NoGuidance)
    context: CausalContext = field(default_factory=CausalContext)
    cache: Method | None = None
    sampler: Sampler | None = None
    seed: int = 0
    height: int
    width: int
    output_type: OutputType = "pil"
    fit: Fit = "crop"
    blend: Interpolation = "linear"
    stream_batch: bool = False

    def __post_init__(self) -> None:
        for name in ("chunk", "num_steps"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, -(2**63), 2**64 - 1)
        number("strength", self.strength, 0.0, 1.0)
        check(self.strength > 0, "strength must be above 0, or nothing is painted; got 0")
        if self.motion is not None:
            kind("motion", self.motion, MotionNoise)
            check(
                self.motion.less < self.strength < 1,
                f"motion takes up to {self.motion.less} from strength, which must be above it and below 1; got "
                f"{self.strength}",
            )
        if not isinstance(self.context, CausalContext):
            raise TypeError(f"context must be a CausalContext, not {self.context!r}")
        if self.cache is not None and not isinstance(self.cache, Method):
            raise TypeError(f"cache must be a method such as DeepCache(2), not {self.cache!r}")
        if self.cache is not None:
            SlotCache(self.cache, "frame")
        self.stream(continued=True)
        check(
            self.context.commit == "clean" or self.guidance.negative_source != "first",
            f"commit={self.context.commit!r} keeps what steps made of frames, and {type(self.guidance).__name__} sees "
            "the negative prompt in the first one alone: leave commit out, or use FullGuidance",
        )
        if self.stream_batch:
            self._check_stream_batch()
        else:
            check(
                self.context.commit != "latest",
                "commit='latest' is for chunks that are denoised at the same time: give stream_batch=True",
            )

    def _check_stream_batch(self) -> None:
        check(self.cache is None, "in a stream batch every call is kept, and must compute in full: leave cache out")
        check(
            self.context.refresh == "never" and self.context.commit != "last-step",
            "in a stream batch each stage keeps what its own calls computed: leave refresh and commit out, or give "
            "commit='latest'",
        )
        check(
            self.guidance.negative_source != "input" or self.strength < 1,
            "SelfNegative pushes away from the frame before a chunk, which is not finished yet in a stream batch: use "
            "OneTimeNegative",
        )

    def stream(self, *, continued: bool) -> StreamConfig:
        """The same in the words of a stream whose frame buffer is a chunk.

        Args:
            continued: for chunks that start from the frame before them, which run the last ``strength`` of the steps.
        """
        skipped = min(round(self.num_steps * (1 - self.strength)), self.num_steps - 1) if continued else 0
        return StreamConfig(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            timestep_indices=tuple(range(skipped, self.num_steps)),
            num_inference_steps=self.num_steps,
            guidance=self.guidance,
            height=self.height,
            width=self.width,
            frame_buffer=self.chunk,
            seed=self.seed,
            output_type=self.output_type,
            fit=self.fit,
            blend=self.blend,
            sampler=self.sampler,
        )

    @property
    def runs(self) -> tuple[int, int]:
        """Network calls of a chunk that begins from noise, and of one that begins from the frame before it."""
        first, later = (len(self.stream(continued=continued).indices) for continued in (False, True))
        return first, later

    @property
    def frames_seen(self) -> int:
        """Frames that a call attends to: those of the context and of the chunk; without a window, of the latter."""
        return (self.context.window or 0) + self.context.sink + self.chunk

    @property
    def rows(self) -> int:
        """Frames that a call sends through the network: of all stages in a stream batch, and of negative prompts."""
        return replace(self.stream(continued=False), stream_batch=self.stream_batch).most_rows

    def updated(self, changes: Mapping[str, Any]) -> VideoConfig:
        """This configuration with ``changes``; ``scale`` and ``delta`` change values of the guidance.

        Raises:
            TypeError: for unknown fields, and those that cannot change.
        """
        return replace(self, **live_changes(self, changes, FIXED, "; build a new engine for others"))

    def check_anew(self) -> None:
        """Raise ValueError where a change needs kept frames computed anew that are not at hand."""
        if self.stream_batch:
            raise ValueError("stages of a stream batch cannot change while chunks are in flight: build a new engine")
        if self.context.window is None:
            raise ValueError(
                "this change has all kept frames computed anew, and without a window they are not at hand: give the "
                "context a window, or build a new engine"
            )
