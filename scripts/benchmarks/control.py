"""Control: what ControlCache gives for its cost on emoji-control, beside fewer steps and `control_guidance_end`; and
the ceilings of multiply-accumulates in the shape of Stable Diffusion 1.5 with a ControlNet, counted without weights.

    python scripts/bench.py control --part emoji --json benchmarks/control-emoji.json
    python scripts/bench.py control --part shape --json benchmarks/control-sd15.json
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.tables import markdown

from benchmarks import shapes
from diffaccel import accelerate, models
from diffaccel.attach.macs import count_macs
from diffaccel.measure import compare, edge_agreement, machine
from diffaccel.methods import parse_all
from diffaccel.stream.control import edges

PROMPTS = ("a red apple", "a yellow star")
DRAWN = ("a heart", "a mushroom")
STEPS = 20
CACHES = (
    "controlcache:interval=3",
    "controlcache:interval=2,forecast=newton(3)",
    "controlcache:interval=3,forecast=newton(3)",
    "controlcache:interval=5,forecast=newton(3)",
    "deepcache:interval=3,forecast=taylor(2)",
    "deepcache:interval=3,forecast=taylor(2) + controlcache:interval=3,forecast=taylor(2)",
)
FEWER = (17, 16, 15, 8)
ENDS = (0.8, 0.5)
SHAPE_STEPS = 10
SHAPE_CACHES = (
    "controlcache:interval=2",
    "controlcache:interval=5",
    "controlcache:interval=1,keep=7",
    "deepcache:interval=5",
    "deepcache:interval=5 + controlcache:interval=10",
)


@dataclass(frozen=True)
class Way:
    """One way to run the pipeline.

    Attributes:
        name, kind: for tables.
        text: methods that are put on.
        changes: arguments of the call.
    """

    name: str
    kind: str
    text: str = "none"
    changes: dict[str, Any] = field(default_factory=dict)

    def attach(self, pipe: Any) -> Any:
        """The methods on the pipeline."""
        methods = parse_all(self.text)
        return accelerate(pipe, *methods) if methods else nullcontext()


def emoji_pipeline() -> Any:
    """emoji-sd under emoji-control."""
    base = models.load("emoji-sd", device="cpu")
    net = models.load_controlnet("emoji-control", dtype=torch.float32, device=torch.device("cpu"))
    pipe = models.with_controlnets(base, [net])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lines_of(pipe: Any) -> torch.Tensor:
    """Edges of pictures that the model paints by itself of other things, (n, 3, 128, 128)."""
    noise = [torch.Generator().manual_seed(90 + i) for i, _ in enumerate(DRAWN)]
    blank = torch.zeros(len(DRAWN), 3, 128, 128)
    pictures = pipe(
        list(DRAWN), image=blank, controlnet_conditioning_scale=0.0, num_inference_steps=STEPS, guidance_scale=2.0,
        generator=noise, output_type="pt",
    ).images  # fmt: skip
    return torch.stack([edges(picture) for picture in pictures])


def paint(pipe: Any, lines: torch.Tensor, **changes: Any) -> torch.Tensor:
    """Pictures in [0, 1] from the same noise each time, (n, 3, 128, 128)."""
    noise = [torch.Generator().manual_seed(i) for i, _ in enumerate(PROMPTS)]
    settings = {"num_inference_steps": STEPS, "guidance_scale": 2.0, **changes}
    found: torch.Tensor = pipe(list(PROMPTS), image=lines, generator=noise, output_type="pt", **settings).images
    return found


def ways() -> list[Way]:
    """The plain pipeline, and all that is compared with it."""
    ends = [Way(f"control_guidance_end={end:g}", "steps", changes={"control_guidance_end": end}) for end in ENDS]
    steps = [Way(f"{n} steps", "steps", changes={"num_inference_steps": n}) for n in FEWER]
    return [Way("plain", "plain"), *(Way(text, "diffaccel", text) for text in CACHES), *steps, *ends]


def emoji_control() -> list[dict[str, Any]]:
    """Cost, speed, likeness and agreement of each way, each painted once."""
    pipe = emoji_pipeline()
    lines, runs = lines_of(pipe), [Run(pipe, way) for way in ways()]
    paint(pipe, lines, num_inference_steps=2)  # what a first run alone takes
    for run in runs:
        run.paint(lines)
    plain, call = runs[0], runs[1].plain_macs // STEPS
    return [
        {
            "name": run.way.name, "kind": run.way.kind, "speedup": plain.seconds / run.seconds,
            "ceiling": call * STEPS / run.macs(call, net_macs(pipe, lines)),
            "agreement": edge_agreement(torch.stack([edges(p) for p in run.pictures]), lines).mean().item(),
            "quality": asdict(compare(run.pictures, plain.pictures)),
        }
        for run in runs
    ]  # fmt: skip


class Run:
    """One way, painted.

    Attributes:
        pictures: (n, 3, 128, 128) in [0, 1].
        seconds: of the processor: other work on the machine does not count.
        plain_macs: multiply-accumulates of the denoiser and the net, had all been computed; 0 without methods.
    """

    def __init__(self, pipe: Any, way: Way) -> None:
        self.pipe, self.way = pipe, way
        self.pictures, self.seconds, self.plain_macs, self._macs = torch.empty(0), 0.0, 0, 0

    def paint(self, lines: torch.Tensor) -> None:
        """Paint, with the methods on."""
        with self.way.attach(self.pipe) as handle:
            begin = time.process_time()
            self.pictures = paint(self.pipe, lines, **self.way.changes)
            self.seconds = time.process_time() - begin
            if handle is not None:
                self.plain_macs, self._macs = handle.report().macs_plain, handle.report().macs

    def macs(self, call: int, net: int) -> int:
        """Of all network calls, given those of one step and of the ControlNet in it.

        Behind `control_guidance_end` diffusers goes on to call the net, with a scale of 0; here it costs nothing then.
        """
        end, steps = self.way.changes.get("control_guidance_end"), self.way.changes.get("num_inference_steps", STEPS)
        off = 0 if end is None else sum((i + 1) / STEPS > end for i in range(STEPS))
        return self._macs or call * steps - net * off


def net_macs(pipe: Any, lines: torch.Tensor) -> int:
    """Of one call of the ControlNet."""
    rows = 2 * len(lines)
    text = torch.zeros(rows, 8, pipe.unet.config.cross_attention_dim)
    given = torch.zeros(rows, 4, 16, 16), 1, text, lines.repeat(2, 1, 1, 1)
    return count_macs(lambda: pipe.controlnet(*given, return_dict=False))


def shape_ceilings(steps: int, size: int = 64) -> dict[str, dict[str, float]]:
    """Plain multiply-accumulates over those of each way, on tensors without storage."""
    with torch.device("meta"):
        unet = shapes.sd15_unet()
        net = shapes.sd15_controlnet(unet)
    pipe = shapes.pipeline(unet, net)
    plain = count_macs(partial(_denoise, pipe, steps, size))
    found = {}
    for text in SHAPE_CACHES:
        with accelerate(pipe, *parse_all(text)):
            found[text] = {"ceiling": plain / count_macs(partial(_denoise, pipe, steps, size))}
    return {"without the ControlNet": {"ceiling": plain / _alone(unet, steps, size)}, **found}


def _alone(unet: Any, steps: int, size: int) -> int:
    given = torch.empty(1, 4, size, size, device="meta"), torch.tensor(1.0), torch.empty(1, 77, 768, device="meta")
    return steps * count_macs(lambda: unet(*given))


def _denoise(pipe: Any, steps: int, size: int) -> None:
    """The network calls of a run as the stock pipeline makes them."""
    empty: Callable[..., torch.Tensor] = partial(torch.empty, device="meta")
    latents, text, image = empty(1, 4, size, size), empty(1, 77, 768), empty(1, 3, 8 * size, 8 * size)
    pipe.scheduler.set_timesteps(steps)
    for t in pipe.scheduler.timesteps:
        down, middle = pipe.controlnet(latents, t, text, image, return_dict=False)
        pipe.unet(latents, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle)
        latents = empty(1, 4, size, size)
        pipe.scheduler.step(torch.zeros(1), t, torch.zeros(1))


def as_rows(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figures of a table by name."""
    return {
        row["name"]: {
            "times as fast": row["speedup"], "ceiling": row["ceiling"], "PSNR, dB": row["quality"]["psnr"],
            "worst": row["quality"]["worst"], "SSIM": row["quality"]["ssim"], "edge agreement": row["agreement"],
        }
        for row in rows
    }  # fmt: skip


@click.command()
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(["emoji", "shape"]), help="Only these; all by default."
)
@click.option(
    "--json", "file", type=click.Path(path_type=Path), help="Add to this file, and tables as Markdown beside it."
)
def command(parts: tuple[str, ...], file: Path | None) -> None:
    """What ControlCache gives for its cost."""
    torch.set_grad_enabled(False)
    known = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}
    known |= {"machine": asdict(machine()), "settings": {"steps": STEPS, "pictures": len(PROMPTS)}}
    if "emoji" in (parts or ["emoji"]):
        known["rows"] = emoji_control()
    if "shape" in (parts or ["shape"]):
        known["ceilings"] = shape_ceilings(SHAPE_STEPS)
    shape = f"Stable Diffusion 1.5 shape with a ControlNet, 64 x 64 latents, {SHAPE_STEPS} steps: ceilings"
    tables = {}
    if "rows" in known:
        tables[f"emoji-sd with emoji-control, {STEPS} steps, processor time"] = as_rows(known["rows"])
    tables |= {shape: known["ceilings"]} if "ceilings" in known else {}
    click.echo(markdown(tables))
    if file:
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(markdown(tables), encoding="utf-8")
