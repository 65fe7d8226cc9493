"""Where the computed calls of a run lie, by the rules of schedules that favour some of its calls."""

import math
from functools import lru_cache


@lru_cache(maxsize=64)
def front_loaded_steps(total: int, interval: int, power: float) -> tuple[int, ...]:
    """Calls that `FrontLoaded` computes in a run of `total`: ceil(total / interval) distinct ones."""
    count = math.ceil(total / interval)
    steps: list[int] = []
    for k in range(count):
        steps.append(max(int(total * (k / count) ** power), steps[-1] + 1 if steps else 0))
    return tuple(steps)


@lru_cache(maxsize=64)
def quadratic_steps(total: int, interval: int, center: int, power: float) -> tuple[int, ...]:
    """Calls that `Quadratic` computes in a run of `total`.

    The power is lowered in steps of 0.02 until rounding leaves exactly ceil(total / interval) distinct calls.
    """
    wanted = math.ceil(total / interval)
    if wanted == total:
        return tuple(range(total))
    while power > 0:
        steps = {0, *(center + int(offset) for offset in _spaced(wanted, -center, total - center, power))}
        if len(steps) == wanted and min(steps) >= 0 and max(steps) < total:
            return tuple(sorted(steps))
        power -= 0.02
    raise ValueError(f"no quadratic schedule of {wanted} calls in {total} around center {center}: move the center")


def _spaced(count: int, low: int, high: int, power: float) -> list[float]:
    """`count - 1` points strictly between low and high, evenly spaced after v -> v ** (1 / power)."""
    start, end = complex(low) ** (1 / power), complex(high) ** (1 / power)
    return [((start + (end - start) * i / count) ** power).real for i in range(1, count)]
