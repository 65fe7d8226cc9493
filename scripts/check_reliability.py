"""Try to break a batch run, in full: real kills, a real full disk, interrupts, launchers. Prints one line a check.

python scripts/check_reliability.py batch [--model FOLDER_OR_NAME] [--kills 50]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from PIL import Image

PICTURES = 120
Check = Callable[[str, Path, argparse.Namespace], str]


def command(model: str, out: Path, *more: str) -> list[str]:
    """The command under test: many quick pictures, one to a batch."""
    base = [sys.executable, "-m", "diffaccel", "generate", "a red heart", "--model", model, "--output", str(out)]
    return [*base, "--num-images", str(PICTURES), "--steps", "2", "--batch-size", "1", *more]


def run(model: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(command(model, out, *more), capture_output=True, text=True, check=False)


def start(model: str, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start it, deaf to nothing: a background job would otherwise ignore Ctrl-C."""
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(model, out, *more), preexec_fn=listen, **pipes)


def pictures(out: Path) -> dict[str, bytes]:
    """Every picture's bytes; each must decode to its end."""
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def wait_for(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until the folder holds so many pictures, or the process has ended."""
    while len(list(out.glob("*.png"))) < count and process.poll() is None:
        time.sleep(0.01)


def unbroken(model: str, place: Path) -> dict[str, bytes]:
    """The pictures of a run that nothing disturbed, rendered once."""
    out = place / "unbroken"
    if not out.exists():
        assert run(model, out).returncode == 0
    return pictures(out)


def check_kills(model: str, place: Path, options: argparse.Namespace) -> str:
    """kill -9 at random moments: nothing torn, nothing lost, the same bytes in the end."""
    expected, out, chance = unbroken(model, place), place / "killed", random.Random(0)
    for _ in range(options.kills):
        process = start(model, out)
        wait_for(process, out, min(len(list(out.glob("*.png"))) + chance.randrange(1, 4), PICTURES))
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        pictures(out)
    assert run(model, out).returncode == 0
    assert pictures(out) == expected
    return f"{options.kills} kills, 0 torn, {len(expected)} pictures equal to the unbroken run's"


def check_interrupts(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Ctrl-C and SIGTERM end it with code 130 within five seconds."""
    slowest = 0.0
    for number in (signal.SIGINT, signal.SIGTERM):
        out = place / f"interrupted-{number}"
        process = start(model, out)
        wait_for(process, out, 3)
        begin = time.monotonic()
        process.send_signal(number)
        process.communicate()
        slowest = max(slowest, time.monotonic() - begin)
        assert process.returncode == 130, process.returncode
    assert slowest <= 5, f"took {slowest:.1f} s"
    return f"130 after {slowest:.1f} s"


def check_full_disk(model: str, place: Path, _options: argparse.Namespace) -> str:
    """A file system of 256 KiB: exit 1, a clear text, and the rest once there is room."""
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    try:
        done = run(model, disk / "out")
        assert done.returncode == 1, done.returncode
        assert "No space left on device" in done.stderr, done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run(model, disk / "out").returncode == 0
        assert pictures(disk / "out") == unbroken(model, place)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return "exit 1, then the rest"


def check_second_run(model: str, place: Path, _options: argparse.Namespace) -> str:
    """A second run into a folder in use is refused; the first goes on."""
    out = place / "shared"
    process = start(model, out)
    wait_for(process, out, 1)
    second = run(model, out)
    process.communicate()
    assert (process.returncode, second.returncode) == (0, 1)
    assert "another run holds" in second.stderr
    return "the second was refused"


def check_launchers(model: str, place: Path, _options: argparse.Namespace) -> str:
    """--processes, --shard and accelerate launch make the files that one process makes."""
    expected = unbroken(model, place)
    assert run(model, place / "processes", "--processes", "2").returncode == 0
    assert pictures(place / "processes") == expected
    for index in (1, 2, 3):
        assert run(model, place / "shards", "--shard", f"{index}/3").returncode == 0
    assert pictures(place / "shards") == expected
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launched = [*launcher, *command(model, place / "launched")[2:]]
    subprocess.run(launched, check=True, capture_output=True, env=environment)
    assert pictures(place / "launched") == expected
    return "2 processes, 3 shards, 2 launched ranks: equal"


def check_ray(model: str, place: Path, _options: argparse.Namespace) -> str:
    """A local Ray with two actors, one of which is killed: the files of an unbroken run."""
    out = place / "ray"
    process = start(model, out, "--engine", "ray", "--processes", "2")
    wait_for(process, out, 3)
    children = psutil.Process(process.pid).children(recursive=True)
    actors = [each for each in children if "RenderActor" in " ".join(each.cmdline())]
    actors[0].kill()
    process.communicate()
    assert process.returncode == 0, process.returncode
    assert pictures(out) == unbroken(model, place)
    return f"one of {len(actors)} actors killed, nothing lost"


CHECKS: dict[str, Check] = {
    "kill -9": check_kills,
    "interrupts": check_interrupts,
    "full disk": check_full_disk,
    "two runs, one folder": check_second_run,
    "launchers": check_launchers,
    "ray": check_ray,
}


def main() -> None:
    """Run the checks one after another; exit with 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["batch"])
    parser.add_argument("--model", default="emoji-sd")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", choices=list(CHECKS))
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as place:
        for name, check in CHECKS.items():
            if options.only in (None, name):
                try:
                    print(f"ok    {name}: {check(options.model, Path(place), options)}", flush=True)
                except (AssertionError, subprocess.CalledProcessError) as error:
                    failed = True
                    print(f"FAIL  {name}: {error}", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
