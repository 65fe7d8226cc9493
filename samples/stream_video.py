"""Run a video file through a stream: `python samples/stream_video.py --output out.mp4 --side-by-side`.

Needs PyAV (`pip install "diffaccel[video]"`). The output has as many frames as the input, in the same order.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import click
from PIL import Image

from diffaccel import DeepCache, SelfNegative, StreamEngine
from diffaccel.models import load

SIZE = 128


def frames_of(path: Path) -> Iterator[Image.Image]:
    """Pictures of a video file."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_image()


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in one."""
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


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
    inputs = list(frames_of(source))
    engine = StreamEngine(
        load(model), prompt=prompt, strength=strength, num_steps=2, guidance=SelfNegative(scale=1.2),
        height=SIZE, width=SIZE, cache=DeepCache(interval=interval), seed=2,
    )  # fmt: skip
    with av.open(str(output), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = SIZE * (2 if side_by_side else 1), SIZE, "yuv420p"
        for result in engine.stream(inputs):
            original = inputs[result.frame_id].resize((SIZE, SIZE))
            picture = beside(original, result.image) if side_by_side else result.image
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    click.echo(f"{output}: {engine.report()}")


if __name__ == "__main__":
    main()
