"""Checks of single values; each raises ValueError that names the value and what is valid."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffaccel.config.words import did_you_mean

INFINITE = float("inf")


def check(condition: bool, problem: str) -> None:
    """Raise `ValueError(problem)` unless `condition` holds."""
    if not condition:
        raise ValueError(problem)


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that `value` is one of the words `choices`."""
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    check(value in choices, f"{name} must be one of {', '.join(choices)}; got {value!r}{hint}")


def weighted_pairs(given: Any, problem: str) -> tuple[tuple[Any, float], ...]:
    """A mapping to weights, or pairs with weights, as pairs. Raises TypeError(problem) for anything else."""
    try:
        pairs = given.items() if isinstance(given, Mapping) else given
        return tuple((item, float(weight)) for item, weight in pairs)
    except (TypeError, ValueError):
        raise TypeError(problem) from None


def weights(title: str, values: Sequence[float]) -> None:
    """Check that weights are finite and not negative, and that there is something to weigh."""
    fits = all(weight >= 0 for weight in values) and 0 < sum(values) < float("inf")
    check(fits, f"{title} must be finite, not negative, and sum to more than 0, not {list(values)}")


def listed(value: Any) -> tuple[Any, ...]:
    """The items of a list; what is no list is one item by itself."""
    if isinstance(value, str):
        return (value,)
    try:
        return tuple(value)
    except TypeError:
        return (value,)


def require_once(names: Iterable[str]) -> None:
    """Check that nothing is given twice."""
    for name, count in Counter(names).items():
        check(count == 1, f"{name} is given twice")


def flag(name: str, value: object) -> None:
    """Check that `value` is True or False."""
    check(isinstance(value, bool), f"{name} must be True or False, not {value!r}")


def whole(name: str, value: object, low: int, high: int | None = None, *, optional: bool = False) -> None:
    """Check that `value` is an integer in [low, high]; with `optional` None will do, too."""
    if optional and value is None:
        return
    limits = f">= {low}" if high is None else f"in {low}..{high}"
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    check(fits, f"{name} must be an integer {limits}; got {value!r}")


def number(name: str, value: object, low: float, high: float = INFINITE) -> None:
    """Check that `value` is a finite number in [low, high]."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    limits = f"{'[' if low > -INFINITE else '('}{low}, {high}{']' if high < INFINITE else ')'}"
    kind = "a finite number" if (low, high) == (-INFINITE, INFINITE) else f"a number in {limits}"
    check(fits and abs(value) < INFINITE, f"{name} must be {kind}; got {value!r}")  # type: ignore[arg-type]
