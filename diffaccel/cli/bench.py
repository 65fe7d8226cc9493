"""`diffaccel bench`: what each method costs and gives, on a page that explains itself."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import Grouped, HomePath
from diffaccel.cli.model_options import MODEL_NAMES
from diffaccel.cli.subject import RUN_OPTIONS, Subject, command_line, with_subject
from diffaccel.config.words import one_line

if TYPE_CHECKING:
    from diffaccel.measure.bench import Benchmark
    from diffaccel.measure.candidates import Candidate
    from diffaccel.measure.workload import Workload
    from diffaccel.methods import Method

UNET_METHODS = (
    "deepcache:interval=2",
    "deepcache:interval=3",
    "deepcache:interval=5",
    "deepcache:interval=3,branch=2",
    "deepcache:interval=3,forecast=taylor(1)",
    "encoderpropagation",
    "featureinheritance",
    "tgate",
    "textkvcache",
    "residualguidance",
    "residualguidance:renew=3,held=difference",
)
TRANSFORMER_METHODS = (
    "blockcache:threshold=0.1",
    "blockcache:threshold=0.3",
    "blockcache:threshold=0.3,forecast=taylor(1)",
    "intervalcache:interval=2",
    "intervalcache:interval=3",
    "intervalcache:interval=3,forecast=taylor(1)",
    "deltacache",
    "tgate",
    "textkvcache",
    "residualguidance",
    "residualguidance:renew=3,held=difference",
)
FILES = ("report.html", "report.json", "report.csv", "trace.json")
CALIBRATED_ALPHAS = (0.15, 0.3)


@click.command(
    "bench",
    cls=Grouped,
    groups={
        "The model": MODEL_NAMES,
        "What to measure on": RUN_OPTIONS,
        "What to compare": ("--methods", "--profile", "--fewer-steps", "--peers", "--rounds"),
        "What to write": ("--output", "--trace", "--quiet", "--help"),
    },
    examples={
        "The model": "diffaccel bench --model sd15.safetensors --lora style=0.7 --prompts prompts.txt",
        "What to measure on": "diffaccel bench --model path/to/model --prompts prompts.txt --steps 20",
        "What to compare": "diffaccel bench --methods deepcache:interval=3 --fewer-steps 10 --no-peers",
        "What to write": "diffaccel bench -o report --trace",
    },
    short_help="Measure methods: speed, quality, memory, energy; writes a report.",
)
@with_subject
@click.option(
    "--methods", "specs", multiple=True, metavar="SPEC",
    help="A method of docs/methods.md, or several joined by +; repeat.  [default: the usual ones for its network]",
)  # fmt: skip
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=HomePath(exists=True, dir_okay=False),
    help="A tuned profile to measure, too; repeat.",
)
@click.option(
    "--fewer-steps",
    multiple=True,
    type=click.IntRange(1),
    help="Steps of a plain run to compare; repeat.  [1/2, 1/3, 1/5]",
)
@click.option(
    "--peers/--no-peers", default=True, show_default=True, help="Compare other packages that are installed, too."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each is timed.")
@click.option("--trace", is_flag=True, help="Write a profiler's trace of one picture with the first method.")
@click.option(
    "-o", "--output", type=HomePath(path_type=Path), default="bench", show_default=True, help="Folder to write."
)
def bench(
    subject: Subject,
    specs: tuple[str, ...],
    profiles: tuple[str, ...],
    fewer_steps: tuple[int, ...],
    peers: bool,
    rounds: int,
    trace: bool,
    output: Path,
) -> None:
    """Measure caching methods on a model against the plain pipeline, fewer steps, and other packages.

    Writes report.html, a page that needs nothing else, report.json and report.csv.
    """
    from diffaccel import models
    from diffaccel.batch.store import explained
    from diffaccel.measure.bench import bench as measure
    from diffaccel.measure.candidates import PLAIN, ours
    from diffaccel.measure.workload import Workload

    if trace and specs and set(specs) == {"none"} and not profiles:
        raise click.UsageError(
            "--trace is of the first method, and there is none: name one with --methods or --profile"
        )
    _check_folder(output)
    tuned = _tuned(profiles)
    named = [_named(spec) for spec in dict.fromkeys(specs) if spec != "none"]
    workload = Workload(subject.texts(), (subject.seed,), subject.settings())
    pipe = subject.load(workload.prompts)
    own = [*(named if specs else _usual(pipe, workload)), *(ours(methods, name) for name, methods in tuned.items())]
    candidates = [PLAIN, *own, *_others(pipe, workload.settings["num_inference_steps"], fewer_steps, peers)]
    judge = subject.name in models.names("pipeline") and "emoji-clip" in models.names()
    result = measure(pipe, workload, candidates, rounds=rounds, judge=judge, progress=subject.say)
    with explained(output):
        _write(subject, result, tuned, output)
        if trace:
            _trace(pipe, workload, own[0], output / "trace.json")
    _print(result)
    click.echo(f"See {output / 'report.html'}")


def _check_folder(folder: Path) -> None:
    """Raise `StoreError` where a report cannot be written, or would replace files of others."""
    from diffaccel.batch.store import StoreError, check_writable

    check_writable(folder)
    with suppress(OSError, ValueError):
        if "different_seed_floor" in (folder / "report.json").read_text(encoding="utf-8"):
            return
    if there := next((name for name in FILES if (folder / name).exists()), None):
        raise StoreError(f"{folder} holds {there}, which is not of an earlier report: use another folder")


def _tuned(paths: tuple[str, ...]) -> "dict[str, tuple[Method, ...]]":
    """What the files of `--profile` ask for, each by its file's name, or by its path where two names are equal."""
    from diffaccel.methods import load_methods

    stems = [Path(path).stem for path in dict.fromkeys(paths)]
    found = {}
    for path, stem in zip(dict.fromkeys(paths), stems, strict=True):
        try:
            found[f"profile {stem if stems.count(stem) == 1 else path}"] = load_methods(path)
        except (OSError, ValueError) as error:
            raise click.UsageError(f"--profile: {error}") from error
    return found


def _named(spec: str) -> "Candidate":
    """What one `--methods` asks for."""
    from diffaccel.batch.settings import parse_cache, without_files
    from diffaccel.measure.candidates import ours

    try:
        return ours(parse_cache(without_files(spec)), spec)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--methods: {error}") from error


def _usual(pipe: Any, workload: "Workload") -> "list[Candidate]":
    """The usual methods for a pipeline's network; a calibrated one is among those of transformers."""
    from diffaccel.measure.candidates import calibrated

    if getattr(pipe, "transformer", None) is None:
        return [_named(spec) for spec in UNET_METHODS]
    return [*map(_named, TRANSFORMER_METHODS), *(calibrated(workload, alpha) for alpha in CALIBRATED_ALPHAS)]


def _others(pipe: Any, steps: int, fewer: tuple[int, ...], with_peers: bool) -> "list[Candidate]":
    """What methods are compared with."""
    from diffaccel.measure.candidates import fewer_steps, peers

    counts = tuple(dict.fromkeys(fewer)) or tuple(sorted({max(1, steps // n) for n in (2, 3, 5)}, reverse=True))
    return [*map(fewer_steps, counts), *(peers(pipe) if with_peers else [])]


def _write(subject: Subject, result: "Benchmark", tuned: "dict[str, tuple[Method, ...]]", output: Path) -> None:
    """The report."""
    from diffaccel.measure import machine
    from diffaccel.measure.page import Setting, write_report
    from diffaccel.methods import Profile
    from diffaccel.tune import to_svg

    drawings = {
        name: to_svg(method.loaded)
        for name, methods in tuned.items()
        for method in methods
        if isinstance(method, Profile)
    }
    settings = {"model": subject.name, "scheduler": subject.scheduler or "the model's", **subject.settings()}
    settings |= {"pictures": len(result.truth), "seed": subject.seed}
    setting = Setting(f"What speed costs on {subject.name}", command_line(), machine(), settings, drawings)
    write_report(output, result, setting)


def _trace(pipe: Any, workload: "Workload", candidate: "Candidate", path: Path) -> None:
    """A trace of one picture."""
    from diffaccel.measure.trace import write_trace

    one = workload.first()
    with candidate.attach(pipe):
        one.pictures(pipe)
        write_trace(lambda: one.pictures(pipe), path)


def _print(result: "Benchmark") -> None:
    """The table, as text."""
    from diffaccel.measure.page import share

    width = max(len("different seed"), *(len(row.name) for row in result.rows))
    click.echo(f"{'':{width}}  seconds  speed  ceiling   PSNR   SSIM  top-1")
    for row in result.rows:
        judged = f"{share(row.accuracy.top1, len(result.truth)):>6}" if row.accuracy else "     -"
        likeness = "     -      -" if row.kind == "plain" else f"{row.quality.psnr:6.1f}  {row.quality.ssim:5.3f}"
        speed = f"{row.timing.median:7.3f}  {row.speedup:4.2f}x  {row.ceiling:6.2f}x"
        click.echo(f"{row.name:{width}}  {speed} {likeness} {judged}")
    floor = f"{result.floor.psnr:6.1f}  {result.floor.ssim:5.3f}"
    click.echo(f"{'different seed':{width}}  {'':23} {floor}      -")
    for name, reason in result.failures.items():
        click.echo(f"left out: {name}: {one_line(reason)}", err=True)
