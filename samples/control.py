"""Paint along lines, and see what a ControlNet is worth: `python samples/control.py --prompt "a red heart"`.

Saves one picture of three: the lines, what emoji-sd paints along them with the ControlNet in every step, and with
ControlCache. The lines are a drawn heart, or `--lines`: white on black.
"""

from pathlib import Path

import click
import torch
from PIL import Image, ImageDraw

from diffaccel import ControlCache, Taylor, accelerate, models

SIDE, SHOWN = 128, 256
HEART = [(64, 110), (20, 60), (22, 36), (42, 24), (64, 44), (86, 24), (106, 36), (108, 60), (64, 110)]


def drawn() -> Image.Image:
    """A heart, white on black."""
    image = Image.new("RGB", (SIDE, SIDE), "black")
    ImageDraw.Draw(image).line(HEART, fill="white", width=3, joint="curve")
    return image


@click.command()
@click.option("--prompt", default="a red heart", show_default=True)
@click.option("--lines", type=click.Path(exists=True, path_type=Path), help="A picture of white lines on black.")
@click.option("--interval", default=3, show_default=True, help="Run the ControlNet in every n-th call only.")
@click.option("--steps", default=20, show_default=True, help="Sampling steps.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("control.png"), show_default=True)
def main(prompt: str, lines: Path | None, interval: int, steps: int, output: Path) -> None:
    """Paint along lines, with the ControlNet in every call and in a few."""
    image = drawn() if lines is None else Image.open(lines).convert("RGB").resize((SIDE, SIDE))
    base = models.load("emoji-sd")
    net = models.load_controlnet("emoji-control", dtype=base.dtype, device=base.device)
    pipe = models.with_controlnets(base, [net])
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": prompt, "image": image, "num_inference_steps": steps, "guidance_scale": 2.0}
    plain = pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]
    with accelerate(pipe, ControlCache(interval, forecast=Taylor(1))) as handle:
        cached = pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]
    sheet = Image.new("RGB", (3 * SHOWN, SHOWN))
    for i, picture in enumerate((image, plain, cached)):
        sheet.paste(picture.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC), (i * SHOWN, 0))
    sheet.save(output)
    click.echo(f"{handle.report()}\n{output}")


if __name__ == "__main__":
    main()
