"""Drawings that move: short films of any length for the stream benchmark and the sample video.

Run as a program it writes the sample video: `python scripts/benchmarks/movies.py samples/drawing.mp4`.
"""

import math
import sys
from collections.abc import Iterator
from itertools import chain

from PIL import Image, ImageDraw

SIZE, OVER = 128, 4
SPEEDS = {"slow": 0.5, "medium": 2.0, "fast": 6.0}  # pixels per frame


def heart(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, angle: float) -> None:
    """A red heart on white."""
    points = []
    for k in range(60):
        t = k * math.tau / 60
        px, py = (
            16 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
        )
        points.append(_turned(px * size / 17, py * size / 17, angle, x, y))
    draw.polygon(points, fill=(220, 40, 60))


def star(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, angle: float) -> None:
    """A blue star."""
    radii = [size, size * 0.45] * 5
    points = [
        _turned(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5), angle, x, y) for k, r in enumerate(radii)
    ]
    draw.polygon(points, fill=(40, 90, 220))


def _turned(px: float, py: float, angle: float, x: float, y: float) -> tuple[float, float]:
    c, s = math.cos(angle), math.sin(angle)
    return (x + c * px - s * py) * OVER, (y + s * px + c * py) * OVER


def movie(speed: float, frames: int, shape: str = "heart", background: str = "white") -> Iterator[Image.Image]:
    """A shape that circles at ``speed`` pixels per frame, and sways."""
    radius = 22.0
    for i in range(frames):
        t = i * speed / radius
        image = Image.new("RGB", (SIZE * OVER, SIZE * OVER), background)
        place = 64 + radius * math.cos(t), 64 + radius * math.sin(t), 30.0, 0.3 * math.sin(t)
        {"heart": heart, "star": star}[shape](ImageDraw.Draw(image), *place)
        yield image.resize((SIZE, SIZE), Image.Resampling.BOX)


def films(frames: int) -> dict[str, list[Image.Image]]:
    """Slow, medium and fast motion, and a cut in the middle of medium motion."""
    made = {name: list(movie(speed, frames)) for name, speed in SPEEDS.items()}
    second = movie(SPEEDS["medium"], frames, "star", "khaki")
    made["cut"] = made["medium"][: frames // 2] + list(second)[frames // 2 :]
    return made


def write(path: str, rate: int = 24) -> None:
    """Write the sample video: slow, fast, then a cut."""
    import av

    parts = (movie(0.5, 24), movie(3.0, 36), movie(2.0, 36, "star", "khaki"))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for image in chain(*parts):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


if __name__ == "__main__":
    write(sys.argv[1])
