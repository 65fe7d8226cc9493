"""Where the time of a live tick goes, and how this version compares with another checkout, in one interleaved run.

The bundled model as `diffaccel live` runs it: two stages, self-negative guidance, 128 x 128 pixels, on one thread.
Times are processor seconds of that thread, which other programs on the machine hardly change; the ceiling is what a
large matrix product reaches in the same type on the same core.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

COMPILED = "here, compiled"
CODE = """
import json, sys, time
import numpy as np
import torch
torch.set_num_threads(1)
from diffaccel.realtime import protocol, settings as live
from diffaccel.realtime.controls import Controls
from diffaccel.media.repaint import to_pixels
given = json.loads(sys.argv[1])
controls = Controls(prompt="a green apple", strength=0.65, guidance_scale=1.4, similarity=False, cache=given["cache"])
where = {"device": "cpu", "dtype": given["dtype"], "compiled": given.get("compiled", False)}
settings = live.LiveSettings(**where, controls=controls)
settings = getattr(live, "quickest", lambda same: same)(settings)
pipe = live.load_pipeline(settings)
engine = live.open_engine(pipe, settings)
rows, columns = np.mgrid[:128, :128]
frames = []
for k in range(24):
    inside = (columns - 30 - 2 * k) ** 2 + (rows - 64) ** 2 < 26 ** 2
    frames.append(protocol.encode(np.where(inside[..., None], (220, 40, 60), (255, 255, 255)).astype(np.uint8)))
parts = {}
def timed(name, function):
    def run(*args, **kwargs):
        begin = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            parts[name] = parts.get(name, 0.0) + time.thread_time() - begin
    return run
engine._network.predict = timed("network", engine._network.predict)
engine._codec.encode = timed("autoencoder", engine._codec.encode)
engine._codec.decode = timed("autoencoder", engine._codec.decode)
protocol.decode, protocol.encode = timed("JPEG", protocol.decode), timed("JPEG", protocol.encode)
number = 0
def tick():
    global number
    frame = frames[number % 24]
    number += 1
    for output in engine.push(protocol.decode(frame)):
        shown.append(to_pixels(output.image))
        protocol.encode(shown[-1])
shown = []
for _ in range(6):
    tick()
def macs():
    from diffaccel.attach.macs import count_macs
    return count_macs(lambda: [tick() for _ in range(12)]) / 12
def ceiling(size=1024):
    a, b = (torch.randn(size, size, dtype=pipe.dtype) for _ in range(2))
    times = []
    for _ in range(6):
        begin = time.thread_time()
        a @ b
        times.append(time.thread_time() - begin)
    return size ** 3 / min(times)
def ticks(count):
    found = []
    for _ in range(count):
        parts.clear()
        begin = time.thread_time()
        tick()
        whole = time.thread_time() - begin
        found.append({**parts, "rest": whole - sum(parts.values()), "tick": whole})
    return found
def pictures():
    return [np.asarray(picture).tolist() for picture in shown[-4:]]
told = {"macs": macs, "ceiling": ceiling, "pictures": pictures, "dtype": lambda: str(pipe.dtype)}
for line in sys.stdin:
    word, _, count = line.strip().partition(" ")
    print("=" + json.dumps(ticks(int(count)) if word == "ticks" else told[word]()), flush=True)
"""


class Checkout:
    """A process that runs the ticks of one version of the package."""

    def __init__(self, folder: Path, **given: Any) -> None:
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-W", "ignore", "-c", CODE, json.dumps(given)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=folder
        )

    def ask(self, word: str) -> Any:
        """What it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(word, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("="):
                return json.loads(line[1:])
        raise click.ClickException("a process ended before it answered")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def compared(candidates: dict[str, Checkout], rounds: int, ticks: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a tick by part, the rate of frames that they allow, and the share of the ceiling."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, checkout in candidates.items():
            found[name] += checkout.ask(f"ticks {ticks}")
    result = {}
    for name, checkout in candidates.items():
        columns = {part: statistics.fmean(tick.get(part, 0.0) for tick in found[name]) for part in found[name][0]}
        ceiling = checkout.ask("ceiling")
        macs = result["here"]["GMAC"] * 1e9 if name == COMPILED else checkout.ask("macs")
        row = {f"{part} ms": 1000 * seconds for part, seconds in columns.items()}
        row |= {"frames/s": 1 / columns["tick"], "GMAC": macs / 1e9, "of ceiling": macs / columns["tick"] / ceiling}
        result[name] = row
    return result


@click.command(help=__doc__)
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another checkout.")
@click.option(
    "--compile", "compiled", is_flag=True, help="Measure the compiled network, too, as live --compile runs it."
)
@click.option("--rounds", default=6, show_default=True)
@click.option("--ticks", default=12, show_default=True, help="Ticks of a round: a multiple of the cache's interval.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here, too.")
def command(against: Path | None, compiled: bool, rounds: int, ticks: int, file: Path | None) -> None:
    """Measure, and print one line a candidate."""
    here = Path(__file__).parents[2]
    begin, figures = time.monotonic(), {}
    for cache in (1, 4):
        candidates = {"here": Checkout(here, cache=cache, dtype=None)}
        candidates["here, float32"] = Checkout(here, cache=cache, dtype="float32")
        if compiled:
            candidates[COMPILED] = Checkout(here, cache=cache, dtype=None, compiled=True)
        if against is not None:
            candidates["before"] = Checkout(against.resolve(), cache=cache, dtype=None)
        figures[f"cache {cache}"] = compared(candidates, rounds, ticks)
        for name in {"here", COMPILED} & set(candidates):
            figures[f"cache {cache}"][name]["dB to float32"] = likeness(candidates[name], candidates["here, float32"])
        for checkout in candidates.values():
            checkout.close()
    for title, rows in figures.items():
        click.echo(title)
        for name, row in rows.items():
            click.echo(f"  {name:14} " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()))
    click.echo(f"{time.monotonic() - begin:.0f} s")
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def likeness(one: Checkout, other: Checkout) -> float:
    """PSNR of the last pictures, in dB."""
    import numpy as np

    a, b = (np.array(checkout.ask("pictures"), float) for checkout in (one, other))
    return float(-10 * np.log10(np.square((a - b) / 255).mean() + 1e-12))
