"""Clips are read as Chromium shows them: shape and colours, also of those that do not tell."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import videos

from diffaccel.media.video_reader import VideoReader

pytestmark = pytest.mark.slow

SHOWN = """(data) => new Promise((done, fail) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const video = Object.assign(document.createElement("video"), { muted: true, loop: true });
  video.onerror = () => fail(video.error.message);
  video.requestVideoFrameCallback(() => {
    const { videoWidth: width, videoHeight: height } = video;
    const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
    context.drawImage(video, 0, 0);
    const at = (x, y) => [...context.getImageData(x, y, 1, 1).data.slice(0, 3)];
    done([width, height, [0.125, 0.375, 0.625, 0.875].flatMap((y) =>
      [0.125, 0.375, 0.625, 0.875].map((x) => at(Math.floor(x * width), Math.floor(y * height))))]);
  });
  video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  video.play();
})"""

COLOURS = np.array([(200, 60, 60), (60, 180, 80), (70, 90, 200), (240, 240, 240), (128, 128, 128), (30, 30, 30),
                    (220, 190, 70), (70, 170, 180), (170, 80, 170), (220, 150, 120), (100, 140, 80), (80, 80, 120)],
                   np.uint8)  # fmt: skip


def clip(path: Path, size: tuple[int, int], pix_fmt: str = "yuv420p") -> Path:
    """Sixteen patches in H.264 that say nothing about their colours, as the older of the two matrices has them."""
    rows, columns = np.indices(size[::-1])
    pixels = COLOURS[(4 * (rows * 4 // size[1]) + columns * 4 // size[0]) % len(COLOURS)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.colorspace = frame.color_primaries = frame.color_trc = 2
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


CLIPS: dict[str, Callable[[Path], Path]] = {
    **{
        name: lambda path, matrix=matrix: videos.shown_as(clip(path, (128, 64)), matrix)  # type: ignore[misc]
        for name, matrix in videos.MATRICES.items()
    },
    "untagged HD": lambda path: clip(path, (1280, 720)),
    "untagged HD, upright": lambda path: clip(path, (720, 1280)),
    "untagged, almost HD": lambda path: clip(path, (1024, 576)),
    "ten bits": lambda path: clip(path, (128, 64), "yuv420p10le"),
}


@pytest.fixture(scope="module")
def page(launch: Callable[..., Any]) -> Any:
    return launch().new_page()


@pytest.mark.parametrize("make", CLIPS.values(), ids=CLIPS.keys())
def test_a_clip_is_read_as_a_browser_shows_it(page: Any, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "in.mp4")
    width, height, colours = page.evaluate(SHOWN, base64.b64encode(path.read_bytes()).decode())
    with VideoReader(path) as reader:
        pixels = next(reader.frames()).pixels
    assert pixels.shape == (height, width, 3)
    places = [0.125, 0.375, 0.625, 0.875]
    own = [pixels[int(y * height), int(x * width)] for y in places for x in places]
    assert np.abs(np.array(own).astype(int) - np.array(colours)).max() <= 8
