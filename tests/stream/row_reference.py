"""What a slot cache must give, without our hooks: rows go through the network one by one, each with memory of its own.

On a row that reuses, torch's forward hooks override what the named modules return (or take in) by what the row's lane
kept: all modules still run. Nothing of the package's runtime is used; names of modules and rules are listed by hand.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from token_reference import means
from transformer_reference import PROMPT_FIRST, extrapolate


@dataclass(frozen=True)
class Rule:
    """What a method does, said once more.

    Attributes:
        modules: names of the modules that are replayed; of blocks in their order where `form` is "residual".
        computes: from the count of the call (ticks by stage, stages by frame) to whether it computes.
        form: "output" replays outputs, "input" the first half of the channels that a module is given, "residual" what
            each block added; "network" moves the whole prediction with the input, as EasyCache does; "pooled" replays
            nothing: the modules are given means of 2 x 2 tokens in every call.
        order: of the Taylor expansion.
        front: blocks that always run and are measured, with `threshold` to their relative change.
        skipped: from the count of the call to the places of the blocks that are skipped, where they change.
        probe: name of the attention whose input is measured: its changes add up to `threshold`.
        negative: the same as `computes` for rows that see the negative prompt, where that differs.
        check: whether the last block runs always, and how far it is from its forecast decides about the next call.
    """

    modules: Callable[[torch.nn.Module], list[str]]
    computes: Callable[[int], bool]
    form: str = "output"
    order: int = 0
    front: int = 0
    threshold: float = 0.0
    skipped: Callable[[int, int], range] | None = None
    probe: Callable[[torch.nn.Module], str] | None = None
    check: bool = False
    negative: Callable[[int], bool] | None = None


@dataclass
class Kept:
    """What one lane kept: for each module a history of (count, values), and what the front blocks added."""

    histories: dict[str, list[tuple[int, list[Any]]]] = field(default_factory=dict)
    front: torch.Tensor | None = None
    calls: int = 0
    latest: torch.Tensor | None = None
    x: torch.Tensor | None = None
    v: torch.Tensor | None = None
    rate: float | None = None
    expected: float = 0.0


class RowByRow:
    """Takes the place of an engine's denoiser.

    Args:
        engine: a stream without a cache.
        rule: what is replayed.
        key: "stage" or "frame".
    """

    def __init__(self, engine: Any, rule: Rule, key: str) -> None:
        self.engine, self.network, self.rule, self.key = engine, engine._network, rule, key
        self.lanes: dict[Any, Kept] = {}
        self.ticks = {False: 0, True: 0}
        self.replayed = 0
        names = rule.modules(self.network.model)
        assert names or rule.form == "network"
        for place, name in enumerate(names):
            module = self.network.model.get_submodule(name)
            if rule.form == "pooled":
                module.register_forward_pre_hook(lambda _, args: (means(args[0]), *args[1:]))
            elif rule.form == "input":
                module.register_forward_pre_hook(self._before(name), with_kwargs=True)
            else:
                make = self._replay if rule.form == "output" else self._add
                module.register_forward_hook(make(name, place, len(names)), with_kwargs=True)
        if rule.probe is not None:
            attention = self.network.model.get_submodule(rule.probe(self.network.model))
            attention.register_forward_pre_hook(self._measure, with_kwargs=True)
        engine._denoiser.predict = self.predict

    @torch.no_grad()
    def predict(self, tick: Any) -> torch.Tensor:
        """As `Denoiser.predict`, row after row."""
        rows = [(slot, negative, k) for slot, negative in tick.groups for k in range(tick.frames)]
        keys = [(slot.stage if self.key == "stage" else slot, negative, k) for slot, negative, k in rows]
        apart = self.rule.negative is not None  # then rows of the two prompts decide by themselves, else all together
        sides = {negative: [key for key in keys if not apart or key[1] == negative] for _, negative, _ in rows}
        filled = {side: all(key in self.lanes for key in own) for side, own in sides.items()}
        for side in sides:
            self.ticks[side] = self.ticks[side] + 1 if filled[side] else 0
        outputs = []
        for i, (key, (slot, negative, _)) in enumerate(zip(keys, rows, strict=True)):
            self.count = self.ticks[negative] if self.key == "stage" else slot.stage
            whole = self.rule.form == "network"
            known = filled[negative] if self.key == "stage" and not whole else key in self.lanes
            if not known:
                self.lanes[key] = Kept()
            self.own, self.stages = self.lanes[key], len(slot.settings.stages)
            due = self.rule.negative if negative and self.rule.negative else self.rule.computes
            self.compute = not known or due(self.count)
            if self.rule.check:
                self.compute = self.compute or not self.own.expected <= self.rule.threshold
                self.own.expected = 0.0
            inputs = {name: value[i : i + 1] for name, value in tick.inputs.items()}
            x, t = tick.latents[i : i + 1], tick.timesteps[i : i + 1]
            outputs.append(self._moved(x, t, inputs) if whole else self.network.predict(x, t, inputs))
            self.replayed += not self.compute
        return torch.cat(outputs)

    def _measure(self, module: Any, args: Any, kwargs: Any) -> None:
        """Add how far the input of an attention has moved since the row's last call."""
        own, now = self.own, (args[0] if args else kwargs["hidden_states"]).clone()
        if own.latest is not None and not self.compute:
            own.expected += float((now - own.latest).abs().mean() / own.latest.abs().mean())
            self.compute = not own.expected < self.rule.threshold
        own.expected = 0.0 if self.compute else own.expected
        own.latest = now

    def _moved(self, x: torch.Tensor, t: torch.Tensor, inputs: Any) -> torch.Tensor:
        """The prediction, or the last one moved with the input while little has changed since."""
        own, self.compute = self.own, True
        if own.calls >= 2 and own.rate is not None:
            own.expected += own.rate * float((x - own.latest).abs().mean()) / float(own.v.abs().mean())
            self.compute = not own.expected < self.rule.threshold
        own.calls, own.latest = own.calls + 1, x.clone()
        if not self.compute:
            return own.v + (x - own.x)
        v = self.network.predict(x, t, inputs)
        if own.v is not None:
            own.rate = float((v - own.v).abs().mean()) / float((x - own.x).abs().mean())
        own.x, own.v, own.expected = x.clone(), v.clone(), 0.0
        return v

    def _history(self, name: str) -> list[tuple[int, list[Any]]]:
        return self.own.histories.setdefault(name, [])

    def _expected(self, name: str) -> list[Any]:
        columns = zip(*(values for _, values in self._history(name)), strict=True)
        counts = [count for count, _ in self._history(name)]
        return [
            None
            if column[-1] is None
            else extrapolate(list(zip(counts, column, strict=True)), self.rule.order, self.count)
            for column in columns
        ]

    def _replay(self, name: str, place: int, last: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            values = [output] if isinstance(output, torch.Tensor) else list(output)
            flat = [x for v in values for x in (v if isinstance(v, tuple) else [v])]
            if self.compute:
                self._history(name).append((self.count, [x.clone() for x in flat]))
            found = iter(self._expected(name))
            made = [tuple(next(found) for _ in v) if isinstance(v, tuple) else next(found) for v in values]
            return made[0] if isinstance(output, torch.Tensor) else tuple(made)

        return hook

    def _before(self, name: str) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            half = args[0].shape[1] // 2  # what came up, then the skip connection
            if self.compute:
                self._history(name).append((self.count, [args[0][:, :half].clone()]))
            return (torch.cat([self._expected(name)[0], args[0][:, half:]], dim=1), *args[1:]), kwargs

        return hook

    def _add(self, name: str, place: int, last: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            streams = [given["hidden_states"]]
            values = [output] if isinstance(output, torch.Tensor) else list(output)
            if len(values) > 1:
                streams.append(given["encoder_hidden_states"])
            if len(values) > 1 and type(module).__name__ in PROMPT_FIRST:
                streams.reverse()
            main = 1 if len(values) > 1 and type(module).__name__ in PROMPT_FIRST else 0
            if place == 0:
                self.arrived = streams[main].clone()
            if place < self.rule.front:
                if place == self.rule.front - 1:
                    self._judge(values[main] - self.arrived)
                return output
            if self.compute:
                added = [None if v is None else v - s for v, s in zip(values, streams, strict=True)]
                self._history(name).append((self.count, added))
                return output
            if self.rule.check and place == last - 1:
                real = values[main] - streams[main]
                own = self._expected(name)[main]
                self.own.expected = float((real - own).norm() / real.norm())
                return output
            if self.rule.skipped is not None and place not in self.rule.skipped(self.count, self.stages):
                return output
            made = [None if a is None else s + a for s, a in zip(streams, self._expected(name), strict=True)]
            return made[0] if isinstance(output, torch.Tensor) else tuple(made)

        return hook

    def _judge(self, residual: torch.Tensor) -> None:
        if not self.compute:
            assert self.own.front is not None
            change = (residual - self.own.front).abs().mean() / self.own.front.abs().mean()
            self.compute = not float(change) <= self.rule.threshold
        if self.compute:
            self.own.front = residual.clone()
