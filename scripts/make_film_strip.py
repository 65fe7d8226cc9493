"""The pictures of docs/causal-video.md: videos in which emoji-video goes on from what emoji-sd drew.

python scripts/make_film_strip.py
"""

from itertools import islice
from pathlib import Path

import click
import torch
from PIL import Image, ImageDraw, ImageFont

from diffaccel import FullGuidance, VideoEngine, models

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
SIDE = 128
SHOTS = (  # what is drawn, what it does, its side and where it begins, in pixels
    ("a panda", "grows", 80, (24, 24)),
    ("a balloon", "flies up", 88, (20, 36)),
    ("a happy face", "bounces", 88, (20, 38)),
)
FRAMES_PER_SECOND, LABEL, SHOWN, STILL = 8, 20, 8, 4


def clip(drawing: str, motion: str, side: int, place: tuple[int, int], seed: int, chunks: int) -> list[Image.Image]:
    """A picture of emoji-sd, and what it does next."""
    painter = models.load("emoji-sd", device="cpu")
    painter.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = painter(drawing, num_inference_steps=20, guidance_scale=2.0, generator=generator).images[0]
    first = Image.new("RGB", (SIDE, SIDE), "white")
    first.paste(drawn.resize((side, side), Image.Resampling.LANCZOS), place)
    pipe, given = models.load("emoji-video", device="cpu"), [first] * STILL
    with VideoEngine(pipe, prompt=f"{drawing} {motion}", seed=seed, guidance=FullGuidance(3.0), given=given) as engine:
        return [*given, *(frame for chunk in islice(engine, chunks) for frame in chunk.frames)]


def strips(clips: dict[str, list[Image.Image]]) -> Image.Image:
    """A strip of eight pictures for each clip, at half size, under its prompt."""
    side = next(iter(clips.values()))[0].width // 2
    sheet = Image.new("RGB", (SHOWN * side, len(clips) * (side + LABEL)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (prompt, frames) in enumerate(clips.items()):
        top = row * (side + LABEL)
        pen.text((4, top + 2), prompt, fill="black", font=font)
        for place, frame in enumerate(frames[:: max(1, len(frames) // SHOWN)][:SHOWN]):
            sheet.paste(frame.resize((side, side), Image.Resampling.LANCZOS), (place * side, top + LABEL))
    return sheet


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--chunks", default=6, show_default=True, help="Half seconds.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=PICTURES, show_default=True)
def main(seed: int, chunks: int, output: Path) -> None:
    """Paint them."""
    torch.set_num_threads(1)
    clips = {f"{drawing} {motion}": clip(drawing, motion, *where, seed, chunks) for drawing, motion, *where in SHOTS}
    strips(clips).save(output / "video-strips.png")
    joined = [Image.new("RGB", (len(clips) * 128, 128)) for _ in next(iter(clips.values()))]
    for place, frames in enumerate(clips.values()):
        for whole, frame in zip(joined, frames, strict=True):
            whole.paste(frame, (place * 128, 0))
    joined[0].save(
        output / "video.webp", save_all=True, append_images=joined[1:], duration=1000 // FRAMES_PER_SECOND, loop=0,
        quality=80, method=6,
    )  # fmt: skip
    click.echo(f"{output / 'video-strips.png'}, {output / 'video.webp'}")


if __name__ == "__main__":
    main()
