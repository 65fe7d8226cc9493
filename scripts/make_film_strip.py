"""The pictures of docs/causal-video.md: strips and a clip of videos that emoji-video makes from words alone.

python scripts/make_film_strip.py
"""

from itertools import islice
from pathlib import Path

import click
import torch
from PIL import Image, ImageDraw, ImageFont

from diffaccel import CausalContext, FullGuidance, VideoEngine, models

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
PROMPTS = ("a red heart moves right", "a rocket flies up", "a strawberry shrinks")
FRAMES_PER_SECOND, LABEL, SHOWN = 8, 20, 8


def clip(prompt: str, seed: int, chunks: int) -> list[Image.Image]:
    """Pictures of a video."""
    pipe = models.load("emoji-video", device="cpu")
    context = CausalContext(window=4)
    with VideoEngine(pipe, prompt=prompt, seed=seed, guidance=FullGuidance(2.0), context=context) as engine:
        return [frame for chunk in islice(engine, chunks) for frame in chunk.frames]


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
@click.option("--seed", default=0, show_default=True)
@click.option("--chunks", default=5, show_default=True, help="Half seconds.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=PICTURES, show_default=True)
def main(seed: int, chunks: int, output: Path) -> None:
    """Paint them."""
    torch.set_num_threads(1)
    clips = {prompt: clip(prompt, seed, chunks) for prompt in PROMPTS}
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
