"""`diffaccel train-cache`: learn which units of a transformer compute in which calls, for `LearnedCache`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import Grouped, HomePath, Number
from diffaccel.cli.model_options import MODEL_NAMES
from diffaccel.cli.result_files import check_result, folder_of, write_drawing
from diffaccel.cli.signals import interruptible
from diffaccel.cli.subject import RUN_OPTIONS, Subject, with_subject
from diffaccel.config.words import counted

if TYPE_CHECKING:
    from diffaccel.tune.router_training import TrainingPoint

DEFAULT_PROMPTS = 48


@click.command(
    "train-cache",
    cls=Grouped,
    groups={
        "The model": MODEL_NAMES,
        "What to train for": RUN_OPTIONS,
        "The objective": ("--objective", "--beta", "--threshold"),
        "The training": ("--runs", "--batch-size", "--learning-rate", "--refresh"),
        "Output": ("--output", "--picture", "--quiet", "--help"),
    },
    examples={
        "The model": "diffaccel train-cache --model sd3.safetensors --lora style=0.7 --prompts prompts.txt",
        "What to train for": "diffaccel train-cache --model emoji-dit --prompts prompts.txt --steps 20",
        "The objective": "diffaccel train-cache --model emoji-dit --objective l2c --beta 1e-3",
        "The training": "diffaccel train-cache --model emoji-dit --runs 500 --batch-size 4",
        "Output": "diffaccel train-cache --model emoji-dit -o routers.json --picture routers.svg",
    },
    short_help="Learn which units of a transformer compute in which calls.",
)
@partial(with_subject, default="emoji-dit")
@click.option(
    "--objective", type=click.Choice(["harmonica", "l2c"]), default="harmonica", show_default=True,
    help="Which published training to follow: HarmoniCa or Learning-to-Cache.",
)  # fmt: skip
@click.option("--beta", type=Number(0), help="Price of computing.  [default: as published, 7e-8 or 5e-6]")
@click.option(
    "--threshold", type=Number(0, 1, max_open=True), default=0.1, show_default=True,
    help="A unit computes where its weight is above.",
)  # fmt: skip
@click.option("--runs", type=click.IntRange(1), default=250, show_default=True, help="Sampling runs to train on.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures of a run.")
@click.option("--learning-rate", type=Number(0), default=0.05, show_default=True, help="Learning rate of AdamW.")
@click.option(
    "--refresh", type=click.IntRange(1), default=25, show_default=True,
    help="Runs between two estimates of each call's influence, and between two states that are written.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=HomePath(path_type=Path), default="routers.json", show_default=True, help="File to write."
)
@click.option("--picture", type=HomePath(path_type=Path), help="Draw the routers to this SVG file, too.")
def train_cache(subject: Subject, output: Path, picture: Path | None, runs: int, **options: Any) -> None:
    """Train routers for a transformer, a sampler, a number of steps and a guidance scale, and write them as JSON.

    Use them with accelerate(pipe, LearnedCache("routers.json")) or diffaccel generate --profile routers.json. The state
    of the training lies beside them as .safetensors: the same command goes on where it was stopped, and one with more
    --runs where it ended. Bundled models bring 48 prompts.
    """
    from tqdm import tqdm

    from diffaccel.tune import train_routers
    from diffaccel.tune.router_picture import to_svg

    check_result("--output", output, "routers.json")
    if picture is not None:
        check_result("--picture", picture, "routers.svg", beside=output)
    prompts, settings = subject.texts(DEFAULT_PROMPTS), subject.settings()
    bar = tqdm(total=runs, unit="run", disable=True if subject.quiet else None)

    def show(point: "TrainingPoint") -> None:
        bar.update(point.run - bar.n)
        bar.set_postfix_str(f"objective {point.loss:.2e}, {point.computed:.0%} compute")

    goes_on = f"the same command goes on from the state that is written every {counted(options['refresh'], 'run')}"
    with interruptible(goes_on), bar, folder_of(output):
        routers = train_routers(
            subject.load(prompts),
            prompts,
            seed=subject.seed,
            runs=runs,
            path=output,
            progress=show,
            **options,
            **settings,
        )
    if picture is not None:
        write_drawing(picture, to_svg(routers))
    computed = [len(calls) for calls in routers.computed().values()]
    share = sum(computed) / (len(computed) * routers.total)
    click.echo(f"{output}: {share:.1%} of {len(computed)} units in {routers.total} calls compute")
