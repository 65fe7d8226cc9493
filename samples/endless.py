"""A clip without end whose prompt changes while it runs: `python samples/endless.py --chunks 12 --output endless.mp4`.

Every chunk is four pictures, half a second, and sees the four before it. Needs PyAV (`pip install "diffaccel[video]"`).
"""

from fractions import Fraction
from pathlib import Path

import click
import numpy as np

from diffaccel import CausalContext, FullGuidance, VideoEngine, models
from diffaccel.media.video_writer import VideoWriter

FPS = Fraction(8)
PROMPTS = ("a rocket flies up", "a rocket moves left", "a rocket moves down", "a rocket moves right")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("endless.mp4"), show_default=True)
@click.option("--model", default="emoji-video", show_default=True, help="A bundled video model, or a folder.")
@click.option("--chunks", default=16, show_default=True, help="Half seconds.")
@click.option("--prompt", "prompts", multiple=True, default=PROMPTS, help="In turns; may be repeated.")
@click.option("--every", default=4, show_default=True, help="Chunks under one prompt.")
def main(output: Path, model: str, chunks: int, prompts: tuple[str, ...], every: int) -> None:
    """Draw a clip."""
    if model == "emoji-video" and model not in models.names("video"):
        raise click.UsageError("emoji-video is not part of this installation: name a video model, --model FOLDER")
    with (
        VideoWriter(output, rate=FPS, time_base=1 / FPS, overwrite=True) as writer,
        VideoEngine(
            models.load(model),
            prompt=prompts[0],
            guidance=FullGuidance(3.0),
            context=CausalContext(window=4, refresh="prompt"),
            seed=1,
        ) as engine,
    ):
        writer.start(engine.config.width, engine.config.height)
        for number in range(chunks):
            if number % every == 0:
                engine.update(prompt=prompts[number // every % len(prompts)])
            for frame in engine.next().frames:
                writer.write(np.asarray(frame), writer.written / FPS)
        click.echo(f"{output}: {engine.report()}")


if __name__ == "__main__":
    main()
