"""Figures as Markdown tables."""

from collections.abc import Mapping
from typing import Any

FLOOR = "different seed (floor)"
"""Row of a table of likenesses: how far two seeds are apart; what is no nearer has kept the prompt alone."""
Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]  # title -> row -> column -> figure


def markdown(tables: Tables) -> str:
    """Each table under its title; a row without a figure has an empty cell."""
    return "\n".join(_table(title, rows) for title, rows in tables.items())


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One table."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"### {title}", "", f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {name} | {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for name, row in rows.items()
    ]
    return "\n".join([*lines, ""])


def _cell(value: Any) -> str:
    """A figure as printed."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
