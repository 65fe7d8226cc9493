"""Every cache of the package and every one of diffusers that runs, by what it executes: who is nearer at equal cost?

Cost is counted, not timed, so that the table is the same on a busy machine. Rows that were measured stay in the file: a
run that was cut short goes on where it was.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import diffusers
import torch
from benchmarks.peers import Attach
from benchmarks.quality import GUIDANCE, OWN
from benchmarks.tables import Tables, markdown

from diffaccel import (
    Aligned,
    BlockCache,
    DeepCache,
    DeltaCache,
    EasyCache,
    FeatureInheritance,
    IntervalCache,
    LearnedCache,
    MagCache,
    NetworkSwitch,
    PerPrompt,
    SeaFilter,
    SpeCa,
    Staged,
    Taylor,
    TeaCache,
    Uniform,
    accelerate,
    models,
)
from diffaccel._diffusers import stock_cache
from diffaccel.attach.macs import count_macs
from diffaccel.measure import Judge, captions, compare, machine
from diffaccel.methods import Method
from diffaccel.models import load

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"
BATCH, SEED = 4, 7
SLACK = 1.02  # what costs so much more still counts as equal
COMPUTES_ALL = 0.999  # from this share on a cache has reused nothing
UNITS = r"transformer_blocks\.\d+\.(attn1|attn2|ff)"
IN_UNET = ("down_blocks", "up_blocks", "mid_block")
FEWER = (0.7, 0.5, 0.35, 0.2)
THRESHOLDS = (0.1, 0.3)


def ours(model: str, steps: int) -> dict[str, tuple[Method, ...]]:
    """The methods of this package, each in several settings."""
    found = [(method,) for method in (_on_unet() if model == "emoji-sd" else _on_transformer(steps))]
    if model == "emoji-sd":
        found += [(NetworkSwitch("emoji-sd-small", until=u), DeepCache(3, forecast=Taylor(1))) for u in (0.2, 0.4)]
    return {" + ".join(method.to_text() for method in methods): methods for methods in found}


def _on_unet() -> list[Method]:
    slower = [PerPrompt(Uniform(n), Uniform(m)) for n, m in ((2, 4), (3, 6))]
    staged = [DeepCache(n, forecast=Taylor(1)) for n in (2, 4)]
    return [
        *(DeepCache(interval=n, forecast=f) for n in (2, 3, 5) for f in (None, Taylor(1))),
        *(DeepCache(schedule=s, forecast=Taylor(1)) for s in slower),
        *(FeatureInheritance(interval=2, forecast=f) for f in (None, Taylor(1))),
        *(EasyCache(threshold=t) for t in (0.1, 0.2)),
        *(NetworkSwitch("emoji-sd-small", until=u) for u in (0.2, 0.4, 0.6)),
        Staged(staged),
        Staged(staged[::-1]),
    ]


def _on_transformer(steps: int) -> list[Method]:
    mag, tea = (f"benchmarks/curves/emoji-dit-{name}.json" for name in ("magcache", "teacache"))
    files = ("harmonica", "l2c") if steps == 20 else ()
    learned = [LearnedCache(f"benchmarks/tuned/emoji-dit-{name}.json") for name in files]
    fair = (None, Taylor(1))
    return [
        *(IntervalCache(n, forecast=Taylor(order)) for n in (2, 3, 5) for order in (1, 2)),
        *(BlockCache(threshold=t, forecast=f) for t in (0.1, 0.3) for f in fair),
        BlockCache(threshold=0.3, forecast=Aligned()),
        *(MagCache(mag, threshold=t, forecast=Taylor(1)) for t in (0.06, 0.24)),
        *(TeaCache(tea, threshold=t, forecast=Taylor(1)) for t in (0.15, 0.4)),
        *(TeaCache(measure=SeaFilter(2.0), threshold=t, forecast=Taylor(1)) for t in (0.2, 0.4)),
        *(SpeCa(threshold=t) for t in (0.1, 0.3)),
        *(EasyCache(threshold=t) for t in (0.1, 0.2)),
        DeltaCache(2),
        *learned,
    ]


def theirs(model: str, pipe: Any, steps: int) -> dict[str, Any]:
    """Configurations of diffusers' own caches."""
    now: Callable[[], int] = lambda: _timestep(pipe)  # noqa: E731
    spans = {f"{kind}_attention_timestep_skip_range": (100, 950) for kind in ("spatial", "cross")}
    blocks = IN_UNET if model == "emoji-sd" else ("transformer_blocks",)
    pab = {f"{kind}_attention_block_identifiers": blocks for kind in ("spatial", "cross")}
    found: dict[str, Any] = {
        f"PyramidAttentionBroadcast {n}": diffusers.PyramidAttentionBroadcastConfig(
            n, None, n, current_timestep_callback=now, **spans, **pab
        )
        for n in (2,)
    }
    attentions = tuple(rf"^{block}.*attn1" for block in blocks)
    found |= {
        f"FasterCache {n}": diffusers.FasterCacheConfig(
            n, current_timestep_callback=now, tensor_format="BCHW", spatial_attention_block_identifiers=attentions,
            attention_weight_callback=lambda _: 0.5,
        )
        for n in (2,)
    }  # fmt: skip
    units = UNITS if model == "emoji-dit" else r".*(attn1|attn2|ff)"
    found |= {
        f"TaylorSeer {n}, order {order}": diffusers.TaylorSeerCacheConfig(
            cache_interval=n, disable_cache_before_step=2, max_order=order, taylor_factors_dtype=torch.float32,
            cache_identifiers=[units],
        )
        for n, order in ((2, 1), (3, 1), (3, 2), (5, 1))
    }  # fmt: skip
    if model == "emoji-sd":
        return found | {"FirstBlockCache 0.1": diffusers.FirstBlockCacheConfig(threshold=0.1)}
    ratios = json.loads((ROOT / "curves" / "emoji-dit-magcache.json").read_text())["ratios"]
    found |= {
        f"MagCache {t:g}": diffusers.MagCacheConfig(t, num_inference_steps=steps, mag_ratios=list(ratios))
        for t in (0.06, 0.24)
    }
    found |= {f"SeaCache {t:g}": diffusers.SeaCacheConfig(threshold=t) for t in (0.25,)}
    return found | {f"FirstBlockCache {t:g}": diffusers.FirstBlockCacheConfig(threshold=t) for t in THRESHOLDS}


def _timestep(pipe: Any) -> int:
    """The one at hand, as the scheduler has it; diffusers' PixArt pipeline keeps none itself."""
    index = pipe.scheduler.step_index
    return int(pipe.scheduler.timesteps[0 if index is None else min(index, len(pipe.scheduler.timesteps) - 1)])


class Workbench:
    """A model, some captions with their noise, and the pictures that they give with something attached."""

    def __init__(self, model: str, steps: int, few: bool, pictures: int) -> None:
        self.pipe, self.steps = load(model), steps
        self.pipe.set_progress_bar_config(disable=True)
        guidance = GUIDANCE
        if few:
            self.pipe.scheduler = diffusers.LCMScheduler.from_config(self.pipe.scheduler.config)
            self.pipe.load_lora_weights(models.path("emoji-lcm-lora"))
            guidance = 1.0
        self.settings = {"guidance_scale": guidance, "output_type": "pt", **OWN[model]}
        words = list(captions()[3 :: len(captions()) // pictures][:pictures])
        self.judge, self.words = Judge(captions()), words
        self.batches = [words[i : i + BATCH] for i in range(0, len(words), BATCH)]

        self.plain, self.whole = self._counted(nullcontext)
        with accelerate(self.pipe, EasyCache(threshold=0.0)) as handle:
            self.pictures(nullcontext)
            self.network = handle.report().macs_plain
        self.top1 = self.judge.accuracy(self.plain, self.words).top1

    def pictures(self, attach: Attach, steps: int | None = None) -> torch.Tensor:
        """Pictures ``(n, 3, H, W)``."""
        found = []
        for number, words in enumerate(self.batches):
            noise = [torch.Generator().manual_seed(SEED + BATCH * number + i) for i, _ in enumerate(words)]
            with attach():
                count = steps or self.steps
                found.append(self.pipe(words, generator=noise, num_inference_steps=count, **self.settings).images)
        return torch.cat(found)

    def _counted(self, attach: Attach) -> tuple[torch.Tensor, int]:
        """Pictures, and the multiply-accumulates of all, encoders and decoders among them."""
        found: list[torch.Tensor] = []
        macs = count_macs(lambda: found.append(self.pictures(attach)))
        return found[0], macs

    def measure(self, way: "Way") -> dict[str, Any]:
        """What one way costs, as a share of the plain network's multiply-accumulates, and what it gives."""
        if way.methods:
            with accelerate(self.pipe, *way.methods) as handle:
                drawn = self.pictures(nullcontext)
                share = 1 - handle.report().macs_saved
        elif way.config is not None:
            network = self.pipe.transformer if hasattr(self.pipe, "transformer") else self.pipe.unet
            drawn, macs = self._counted(partial(stock_cache, network, way.config))
            share = 1 - (self.whole - macs) / self.network
        else:
            drawn, share = self.pictures(nullcontext, way.steps), way.steps / self.steps
        quality = compare(drawn, self.plain)
        top1 = self.judge.accuracy(drawn, self.words).top1
        return {"whose": way.whose, "macs": share, "psnr": quality.psnr, "ssim": quality.ssim, "top1": top1}

    def ways(self, model: str) -> "list[Way]":
        """Everything to compare."""
        fewer = sorted({max(1, round(share * self.steps)) for share in FEWER} - {self.steps})
        return [
            *(Way(name, "diffaccel", methods=methods) for name, methods in ours(model, self.steps).items()),
            *(Way(name, "diffusers", config=c) for name, c in theirs(model, self.pipe, self.steps).items()),
            *(Way(f"{count} steps", "steps", steps=count) for count in fewer),
        ]


@dataclass(frozen=True)
class Way:
    """One way to run the pipeline: methods of this package, a cache of diffusers, or fewer steps."""

    name: str
    whose: str
    methods: tuple[Method, ...] = ()
    config: Any = None
    steps: int = 0


@click.command()
@click.option("--model", type=click.Choice(["emoji-sd", "emoji-dit"]), default="emoji-dit", show_default=True)
@click.option("--steps", type=int, default=20, show_default=True)
@click.option("--lcm", is_flag=True, help="With emoji-lcm-lora and its sampler, without guidance; emoji-sd alone.")
@click.option("--pictures", type=int, default=4, show_default=True)
@click.option("--only", help="Names that begin so.")
def command(model: str, steps: int, lcm: bool, pictures: int, only: str | None) -> None:
    """Likeness to the plain pipeline at equal multiply-accumulates, of all caches; goes on where it was stopped."""
    torch.set_grad_enabled(False)
    file = ROOT / f"equal-{model}{'-lcm' if lcm else ''}-{steps}.json"
    known = json.loads(file.read_text()) if file.exists() else {"rows": {}, "refused": {}}
    known |= {"model": model, "steps": steps, "lcm": lcm, "pictures": pictures, "machine": asdict(machine())}
    bench = Workbench(model, steps, lcm, pictures)
    known["top1"] = bench.top1
    for way in bench.ways(model):
        name = way.name
        if name in known["rows"] or name in known["refused"] or not name.startswith(only or ""):
            continue
        try:
            row = known["rows"][name] = bench.measure(way)
        except Exception as error:
            if way.whose != "diffusers" and not isinstance(error, ValueError):  # which says what does not fit
                raise
            known["refused"][name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            click.echo(f"refused {name}: {known['refused'][name]}")
        else:
            click.echo(f"{row['macs']:.3f} {row['psnr']:.1f} {name}")
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(page(known), encoding="utf-8")


def page(known: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = sorted(known["rows"].items(), key=lambda item: item[1]["macs"])
    shown = {name: _shown(row, known["rows"]) for name, row in rows}
    sampler = "LCM" if known["lcm"] else "the model's sampler"
    title = f"{known['model']}, {known['steps']} steps of {sampler}, {known['pictures']} pictures"
    tables: Tables = {title: shown}
    refused = {name: {"raised": reason} for name, reason in known["refused"].items()}
    both = tables | ({"Do not run": refused} if refused else {})
    command = f"python scripts/bench.py equal --model {known['model']} --steps {known['steps']}"
    head = (
        "# Caches at equal cost\n\n"
        f"`{command}{' --lcm' if known['lcm'] else ''}`. *MACs* are those of the network, counted, as a share of the "
        f"plain one's; *nearest rival* is the best of diffusers' own caches that takes at most {SLACK - 1:.0%}"
        " more. The "
        f"plain pictures show what was asked for to {known['top1']:.0%}.\n\n"
    )
    return head + markdown(both)


def _shown(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One row, and how much nearer to the plain pictures it is than its best rival of equal cost."""
    own = {"whose": row["whose"], "MACs": row["macs"], "PSNR": row["psnr"], "SSIM": row["ssim"], "top-1": row["top1"]}
    found = best_rival(row, rows) if row["whose"] != "diffusers" and row["macs"] <= COMPUTES_ALL else None
    if found is None:
        return own
    return own | {"nearest rival": found, "gain, dB": row["psnr"] - rows[found]["psnr"]}


def best_rival(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The best of diffusers' own caches of no higher cost."""
    allowed = [n for n, r in rows.items() if r["whose"] == "diffusers" and r["macs"] <= row["macs"] * SLACK]
    return max(allowed, key=lambda name: rows[name]["psnr"], default=None)
