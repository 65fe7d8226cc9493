"""Extension: attentions see the keys and values of earlier frames of a video beside those of their own call.

A lane is a video, under one prompt. What attentions made of its frames is kept in rings; a call reads from them, and
one that commits writes into them once the network has returned. Keys are kept as they are before rotation, so that
their positions may be counted from the oldest frame that is seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffaccel.networks.causal import CausalLayout, rotated
from diffaccel.runtime.act import Act, Part, PartState, Place
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.runtime.kept_frames import KeyValueWindow, Visible, write_frames
from diffaccel.runtime.lanes import Block, Lane, LaneMemory, Lanes, Span
from diffaccel.runtime.trees import detached

HELD_TOGETHER = 2  # calls whose windows are held at once: those of guidance in two calls
Rotary = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ExtendKeyValues(Act):
    """Let frames see earlier ones.

    Attributes:
        layout: where frames meet in the network.
        context: what they see.
        whole: whether all attentions must run in a call that commits; else one in which another act passes some of them
            by leaves what is kept as it is.
    """

    exclusive: ClassVar[bool] = False

    layout: CausalLayout
    context: CausalContext
    whole: bool = True

    @property
    def modules(self) -> tuple[str, ...]:
        """The attentions, and the modules where frames learn their positions."""
        return (*self.layout.positions, *self.layout.attention)

    @property
    def slots(self) -> int:
        """Keys and values of each attention, and which frames they are of."""
        return len(self.layout.attention) + 1

    def state(self, part: Part) -> ExtendState:
        """Of its own kind: it commits only in calls that say so."""
        return ExtendState(part, self)

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """One for each module."""
        assert isinstance(state, ExtendState)
        kinds: dict[str, Callable[..., Place]] = {"output": _Numbered, "input": _NumberedInput, "rotary": _Turned}
        for name in self.layout.positions:
            yield name, kinds[self.layout.entry](state, model.get_submodule(name))
        for slot, name in enumerate(self.layout.attention):
            yield name, _Attention(state, slot, model.get_submodule(name))


class ExtendState(PartState):
    """The frames of a call, and what its rows see of earlier ones.

    Attributes:
        rows, frames: how the call's rows are videos of so many frames each.
        numbers: positions of the call's frames, ``(1 or rows, frames)``.
        all_numbers: those of the frames that are seen and of the call's, ``(1 or rows, past + frames)``.
        visible: what each row sees.
        pending: by attention, the keys and values of the call, if it commits.
        rotary: what positions turn keys and queries by in this call.
    """

    def __init__(self, part: Part, act: ExtendKeyValues) -> None:
        super().__init__(part)
        self.act, self.context = act, act.context
        self.rows = self.frames = 0
        self.spans: tuple[Span, ...] = ()
        self.own: Lanes = ()
        self.kept = LaneMemory()
        self.visible: list[Visible] = []
        self.numbers = self.all_numbers = torch.zeros(1, 0, dtype=torch.long)
        self.pending: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rotary: Rotary | None = None
        self._windows: OrderedDict[Lanes, tuple[Hashable, dict[int, KeyValueWindow]]] = OrderedDict()

    @property
    def commits(self) -> bool:
        """Whether any row of the call commits."""
        return any(span.commits for span in self.spans)

    @property
    def past(self) -> int:
        """Most frames that a row of the call sees."""
        return max(len(seen.frames) for seen in self.visible)

    def prepare(self, own: Lanes, kept: LaneMemory, *, compute: bool, spans: Sequence[Span] = (), **_: Any) -> None:
        """Prepare for a call: find out what its rows see, and where all frames stand.

        Raises:
            ValueError: for positions that the network does not have.
        """
        if len({span.frames for span in spans}) != 1 or len(spans) != len(own):
            raise ValueError("rows of a call that extends keys and values show as many frames each: say so with spans=")
        self.own, self.kept, self.compute, self.spans = own, kept, compute, tuple(spans)
        self.rows, self.frames, self.rotary = len(own), spans[0].frames, None
        self.pending.clear()
        found = [kept.block_of(lane) for lane in own]
        records = [None if block is None else block.entries[-1] for block in found]
        self.visible = [
            Visible(() if record is None else self.context.seen(record.frames, span.first), record)
            for record, span in zip(records, spans, strict=True)
        ]
        if self.act.layout.positions:
            self._number()
        pairs = zip(self.visible, spans, strict=True)
        version = tuple((seen.version, span.first, span.frames) for seen, span in pairs)
        if self._windows.get(own, (None,))[0] != version:
            self._windows[own] = version, {}
        self._windows.move_to_end(own)
        while len(self._windows) > HELD_TOGETHER:
            self._windows.popitem(last=False)

    def _number(self) -> None:
        """Positions of all frames; rows that see fewer than others have them to the right."""
        layout, past = self.act.layout, self.past
        numbering = self.context.numbering(layout)
        own = [list(range(span.first, span.first + span.frames)) for span in self.spans]
        seen = [[0] * (past - len(each.frames)) + list(each.frames) for each in self.visible]
        if numbering == "relative":
            all_numbers = [list(range(past + self.frames))]
        else:
            all_numbers = [before + after for before, after in zip(seen, own, strict=True)]
        if all(each == all_numbers[0] for each in all_numbers):
            all_numbers = all_numbers[:1]
        whole = torch.tensor(all_numbers)
        if numbering == "cyclic":
            whole = whole % layout.length
        highest = int(whole.max())
        if highest >= layout.length:
            raise ValueError(
                f"frame {self.spans[0].first} stands at position {highest}, and {layout.model} has {layout.length} of "
                f"them: give positions='{'cyclic' if layout.baked else 'relative'}' and a window, or end the video"
            )
        self.all_numbers, self.numbers = whole, whole[:, past:]

    def window(self, slot: int, key: torch.Tensor) -> KeyValueWindow:
        """Keys and values that an attention's queries meet, with room behind them for those of this call."""
        held = self._windows[self.own][1]
        if slot in held:
            return held[slot]
        blocks = [self.kept.block_of(lane) for lane in self.own]
        rings = [None if block is None else block.entries[slot] for block in blocks]
        window = KeyValueWindow.gathered(rings, self.visible, self.past, key)
        if self.rotary is not None and self.past:
            window.turn_past(self.rotary)
        if not (self.context.offload or self.commits):  # the next call sees other frames
            held[slot] = window
        return window

    def mask(self, places: int, tokens: int, device: torch.device) -> torch.Tensor | None:
        """Which keys there are, ``(rows * places, 1, 1, keys)``, where rows see unequally many frames."""
        counts = [len(seen.frames) for seen in self.visible]
        if min(counts) == self.past:
            return None
        there = torch.arange(self.past + self.frames)[None] >= self.past - torch.tensor(counts)[:, None]
        return there.repeat_interleave(tokens, 1).repeat_interleave(places, 0)[:, None, None].to(device)

    def commit(self, kept: LaneMemory) -> None:
        """Write the frames of the rows that commit, now that the network has returned.

        Raises:
            RuntimeError: where an attention was passed by, so that there is nothing to write.
        """
        if not self.commits:
            return
        missing = len(self.act.layout.attention) - len(self.pending)
        if missing and not self.act.whole:
            return
        if missing:
            raise RuntimeError(f"{missing} attentions did not run in a call that commits: compute it in full")
        written: dict[Lane, list[Any]] = {}
        for row, (own, span) in enumerate(zip(self.own, self.spans, strict=True)):
            if span.commits:
                pairs = [tuple(x[self._of(row, x)] for x in self.pending[slot]) for slot in range(self.act.slots - 1)]
                for lane in (own, *span.also):
                    block = kept.block_of(lane)
                    entries = written.get(lane, None if block is None else block.entries)
                    written[lane] = write_frames(entries, pairs, span, self.context)
        kept.put([Block((lane,), entries) for lane, entries in written.items()], 0)
        self.pending.clear()

    def _of(self, row: int, value: torch.Tensor) -> slice:
        """The places of a row."""
        places = value.shape[0] // self.rows
        return slice(row * places, (row + 1) * places)

    def window_bytes(self) -> int:
        """Bytes of the windows that are held beside the rings."""
        return sum(window.nbytes() for _, held in self._windows.values() for window in held.values())

    def forget_windows(self) -> None:
        """Let go of what is held beside the rings."""
        self._windows.clear()


class _Attention(Place):
    """An attention whose keys and values are those of its own frames and of the earlier ones."""

    def __init__(self, state: ExtendState, slot: int, attn: torch.nn.Module) -> None:
        self.state, self.slot, self.attn = state, slot, attn

    @property
    def apart(self) -> bool:
        """Other callers' frames are none of this one's."""
        return True

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG002
        """The extended attention in the module's stead."""
        return self._attend

    def _attend(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """As the module's forward; it is given no other states, and any mask is of the call's own frames."""
        state, heads = self.state, self.state.act.layout.heads[self.slot]
        if encoder_hidden_states is not None:
            raise ValueError("an attention between frames was given other states than theirs")
        _check_mask(attention_mask)
        query, key, value = heads.project(self.attn, hidden_states, state.rows, state.frames)
        if state.commits:
            state.pending[self.slot] = detached(key), detached(value)
        places, tokens = key.shape[0] // state.rows, key.shape[3]
        query, own = query.flatten(2, 3), key.flatten(2, 3)
        if state.rotary is not None:
            turn = tuple(part[:, state.past * tokens :] for part in state.rotary)
            query, own = rotated(query, turn), rotated(own, turn)  # type: ignore[arg-type]
        keys, values = state.window(self.slot, key).with_own(own, value.flatten(2, 3))
        joined = heads.attend(self.attn, query, keys, values, state.mask(places, tokens, key.device))
        return heads.output(self.attn, joined, state.rows, state.frames)


def _check_mask(mask: Any) -> None:
    """Refuse a mask that hides frames of a chunk from each other."""
    if mask is not None and not bool(torch.as_tensor(mask).all()):
        raise ValueError(
            "the network hides frames of a chunk from each other: give chunks of as many frames as one of its blocks "
            "has (num_frame_per_block)"
        )


class _Numbered(Place):
    """A module that adds positions to what it gets: those of the frames, in place of the first ones."""

    def __init__(self, state: ExtendState, module: torch.nn.Module) -> None:
        table = state.act.layout.table
        assert table is not None
        self.state, self.table, self.module = state, table, module

    def added(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states ``(rows * frames * places, 1, channels)`` with positions."""
        state = self.state
        table = self.table(self.module)
        rows = table.to(hidden_states)[state.numbers.to(table.device)][:, :, None]  # (1 or rows, frames, 1, channels)
        split = hidden_states.reshape(state.rows, state.frames, -1, hidden_states.shape[-1])
        return (split + rows).reshape(hidden_states.shape)

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG002
        """Add in the module's stead."""
        return self.added


class _NumberedInput(_Numbered):
    """A module whose input gets the positions."""

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The hidden states, which come first."""
        return (self.added(args[0]), *args[1:]), kwargs

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The module runs."""
        return forward


class _Turned(Place):
    """A module that tells attentions what to turn keys and queries by, from the shape of latents alone."""

    def __init__(self, state: ExtendState, module: torch.nn.Module) -> None:  # noqa: ARG002
        self.state = state

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Ask it for as many frames as there are positions, and pick those that are needed."""

        def turned(hidden_states: torch.Tensor) -> Rotary:
            state = self.state
            rows, channels, _, height, width = hidden_states.shape
            count = int(state.all_numbers.max()) + 1
            shaped = hidden_states.new_zeros(()).expand(rows, channels, count, height, width)  # takes no storage
            numbers = state.all_numbers.to(hidden_states.device)
            cos, sin = (
                # (1, count * tokens, 1, head_dim) -> (1 or rows, (past + frames) * tokens, 1, head_dim)
                part.unflatten(1, (count, -1))[0][numbers].flatten(1, 2)
                for part in forward(shaped)
            )
            state.rotary = cos, sin
            return state.rotary

        return turned
