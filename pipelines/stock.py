"""What is known of stock pipelines: their components, and which of them some components make."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints
from weakref import WeakKeyDictionary

import diffusers
from diffusers import DiffusionPipeline

from diffaccel._diffusers import pipeline_being_built
from diffaccel.config.words import did_you_mean
from diffaccel.networks.compiled import unwrapped

DENOISERS = ("unet", "transformer")
DEPRECATED = frozenset({"callback", "callback_steps", "mask_feature"})
"""Arguments that stock calls still take without naming them."""
SDXL_LATENT_SCALE = 0.13025
"""The scaling factor of SDXL's autoencoder, by which PixArt-Sigma differs from PixArt-Alpha."""
_entering = threading.Lock()
_at_work: WeakKeyDictionary[Any, list[tuple[int, bool]]] = WeakKeyDictionary()  # threads, and whether they reuse


def is_component(value: object) -> bool:
    """Whether an argument of a pipeline is a part of it, and no setting."""
    return value is not None and not isinstance(value, bool | int | float | str)


def parameters_of(stock: type) -> dict[str, inspect.Parameter]:
    """What a stock pipeline is built of."""
    parameters = dict(inspect.signature(stock.__init__).parameters)  # type: ignore[misc]
    parameters.pop("self")
    return parameters


def required_by(stock: type[DiffusionPipeline]) -> set[str]:
    """Names of the components that a stock pipeline cannot do without."""
    names = {name for name, p in parameters_of(stock).items() if p.default is p.empty}
    return names - set(stock._optional_components)


def fits(stock: type[DiffusionPipeline], components: Mapping[str, Any]) -> bool:
    """Whether a stock pipeline takes all these components, and lacks none that it needs."""
    given = {name for name, value in components.items() if is_component(value)}
    if not (required_by(stock) <= given <= set(parameters_of(stock))):
        return False
    hints = get_type_hints(stock.__init__)
    for name in given.intersection(DENOISERS):
        kinds = tuple(k for k in get_args(hints[name]) or (hints[name],) if isinstance(k, type))
        network = components[name]
        if not isinstance(unwrapped(network), kinds):
            return False
    network = components.get("unet")
    if "motion_adapter" in hints and "motion_adapter" not in given and _makes_pictures(network):
        return False  # diffusers would make motion modules with random weights
    xl = network is not None and network.config.get("addition_embed_type") == "text_time"
    return network is None or not hasattr(network.config, "addition_embed_type") or xl == ("XL" in stock.__name__)


def _makes_pictures(unet: Any) -> bool:
    return isinstance(unwrapped(unet), diffusers.UNet2DConditionModel)


def told_apart(stock: type[DiffusionPipeline], components: Mapping[str, Any]) -> type[DiffusionPipeline]:
    """The stock pipeline; of the two PixArts, whose components have the same types, the one of this autoencoder."""
    if stock.__name__ != "PixArtAlphaPipeline" or components["vae"].config.get("scaling_factor") != SDXL_LATENT_SCALE:
        return stock
    return diffusers.PixArtSigmaPipeline  # type: ignore[no-any-return]


def union_of(stock: Sequence[type[DiffusionPipeline]]) -> tuple[Callable[..., None], list[str]]:
    """An `__init__` that names the components of all stock pipelines, and those that not all of them need."""
    names = list(dict.fromkeys(name for s in stock for name in parameters_of(s)))
    always = set.intersection(*map(required_by, stock))
    modules = {name for s in stock for name in (*required_by(s), *s._optional_components)}

    def __init__(self: object, **components: object) -> None:
        raise AssertionError(f"{type(self).__name__} was not specialised for {', '.join(components)}")

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    for name in sorted(names, key=lambda n: n not in always):
        default = inspect.Parameter.empty if name in always else None
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=object))
    __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return __init__, [name for name in names if name in modules - always]


@contextmanager
def at_work(pipe: Any, *, accelerating: bool) -> Iterator[None]:
    """Within, a call of this thread uses the networks of a pipeline, and perhaps reuses features in them.

    Raises:
        RuntimeError: where a call of another thread uses one of them, and one of the two reuses features: hooks lie on
            the network, so that the other call would reuse them, too, or lose them on the way.
    """
    found = [getattr(pipe, name, None) for name in (*DENOISERS, "transformer_2")]
    networks = [unwrapped(network) for network in found if network is not None]
    mine = threading.get_ident(), accelerating
    with _entering:
        for network in networks:
            if any(thread != mine[0] and (accelerating or reuses) for thread, reuses in _at_work.get(network, ())):
                raise RuntimeError(
                    f"another thread's call uses this {type(network).__name__}, and one of the two would reuse "
                    "features for both: let one wait for the other, or call enable_feature_cache() once for all calls"
                )
        for network in networks:
            _at_work.setdefault(network, []).append(mine)
    try:
        yield
    finally:
        with _entering:
            for network in networks:
                _at_work[network].remove(mine)


class AnyType(tuple[type, ...]):
    """A tuple of types that every type is in, whether or not diffusers looks into it one by one."""

    __slots__ = ()

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, type)


def check_arguments(stock: type, given: Iterable[str], own: Iterable[str]) -> None:
    """Raise TypeError for an argument that is neither the stock call's nor among ``own``, naming those."""
    parameters = inspect.signature(stock.__call__).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"} | set(own)
    for name in sorted(set(given) - known - DEPRECATED):
        hint = did_you_mean(name, known)
        raise TypeError(f"{stock.__name__} has no argument {name!r}{hint}: it has {', '.join(sorted(known))}")


def resolved(components: Mapping[str, Any]) -> dict[str, Any]:
    """Components, where diffusers may have passed on what a configuration notes of one, `(library, class)`."""
    origin = pipeline_being_built().components
    return {name: origin.get(name) if _is_note(value) else value for name, value in components.items()}


def _is_note(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(x is None or isinstance(x, str) for x in value)
