"""The `diffaccel` command: parses, calls the library and prints. Nothing else in the package prints."""

import sys
from io import TextIOWrapper
from typing import Any

import click

from diffaccel import __version__
from diffaccel.cli.bench import bench
from diffaccel.cli.generate import generate
from diffaccel.cli.inspect import inspect
from diffaccel.cli.live import live
from diffaccel.cli.models import models
from diffaccel.cli.relevance import relevance
from diffaccel.cli.signals import INTERRUPTED
from diffaccel.cli.train_cache import train_cache
from diffaccel.cli.tune import tune
from diffaccel.cli.video import video


class BadInput(click.ClickException):
    """Input that the user has to change, as one sentence."""

    exit_code = 2


class Commands(click.Group):
    """Turns the library's errors into one sentence and an exit code: 2 for bad usage, 1 for anything fatal."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interrupt ends with code 130, as shells expect, and says what it says."""
        from diffaccel.batch.distribute import WorkerError
        from diffaccel.batch.readers import InputError
        from diffaccel.batch.store import StoreError
        from diffaccel.media.errors import DiskError, MediaError
        from diffaccel.models import ModelError

        try:
            return super().invoke(ctx)
        except (DiskError, StoreError, WorkerError) as error:
            raise click.ClickException(str(error)) from error
        except (InputError, MediaError, ModelError) as error:
            raise BadInput(str(error)) from error
        except TypeError as error:
            from diffaccel.networks import UnsupportedModelError  # which takes torch to import

            if isinstance(error, UnsupportedModelError):
                raise BadInput(str(error)) from error
            raise
        except KeyboardInterrupt as interrupt:
            click.echo(f"{'; '.join(filter(None, ('Interrupted', str(interrupt))))}.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffaccel")
def main() -> None:
    """Faster diffusers pipelines, with the price in quality measured."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a prompt may have letters that the terminal has not


for command in (bench, generate, inspect, live, models, relevance, train_cache, tune, video):
    main.add_command(command)
