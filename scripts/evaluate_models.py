"""Measure the bundled models against their bars, print the table, and write each model's figures.json.

Prompt accuracy: the share of generated pictures whose caption is, for `emoji-clip`, the nearest of all captions
(top-1) or among the five nearest (top-5). Fréchet distance: of emoji-clip's image features of the same pictures to
those of the drawings behind the captions, placed as training ends; beside it, what other placements of the same
drawings have. Accuracy takes a blob in the right colours for the thing, the distance does not. The sheets, above all
`*-look.png` of 24 fixed prompts, are there to be looked at. The autoencoder and emoji-clip are judged on drawings and
augmentations held out from training. Where a processor is fast in bfloat16, pictures are sampled in it; times are of
float32, and stay as they were with `--untimed`, for a machine that does other work meanwhile. With `--model` other
text-to-image pipelines are measured instead, such as those of train_ptdit.py; cards stay as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from diffusion import LOOK_AT
from emoji_data import HELD_OUT_BASE, HELD_OUT_COLOURED, Emojis, compose, contact_sheet, place
from train_autoencoder import psnr, split
from train_clip import thing
from training import has_fast_bf16

import diffaccel.models
from diffaccel.measure import Judge, frechet_distance

BARS = {
    "autoencoder psnr": 27.0,
    "clip top1": 0.95,
    "sd top1": 0.85,
    "sd top5": 0.95,
    "lcm top1": 0.80,
    "dit top1": 0.80,
    "sd seconds_per_picture": 3.0,
    "dit frechet_over_emoji_sd": 1.15,
    "sd-small switch_macs": 0.72,
    "sd-small switch_top1_lost": 0.03,
}
AT_MOST = ("seconds_per_picture", "frechet_over_emoji_sd", "switch_macs", "switch_top1_lost")  # of these less is better
SWITCH = 0.4  # of the calls of emoji-sd, the first ones, on its small sibling
BESIDE = 12  # pictures of each model where they stand beside each other
FIGURES_START, FIGURES_END = "<!-- figures -->", "<!-- end of figures -->"
PAIRS = (
    "red heart and blue circle",
    "dog and cat",
    "green circle and yellow star",
    "car and tree",
    "panda and red apple",
    "blue fish and orange square",
    "rocket and star",
    "burger and fries",
    "purple circle and green heart",
    "sun and cloud",
    "yellow duck and blue drop",
    "house and tree",
)


def accuracy(judge: Judge, pictures: torch.Tensor, truth: list[str]) -> dict[str, float]:
    """Top-1 and top-5 of pictures in [-1, 1]."""
    return asdict(judge.accuracy(pictures / 2 + 0.5, truth))


def generate(
    pipe: DiffusionPipeline, prompts: list[str], seeds: int, steps: int, scale: float, bf16: bool | None = None
) -> torch.Tensor:
    """Pictures of every prompt at seeds 0 .. seeds - 1, seed-major, (n, 3, 128, 128) in [-1, 1]."""
    extra = {"use_resolution_binning": False} if hasattr(pipe, "transformer") else {}
    pipe.set_progress_bar_config(disable=True)
    bf16 = has_fast_bf16(pipe.device) if bf16 is None else bf16
    result = []
    for seed in range(seeds):
        for start in range(0, len(prompts), 16):
            chunk = prompts[start : start + 16]
            generators = [torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(chunk))]
            with torch.autocast(pipe.device.type, torch.bfloat16, enabled=bf16):
                pictures = pipe(
                    chunk,
                    num_inference_steps=steps,
                    guidance_scale=scale,
                    generator=generators,
                    output_type="pt",
                    **extra,
                ).images
            result.append(pictures.float())
    return torch.cat(result).cpu().float() * 2 - 1


def placed_drawings(emojis: Emojis, copies: int, seed: int) -> torch.Tensor:
    """Every drawing of the captions `copies` times, placed as training ends, (n, 3, 128, 128) in [-1, 1]."""
    rng = np.random.default_rng((HELD_OUT_BASE, seed))
    pictures = []
    for _ in range(copies):
        scenes = []
        for concept in emojis.concepts:
            placed = place(
                concept.drawings["fluent"], rng.uniform(0.92, 1.0), *rng.uniform(-0.06, 0.06, 2), rng.uniform(-4, 4)
            )
            scenes.append(([placed], np.ones(3, np.float32)))
        pictures.append(compose(scenes))
    return torch.cat(pictures)


def distance_to_drawings(args: argparse.Namespace, judge: Judge, pictures: torch.Tensor) -> dict[str, float]:
    """Fréchet distance of pictures in [-1, 1] to as many drawings of every caption; that of other drawings."""
    emojis = Emojis(args.data)
    real, other = (judge.features(placed_drawings(emojis, args.seeds, seed) / 2 + 0.5) for seed in (0, 1))
    return {
        "frechet_distance": frechet_distance(judge.features(pictures / 2 + 0.5), real),
        "frechet_distance_of_drawings": frechet_distance(other, real),
    }


def over_emoji_sd(figures: dict[str, float]) -> dict[str, float]:
    """Fréchet distance over emoji-sd's, where that was measured on as many pictures."""
    reference = diffaccel.models.figures("emoji-sd")
    both = "frechet_distance" in figures and "frechet_distance" in reference
    if not both or reference["seeds"] != figures["seeds"]:
        return {}
    return {"frechet_over_emoji_sd": figures["frechet_distance"] / reference["frechet_distance"]}


def held_out(args: argparse.Namespace) -> torch.Tensor:
    """Held-out drawings in both styles, on white, (n, 3, 128, 128) in [-1, 1]."""
    _, test = split(args.data)
    return compose([([place(rgba, 1.0, 0.0, 0.0, 0.0)], np.ones(3, np.float32)) for rgba in test])


def evaluate_autoencoder(args: argparse.Namespace) -> dict[str, float]:
    """PSNR on held-out drawings."""
    pictures = held_out(args)
    vae = diffaccel.models.load("emoji-sd").vae
    return {"psnr": psnr(vae, pictures).item(), "drawings": float(len(pictures))}


def evaluate_small_autoencoder(args: argparse.Namespace) -> dict[str, float]:
    """The same for the small one, alone and with one half of the large one, whose latents it shares."""
    pictures = held_out(args)
    vae = diffaccel.models.load("emoji-sd").vae
    small = diffaccel.models.load_vae("emoji-vae-small", dtype=torch.float32, device=torch.device("cpu"))
    result = {"psnr": psnr(small, pictures).item(), "psnr_of_the_large_one": psnr(vae, pictures).item()}
    own_encoder, vae.encoder = vae.encoder, small.encoder
    result["psnr_small_encoder_large_decoder"] = psnr(vae, pictures).item()
    vae.encoder, vae.decoder = own_encoder, small.decoder
    small_decoder = psnr(vae, pictures).item()
    return {**result, "psnr_large_encoder_small_decoder": small_decoder, "drawings": float(len(pictures))}


def evaluate_clip(args: argparse.Namespace, judge: Judge) -> dict[str, float]:
    """Top-1 and top-5 on held-out augmentations of the drawings, without diffusion."""
    emojis = Emojis(args.data, ("fluent", "noto"), seed=1, p_colour=0, p_pair=0, p_background=0)
    truth, pictures = emojis.batch(range(HELD_OUT_BASE, HELD_OUT_BASE + 1024))
    return accuracy(judge, pictures, [thing(t) for t in truth])


def evaluate_text_to_image(
    args: argparse.Namespace, judge: Judge, pipe: DiffusionPipeline, name: str, steps: int, scale: float
) -> dict[str, float]:
    """Accuracy over all captions and seeds, over held-out colourings and over pairs; seconds a picture."""
    pictures = generate(pipe, judge.captions, args.seeds, steps, scale)
    result = accuracy(judge, pictures, judge.captions * args.seeds)
    args.sheets.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures[: len(judge.captions)], 20).save(args.sheets / f"{name}.png")
    contact_sheet(generate(pipe, list(LOOK_AT), 1, steps, scale), 8).save(args.sheets / f"{name}-look.png")
    result |= distance_to_drawings(args, judge, pictures)
    coloured = Judge(list(dict.fromkeys([*judge.captions, *HELD_OUT_COLOURED])))
    unseen = generate(pipe, list(HELD_OUT_COLOURED), args.seeds, steps, scale)
    result["unseen_colourings_top1"] = accuracy(coloured, unseen, list(HELD_OUT_COLOURED) * args.seeds)["top1"]
    pairs = generate(pipe, list(PAIRS), args.seeds, steps, scale)
    both = Judge([*judge.captions, *PAIRS, *(" and ".join(reversed(p.split(" and "))) for p in PAIRS)])
    result["pairs_top1"] = accuracy(both, pairs, list(PAIRS) * args.seeds)["top1"]
    contact_sheet(torch.cat([unseen[:21], pairs[:12]]), 11).save(args.sheets / f"{name}-composed.png")
    return {
        **result,
        **({} if args.untimed else {"seconds_per_picture": seconds_per_picture(pipe, steps, scale)}),
        "steps": float(steps),
        "guidance_scale": scale,
        "seeds": float(args.seeds),
    }


def evaluate_switch(args: argparse.Namespace, judge: Judge) -> dict[str, float]:
    """What emoji-sd loses of its accuracy where emoji-sd-small takes the first calls, and what they cost then."""
    pipe, prompts = diffaccel.models.load("emoji-sd"), judge.captions[:: args.every]
    truth = prompts * args.seeds
    plain = accuracy(judge, generate(pipe, prompts, args.seeds, 20, 2.0), truth)
    with diffaccel.accelerate(pipe, diffaccel.NetworkSwitch("emoji-sd-small", until=SWITCH)) as handle:
        switched = generate(pipe, prompts, args.seeds, 20, 2.0)
        macs = 1 - handle.report().macs_saved
    contact_sheet(switched[: len(prompts)], 20).save(args.sheets / "sd-switch.png")
    found = accuracy(judge, switched, truth)
    return {
        "switch_until": SWITCH,
        "switch_macs": macs,
        "switch_top1": found["top1"],
        "switch_top5": found["top5"],
        "switch_top1_lost": plain["top1"] - found["top1"],
        "switch_pictures": float(len(truth)),
    }


def evaluate_others(args: argparse.Namespace, judge: Judge) -> None:
    """Pipelines that are not bundled: print their figures, and write them into one file; a row of pictures of each."""
    found, rows = {}, []
    for name, folder in (text.split("=", 1) for text in args.model):
        pipe = diffaccel.models.load(folder)
        figures = evaluate_text_to_image(args, judge, pipe, name, 20, 2.0)
        rows.append(generate(pipe, list(LOOK_AT[:BESIDE]), 1, 20, 2.0))
        contact_sheet(torch.cat(rows), BESIDE).save(args.sheets / "beside.png")
        found[name] = {key: round(value, 4) for key, value in (figures | over_emoji_sd(figures)).items()}
        print(name, json.dumps(found[name]), flush=True)
    if args.json:
        replace(args.json, json.dumps(found, indent=1) + "\n")


def seconds_per_picture(pipe: DiffusionPipeline, steps: int, scale: float) -> float:
    """Median of five, after one to warm up."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        generate(pipe, ["red heart"], 1, steps, scale, bf16=False)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[2]


def write_figures(model: str, figures: dict[str, float]) -> None:
    """A bundled model's figures.json, and the table of figures in its card."""
    folder = diffaccel.models.path(model)
    replace(folder / "figures.json", json.dumps({k: round(v, 4) for k, v in figures.items()}, indent=2) + "\n")
    before, mark, rest = (folder / "README.md").read_text().partition(FIGURES_START)
    table = "".join(f"| {name.replace('_', ' ')} | {value:.4g} |\n" for name, value in figures.items())
    after = rest[rest.index(FIGURES_END) :]
    replace(folder / "README.md", f"{before}{mark}\n| figure | measured |\n|---|---|\n{table}{after}")


def replace(file: Path, text: str) -> None:
    """Write a file at once."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)


def main() -> None:
    """Evaluate, print, write; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument(
        "--sheets", type=Path, default=Path("runs/sheets"), help="where contact sheets of the pictures go"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--every", type=int, default=1, help="switch networks on each n-th caption only")
    jobs = ("autoencoder", "small-autoencoder", "clip", "sd", "sd-small", "lcm", "dit")
    parser.add_argument("--only", nargs="*", choices=jobs)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="only these pipelines")
    parser.add_argument("--json", type=Path, help="with --model: where figures go")
    parser.add_argument("--untimed", action="store_true", help="keep the seconds measured before")
    args = parser.parse_args()
    judge = Judge(Emojis(args.data).captions)
    if args.model:
        return evaluate_others(args, judge)

    def lcm() -> DiffusionPipeline:
        pipe = diffaccel.models.load("emoji-sd")
        pipe.load_lora_weights(diffaccel.models.path("emoji-lcm-lora"))
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
        return pipe

    def small() -> dict[str, float]:
        alone = evaluate_text_to_image(args, judge, load("emoji-sd-small"), "sd-small", 20, 2.0)
        return alone | evaluate_switch(args, judge)

    load = diffaccel.models.load
    evaluations: dict[str, tuple[str, Callable[[], dict[str, float]]]] = {
        "autoencoder": ("", lambda: evaluate_autoencoder(args)),
        "small-autoencoder": ("emoji-vae-small", lambda: evaluate_small_autoencoder(args)),
        "clip": ("emoji-clip", lambda: evaluate_clip(args, judge)),
        "sd": ("emoji-sd", lambda: evaluate_text_to_image(args, judge, load("emoji-sd"), "sd", 20, 2.0)),
        "sd-small": ("emoji-sd-small", small),
        "lcm": ("emoji-lcm-lora", lambda: evaluate_text_to_image(args, judge, lcm(), "lcm", 4, 1.0)),
        "dit": ("emoji-dit", lambda: evaluate_text_to_image(args, judge, load("emoji-dit"), "dit", 20, 2.0)),
    }
    missed = []
    for name, (model, job) in evaluations.items():
        if args.only and name not in args.only:
            continue
        figures = job()
        if args.untimed and "seconds_per_picture" in (diffaccel.models.figures(model) if model else {}):
            figures["seconds_per_picture"] = diffaccel.models.figures(model)["seconds_per_picture"]
        figures |= over_emoji_sd(figures) if model != "emoji-sd" else {}
        print(name, json.dumps({k: round(v, 4) for k, v in figures.items()}), flush=True)
        if model:
            write_figures(model, figures)
        for key, value in figures.items():
            bar = BARS.get(f"{name} {key}")
            if bar is not None:
                held = value <= bar if key in AT_MOST else value >= bar
                print(f"  {name} {key}: {value:.4g}, bar {bar:g}: {'holds' if held else 'MISSED'}", flush=True)
                missed += [] if held else [name]
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
