"""Help in groups: the options of a command under headings, each with an example of its use."""

import math
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource


def declared(options: Iterable[Callable[..., Any]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command these options, in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(tuple(options)):
            function = option(function)
        return function

    return decorate


def refuse(context: click.Context, names: Container[str], why: str) -> None:
    """Refuse options that were typed and that the rest of the command line leaves without an effect.

    Args:
        names: of the options, as click knows them.
        why: what to say behind the option.
    """
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(str(option.name)) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{max(option.opts, key=len)} {why}")


def of_option(problem: str) -> click.UsageError:
    """What is wrong with a setting, whose name the problem begins with, as what is wrong with its option."""
    setting, colon, words = problem.partition(": ")
    return click.UsageError(f"--{setting.replace('_', '-')}{colon}{words}")


class HomePath(click.Path):
    """A path whose `~` is the home folder: shells leave it as it is in `--output=~/pictures`, and in quotes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 (pathlib's raises)


class Number(click.FloatRange):
    """A number within limits: neither infinite nor NaN, which click lets pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """Nothing where there are no limits: click would say x<=None."""
        return "" if self.min is None and self.max is None else super()._describe_range()


class Grouped(click.Command):
    """A command whose help shows its options in groups.

    Args:
        groups: names of options as they are typed, by a heading; those that none names follow under "More options".
        examples: a command line by a heading.
    """

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Sequence[str]],
        examples: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups = dict(groups)
        self.examples = dict(examples or {})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups one after another."""
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        left = {max(option.opts, key=len): option for option in options}
        for title, names in self.groups.items():
            self._write(title, [left.pop(name) for name in names if name in left], ctx, formatter)
        self._write("More options", list(left.values()), ctx, formatter)

    def _write(
        self, title: str, options: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
        if not records:
            return
        with formatter.section(title):
            if title in self.examples:
                formatter.write_text(self.examples[title])
                formatter.write_paragraph()
            formatter.write_dl(records)
