"""What MagCache and TeaCache must know of the bundled transformer, measured for the other benchmarks."""

from pathlib import Path

import click
from benchmarks.quality import OWN

from diffaccel import calibrate
from diffaccel.measure import captions
from diffaccel.models import load

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "curves"


@click.command()
@click.option("--steps", default=20, show_default=True, help="Sampling steps.")
@click.option("--prompts", default=6, show_default=True, help="How many captions.")
def command(steps: int, prompts: int) -> None:
    """Write emoji-dit's curves to benchmarks/curves."""
    pipe = load("emoji-dit")
    pipe.set_progress_bar_config(disable=True)
    FOLDER.mkdir(exist_ok=True)
    texts = list(captions()[:: len(captions()) // prompts][:prompts])
    settings = {"num_inference_steps": steps, "guidance_scale": 2.0, "output_type": "latent", **OWN["emoji-dit"]}
    for method in ("magcache", "teacache"):
        path = FOLDER / f"emoji-dit-{method}.json"
        calibrate(pipe, texts, path=path, method=method, **settings)
        click.echo(path.read_text(encoding="utf-8"))
