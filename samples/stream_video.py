"""Run a video file through a stream: `python samples/stream_video.py --output out.mp4 --side-by-side`.

Needs PyAV (`pip install "diffaccel[video]"`). The output has as many frames as the input, at the same times, and its
sound; `diffaccel video` does the same with more options.
"""

from pathlib import Path

import click

from diffaccel import DeepCache, SelfNegative, StreamEngine
from diffaccel.models import load
from diffaccel.realtime.repaint import repaint

SIZE = 128


@click.command()
@click.option(
    "--input", "source", type=click.Path(exists=True, path_type=Path), default=Path(__file__).with_name("drawing.mp4")
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("stream.mp4"), show_default=True)
@click.option("--prompt", default="a purple heart", show_default=True)
@click.option("--model", default="emoji-sd", show_default=True, help="Bundled model, local folder or Hub id.")
@click.option("--strength", default=0.5, show_default=True, help="How much of each picture is drawn anew, in (0, 1].")
@click.option("--interval", default=1, show_default=True, help="Compute deep features in every n-th tick only.")
@click.option("--side-by-side", is_flag=True, help="Show the input beside the output.")
def main(
    source: Path, output: Path, prompt: str, model: str, strength: float, interval: int, side_by_side: bool
) -> None:
    """Draw every frame of a video anew."""

    def open_engine() -> StreamEngine:
        return StreamEngine(
            load(model), prompt=prompt, strength=strength, num_steps=2, guidance=SelfNegative(scale=1.2),
            height=SIZE, width=SIZE, cache=DeepCache(interval=interval), seed=2,
        )  # fmt: skip

    report = repaint(open_engine, source, output, overwrite=True, side_by_side=side_by_side)
    click.echo(f"{output}: {report.stream}")


if __name__ == "__main__":
    main()
