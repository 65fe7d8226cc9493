"""What a stream is asked to do: one frozen, validated configuration; `StreamEngine.update` replaces it as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from numbers import Integral
from typing import Any, get_args

from diffaccel.config.checks import number, one_of, weighted_pairs, weights, whole
from diffaccel.config.words import did_you_mean, with_article
from diffaccel.methods.base import Method
from diffaccel.networks.conditioning import GivenEmbeds, Interpolation, as_embeds
from diffaccel.networks.image_prompts import ImagePrompt
from diffaccel.sampling.guidance import Guidance, NoGuidance
from diffaccel.sampling.samplers import Sampler
from diffaccel.stream.control import Control
from diffaccel.stream.images import Fit, OutputType
from diffaccel.stream.motion import MotionNoise
from diffaccel.stream.regions import Region
from diffaccel.stream.seeds import Seed, weighted_seeds
from diffaccel.stream.similarity import SimilarityFilter
from diffaccel.stream.slot_cache import SlotCache, as_slot_cache
from diffaccel.stream.smoothing import MotionBlend
from diffaccel.stream.stages import indices_for
from diffaccel.stream.steadiness import CrossFrame

Prompt = str | Mapping[str, float] | Sequence[tuple[str, float]]

SIZES = frozenset({"height", "width", "frame_buffer"})
"""Fields that size the buffers; all others can change while frames are in flight."""


def weighted(prompt: Prompt) -> tuple[tuple[str, float], ...]:
    """A prompt in its one form: pairs of text and weight.

    Raises:
        TypeError: where the prompt is neither text, a mapping, nor pairs.
        ValueError: for weights that are negative or sum to 0.
    """
    if isinstance(prompt, str):
        return ((prompt, 1.0),)
    problem = f"a prompt is text, a mapping of text to weight, or (text, weight) pairs, not {prompt!r}"
    result = weighted_pairs(prompt, problem)
    if not result or not all(isinstance(text, str) for text, _ in result):
        raise TypeError(problem)
    weights("prompt weights", [weight for _, weight in result])
    return result


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of a stream; see `StreamEngine` for their meaning.

    Raises:
        TypeError, ValueError: on construction, naming the value and what is valid.
    """

    prompt: Prompt | None = None
    negative_prompt: Prompt = ""
    prompt_embeds: GivenEmbeds = None
    negative_prompt_embeds: GivenEmbeds = None
    clip_skip: int | None = None
    timestep_indices: Sequence[int] | None = None
    strength: float | None = None
    num_steps: int | None = None
    num_inference_steps: int = 50
    guidance: Guidance = field(default_factory=NoGuidance)
    height: int
    width: int
    frame_buffer: int = 1
    shared_noise: bool = False
    add_noise: bool = True
    seed: Seed = 0
    feedback: float = 0.0
    similarity: SimilarityFilter | None = None
    cache: Method | SlotCache | None = None
    output_type: OutputType = "pil"
    fit: Fit = "crop"
    blend: Interpolation = "linear"
    sampler: Sampler | None = None
    stream_batch: bool = True
    embedded_guidance_scale: float | None = None
    control: Control | Sequence[Control] | None = None
    controlnet_scale: float | Sequence[float] = 1.0
    deadline: float | None = None
    steadiness: CrossFrame | None = None
    motion: MotionNoise | None = None
    smoothing: MotionBlend | None = None
    image_prompt: ImagePrompt | None = None
    regions: Sequence[Region] = ()
    image_guidance_scale: float = 1.0
    lora: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", as_slot_cache(self.cache))
        self._check_prompts()
        self._check_choices()
        self._check_numbers()
        self._check_types()
        _ = self.indices

    def _check_prompts(self) -> None:
        for name, beside in (
            ("prompt_embeds", self.prompt is not None),
            ("negative_prompt_embeds", self.negative_prompt),
        ):
            embeds = as_embeds(name, getattr(self, name))
            object.__setattr__(self, name, embeds)
            if embeds is not None and beside:
                prompt = name.removesuffix("_embeds")
                raise ValueError(f"{name} stand in for {prompt}: give one of them, not both")
        if self.prompt is None and self.prompt_embeds is None:
            raise TypeError("say what to paint: give prompt, or prompt_embeds")
        for words in (self.prompt, self.negative_prompt):
            if words is not None:
                weighted(words)
        whole("clip_skip", self.clip_skip, 0, optional=True)

    def _check_choices(self) -> None:
        for name, allowed in (("output_type", OutputType), ("fit", Fit), ("blend", Interpolation)):
            one_of(name, getattr(self, name), get_args(allowed))

    def _check_numbers(self) -> None:
        for name in ("height", "width", "frame_buffer", "num_inference_steps"):
            whole(name, getattr(self, name), 1)
        weighted_seeds(self.seed)
        number("feedback", self.feedback, 0.0, 0.95)
        number("image_guidance_scale", self.image_guidance_scale, 1.0, 100.0)
        for name, low, high in (("deadline", 1e-4, 3600.0), ("embedded_guidance_scale", 0.0, 100.0)):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), low, high)

    def _check_types(self) -> None:
        kinds = {
            "guidance": Guidance,
            "similarity": SimilarityFilter,
            "sampler": Sampler,
            "steadiness": CrossFrame,
            "motion": MotionNoise,
            "smoothing": MotionBlend,
            "image_prompt": ImagePrompt,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (value is None and name != "guidance"):
                raise TypeError(f"{name} must be {with_article(kind.__name__)} object, not {value!r}")
        if self.smoothing is not None:
            self.smoothing.require(self.output_type)
        if not isinstance(self.regions, Sequence) or not all(isinstance(region, Region) for region in self.regions):
            raise TypeError(f"regions must be a sequence of Region objects, not {self.regions!r}")
        for region in self.regions:
            weighted(region.prompt)

    @property
    def indices(self) -> tuple[int, ...]:
        """Positions of the stages in the grid of ``num_inference_steps`` timesteps.

        Raises:
            ValueError: where they do not ascend within the grid, or where both or neither way of giving them is used.
        """
        if self.timestep_indices is None:
            if self.strength is None or self.num_steps is None:
                raise ValueError("give timestep_indices=(...), or strength= and num_steps=")
            return indices_for(self.strength, self.num_steps, self.num_inference_steps)
        if self.strength is not None or self.num_steps is not None:
            raise ValueError("give either timestep_indices, or strength and num_steps, not both")
        indices = tuple(self.timestep_indices)
        if not indices or any(isinstance(i, bool) or not isinstance(i, Integral) for i in indices):
            raise ValueError(
                f"timestep_indices must be a non-empty sequence of integers, not {self.timestep_indices!r}"
            )
        if any(b <= a for a, b in pairwise(indices)):
            raise ValueError(f"timestep_indices must ascend, so that timesteps descend, not {indices}")
        if indices[0] < 0 or indices[-1] >= self.num_inference_steps:
            raise ValueError(f"timestep_indices must lie in 0 to {self.num_inference_steps - 1}, not {indices}")
        return indices

    @property
    def most_rows(self) -> int:
        """The most rows that a tick sends through the network: of all stages in a stream batch, of one otherwise."""
        stages, source = len(self.indices) if self.stream_batch else 1, self.guidance.negative_source
        negatives = {"predicted": stages, "first": 1}.get(source, 0)
        negatives += stages if self.image_guidance_scale != 1 else 0
        return (stages * (1 + len(self.regions)) + negatives) * self.frame_buffer

    def updated(self, changes: Mapping[str, Any]) -> StreamConfig:
        """This configuration with ``changes``; ``scale`` and ``delta`` change values of the guidance.

        New timestep indices replace strength and number of steps, and the other way round; a prompt replaces
        embeddings, and they a prompt.

        Raises:
            TypeError: for unknown fields, and fields that size the buffers.
        """
        values = live_changes(self, changes, SIZES)
        if values.get("timestep_indices") is not None:
            values = {"strength": None, "num_steps": None, **values}
        elif values.get("strength") is not None or values.get("num_steps") is not None:
            values = {"timestep_indices": None, "num_steps": len(self.indices), "strength": self._strength(), **values}
        for prompt, empty in (("prompt", None), ("negative_prompt", "")):
            if values.get(f"{prompt}_embeds") is not None:
                values = {prompt: empty, **values}
            elif prompt in values:
                values = {f"{prompt}_embeds": None, **values}
        return replace(self, **values)

    def _strength(self) -> float:
        if self.strength is not None:
            return self.strength
        return 1 - self.indices[0] / self.num_inference_steps


def live_changes(config: Any, changes: Mapping[str, Any], fixed: frozenset[str], more: str = "") -> dict[str, Any]:
    """Changes of a configuration under way; ``scale`` and ``delta`` as the guidance that has them.

    Args:
        config: what changes, a dataclass with a field ``guidance``.
        changes: fields, and values of the guidance.
        fixed: fields that cannot change.
        more: what else to say of those.

    Raises:
        TypeError: for unknown fields, and those that cannot change.
    """
    values = dict(changes)
    live = {f.name for f in fields(config)} - fixed | {"scale", "delta"}
    if unknown := sorted(set(values) - live):
        hint = did_you_mean(unknown[0], live)
        raise TypeError(f"cannot update {', '.join(unknown)}{hint}: live fields are {', '.join(sorted(live))}{more}")
    inner: dict[str, float] = {k: values.pop(k) for k in ("scale", "delta") if k in values}
    if inner:
        values["guidance"] = _with_values(values.get("guidance", config.guidance), inner)
    return values


def _with_values(guidance: Guidance, values: Mapping[str, float]) -> Guidance:
    """A guidance with some values changed. Raises TypeError for values that it does not have."""
    known = {f.name for f in fields(guidance)}
    for name in values:
        if name not in known:
            raise TypeError(
                f"{type(guidance).__name__} has no {name}: pass guidance=SelfNegative(scale=..., delta=...) with it"
            )
    return replace(guidance, **values)
