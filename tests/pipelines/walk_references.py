"""References of the walk: what each method must give, by forward hooks of torch on single modules."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map
from transformer_reference import PROMPT_FIRST as KNOWN
from walk_parts import Stop

from diffaccel.networks import layout_of

GATE = 2
PROMPT_FIRST = {*KNOWN, "BriaFiboTransformerBlock", "BriaSingleTransformerBlock"}


class Calls:
    """Which call of a network is running: the step it belongs to, and its place there."""

    def __init__(self, model: torch.nn.Module, stop: Stop, hooks: list[Any]) -> None:
        self.stop, self.index, self.step, self.place = stop, -1, 0, 0
        self.times: dict[int, int] = {}
        hooks.append(model.register_forward_pre_hook(self._next, with_kwargs=True))

    def _next(self, model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self.index += 1
        before = self.step
        self.step, self.place = self.stop.place(self.index)
        if self.step < before:  # a run has begun
            self.times.clear()
        self.seen = self.times.get(self.place, 0)
        self.times[self.place] = self.seen + 1
        self.sample = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample", kwargs.get("x")))
        self.timestep = args[1] if len(args) > 1 else kwargs.get("timestep")

    @property
    def reuses(self) -> bool:
        return self.step % 2 == 1

    @property
    def kind(self) -> str:
        return self.stop.step[self.place]


def replay(names: list[str], model: Any, calls: Calls, hooks: list[Any]) -> None:
    """Modules return what they did in the step before."""
    kept: dict[Any, Any] = {}
    for name in names:

        def hook(module: Any, args: Any, output: Any, name: str = name) -> Any:
            if calls.reuses and (name, calls.place) in kept:  # calls of a kind may begin in mid-run
                return tree_map(lambda x: x, kept[name, calls.place])
            kept[name, calls.place] = output
            return None

        hooks.append(model.get_submodule(name).register_forward_hook(hook))


def deepcache(pipe: Any, model: Any, calls: Calls, hooks: list[Any]) -> None:
    replay(list(layout_of(model).depths[0].replayed), model, calls, hooks)


def interval(pipe: Any, model: Any, calls: Calls, hooks: list[Any]) -> None:
    replay([name for unit in layout_of(model).units for name in unit.branch.replayed], model, calls, hooks)


def blocks(pipe: Any, model: Any, calls: Calls, hooks: list[Any]) -> None:
    """All blocks of a list, without the network's first, add again what they added together in the step before."""
    layout = layout_of(model)
    names = layout.blocks[1:]
    lists = {name: [name] if layout.long_skips else [o for o in names if _list(o) == _list(name)] for name in names}
    kept: dict[Any, Any] = {}
    entered: dict[str, Any] = {}
    for name in names:
        first, last = lists[name][0], lists[name][-1]

        def enter(module: Any, args: Any, kwargs: Any, first: str = first) -> None:
            entered[first] = [stream.clone() for stream in _streams(module, args, kwargs)]

        def leave(module: Any, args: Any, kwargs: Any, output: Any, first: str = first) -> Any:
            values = [output] if isinstance(output, torch.Tensor) else list(output)
            pairs = list(zip(values, entered[first], strict=False))
            if calls.seen % 2 == 0:
                kept[first, calls.place] = [None if value is None else value - stream for value, stream in pairs]
                return None
            added = kept[first, calls.place]
            found = [None if more is None else s + more for more, (_, s) in zip(added, pairs, strict=True)]
            return found[0] if isinstance(output, torch.Tensor) else tuple(found)

        if name == first:
            hooks.append(model.get_submodule(name).register_forward_pre_hook(enter, with_kwargs=True))
        if name == last:
            hooks.append(model.get_submodule(name).register_forward_hook(leave, with_kwargs=True))


def _list(name: str) -> str:
    return name.rpartition(".")[0]


def _streams(module: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    import inspect

    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    hidden = next(given[name] for name in ("hidden_states", "x", "visual_embed", "vis") if name in given)
    for name in {"audio_hidden_states", "aud"} & given.keys():
        return [hidden, given[name]]
    streams = [hidden, given["encoder_hidden_states"]] if given.get("encoder_hidden_states") is not None else [hidden]
    return streams[::-1] if type(module).__name__ in PROMPT_FIRST else streams


def tgate(pipe: Any, model: Any, calls: Calls, hooks: list[Any]) -> None:
    """From the gate on cross-attentions return the mean of both prompts' at the gate, and guidance has no effect."""
    kept: dict[Any, Any] = {}

    def attention(name: str) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: torch.Tensor) -> Any:
            begins = calls.kind == "x" and (name, "x") not in kept  # where guidance has ended before the gate
            if calls.step < GATE or begins:
                kept[name, calls.kind] = output
                return None
            if calls.kind == "x":
                return kept[name, calls.kind]
            if calls.kind in "bB":
                one, other = kept[name, calls.kind].chunk(2)
                return torch.cat([(one + other) / 2] * 2)
            mean = (kept[name, "p"] + kept[name, "n"]) / 2
            return mean if mean.shape == output.shape else None

        return hook

    for name in layout_of(model).cross_attention:
        hooks.append(model.get_submodule(name).register_forward_hook(attention(name)))

    def root(module: Any, args: Any, output: Any) -> Any:
        if calls.step < GATE or calls.kind == "x":
            return None
        if calls.kind == "n":
            return kept["output"]
        kept["output"] = output
        positive = {"b": 1, "B": 0}.get(calls.kind)
        return None if positive is None else changed(output, lambda x: torch.cat([x.chunk(2)[positive]] * 2))

    hooks.append(model.register_forward_hook(root))


def virtual(pipe: Any, model: Any, calls: Calls, hooks: list[Any]) -> None:
    """The negative prediction is the virtual one of equation 5 from the second step on."""
    kept: dict[str, torch.Tensor] = {}
    before = calls.stop.before.get(next(name for name in calls.stop.networks if getattr(pipe, name) is model), 0)

    def root(module: Any, args: Any, output: Any) -> Any:
        if calls.kind in "px":
            return None
        value, x = first(output), calls.sample
        view = calls.place if calls.kind in "bB" else None
        half = {"b": 0, "B": 1, "n": None}[calls.kind]
        out, x = (value, x) if half is None else (value.chunk(2)[half], x.chunk(2)[half])
        for dim, (a, b) in enumerate(zip(out.shape, x.shape, strict=True)):
            if b > a:
                x = x.narrow(dim, 0, a)
        mean = out[:, : x.shape[1]]
        if calls.step == 0 or kept[view].shape != x.shape:  # pipelines may drop frames on their way
            kept[view] = levels(pipe, calls.step + before, x, calls.timestep).clean(mean)
            return None
        negative = levels(pipe, calls.step + before, x, calls.timestep).predict(kept[view])
        if out.shape[1] > negative.shape[1]:  # a learned variance stays the positive one's
            negative = torch.cat([negative, value.chunk(2)[1 - half][:, negative.shape[1] :]], 1)
        if half is None:
            return changed(output, lambda _: negative)
        parts = list(value.chunk(2))
        parts[half] = negative
        return changed(output, lambda _: torch.cat(parts))

    hooks.append(model.register_forward_hook(root))


class levels:
    """Predictions at one noise level, of the flow or the noise."""

    def __init__(self, pipe: Any, step: int, x: torch.Tensor, timestep: Any) -> None:
        scheduler = pipe.scheduler
        self.x, kind = x, scheduler.config.get("prediction_type")
        self.flows = "FlowMatch" in type(scheduler).__name__ or kind == "flow_prediction"
        start = len(scheduler.timesteps) - (getattr(pipe, "_num_timesteps", None) or len(scheduler.timesteps))
        start += getattr(scheduler, "begin_index", None) or 0 if not start else 0
        self.sign = -1 if scheduler.config.get("invert_sigmas") else 1
        if self.flows and self.sign < 0:
            self.alpha, self.sigma = scheduler.sigmas[step].to(x), (1 - scheduler.sigmas[step]).to(x)
        elif self.flows:
            sigma = scheduler.timesteps[step + start] / scheduler.config.num_train_timesteps
            self.alpha, self.sigma = (1 - sigma).to(x), sigma.to(x)
        elif hasattr(scheduler, "sigmas"):
            scale = (scheduler.sigmas[step + start] ** 2 + 1) ** 0.5
            self.alpha, self.sigma = (1 / scale).to(x), (scheduler.sigmas[step + start] / scale).to(x)
        else:
            product = scheduler.alphas_cumprod[int(torch.as_tensor(timestep).flatten()[0])]
            self.alpha, self.sigma = product.sqrt().to(x), (1 - product).sqrt().to(x)
        self.turned = scheduler.config.get("prediction_type") == "v_prediction"

    def clean(self, out: torch.Tensor) -> torch.Tensor:
        if self.flows:
            return self.x - self.sign * self.sigma * out
        if self.turned:
            return self.alpha * self.x - self.sigma * out
        return (self.x - self.sigma * out) / self.alpha

    def predict(self, clean: torch.Tensor) -> torch.Tensor:
        noise = (self.x - self.alpha * clean) / self.sigma
        if self.flows:
            return self.sign * (noise - clean)
        return self.alpha * noise - self.sigma * clean if self.turned else noise


def first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def changed(output: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    name = next(iter(output))
    return type(output)(**{**output, name: function(output[name])})


REFERENCES: dict[str, Callable[..., None]] = {
    "DeepCache": deepcache,
    "IntervalCache": interval,
    "BlockCache": blocks,
    "TGate": tgate,
    "ResidualGuidance": virtual,
}
