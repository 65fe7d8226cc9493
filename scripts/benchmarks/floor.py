"""How far two seeds are apart, for published reports that do not say: the floor under every likeness in them."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import click

from diffaccel.measure import compare
from diffaccel.measure.workload import Workload, other_seeds
from diffaccel.models import load


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("benchmarks"), show_default=True)
def command(folder: Path) -> None:
    """Add the different-seed floor to reports of bundled models in FOLDER that lack it, on their own prompts."""
    for path in sorted(folder.glob("emoji-*/report.json")):
        report = json.loads(path.read_text())
        if "different_seed_floor" in report:
            continue
        settings = report["settings"]
        given = shlex.split(report["command"])
        prompts = tuple(given[place + 1] for place, word in enumerate(given) if word == "--prompts")
        run = {name: settings[name] for name in ("num_inference_steps", "guidance_scale", "width", "height")}
        pipe = load(settings["model"], dtype="float32")
        pipe.set_progress_bar_config(disable=True)
        workload = Workload(prompts, (settings["seed"],), run)
        floor = compare(other_seeds(workload).pictures(pipe), workload.pictures(pipe))
        report["different_seed_floor"] = asdict(floor)
        path.write_text(json.dumps(report, indent=1) + "\n")
        click.echo(f"{path}: PSNR {floor.psnr:.1f} dB, SSIM {floor.ssim:.3f}")
