"""Run a video file through a stream: `python samples/stream_video.py --output out.mp4 --side-by-side`.

Needs PyAV (`pip install "diffaccel[video]"`). The output has as many frames as the input, at the same times, and its
sound; `diffaccel video` does the same with more options, and with other models.
"""

from pathlib import Path

import click

from diffaccel import DeepCache, SelfNegative, StreamEngine, Taylor, Threshold, models
from diffaccel.media.repaint import repaint

SIZE = 128
MOTION = DeepCache(schedule=Threshold(0.15, max_reuse=3), branch=3, forecast=Taylor(2))


@click.command()
@click.option(
    "--input", "source", type=click.Path(exists=True, path_type=Path), default=Path(__file__).with_name("drawing.mp4")
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("stream.mp4"), show_default=True)
@click.option("--prompt", default="a purple heart", show_default=True)
@click.option("--strength", default=0.5, show_default=True, help="How much of each picture is drawn anew, in (0, 1].")
@click.option("--frame-buffer", default=4, show_default=True, help="Frames that share a network call.")
@click.option("--cache", is_flag=True, help="Compute deep features only where much moves; best with --frame-buffer 1.")
@click.option("--side-by-side", is_flag=True, help="Show the input beside the output.")
def main(
    source: Path, output: Path, prompt: str, strength: float, frame_buffer: int, cache: bool, side_by_side: bool
) -> None:
    """Draw every frame of a video anew."""

    def open_engine() -> StreamEngine:
        pipe = models.load("emoji-sd")
        models.load_lora(pipe, "emoji-lcm-lora")  # few-step weights,
        pipe.fuse_lora()  # merged, so that they cost nothing
        return StreamEngine(
            pipe, vae=models.load_vae("emoji-vae-small", dtype=pipe.dtype, device=pipe.device),
            prompt=prompt, strength=strength, num_steps=2, guidance=SelfNegative(scale=1.2), height=SIZE, width=SIZE,
            frame_buffer=frame_buffer, shared_noise=True, cache=MOTION if cache else None, seed=2,
        )  # fmt: skip

    report = repaint(open_engine, source, output, overwrite=True, side_by_side=side_by_side)
    click.echo(f"{output}: {report.frames / report.seconds:.1f} frames per second; {report.stream}")


if __name__ == "__main__":
    main()
