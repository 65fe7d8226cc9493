"""`diffaccel tune`: a budget in, the best schedule for it out."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import Grouped, HomePath
from diffaccel.cli.model_options import MODEL_NAMES
from diffaccel.cli.result_files import check_result, folder_of
from diffaccel.cli.subject import RUN_OPTIONS, Subject, with_subject

if TYPE_CHECKING:
    from diffaccel.tune import Budget
    from diffaccel.tune.tuner import Tuned

DEFAULT_PROMPTS = 24


class _Tunable(click.IntRange):
    """Steps of which some may reuse, and some may not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Raises `click.UsageError` where it is too small."""
        steps = int(click.INT.convert(value, param, ctx))
        if self.min is not None and steps < self.min:
            raise click.UsageError(f"--steps: there is nothing to tune in fewer than {self.min} (got {steps})")
        return steps


@click.command(
    "tune",
    cls=Grouped,
    groups={
        "The model": MODEL_NAMES,
        "What to tune": RUN_OPTIONS,
        "The budget, one of": ("--min-psnr", "--min-ssim", "--max-time", "--max-macs", "--best-effort"),
        "The search": ("--runs", "--refine", "--small", "--output", "--quiet", "--help"),
    },
    examples={
        "The model": "diffaccel tune --model sd15.safetensors --lora style=0.7 --prompts prompts.txt --min-psnr 30",
        "What to tune": "diffaccel tune --model path/to/model --prompts prompts.txt --steps 20 --min-psnr 30",
        "The budget, one of": "diffaccel tune --max-macs 0.4",
        "The search": "diffaccel tune --max-macs 0.4 --runs 80 --refine -o profile.json",
    },
    short_help="Find the cheapest schedule for a quality, or the best for a cost.",
)
@partial(with_subject, steps=_Tunable(3))
@click.option("--min-psnr", type=float, help="Least PSNR to the plain pipeline's pictures, dB; the cheapest is sought.")
@click.option("--min-ssim", type=float, help="Least SSIM to those pictures; the cheapest is sought.")
@click.option("--max-time", type=float, help="Most seconds of one picture on this machine; the best is sought.")
@click.option(
    "--max-macs", type=float, help="Most multiply-accumulates, as a share of the plain network's; the best is sought."
)
@click.option(
    "-o", "--output", type=HomePath(path_type=Path), default="profile.json", show_default=True, help="File to write."
)
@click.option(
    "--runs", type=click.IntRange(10), default=40, show_default=True, help="Real runs of the search, at most."
)
@click.option(
    "--refine",
    is_flag=True,
    help="Refine the best schedule's blend weights by gradient; minutes more, and memory, told.",
)
@click.option("--small", metavar="NAME", help="A small network that may take a run's first calls, if that does better.")
@click.option("--best-effort", is_flag=True, help="Write the profile although the budget could not be met.")
def tune(
    subject: Subject,
    min_psnr: float | None,
    min_ssim: float | None,
    max_time: float | None,
    max_macs: float | None,
    output: Path,
    runs: int,
    refine: bool,
    small: str | None,
    best_effort: bool,
) -> None:
    """Tune a schedule for a model, a sampler and a budget, and write it as a profile.

    A third of the prompts is searched on, another chooses among the best found, the last confirms, each with noise of
    its own; bundled models bring 24. Use the profile with accelerate(pipe,
    Profile("profile.json")) or diffaccel generate --profile profile.json. Exit code 1: the budget cannot be met.
    """
    from diffaccel.tune import LIMITS, Budget, BudgetError, Refinement
    from diffaccel.tune import tune as search

    check_result("--output", output, "profile.json")
    budget = _budget(Budget, min_psnr=min_psnr, min_ssim=min_ssim, max_macs=max_macs, max_time=max_time)
    prompts, settings = subject.texts(DEFAULT_PROMPTS), subject.settings()
    options = {"seed": subject.seed, "runs": runs, "refinement": Refinement() if refine else None, "small": small}

    def say(text: str) -> None:
        subject.say(_as_typed(text, *LIMITS))

    try:
        tuned = search(subject.load(prompts), prompts, budget, **options, progress=say, **settings)
    except BudgetError as error:
        raise click.ClickException(_as_typed(str(error), budget.name)) from error
    _print(tuned)
    if not tuned.met and not best_effort:
        asked = _as_typed(str(budget), budget.name)
        missed = (
            f"nothing that saves work was found to hold {asked}" if budget.wants_quality else f"{asked} cannot be met"
        )
        click.echo(f"{missed}: the above is the closest found; --best-effort writes it", err=True)
        raise click.exceptions.Exit(1)
    with folder_of(output):
        tuned.save(output)
    fewer = f", for --steps {tuned.winner.steps}" if tuned.winner and tuned.winner.steps else ""
    evidence = tuned.recipe.evidence
    assert evidence is not None
    click.echo(f"{output}: {evidence.runs} real runs, {evidence.seconds:.0f} s{fewer}")


def _print(tuned: "Tuned") -> None:
    """Print what was found, and what it was held against."""
    from diffaccel.tune import to_text
    from diffaccel.tune.baselines import best

    evidence = tuned.recipe.evidence
    assert evidence is not None
    click.echo(to_text(tuned.recipe))
    click.echo(
        f"{evidence.macs:.1%} of the network's multiply-accumulates ({1 / evidence.macs:.2f}x at most), held out: PSNR "
        f"{evidence.psnr:.1f} dB, SSIM {evidence.ssim:.3f}"
    )
    if rival := best(list(tuned.fixed)):
        kind = "of no higher cost" if rival.score.macs <= tuned.score.macs else "within the budget"
        click.echo(f"best fixed setting {kind}: {rival.name}, {rival.score.macs:.1%}, {rival.score.psnr:.1f} dB")
    click.echo(f"different seeds (floor): PSNR {tuned.floor.psnr:.1f} dB, SSIM {tuned.floor.ssim:.3f}")
    if tuned.winner:
        click.echo(
            f"a fixed setting does better, and is the result: {tuned.winner.name}, {tuned.winner.score.macs:.1%}, "
            f"{tuned.winner.score.psnr:.1f} dB"
        )


def _budget(kind: "type[Budget]", **limits: float | None) -> "Budget":
    """The budget. Raises `click.UsageError` that names the options as they are typed."""
    try:
        return kind(**limits)
    except ValueError as error:
        raise click.UsageError(_as_typed(str(error), *limits)) from error


def _as_typed(text: str, *names: str) -> str:
    """A text in which options are named as they are typed: "--min-psnr 30"."""
    for name in names:
        text = text.replace(name, "--" + name.replace("_", "-"))
    return text
