"""Paint one film to several prompts at once, on one network: `python samples/many_streams.py --output sheet.png`.

Each stream runs on a thread of its own; their frames share calls. The sheet shows the last picture of each.
"""

import threading
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from diffaccel import SelfNegative, StreamEngine, StreamHost, models

SIZE = 128


def film(count: int) -> list[np.ndarray]:
    """A red disc that wanders, ``(SIZE, SIZE, 3)`` a frame."""
    frames = []
    for k in range(count):
        picture = Image.new("RGB", (SIZE, SIZE), "white")
        ImageDraw.Draw(picture).ellipse((24 + 2 * k, 30, 84 + 2 * k, 90), fill=(220, 40, 60))
        frames.append(np.array(picture))
    return frames


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("many_streams.png"), show_default=True)
@click.option("--prompt", "prompts", multiple=True, default=("a purple heart", "a green apple", "a ladybug", "a sun"))
@click.option("--frames", default=10, show_default=True)
def main(output: Path, prompts: tuple[str, ...], frames: int) -> None:
    """Paint, and say how many rows shared a call."""
    pipe = models.load("emoji-sd")
    models.load_lora(pipe, "emoji-lcm-lora")  # few-step weights,
    pipe.fuse_lora()  # merged, so that they cost nothing
    vae = models.load_vae("emoji-vae-small", dtype=pipe.dtype, device=pipe.device)
    sheet, shown = Image.new("RGB", (SIZE * len(prompts), SIZE)), threading.Lock()

    with StreamHost(pipe, max_rows=2 * len(prompts), vae=vae) as host:

        def paint(engine: StreamEngine, place: int) -> None:
            *_, last = engine.stream(film(frames))
            with shown:
                sheet.paste(last.image, (SIZE * place, 0))

        threads = []
        for place, prompt in enumerate(prompts):
            size = {"height": SIZE, "width": SIZE}
            engine = host.open(prompt=prompt, strength=0.7, num_steps=2, guidance=SelfNegative(1.4), seed=place, **size)
            threads.append(threading.Thread(target=paint, args=(engine, place)))
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
        click.echo(f"{output}: {frames * len(prompts) / seconds:.1f} frames per second in all; {host.report()}")
    sheet.save(output)


if __name__ == "__main__":
    main()
