"""Cache blocks of a diffusion transformer, and see what it costs: `python samples/cache_dit.py --method interval`.

Saves one picture of three: drawn plainly, drawn with cached features, and their difference, with the figures on it.
"""

from pathlib import Path

import click
from side_by_side import compare, side_by_side

from diffaccel import BlockCache, DeltaCache, IntervalCache, Taylor, models

METHODS = {
    "block": BlockCache(threshold=0.1, warmup=3, max_consecutive=2, forecast=Taylor(1)),
    "interval": IntervalCache(interval=3, forecast=Taylor(1)),
    "delta": DeltaCache(interval=2),
}


@click.command()
@click.option("--prompt", default="a red heart", show_default=True)
@click.option("--model", default="emoji-dit", show_default=True, help="Bundled model, local folder or Hub id.")
@click.option("--method", type=click.Choice(list(METHODS)), default="interval", show_default=True)
@click.option("--steps", default=30, show_default=True, help="Sampling steps.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("cache_dit.png"), show_default=True)
def main(prompt: str, model: str, method: str, steps: int, output: Path) -> None:
    """Draw with and without a cache."""
    pipe = models.load(model)
    own = {"use_resolution_binning": False, "clean_caption": False} if model == "emoji-dit" else {}
    result = compare(pipe, [METHODS[method]], prompt=prompt, num_inference_steps=steps, guidance_scale=2.0, **own)
    side_by_side(result).save(output)
    click.echo(f"{result.report}\n{output}: {result.figures}")


if __name__ == "__main__":
    main()
