"""What rows stored is found again by their lanes, in whatever order and company they come."""

import pytest
import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.runtime.lanes import Block, Lane, LaneMemory, cat_rows, gather, scatter, select, take_rows

A, B, C, D = (Lane("g", name) for name in "abcd")


def block(*lanes: Lane, each: int = 1, note: int = 0) -> Block:
    """One number per lane: its letter's, so that rows can be told apart."""
    values = torch.tensor([float(ord(lane.place)) for lane in lanes]).repeat_interleave(each)
    return Block(tuple(lanes), [(values, note)])


def values(blocks: list[Block]) -> list[str]:
    return [chr(int(x)) for found in blocks for x in found.entries[0][0]]


def test_a_block_that_is_asked_for_as_it_was_stored_is_itself() -> None:
    memory, stored = LaneMemory(), block(A, B)
    memory.put([stored], 3)
    assert memory.take((A, B)) == [stored]
    assert memory.is_before((A, B), 4)
    assert not memory.is_before((A, C), 3)
    assert memory.is_before((C,), 0)  # nothing is stored for C
    assert memory.block_of(A) is stored


def test_other_orders_halves_and_strangers() -> None:
    memory = LaneMemory()
    memory.put([block(A, B, each=2), block(C, each=2)], 0)
    assert values(memory.take((B, A))) == list("bbaa")
    assert values(memory.take((C, A))) == list("ccaa")
    assert values(memory.take((B,))) == list("bb")
    found = memory.take((A, D, B))
    assert [len(b.lanes) for b in found] == [1, 1, 1]
    assert found[1].entries == []
    assert [b.lanes for b in found] == [(A,), (D,), (B,)]
    assert not memory.has((A, D))
    (together,) = memory.take((B, C))
    assert together.lanes == (B, C)
    assert values([together]) == list("bbcc")
    assert memory.take((B, C))[0] is together  # what was joined stays so
    assert memory.block_of(D) is None


def test_what_was_stored_at_other_calls_is_not_joined() -> None:
    memory = LaneMemory()
    memory.put([block(A, note=1)], 0)
    memory.put([block(B, note=2)], 1)
    assert [b.lanes for b in memory.take((A, B))] == [(A,), (B,)]
    memory.put([Block((C,), [(torch.ones(1), torch.ones(1))])], 2)  # a tensor where A has a number
    assert [b.lanes for b in memory.take((A, C))] == [(A,), (C,)]
    memory.put([Block((D,), [(torch.ones(1),)])], 3)
    assert [b.lanes for b in memory.take((C, D))] == [(C,), (D,)]


def test_merge_drop_and_keep() -> None:
    memory = LaneMemory()
    memory.put([block(A), block(B), block(C)], 0)
    memory.merge((A,), (D,), torch.add)  # nothing is known of D
    assert values(memory.take((A,))) == ["a"]
    memory.merge((A,), (B,), lambda own, other: 2 * other - own)
    assert values(memory.take((A,))) == ["c"]
    assert memory.lanes == [A, C]
    assert memory.nbytes() == 8
    memory.put([Block((B,), [None])], 0)  # nothing was computed there
    memory.merge((A,), (B,), torch.add)
    assert values(memory.take((A,))) == ["c"]
    memory.keep([C])
    assert memory.lanes == [C]
    memory.drop([C])
    assert (memory.nbytes(), memory.steps) == (0, {})


def test_rows_of_trees() -> None:
    x = torch.arange(6.0).reshape(6, 1)
    assert take_rows({"x": x, "one": torch.tensor(1.0)}, [2, 0], 3)["x"].flatten().tolist() == [4, 5, 0, 1]
    odd = torch.ones(4)
    assert take_rows(odd, [1], 3) is odd
    placeholder = torch.zeros(()).expand(6, 2)
    assert take_rows(placeholder, [1, 2], 3).stride() == (0, 0)
    assert cat_rows([placeholder, placeholder]).stride() == (0, 0)
    assert cat_rows([placeholder, torch.ones(1, 2)]).sum() == 2


def test_rows_of_inputs() -> None:
    values = {
        "x": torch.arange(2.0)[:, None],
        "t": torch.tensor(5.0),
        "prompt": torch.arange(4.0).reshape(4, 1, 1),  # two frames a row
        "img_ids": torch.arange(2),
        "names": ["a", "b"],
        "residuals": [torch.zeros(2, 1, 1), torch.ones(2, 1, 1)],
        "more": {"mask": torch.tensor([[3.0], [4.0]]), "ip_adapter_masks": [torch.zeros(1, 1), torch.ones(1, 1)]},
        "skip_layers": [7, 8],
    }
    found = select(Inputs(values, ("x", "t", "prompt")), [1], 2).values
    assert found["x"].tolist() == [[1.0]]
    assert found["t"] is values["t"]
    assert found["prompt"].flatten().tolist() == [2.0, 3.0]
    assert found["img_ids"] is values["img_ids"]
    assert found["names"] == ["b"]
    assert [r.shape[0] for r in found["residuals"]] == [1, 1]
    assert found["more"]["mask"].tolist() == [[4.0]]
    assert found["more"]["ip_adapter_masks"] is values["more"]["ip_adapter_masks"]  # one for each adapter
    assert found["skip_layers"] == [7, 8]
    pooled = {"x": torch.zeros(2, 1), "prompt": torch.zeros(4, 1)}  # no tokens: not a prompt repeated for frames
    assert select(Inputs(pooled, ("x", None, "prompt")), [1], 2).values["prompt"] is pooled["prompt"]
    residuals = [torch.arange(4.0)[:, None], torch.zeros(2, 1)]  # of two frames a row, as many as rows
    found = select(Inputs({"x": torch.zeros(2, 1), "residuals": residuals}, ("x", None, None)), [1], 2).values
    assert found["residuals"][0].flatten().tolist() == [2.0, 3.0]
    assert found["residuals"][1].shape == (1, 1)
    layers = {"x": torch.zeros(2, 1), "encoder_hidden_states_llama3": torch.arange(4.0).reshape(2, 2, 1, 1)}
    found = select(Inputs(layers, ("x", None, None)), [1], 2).values  # as many layers as rows
    assert found["encoder_hidden_states_llama3"].flatten().tolist() == [1.0, 3.0]
    numbers = {"x": torch.arange(2.0)}
    assert select(Inputs(numbers, ("x", None, None)), [1], 2).values["x"].tolist() == [1.0]


def test_outputs_are_put_back_in_order() -> None:
    late, early = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    assert scatter([(late, [0, 2]), (early, [1])]).flatten().tolist() == [0, 1, 2]
    assert scatter([((late, "extra"), [0, 2]), ((early, "other"), [1])])[1] == "extra"
    found = scatter([({"sample": late, "note": 1}, [0, 2]), ({"sample": early, "note": 2}, [1])])
    assert (found["sample"].flatten().tolist(), found["note"]) == ([0, 1, 2], 1)
    shared, other = torch.tensor(5.0), torch.zeros(3)
    assert scatter([(shared, [0, 2]), (torch.tensor(6.0), [1])]) is shared
    assert scatter([(other, [0, 2]), (torch.zeros(1), [1])]) is other  # a row more than it was given


def test_all_that_an_output_holds_of_rows_goes_with_them() -> None:
    both = {"sample": torch.arange(3.0), "sound": [torch.arange(3.0) + 5, None], "step": torch.tensor(1.0)}
    found = gather(both, [2, 0], 3)
    assert (found["sample"].tolist(), found["sound"][0].tolist(), found["sound"][1]) == ([2, 0], [7, 5], None)
    assert found["step"] is both["step"]
    assert gather((both["sample"], "words"), [1], 3)[1] == "words"
    back = scatter([(found, [2, 0]), (gather(both, [1], 3), [1])])
    assert (back["sample"].tolist(), back["sound"][0].tolist()) == ([0, 1, 2], [5, 6, 7])


def test_a_copy_is_written_to_without_a_trace() -> None:
    memory = LaneMemory()
    memory.put([block(A, B)], 3)
    copy = memory.copy()
    copy.put([block(A, note=1)], 4)
    copied = copy.block_of(B)
    assert copied is not None
    copied.entries[0] = None  # as an act does that keeps what it joined
    assert memory.steps == {A: 3, B: 3}
    assert values(memory.take((A, B))) == list("ab")


def test_rows_of_three_groups_come_back_to_their_places() -> None:
    """Places whose order is not its own inverse: 2, 0, 1."""
    outputs = [(torch.tensor([[2.0], [0.0]]), [2, 0]), (torch.tensor([[1.0]]), [1])]
    assert scatter(outputs).flatten().tolist() == [0, 1, 2]
    outputs = [(torch.tensor([[1.0]]), [1]), (torch.tensor([[2.0], [0.0]]), [2, 0])]
    assert scatter(outputs).flatten().tolist() == [0, 1, 2]


def test_rows_of_a_network_that_keeps_keys_and_values_of_all_are_not_taken_apart() -> None:
    kept = [{"compressed_cache": torch.zeros(2, 4, 8, 16)}]  # keys and values, rows, ...
    with pytest.raises(ValueError, match="keys and values of all its rows into kv_cache"):
        select(Inputs({"x": torch.zeros(4, 2), "kv_cache": kept}, ("x", None, None)), [0, 1], 4)
