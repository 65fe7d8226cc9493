"""Benchmarks: `python scripts/bench.py NAME`; each is a module in scripts/benchmarks with a click command `command`.

Ratios come from one interleaved run, so that a busy machine slows all candidates alike.
"""

import sys
from importlib import import_module
from pathlib import Path

import click

FOLDER = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(FOLDER.parent))


class Benchmarks(click.Group):
    """Finds commands by file name and imports only the one that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names of the modules that are benchmarks: those that define `command`."""
        return sorted(
            f.stem for f in FOLDER.glob("*.py") if "\ncommand = " in f.read_text() or "\ndef command(" in f.read_text()
        )

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of one module."""
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"benchmarks.{name}").command
        command.name = name
        return command


@click.command(cls=Benchmarks, help=__doc__)
def main() -> None:
    """Dispatch to a benchmark."""


if __name__ == "__main__":
    main()
