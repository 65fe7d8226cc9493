"""What rows gathered since they computed."""

import torch

from diffaccel.runtime.lanes import Lane
from diffaccel.runtime.memory import PartMemory

ROWS = (Lane("run", 0), Lane("run", 1))


def test_a_copied_memory_knows_what_rows_gathered_and_leaves_no_trace() -> None:
    memory = PartMemory()
    memory.drift.note(ROWS, torch.tensor([[1.0], [2.0]]))
    memory.drift.set(ROWS, torch.tensor([0.25, 0.5]))
    copy = memory.copy()
    copy.drift.add(ROWS, torch.tensor([[2.0], [2.0]]), together=False, rescaled=lambda change: change)
    assert copy.drift.known(ROWS) == [1.25, 0.5]
    assert memory.drift.known(ROWS) == [0.25, 0.5]
    assert memory.drift.latest[ROWS[0]].item() == 1.0
    copy.drift.restart(ROWS)
    assert (copy.drift.known(ROWS), memory.drift.known(ROWS)) == ([0.0, 0.0], [0.25, 0.5])
