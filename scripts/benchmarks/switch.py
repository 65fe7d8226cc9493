"""When a small network is worth it: caches, fewer steps, a switch of networks, a switch with a cache, in one run."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from benchmarks.peers import Attach
from benchmarks.quality import BATCH, GUIDANCE, Run
from benchmarks.tables import Tables

from diffaccel import DeepCache, NetworkSwitch, Taylor, accelerate
from diffaccel.measure import Judge, captions, compare, interleaved
from diffaccel.methods import Method
from diffaccel.models import load

SMALL = "emoji-sd-small"
FEWER = (0.7, 0.5, 0.35)  # of the steps


def methods() -> dict[str, tuple[Method, ...]]:
    """The methods to compare."""
    cache = DeepCache(interval=3, forecast=Taylor(1))
    found: dict[str, tuple[Method, ...]] = {
        f"switch, until {u:g}": (NetworkSwitch(SMALL, until=u),) for u in (0.2, 0.4, 0.6, 1)
    }
    found |= {"DeepCache(3), Taylor(1)": (cache,)}
    return found | {f"switch, until {u:g}, and that cache": (NetworkSwitch(SMALL, until=u), cache) for u in (0.2, 0.4)}


def worth(rounds: int, steps: int) -> Tables:
    """Cost, speed, likeness and prompt accuracy on emoji-sd; *front*: nothing else is both cheaper and more alike.

    Args:
        rounds: interleaved rounds, each of which draws other captions.
        steps: sampling steps of the plain pipeline.
    """
    pipe = load("emoji-sd")
    pipe.set_progress_bar_config(disable=True)
    prompts = captions()[:: len(captions()) // (rounds * BATCH)]
    batches = [list(prompts[i * BATCH : (i + 1) * BATCH]) for i in range(rounds)]
    ways: dict[str, Attach] = {"plain": nullcontext}
    ways |= {name: partial(accelerate, pipe, *chosen) for name, chosen in methods().items()}
    runs = {name: Run("emoji-sd", pipe, steps, batches, attach) for name, attach in ways.items()}
    for share in FEWER:
        runs[f"plain, {round(share * steps)} steps"] = Run("emoji-sd", pipe, round(share * steps), batches, nullcontext)
    times = interleaved(runs, rounds, warmup=0)
    rows = {
        name: {"MACs": _share(run, steps), "speed": times[name].speedup(times["plain"])} for name, run in runs.items()
    }
    judge, truth = Judge(captions()), [caption for batch in batches for caption in batch]
    for name, run in runs.items():
        likeness = compare(run.all(), runs["plain"].all())
        rows[name] |= {"PSNR": likeness.psnr, "SSIM": likeness.ssim, "top-1": judge.accuracy(run.all(), truth).top1}
    for row in rows.values():
        row["front"] = "yes" if _is_front(row, rows) else ""
    return {f"emoji-sd and {SMALL}, {steps} steps, {rounds * BATCH} pictures, guidance {GUIDANCE}": rows}


def _share(run: Run, steps: int) -> float:
    """Multiply-accumulates of the denoisers in a run, divided by those of the plain one."""
    return run.settings["num_inference_steps"] / steps * (1 if run.report is None else 1 - run.report.macs_saved)


def _is_front(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether no other row is as cheap and as alike, and better in one of both."""
    return not any(
        other["MACs"] <= row["MACs"] and other["PSNR"] >= row["PSNR"] and other is not row
        and (other["MACs"], other["PSNR"]) != (row["MACs"], row["PSNR"])
        for other in rows.values()
    )  # fmt: skip
