"""Reliability of batch runs: rows 13 to 21 and 24 of the table in docs/batch.md, in full."""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
from bad_rows import write_rows
from PIL import Image

PICTURES = 120
PICTURES_TO_KILL = 400  # so many that every kill meets a run at work
Check = Callable[[str, Path, argparse.Namespace], str]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}  # pictures are the same to the bit for the same number of threads
SHORT_OF_MEMORY = Path(__file__).with_name("short_of_memory.py")


def command(model: str, out: Path, *more: str, count: int = PICTURES) -> list[str]:
    """The command under test: many quick pictures, one to a batch."""
    base = [sys.executable, "-m", "diffaccel", "generate", "a red heart", "--model", model, "--output", str(out)]
    return [*base, "--num-images", str(count), "--steps", "2", "--batch-size", "1", *more]


def run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRONMENT | environment)


def finish(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed."""
    done = run(words, **environment)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done


def start(words: list[str]) -> subprocess.Popen[str]:
    """Start a command, deaf to nothing: a background job would otherwise ignore Ctrl-C."""
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return subprocess.Popen(words, preexec_fn=listen, start_new_session=True, **pipes)


def pictures(out: Path) -> dict[str, bytes]:
    """Every picture's bytes; each must decode to its end."""
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}


def digest(files: dict[str, bytes]) -> str:
    """A hash of a set of files, names and contents."""
    return hashlib.sha256(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()[:12]


def wait_for(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until the folder holds so many pictures, or the process has ended."""
    while len(list(out.glob("*.png"))) < count and process.poll() is None:
        time.sleep(0.01)


def unbroken(model: str, place: Path, count: int = PICTURES) -> dict[str, bytes]:
    """The pictures of a run that nothing disturbed, rendered once."""
    out = place / f"unbroken-{count}"
    if not out.exists():
        finish(command(model, out, count=count))
    return pictures(out)


def check_kills(model: str, place: Path, options: argparse.Namespace) -> str:
    """Row 13. kill -9 at random moments: nothing torn, lost or done twice, the same bytes in the end."""
    expected, out, chance = unbroken(model, place, PICTURES_TO_KILL), place / "killed", random.Random(0)
    words = command(model, out, count=PICTURES_TO_KILL)
    for _ in range(options.kills):
        process = start(words)
        wait_for(process, out, len(list(out.glob("*.png"))) + chance.randrange(4))
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "a run ended before it was killed"
        pictures(out)
    finish(words)
    assert pictures(out) == expected
    done = [json.loads(line)["id"] for line in (out / "manifest.jsonl").read_text().splitlines() if line.endswith("}")]
    assert len(done) == len(set(done)) == len(expected), "a picture has two records"
    return f"{options.kills} kills, 0 torn, 0 lost, 0 twice, {len(expected)} pictures {digest(expected)} as unbroken"


def check_full_disk(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 14. A file system of 1 MiB, all but full: exit 1, a clear text, and the rest once there is room."""
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        (disk / "ballast").write_bytes(b"x" * 800 * 1024)
        done = run(command(model, disk / "out"))
        assert done.returncode == 1, done.returncode
        assert "No space left on device" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        kept = len(pictures(disk / "out"))
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(command(model, disk / "out"))
        assert pictures(disk / "out") == unbroken(model, place)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return f"exit 1 with {kept} whole pictures: {done.stderr.strip()!r}; then the rest"


def check_interrupts(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 15. Ctrl-C and SIGTERM end it with code 130 within five seconds; a second one, whenever it comes, at once."""
    cases = {"once": ([signal.SIGINT], 0.0), "term": ([signal.SIGTERM], 0.0)}
    pauses = (0.02, 0.1, 0.2, 0.5, 1.0)  # without one, two signals are one to the system
    cases |= {f"twice-{pause}": ([signal.SIGINT] * 2, pause) for pause in pauses}
    seconds = {name: interrupted(model, place, name, *case) for name, case in cases.items()}
    seconds["two processes"] = interrupted(model, place, "processes", [signal.SIGINT], 0.0, "--processes", "2")
    single = [taken for name, taken in seconds.items() if "twice" not in name]
    double = [taken for name, taken in seconds.items() if "twice" in name]
    assert max(single) <= 5, seconds
    assert max(double) <= 1, seconds
    return (
        f"130 within {max(single):.1f} s (Ctrl-C, SIGTERM, Ctrl-C at two processes), within {max(double):.2f} s of a "
        f"second Ctrl-C, {len(double)} times; resumed to the same files"
    )


def interrupted(model: str, place: Path, name: str, numbers: list[int], delay: float, *more: str) -> float:
    """Signal a run and its processes, as a terminal does; the seconds from the last signal to the end."""
    out = place / f"interrupted-{name}"
    process = start(command(model, out, *more))
    wait_for(process, out, 3)
    for index, number in enumerate(numbers):
        time.sleep(delay if index else 0)
        begin = time.monotonic()
        with suppress(ProcessLookupError):  # it may have ended of the first
            os.killpg(process.pid, number)
    errors = process.communicate()[1]
    seconds = time.monotonic() - begin
    assert process.returncode == 130, (name, process.returncode, errors)
    assert "Traceback" not in errors, errors
    finish(command(model, out))
    assert pictures(out) == unbroken(model, place)
    return seconds


def check_second_run(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 16. A second run into a folder in use is refused; the first goes on."""
    out = place / "shared"
    process = start(command(model, out))
    wait_for(process, out, 1)
    second = run(command(model, out))
    process.communicate()
    assert (process.returncode, second.returncode) == (0, 1)
    assert "another run holds" in second.stderr
    assert len((out / "manifest.jsonl").read_text().splitlines()) == PICTURES
    return "the second was refused, nothing done twice"


def check_large_input(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 17. 10,000 rows, 5 % repeated, 1 % bad: exact counts, exit 3, nothing outside, a dry run within 5 s."""
    home = place / "large"
    home.mkdir()
    write_rows(home / "rows.jsonl")
    base = [sys.executable, "-m", "diffaccel", "generate", str(home / "rows.jsonl"), "--model", model, "--steps", "1"]
    words = [*base, "--guidance-scale", "1", "--batch-size", "64", "-o", str(home / "out"), "--format", "json"]
    begin = time.monotonic()
    counts = json.loads(run([*words, "--dry-run"]).stdout)
    dry = time.monotonic() - begin
    assert (len(counts.pop("bad_rows")), counts.pop("notes")) == (100, [])
    assert counts == {"jobs": 9400, "todo": 9400, "bad": 100, "duplicates": 500}, counts
    done = run(words)
    assert done.returncode == 3, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    found = {name: figures[name] for name in ("done", "failed", "duplicates")}
    assert found == {"done": 9400, "failed": 100, "duplicates": 500}, found
    assert len(pictures(home / "out")) == 9400
    assert sorted(path.name for path in home.iterdir()) == ["out", "rows.jsonl"]
    again = json.loads(run(words).stdout)
    assert (again["done"], again["skipped"]) == (0, 9400), again
    assert dry <= 5, f"the dry run took {dry:.1f} s"
    return f"9400 done at {figures['images_per_second']:.0f} images/s, 100 failed, 500 repeated; dry run {dry:.1f} s"


def check_out_of_memory(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 18. The machine refuses memory for large batches: they are halved, and every picture is that of batch 1."""
    give_back = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # or glibc hoards the address space that is limited
    done = finish([sys.executable, str(SHORT_OF_MEMORY), model, str(place / "memory")], **give_back)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["done"] == figures["alone"] == 8, figures
    assert figures["sizes"][0] == 8, figures
    assert figures["sizes"][-1] < 8, figures
    assert all(larger >= smaller for larger, smaller in pairwise(figures["sizes"])), figures
    difference = spread(place / "memory" / "short", place / "memory" / "alone")
    assert difference <= 1, difference
    return f"batches of {figures['sizes']}, pictures within {difference} of 255 of batch 1"


def spread(one: Path, other: Path) -> int:
    """The largest difference of any pixel of any picture, in levels of 255."""
    names = sorted(path.name for path in one.glob("*.png"))
    assert names == sorted(path.name for path in other.glob("*.png"))
    read = lambda path: np.asarray(Image.open(path), dtype=np.int16)  # noqa: E731
    return max(int(np.abs(read(one / name) - read(other / name)).max()) for name in names)


def check_launchers(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 19. --processes, --shard and accelerate launch make the files that one process makes, in full batches too."""
    hashes = []
    for size in ("1", "8"):
        batch = ("--batch-size", size)
        one, parts, shards, ranks = (place / f"{name}-{size}" for name in ("one", "processes", "shards", "ranks"))
        finish(command(model, one, *batch))
        finish(command(model, parts, *batch, "--processes", "2"))
        for index in (0, 1, 2, 3):
            finish(command(model, shards, *batch, "--shard", f"{index + 1}/4"))
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]
        finish([*launcher, *command(model, ranks, *batch)[2:]])
        for out in (parts, shards, ranks):
            assert pictures(out) == pictures(one), f"{out.name}: {differences(out, one)}"
        hashes.append(digest(pictures(one)))
    return f"1 process, 2 processes, 4 shards, 2 launched ranks: {' and '.join(hashes)} (batch size 1 and 8)"


def differences(out: Path, other: Path) -> str:
    """What is not the same in two folders of pictures: files, pixels or only the settings inside."""
    found, expected = pictures(out), pictures(other)
    if found.keys() != expected.keys():
        return f"other files: {sorted(found.keys() ^ expected.keys())}"
    names = [name for name in found if found[name] != expected[name]]
    return f"{len(names)} of {len(found)} differ, by {spread(out, other)} of 255: {names[:10]}"


def check_ray(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 19. A local Ray with two actors, one of which is killed: the files of an unbroken run."""
    out = place / "ray"
    process = start(command(model, out, "--engine", "ray", "--processes", "2"))
    wait_for(process, out, 3)
    children = psutil.Process(process.pid).children(recursive=True)
    actors = [each for each in children if "RenderActor" in " ".join(each.cmdline())]
    assert actors, "no actor found to kill"
    actors[0].kill()
    errors = process.communicate()[1]
    assert process.returncode == 0, (process.returncode, errors[-2000:])
    assert pictures(out) == unbroken(model, place)
    return f"one of {len(actors)} actors killed, nothing lost: {digest(pictures(out))} as unbroken"


def check_damage(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 20. A manifest cut short and pictures cut short are noticed and rendered again."""
    expected, out = unbroken(model, place), place / "damaged"
    finish(command(model, out))
    manifest = out / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-700])
    first, second = list(out.glob("*.png"))[:2]
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    done = finish(command(model, out, "--format", "json"))
    assert pictures(out) == expected
    return f"{json.loads(done.stdout)['done']} rendered again, {digest(expected)} as unbroken"


def check_batches(model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 21. Batch size 8 against 1; a run in two parts against one."""
    unbroken(model, place)
    eight, parts = place / "eight", place / "parts"
    finish(command(model, eight, "--batch-size", "8"))
    for limit in ("40", str(PICTURES)):
        finish(command(model, parts, "--batch-size", "8", "--limit", limit))
    assert pictures(parts) == pictures(eight)
    equal = len(pictures(eight).items() & unbroken(model, place).items())
    difference = spread(eight, place / f"unbroken-{PICTURES}")
    assert difference <= 1
    return f"resumed: identical; 8 against 1: {equal} of {PICTURES} identical, the others within {difference} of 255"


def check_offline(_model: str, place: Path, _options: argparse.Namespace) -> str:
    """Row 24. Without a network (a namespace with none) and a home: every command's default works."""
    bare = ["unshare", "-n", "env", "-i", f"PATH={os.environ['PATH']}", f"HOME={place / 'nowhere'}"]
    base = [*bare, sys.executable, "-m", "diffaccel"]
    for words in (["generate", "a red heart", "-o", str(place / "offline")], ["models"], ["--help"]):
        done = run([*base, *words])
        assert (done.returncode, done.stderr) == (0, ""), (words, done.stderr)
    picture = next((place / "offline").glob("*.png"))
    for words in (["inspect", str(picture)], ["generate", "--from", str(picture), "-o", str(place / "again")]):
        done = run([*base, *words])
        assert (done.returncode, done.stderr) == (0, ""), (words, done.stderr)
    assert pictures(place / "again") == pictures(place / "offline")
    return "generate, models, inspect, generate --from"


CHECKS: dict[str, Check] = {
    "kill -9": check_kills,
    "full disk": check_full_disk,
    "interrupts": check_interrupts,
    "two runs, one folder": check_second_run,
    "10,000 rows": check_large_input,
    "out of memory": check_out_of_memory,
    "launchers": check_launchers,
    "ray": check_ray,
    "damage": check_damage,
    "batch sizes": check_batches,
    "offline": check_offline,
}
