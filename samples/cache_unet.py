"""Cache features of a UNet, and see what it costs: `python samples/cache_unet.py --prompt "a red heart"`.

Saves one picture of three: drawn plainly, drawn with cached features, and their difference, with the figures on it.
"""

from pathlib import Path

import click
from side_by_side import compare, side_by_side

from diffaccel import DeepCache, Taylor, TextKVCache, models


@click.command()
@click.option("--prompt", default="a red heart", show_default=True)
@click.option("--model", default="emoji-sd", show_default=True, help="Bundled model, local folder or Hub id.")
@click.option("--interval", default=3, show_default=True, help="Compute deep features in every n-th call only.")
@click.option("--branch", default=0, show_default=True, help="What still runs in the others: 0 is the least.")
@click.option("--taylor", default=1, show_default=True, help="Order of the forecast of the stored feature; 0 holds it.")
@click.option("--steps", default=30, show_default=True, help="Sampling steps.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("cache_unet.png"), show_default=True)
def main(prompt: str, model: str, interval: int, branch: int, taylor: int, steps: int, output: Path) -> None:
    """Draw with and without DeepCache and a cache of the prompt's keys and values."""
    pipe = models.load(model)
    deep = DeepCache(interval=interval, branch=branch, forecast=Taylor(taylor) if taylor else None)
    result = compare(pipe, [deep, TextKVCache()], prompt=prompt, num_inference_steps=steps, guidance_scale=2.0)
    side_by_side(result).save(output)
    click.echo(f"{result.report}\n{output}: {result.figures}")


if __name__ == "__main__":
    main()
