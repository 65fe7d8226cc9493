"""Cells of large tables: a few for every run of the tests, all of them before a release."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def cells(values: Iterable[Any], quick: Callable[[Any], bool], name: Callable[[Any], str] = str) -> list[Any]:
    """Parameters of a test, those that `quick` does not choose marked as exhaustive.

    Args:
        values: what the test takes; a tuple stands for several arguments.
        quick: whether a value belongs to the quick tests.
        name: what a value is called.
    """
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            id=name(value),
            marks=() if quick(value) else pytest.mark.exhaustive,
        )
        for value in values
    ]
