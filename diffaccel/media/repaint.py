"""A video file painted anew: as many frames as before, at the same times, with the same sound."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diffaccel.media.errors import MediaError
from diffaccel.media.video_reader import DecodedFrame, VideoReader
from diffaccel.media.video_writer import VideoWriter, check_target
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.images import Fit
from diffaccel.stream.report import StreamOutput, StreamReport

logger = logging.getLogger(__name__)

OpenEngine = Callable[[], StreamEngine]

SIZE_STEP = 32
"""Picture sizes are rounded to multiples of this, which the autoencoders and networks of all families divide."""


@dataclass(frozen=True)
class VideoReport:
    """What became of a video file.

    Attributes:
        frames: frames read, and written.
        repeated: frames that show their neighbour's picture, because the similarity filter skipped them or because the
            network's own was not finite.
        damaged: pieces of the input that could not be decoded, and are missing.
        audio_streams: audio streams of the output.
        encoded_streams: those of them that the container does not take as they are: they were encoded anew as AAC.
        seconds: time it took, without loading the model.
        stream: the engine's account.
    """

    frames: int
    repeated: int
    damaged: int
    audio_streams: int
    encoded_streams: int
    seconds: float
    stream: StreamReport


def repaint(
    open_engine: OpenEngine,
    source: Path,
    target: Path,
    *,
    audio: bool = True,
    overwrite: bool = False,
    side_by_side: bool = False,
    on_frame: Callable[[int | None], None] = lambda _: None,
) -> VideoReport:
    """Run every frame of a video file through a stream into another file.

    Args:
        open_engine: builds the engine; called once both files are known to be usable. It is closed at the end.
        source, target: the files. The target appears when it is complete, and not at all after an error or interrupt.
        audio: whether sound is copied.
        overwrite: whether the target may exist.
        side_by_side: whether to show the input to the left of each picture.
        on_frame: called after every frame written, with the number of frames expected in all (None: unknown).

    Raises:
        MediaError: for files that cannot be read or written, and where the network gives no finite picture at all.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise MediaError(f"{target} is the input itself: give the output another name")
    check_target(target, overwrite=overwrite)
    with VideoReader(source, audio=audio) as reader:
        with (
            VideoWriter(
                target, rate=reader.rate, time_base=reader.time_base, audio=reader.audio, overwrite=overwrite
            ) as writer,
            open_engine() as engine,
        ):
            begin = time.perf_counter()
            line = Line(engine, keep_inputs=side_by_side)
            writer.start(engine.config.width * (1 + side_by_side), engine.config.height)
            for waiting, pixels in _paint(reader, writer, line):
                writer.write(pixels, waiting.time, waiting.duration)
                on_frame(reader.count)
            report = engine.report()
        seconds = time.perf_counter() - begin
    return VideoReport(
        frames=writer.written,
        repeated=line.repeated,
        damaged=reader.damaged,
        audio_streams=len(reader.audio),
        encoded_streams=writer.encoded,
        seconds=seconds,
        stream=report,
    )


def _paint(reader: VideoReader, writer: VideoWriter, line: Line) -> Iterator[tuple[WaitingFrame, np.ndarray]]:
    """Frames with their pictures; sound is copied on the way, where it lies in the file."""
    for item in reader:
        if isinstance(item, DecodedFrame):
            yield from line.push(item)
        else:
            writer.copy(item)
    yield from line.finish()


@dataclass(frozen=True, eq=False)
class WaitingFrame:
    """A frame that was pushed and has no picture yet: its times, and the input as it is shown beside the picture."""

    frame_id: int
    time: Fraction | float
    duration: Fraction | None
    shown: np.ndarray | None


class Line:
    """Every frame gets a picture, in order.

    The engine returns a skipped frame at once, before older ones that are in flight, and none for a picture that is not
    finite. Here both wait for their turn and repeat the picture before them (the first ones: the picture after them).

    Args:
        engine: where frames go.
        keep_inputs: whether to show inputs at the left.

    Attributes:
        repeated: frames that repeated a neighbour's picture.
    """

    def __init__(self, engine: StreamEngine, *, keep_inputs: bool) -> None:
        self.repeated = 0
        self._engine, self._keep_inputs = engine, keep_inputs
        self._waiting: deque[WaitingFrame] = deque()
        self._last: np.ndarray | None = None

    def push(self, frame: DecodedFrame) -> Iterator[tuple[WaitingFrame, np.ndarray]]:
        """Put in one frame, and get those whose turn it is."""
        config = self._engine.config
        shown = fitted(frame.pixels, config.width, config.height, config.fit) if self._keep_inputs else None
        self._waiting.append(WaitingFrame(self._engine.next_frame_id, frame.time, frame.duration, shown))
        return self._settled(self._engine.push(frame.pixels))

    def finish(self) -> Iterator[tuple[WaitingFrame, np.ndarray]]:
        """The frames that are left. Raises `MediaError` where no frame ever had a picture."""
        yield from self._settled(self._engine.flush())
        if self._waiting:
            raise MediaError(
                f"none of the {len(self._waiting)} frames has a finite picture: the network overflows; "
                "use --dtype float32 or bfloat16"
            )

    def _settled(self, outputs: list[StreamOutput]) -> Iterator[tuple[WaitingFrame, np.ndarray]]:
        for output in outputs:
            if output.skipped:
                continue
            picture = to_pixels(output.image)
            yield from self._repeat(picture if self._last is None else self._last, until=output.frame_id)
            self._last = picture
            yield self._next(picture)
        if self._last is not None and not self._engine.frames_in_flight:
            yield from self._repeat(self._last, until=self._engine.next_frame_id)

    def _repeat(self, picture: np.ndarray, *, until: int) -> Iterator[tuple[WaitingFrame, np.ndarray]]:
        while self._waiting and self._waiting[0].frame_id < until:
            self.repeated += 1
            yield self._next(picture)

    def _next(self, picture: np.ndarray) -> tuple[WaitingFrame, np.ndarray]:
        waiting = self._waiting.popleft()
        return waiting, picture if waiting.shown is None else np.concatenate((waiting.shown, picture), axis=1)


def to_pixels(image: Any) -> np.ndarray:
    """A finished picture as ``(H, W, 3)`` uint8.

    Raises:
        TypeError: for an engine whose ``output_type`` is neither "pil" nor "np".
    """
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        return image if image.dtype == np.uint8 else (image * 255).round().astype(np.uint8)
    raise TypeError(f"pictures for a window or a file must be PIL images or arrays, not {type(image).__name__}")


def fitted(pixels: np.ndarray, width: int, height: int, fit: Fit) -> np.ndarray:
    """An input ``(H, W, 3)`` in the size of the pictures, fitted as the engine fits it."""
    image, size = Image.fromarray(pixels), (width, height)
    shapes: dict[Fit, Callable[..., Image.Image]] = {"crop": ImageOps.fit, "pad": ImageOps.pad}
    return np.asarray(shapes[fit](image, size) if fit in shapes else image.resize(size))


def size_like(width: int, height: int, native: int) -> tuple[int, int]:
    """Width and height next to the shape of ``width`` x ``height``, and to the area that a model was made for.

    Sides are multiples of `SIZE_STEP`. Of those around the exact ones, the shape that is least wrong is taken; half as
    much weight has the area.

    Args:
        width, height: of the video.
        native: side of the square pictures that the model was trained on.
    """
    ratio = width / height
    exact = native * math.sqrt(ratio), native / math.sqrt(ratio)
    around = [{max(1, rounded(side / SIZE_STEP)) * SIZE_STEP for rounded in (math.floor, math.ceil)} for side in exact]

    def wrong(size: tuple[int, int]) -> float:
        shape, area = size[0] / size[1] / ratio, size[0] * size[1] / native**2
        return abs(math.log(shape)) + 0.5 * abs(math.log(area))

    return min(((w, h) for w in sorted(around[0]) for h in sorted(around[1])), key=wrong)
