"""How one timestep lies to the one before it, told without reading a device."""

from typing import Any

import pytest
import torch

from diffaccel.runtime.timesteps import calls_left, place_of, relation, value_of

TABLE = torch.linspace(900, 300, 4)


def related(timestep: Any, last: Any, direction: int = 0, wait: bool = False) -> tuple[str, int]:
    return relation(timestep, last, direction, wait=wait)


def test_places_are_those_of_elements_and_rows_of_a_longer_table() -> None:
    storage = TABLE.untyped_storage().data_ptr()
    assert place_of(TABLE[2]) == place_of(TABLE[2:3]) == place_of(TABLE[2].expand(5)) == (storage, 2)
    assert place_of(torch.ones(4, 3)[1])[1] == 3
    for alone in (torch.tensor(5.0), torch.ones(3), torch.tensor(5.0).expand(3), 5, None, "t"):
        assert place_of(alone) is None


def test_values_are_read_where_nobody_waits_for_them() -> None:
    assert value_of(torch.tensor([7.0, 8.0]), wait=False) == 7
    assert value_of(torch.tensor([[0.0, 8.0], [0.0, 4.0]]), wait=False) == 3
    assert value_of(3, wait=False) == 3
    for nothing in (torch.empty(0), torch.empty(2, device="meta"), None, "t"):
        assert value_of(nothing, wait=True) is None


@pytest.mark.parametrize(
    ("timestep", "last", "direction", "expected"),
    [
        (TABLE[1], TABLE[1], 0, ("same", 0)),
        (TABLE[1].expand(2), TABLE[1], 0, ("same", 0)),
        (TABLE[2], TABLE[1], 0, ("on", 0)),
        (TABLE[1], TABLE[2], 0, ("back", 0)),
        (TABLE.clone()[3], TABLE[1], -1, ("elsewhere", -1)),
        (700, 900, 0, ("on", -1)),
        (500, 700, -1, ("on", -1)),
        (900, 500, -1, ("back", -1)),
        (500, 500, -1, ("same", -1)),
        (0.4, 0.1, 0, ("on", 1)),
        (0.1, 0.4, 1, ("back", 1)),
        (torch.tensor(500.0), torch.tensor([700.0, 700.0]), -1, ("on", -1)),
        (torch.tensor(500.0), TABLE[1], -1, ("on", -1)),
        (torch.empty(1, device="meta"), torch.empty(1, device="meta"), -1, ("unknown", -1)),
        (None, 500, -1, ("unknown", -1)),
    ],
)
def test_relations(timestep: Any, last: Any, direction: int, expected: tuple[str, int]) -> None:
    assert related(timestep, last, direction) == expected


def test_the_same_tensor_is_the_same_timestep_wherever_it_lies() -> None:
    t = torch.empty(1, device="meta")
    assert related(t, t, 1) == ("same", 1)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (torch.zeros(7, 3)[0], 7),
        (torch.zeros(7, 3)[2], 5),
        (torch.zeros(7, 3, 2)[1], 6),
        (torch.zeros(3, 7)[:, 0], 7),
        (torch.zeros(3, 7)[:, 2], 5),
        (torch.zeros(7)[2].expand(3), 5),
        (torch.zeros(7)[2:3], 5),
        (torch.zeros(7, 3)[:, 1][0], None),
        (torch.zeros(2, 7, 3)[:, 1], None),
        (torch.zeros(7)[:2], None),
    ],
)
def test_calls_left_in_a_table_of_timesteps(first: torch.Tensor, expected: int | None) -> None:
    assert calls_left(first) == expected
