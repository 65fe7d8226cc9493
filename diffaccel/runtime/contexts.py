"""Which calls of a run may share features: those with the same conditioning, told from the inputs themselves.

Two calls belong to one context if they carry the same name, prompt and options; of several such calls in one sampling
step, the first one is one context, the second another. So a call whose meaning changes in mid-run, as where guidance
begins late, is never taken for the one that stood in its place.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from diffaccel.networks.inputs import Inputs

KNOWN = 32  # values that are compared one by one; older ones are forgotten
ALIKE = 4  # of them that are equal


@dataclass(frozen=True, eq=False)
class Seen:
    """A value that was given to a network.

    Attributes:
        value: a tensor or anything else; kept, so that no other tensor can take its place in memory.
        version: how often it had been written to.
        copy: of a tensor that does not count what is written to it.
    """

    value: Any
    version: int = 0
    copy: torch.Tensor | None = None

    @classmethod
    def of(cls, value: Any) -> Seen:
        """Take note of a value."""
        if not isinstance(value, torch.Tensor):
            return cls(value)
        return cls(value, copy=value.clone()) if value.is_inference() else cls(value, value._version)

    def is_same(self, other: Any) -> bool:
        """Whether `other` is the same object, or part of the same storage, and has not been written to since."""
        if not isinstance(other, torch.Tensor) or not isinstance(self.value, torch.Tensor):
            return type(other) is type(self.value) and bool(other == self.value)
        if not _is_alias(self.value, other):
            return False
        if other.is_inference():
            return self.copy is not None and torch.equal(self.copy, other)
        return other._version == self.version

    def is_equal(self, other: Any) -> bool:
        """Whether the value is equal to `other` by now; waits for the device."""
        one = self.value
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            return type(one) is type(other) and bool(one == other)
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and one.device.type != "meta" and torch.equal(one, other)


def _is_alias(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one, or lie in the same place in memory."""
    there = one.device == other.device and one.device.type != "meta"
    return one is other or (there and _place(one) == _place(other))


def _place(x: torch.Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory, and how."""
    return x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride(), x.dtype


class Numbers:
    """Gives values numbers: one for each list of values that differs from all that are known.

    Args:
        by_value: whether values that are equal count as the same, too. Comparing waits for the device, and is done only
            where none is the same object.
    """

    def __init__(self, *, by_value: bool) -> None:
        self._by_value = by_value
        self._known: deque[tuple[int, list[Seen]]] = deque(maxlen=KNOWN)
        self._next = 0

    def of(self, values: Sequence[Any]) -> int:
        """The number of some values."""
        if (found := self._find(values, Seen.is_same)) is not None:
            return found
        found = self._find(values, Seen.is_equal) if self._by_value else None
        if found is None:
            found, self._next = self._next, self._next + 1
        alike = [entry for entry in self._known if entry[0] == found]
        if len(alike) == ALIKE:
            self._known.remove(alike[0])
        self._known.append((found, [Seen.of(value) for value in values]))
        return found

    def _find(self, values: Sequence[Any], fits: Callable[[Seen, Any], bool]) -> int | None:
        """The number of the first known list whose values all fit these."""
        for number, known in self._known:
            if len(known) == len(values) and all(map(fits, known, values)):
                return number
        return None


@dataclass
class Contexts:
    """The contexts of one network in one run.

    Attributes:
        step: the sampling step at hand.
    """

    step: int = -1
    _prompts: Numbers = field(default_factory=lambda: Numbers(by_value=True))
    _constants: Numbers = field(default_factory=lambda: Numbers(by_value=False))
    _count: Counter[tuple[Hashable, ...]] = field(default_factory=Counter)

    def of(self, inputs: Inputs, name: str | None, step: int, *, peek: bool = False) -> Hashable:
        """The context of a call.

        Args:
            inputs: of the call.
            name: the context that the pipeline says it is in, if it does.
            step: index of the sampling step.
            peek: leave the count of calls as it is.
        """
        if step != self.step:
            self.step = step
            self._count.clear()
        key = (name, self.prompt(inputs), options_of(inputs), fingerprint(inputs.sample))
        ordinal = self._count[key]
        if not peek:
            self._count[key] += 1
        return (*key, ordinal)

    def prompt(self, inputs: Inputs) -> int:
        """A number for the conditioning, which changes whenever its values do."""
        prompt = inputs.conditioning
        return self._prompts.of([prompt] if isinstance(prompt, torch.Tensor) else tree_leaves(prompt))

    def control(self, inputs: Inputs) -> int:
        """A number for a ControlNet's control image, and for what it is told that the image shows."""
        return self._prompts.of(tree_leaves([inputs.conditioning, inputs.values.get("controlnet_mode")]))

    @property
    def most(self) -> int:
        """Most calls of one kind in the step at hand."""
        return max(self._count.values(), default=0)

    @property
    def too_many(self) -> bool:
        """Whether the step at hand has more prompts than are told apart, so that none is found again in the next."""
        return len(self._count) > KNOWN and len({prompt for _, prompt, *_ in self._count}) > KNOWN

    def constants(self, inputs: Inputs) -> int:
        """A number for everything that usually stays the same in a run, which changes whenever any of it does."""
        return self._constants.of(inputs.constants)


def options_of(inputs: Inputs) -> Hashable:
    """What the network is told to do: words and lists of numbers among the inputs.

    Such as the blocks to skip, or whether keys and values are to be kept for later calls or to be read.
    """
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in sorted(inputs.values.items())
        if isinstance(value, str)
        or (isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value))
    )


def fingerprint(sample: Any) -> Hashable:
    """What must not change between calls that share features: shape, dtype and device."""
    if isinstance(sample, torch.Tensor):
        return sample.shape, sample.dtype, sample.device
    if isinstance(sample, Sequence):
        return tuple(fingerprint(item) for item in sample)
    return type(sample).__name__
