"""How far two seeds are apart, for published figures that do not say: the floor under every likeness in them.

Every benchmark measures its own. This adds it to what was published before they did, on the same prompts and settings.
"""

import json
import random
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.quality import BATCH, floor_alone
from benchmarks.tables import FLOOR, markdown
from benchmarks.tokens import emoji_work, likeness
from pipeline_docs import measuring
from pipeline_docs.pages import PAGES

from benchmarks import stream
from benchmarks.tuned import PROMPTS, STEPS
from diffaccel.measure import captions, compare
from diffaccel.measure.workload import Workload, other_seeds
from diffaccel.models import load
from diffaccel.sampling.schedulers import sampler_named

FRAMES = 48
"""Of each film that slot caches were measured on."""
TITLE = re.compile(r"(emoji-\S+), (\d+) steps of (\w+), (\d+) pictures")
ROW = (
    '<tr class="floor"><td>different seed (floor)</td><td></td><td></td><td></td>'
    '<td data-value="{psnr}">{psnr:.1f}</td>'
    '<td data-value="{worst}">{worst:.1f}</td><td data-value="{ssim}">{ssim:.3f}</td>'
    '<td data-value="{ms_ssim}">{ms_ssim:.3f}</td><td></td><td></td><td></td></tr>\n'
)


def apart(workload: Workload, model: str, sampler: str = "default") -> dict[str, Any]:
    """The floor of a workload on a bundled model."""
    pipe = load(model, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    if sampler != "default":
        pipe.scheduler = sampler_named(sampler, pipe.scheduler)
    return asdict(compare(other_seeds(workload).pictures(pipe), workload.pictures(pipe)))


def reports(folder: Path) -> Iterator[str]:
    """Reports of `diffaccel bench`, with their pages."""
    for path in sorted(folder.glob("emoji-*/report.json")):
        report, page = json.loads(path.read_text()), path.with_suffix(".html")
        if "different_seed_floor" not in report:
            given, settings = shlex.split(report["command"]), report["settings"]
            prompts = tuple(given[place + 1] for place, word in enumerate(given) if word == "--prompts")
            run = {name: settings[name] for name in ("num_inference_steps", "guidance_scale", "width", "height")}
            report["different_seed_floor"] = apart(Workload(prompts, (settings["seed"],), run), settings["model"])
            path.write_text(json.dumps(report, indent=1) + "\n")
            yield str(path)
        text = page.read_text(encoding="utf-8")
        if "different seed" not in text:
            row = ROW.format(**report["different_seed_floor"])
            page.write_text(text.replace("</tbody>", row + "</tbody>", 1), encoding="utf-8")
            yield str(page)


def caches(folder: Path) -> Iterator[str]:
    """Tables of `bench.py cache` and `tokens`, as JSON and as Markdown."""
    for path in sorted([*folder.glob("cache-emoji-*.json"), folder / "tokens-emoji.json"]):
        figures, added = json.loads(path.read_text()), False
        for title, rows in (item for part, tables in figures.items() if part != "machine" for item in tables.items()):
            found = TITLE.match(title)
            if FLOOR in rows or not any("PSNR" in row for row in rows.values()):
                continue
            if found:
                ddim = found[3].startswith("DDIM")
                rows[FLOOR] = floor_alone(found[1], int(found[4]) // BATCH, int(found[2]), ddim=ddim)
            else:
                pipe, work = emoji_work()
                rows[FLOOR] = likeness(other_seeds(work).pictures(pipe), work.pictures(pipe))
            added = True
        if added:
            page = path.with_suffix(".md")
            head = page.read_text(encoding="utf-8").partition("### ")[0]
            text = "\n".join(markdown(tables) for part, tables in figures.items() if part != "machine")
            path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            page.write_text(head + text, encoding="utf-8")
            yield str(path)


def tuned(folder: Path) -> Iterator[str]:
    """Results of `bench.py tuned`, on the prompts that confirm them."""
    words = list(captions())
    random.Random(0).shuffle(words)
    workload = Workload(
        tuple(words[PROMPTS - 12 : PROMPTS]), settings={"num_inference_steps": STEPS, "guidance_scale": 2.0}
    )
    for path in sorted((folder / "tuned").glob("emoji-*[m+].json")):
        result = json.loads(path.read_text())
        if "floor" not in result:
            result["floor"] = apart(workload, result["model"], "ddim" if result["sampler"] == "ddim" else "default")
            path.write_text(json.dumps(result, indent=1) + "\n")
            yield str(path)


def pipelines(folder: Path) -> Iterator[str]:
    """Figures of the custom pipelines' pages, which `make_pipeline_docs.py --write-only` then writes."""
    path = folder.parent / "docs" / "pipelines" / "figures.json"
    figures = json.loads(path.read_text())
    for page in PAGES:
        if page.name in figures and "floor" not in figures[page.name]:
            figures[page.name]["floor"] = measuring.floor_alone(page)
            path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            yield f"{path}: {page.name}"


def streams(folder: Path) -> Iterator[str]:
    """What slot caches cost in likeness, in the figures of `bench.py stream`."""
    path = folder / "stream.json"
    figures = json.loads(path.read_text())
    rows = figures["cache"]["psnr"]
    if any(FLOOR not in row for row in rows.values()):
        for motion, floor in stream.floor_alone(FRAMES).items():
            rows[motion][FLOOR] = floor
        path.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        yield str(path)


PARTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "reports": reports,
    "caches": caches,
    "tuned": tuned,
    "pipelines": pipelines,
    "streams": streams,
}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these; all by default.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("benchmarks"), show_default=True)
def command(parts: tuple[str, ...], folder: Path) -> None:
    """Add the different-seed floor to published figures that lack it."""
    for part in parts or PARTS:
        for what in PARTS[part](folder):
            torch.set_grad_enabled(True)
            click.echo(what)
