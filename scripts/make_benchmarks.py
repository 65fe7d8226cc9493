"""Measure everything that benchmarks/README.md says, and write it: `python scripts/make_benchmarks.py`.

--only NAME   run one of the commands again (all figures of the others stay as they were measured)
--write-only  run nothing, write the page from what was measured
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import make_method_docs

from diffaccel.measure.page import share

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
PROMPTS = ("red heart", "dog", "rocket", "pizza")
PARTS = {
    "batch": "batch --rounds 3",
    "live": "live",
    "stream": "stream",
    "stream-sd15": "stream --part sd15",
    "streams": "streams --part bundled",
    "streams-batches": "streams --part batches --part sd15 --rounds 7",
    "steadiness": "steadiness",
    "video": "video --rounds 1",
    "control-emoji": "control --part emoji",
    "control-sd15": "control --part shape",
    "cache-sd15": "cache --part sd15 --rounds 3 --steps 8",
    "cache-controlnet": "cache --part controlnet",
    "cache-overhead": "cache --part overhead",
    "cache-emoji-sd": "cache --part emoji-sd --rounds 3 --steps 20",
    "cache-emoji-dit": "cache --part emoji-dit --rounds 3 --steps 20",
    "cache-emoji-sd-ddim": "cache --part emoji-sd-ddim --rounds 2 --steps 50",
}
ABOUT = {
    "batch": ("docs/batch.md", "Batch generation against a bare loop"),
    "live": ("docs/live.md", "The live page in a real browser"),
    "stream": ("docs/streaming.md", "Streams on the bundled model"),
    "streams": ("docs/streaming.md", "Eight streams in one host against engines that take turns"),
    "streams-batches": (
        "docs/streaming.md",
        "Rows of a call against batch size, on one thread: the bundled network, and Stable Diffusion 1.5's shape",
    ),
    "steadiness": ("docs/streaming.md", "Steadiness between frames"),
    "stream-sd15": ("docs/streaming.md", "Streams on the shape of Stable Diffusion 1.5"),
}
PROFILES = {"emoji-sd": "emoji-sd-dpm++", "emoji-dit": "emoji-dit-dpm++"}


def commands() -> dict[str, list[str]]:
    """Each name with the command that measures it, as a user would type it in the repository."""
    bench = ["python", "scripts/bench.py"]
    found = {"tuned": [*bench, "tuned"], "pipelines": ["python", "scripts/make_pipeline_docs.py", "--rounds", "3"]}
    for name, options in PARTS.items():
        found[name] = [*bench, *options.split(), "--json", f"benchmarks/{name}.json"]
    for model, profile in PROFILES.items():
        found[model] = ["diffaccel", "bench", "--model", model, "--rounds", "3", "-o", f"benchmarks/{model}"]
        found[model] += [a for prompt in PROMPTS for a in ("--prompts", prompt)]
        found[model] += [a for n in (2, 3, 5) for a in ("--profile", f"benchmarks/tuned/{profile}-{n}.json")]
    return found


def run(name: str, command: list[str]) -> None:
    """One command; a report's pictures are shown once, in the page."""
    print(f"{name}: {shlex.join(command)}", flush=True)
    program = (
        [sys.executable, "-m", "diffaccel", *command[1:]]
        if command[0] == "diffaccel"
        else [sys.executable, *command[1:]]
    )
    subprocess.run(program, cwd=ROOT, check=True)


def page() -> str:
    """The page."""
    parts = [
        "# Benchmarks\n\nWritten by `python scripts/make_benchmarks.py`, which runs the commands below; no figure is "
        "typed by hand. Times are of one picture, medians of rounds that take turns; *ceiling* is the speed-up if "
        "time followed the multiply-accumulates that were executed; PSNR is to the plain pipeline's pictures at equal "
        "seeds.\n"
    ]
    for model in PROFILES:
        if (FOLDER / model / "report.json").exists():
            parts.append(bench_section(model))
    results = [json.loads(file.read_text()) for file in sorted((FOLDER / "tuned").glob("emoji-*[m+].json"))]
    if results:
        parts.append(tuned_section(results))
    results = [json.loads(file.read_text()) for file in sorted((FOLDER / "tuned").glob("refined-*[0-9].json"))]
    if results:
        parts.append(refined_section(results))
    others = [file for file in sorted(FOLDER.glob("*.md")) if file.name != "README.md"]
    lines = [f"- [{title_of(file.read_text(encoding='utf-8'))}]({file.name})" for file in others]
    for name, (document, title) in ABOUT.items():
        if (FOLDER / f"{name}.json").exists():
            lines.append(f"- [{title}](../{document}): `{shlex.join(commands()[name])}`")
    lines.append("- Each custom pipeline: [docs/pipelines](../docs/pipelines)")
    parts.append("## Further\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def title_of(text: str) -> str:
    """What a page is about: its first section, or its title."""
    headings = [line for line in text.splitlines() if line.startswith("#")]
    return next((line for line in headings if line.startswith("###")), headings[0]).lstrip("# ")


def bench_section(model: str) -> str:
    """The usual methods on one model."""
    report = json.loads((FOLDER / model / "report.json").read_text())
    front = set(report["front"])
    lines = [
        f"## The usual methods on {model}\n",
        f"    {report['command']}\n",
        f"{machine(report['machine'])}. {report['settings']['pictures']} pictures, "
        f"{report['settings']['num_inference_steps']} steps. In bold: the front, which nothing else beats in both "
        f"speed and likeness. The same with pictures and sliders: [report.html]({model}/report.html).\n",
        "| method | seconds | times as fast | ceiling | PSNR, dB | SSIM | top-1 | cache, MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        name = f"**{row['name']}**" if row["name"] in front else row["name"]
        quality, plain = row["quality"], row["kind"] == "plain"
        top = share(row["accuracy"]["top1"], report["settings"]["pictures"]) if row["accuracy"] else ""
        cache = "" if row["cache_bytes"] is None else f"{row['cache_bytes'] / 1e6:.2f}"
        likeness = "| |" if plain else f"{quality['psnr']:.1f} | {quality['ssim']:.3f} |"
        speed = f"{row['timing']['median']:.3f} | {row['speedup']:.2f} | {row['ceiling']:.2f}"
        lines.append(f"| {name} | {speed} | {likeness} {top} | {cache} |")
    if "different_seed_floor" in report:
        floor = report["different_seed_floor"]
        lines.append(f"| *different seed (floor)* | | | | {floor['psnr']:.1f} | {floor['ssim']:.3f} | | |")
    lines += [f"\nLeft out: {name} ({reason})." for name, reason in report["failures"].items()]
    return "\n".join(lines) + "\n"


def tuned_section(results: list[dict[str, Any]]) -> str:
    """Tuned profiles against fixed settings, as they were published and with a forecast."""
    rows = [(result, row) for result in results for row in result["rows"]]
    rivals = [(best_of(row, forecast=False), best_of(row, forecast=True)) for _, row in rows]
    gains = [
        [row["psnr"] - rival[which]["psnr"] for (_, row), rival in zip(rows, rivals, strict=True)] for which in (0, 1)
    ]
    minutes = [row["cpu_seconds"] / 60 for _, row in rows if "cpu_seconds" in row]
    lines = [
        "## Tuned profiles against the best fixed setting of equal cost\n",
        "    python scripts/bench.py tuned\n",
        f"{machine(results[0]['machine'])}, other work running beside it. Budgets are the costs of caching at "
        "intervals 2, 3 and 5 (DeepCache at branch 0; IntervalCache for the transformer). A search runs "
        f"{results[0]['calibration']} prompts, 8 others at two seeds choose among the best found, and all figures are "
        "of 12 further ones with noise of their own. Fixed settings are each the most generous one that the budget "
        "allows: *as published*, DeepCache uniform and quadratic at four branches, or interval, offset and first-block "
        "caches, and fewer steps; *with a forecast*, the same caches with Taylor(1), too. Tuned profiles are "
        f"{mean(gains[0]):+.1f} dB from the best published setting on average, {min(gains[0]):+.1f} dB at the least, "
        f"and {mean(gains[1]):+.1f} dB and {min(gains[1]):+.1f} dB from the best of all. Calibration, three searches "
        f"and all fixed settings took {max(minutes):.0f} minutes of one core at most.\n",
        "| network | sampler | cost | tuned, dB | best as published | dB | gain | best with a forecast | dB | gain |",
        "|---|---|--:|--:|---|--:|--:|---|--:|--:|",
    ]
    for (result, row), pair in zip(rows, rivals, strict=True):
        against = " | ".join(f"{b['name']} | {b['psnr']:.1f} | {row['psnr'] - b['psnr']:+.1f}" for b in pair)
        lines.append(f"| {result['model']} | {result['sampler']} | {row['macs']:.1%} | {row['psnr']:.1f} | {against} |")
    lines += [
        f"| {r['model']} | {r['sampler']} | | {r['floor']['psnr']:.1f} | *different seed (floor)* | | | | | |"
        for r in results
        if "floor" in r
    ]
    lines.append("\nThe searches' own accounts:\n")
    lines += [f"- {r['model']}, {r['sampler']}, {row['macs']:.0%}: {row['account']}." for r, row in rows]
    return "\n".join(lines) + "\n"


def refined_section(results: list[dict[str, Any]]) -> str:
    """Refined profiles against what they were made of, and against fixed settings."""
    gains = [kept_psnr(row) - row["fixed"][0]["psnr"] for row in results]
    lines = [
        "## Refined profiles, on pictures that nothing was chosen by\n",
        "    python scripts/bench.py refined --model emoji-sd --sampler dpm++ --interval 3\n",
        f"{machine(results[0]['machine'])}, other work running beside it. The profiles above, refined on 12 prompts at "
        "three seeds (Gauss-Newton steps of 8 probes and steps of Adam as in the table), and drawn for "
        f"{results[0]['pictures']} prompts and seeds that neither search nor choice nor refinement has seen. A refined "
        "profile is kept where 8 other pictures are more alike with it. Fixed settings: every cache of the package "
        "that works on the network, with no forecast, Taylor(1), Taylor(2) and Newton(2), at the most generous setting "
        "that the cost allows, ranked on four other pictures, the best three of each kind run on all; and fewer steps. "
        f"*Gain* is what is kept against the best of them: {mean(gains):+.1f} dB on average, {min(gains):+.1f} dB at "
        "the least. Seconds are of one core's processor time, for refining alone.\n",
        "| network | sampler | cost | steps | tuned, dB | refined, dB | kept | best fixed | dB | gain | seconds |",
        "|---|---|--:|--:|--:|--:|---|---|--:|--:|--:|",
    ]
    lines += map(refined_row, results)
    floors = {row["model"]: row["floor"]["psnr"] for row in results}
    lines += [f"| {model} | different seed (floor) | | | {floor:.1f} | | | | | | |" for model, floor in floors.items()]
    return "\n".join(lines) + "\n"


def refined_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    kept = "refined" if row["choosing"][1] > row["choosing"][0] else "tuned"
    rival, how = row["fixed"][0], row["refinement"]
    figures = (
        *(row["model"], row["sampler"], f"{row['macs']:.1%}", f"{how['rounds']} + {how['iterations']}"),
        *(f"{row['before']['psnr']:.1f}", f"{row['after']['psnr']:.1f}", kept, rival["name"], f"{rival['psnr']:.1f}"),
        *(f"{kept_psnr(row) - rival['psnr']:+.1f}", f"{row['refining_cpu_seconds']:.0f}"),
    )
    return f"| {' | '.join(figures)} |"


def kept_psnr(row: dict[str, Any]) -> float:
    """PSNR on new pictures of the profile that the choosing ones have taken."""
    taken = "after" if row["choosing"][1] > row["choosing"][0] else "before"
    psnr: float = row[taken]["psnr"]
    return psnr


def best_of(row: dict[str, Any], *, forecast: bool) -> dict[str, Any]:
    """The best fixed setting of a row, among those with a forecast or not."""
    allowed = [fixed for fixed in row["fixed"] if forecast or "forecast" not in fixed["name"]]
    return max(allowed, key=lambda fixed: fixed["psnr"])


def machine(values: dict[str, Any]) -> str:
    """The machine in a line."""
    packages = ", ".join(
        f"{name} {values['packages'][name]}" for name in ("torch", "diffusers") if name in values["packages"]
    )
    return f"{values['processor']}, {packages}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(commands()))
    parser.add_argument("--write-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run and write."""
    args = arguments()
    for name, command in commands().items():
        if not args.write_only and args.only in (None, name):
            run(name, command)
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
    make_method_docs.write()


if __name__ == "__main__":
    main()
