"""Methods as the arguments of a call spell them: objects, text, dictionaries, or a word."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffaccel.config import as_config
from diffaccel.config.words import did_you_mean
from diffaccel.methods import Method, ResidualGuidance, TGate, parse_all
from diffaccel.methods.residual_guidance import NEGATIVES

MethodLike = Method | str | Mapping[str, Any]


def as_methods(
    cache: MethodLike | Sequence[MethodLike] | None = None,
    guidance: MethodLike | None = None,
    gate: MethodLike | int | None = None,
) -> tuple[Method, ...]:
    """The methods that the call arguments of a custom pipeline ask for.

    Args:
        cache: one or several methods, as text joined by plus signs; `"none"` or None for none.
        guidance: a ResidualGuidance, or its text, or just `"one-time"` or `"self"`; `"full"` or None for the stock one.
        gate: a TGate, or the network call from which cross-attention is replayed.
    """
    chosen: list[Method] = []
    if isinstance(cache, str):
        chosen += parse_all(cache)
    elif cache is not None:
        chosen += [as_config(c, Method) for c in (cache if isinstance(cache, Sequence) else (cache,))]  # type: ignore[type-abstract]
    if guidance is not None and guidance != "full":
        chosen.append(_as_guidance(guidance))
    if gate is not None:
        chosen.append(as_config(gate, TGate) if _is_method(gate, "tgate") else TGate(gate))  # type: ignore[arg-type]
    return tuple(chosen)


def _is_method(given: Any, name: str) -> bool:
    """Whether a method is given in one of its forms, not one of its values alone."""
    return isinstance(given, Method | Mapping) or (isinstance(given, str) and given.strip().lower().startswith(name))


def _as_guidance(guidance: MethodLike) -> ResidualGuidance:
    """Residual guidance, by the name of its negative or in any form of a method."""
    if not isinstance(guidance, str) or _is_method(guidance, "residualguidance"):
        return as_config(guidance, ResidualGuidance)
    if guidance not in NEGATIVES:
        known = ("full", *NEGATIVES, "residualguidance")
        names, hint = ", ".join(repr(name) for name in known[:-1]), did_you_mean(guidance.partition(":")[0], known)
        raise ValueError(f"unknown guidance {guidance!r}{hint}: choose from {names}, or 'residualguidance:field=value'")
    return ResidualGuidance(guidance)
