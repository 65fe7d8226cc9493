"""What the pipeline that makes a call tells about its run; only weakly referenced."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from diffaccel._diffusers import RunningCall, num_timesteps, running_call
from diffaccel.networks.layout import is_one_of

# Pipelines that announce the number of steps they were asked for, though they may take a table of another length.
TELLS_ASKED = ("AceStepPipeline",)
NEGATIVE, POSITIVE = "negative", "positive"
# Names that pipelines give to the contexts of guidance in two calls.
CONTEXT_ROLES = {"cond": POSITIVE, "uncond": NEGATIVE, "pred_cond": POSITIVE, "pred_uncond": NEGATIVE}
BESIDE_GUIDANCE = "pred_cond_"  # calls of guiders that guide by something else besides, as by skipped layers
# Pipelines that stack two halves, negative first, and keep no embeddings of the negative prompt by name.
NEGATIVE_FIRST = ("StableVideoDiffusionPipeline", "I2VGenXLPipeline")
# Pipelines that stack the prompt's rows first, or more than two prompts, and keep nothing by name that would show it;
# or that take the negative half of one call and the other half of another.
OTHER_STACKS = (
    "AceStepPipeline",
    "DiTPipeline",
    "LEditsPPPipelineStableDiffusion",
    "LEditsPPPipelineStableDiffusionXL",
    "OmniGenPipeline",
    "SemanticStableDiffusionPipeline",
    "StableDiffusionGLIGENTextImagePipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
)


class Host:
    """The pipeline around a denoiser. Everything is None for a bare network.

    Args:
        pipe: the pipeline, or None.
        guided: whether rows come in halves, negative prompt first, as classifier-free guidance stacks them; None finds
            out from the pipeline.
    """

    def __init__(self, pipe: Any = None, guided: bool | None = None) -> None:
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self.guided = guided

    @property
    def pipe(self) -> Any:
        """The pipeline, while it lives."""
        return self._pipe()

    @property
    def scheduler(self) -> Any:
        """The pipeline's current scheduler."""
        return getattr(self._pipe(), "scheduler", None)

    @property
    def table(self) -> torch.Tensor | None:
        """The scheduler's timesteps."""
        table = getattr(self.scheduler, "timesteps", None)
        return table if isinstance(table, torch.Tensor) else None

    @property
    def num_timesteps(self) -> int | None:
        """Network calls of the current run, where the pipeline announces them."""
        return None if is_one_of(self._pipe(), TELLS_ASKED) else num_timesteps(self._pipe())

    def _says_guided(self, running: RunningCall | None) -> bool | None:
        """Whether the pipeline says that it applies classifier-free guidance, by its call or by its property."""
        said = None if running is None else running.guided
        return getattr(self._pipe(), "do_classifier_free_guidance", None) if said is None else said

    def _require_pairs(self) -> None:
        """Raise ValueError if the pipeline combines other predictions, too, which cannot be told apart by halves."""
        pipe = self._pipe()
        for other in ("image_guidance_scale", "do_perturbed_attention_guidance"):
            if getattr(pipe, other, False):
                raise ValueError(
                    f"{type(pipe).__name__} stacks more than a negative and a positive prediction ({other}): methods "
                    "that drop the negative one do not work with it"
                )
        if is_one_of(pipe, OTHER_STACKS):
            raise ValueError(
                f"{type(pipe).__name__} combines other rows of its calls than the [negative; positive] halves of each: "
                "methods that drop the negative ones do not work with it"
            )

    def _as_told(self, shown: tuple[str, ...], rows: int) -> tuple[str, ...]:
        """Roles as the caller of `accelerate` said they are, unless the pipeline's own facts have shown others."""
        self._require_pairs()
        told = halves(rows)
        if rows > 1 and rows % 2:
            raise ValueError(
                f"guided=True says that each call stacks [negative; positive] halves, and this one has {rows} rows: "
                "leave guided out, or use a method that does not drop the negative ones"
            )
        if shown and shown != told:
            raise ValueError(
                f"guided=True says that each call of {type(self._pipe()).__name__} stacks the negative prompt's rows "
                f"before the prompt's, and its rows are {', '.join(shown)}: leave guided out, which finds out"
            )
        return told

    @property
    def not_told(self) -> str:
        """What is said where nothing tells."""
        return (
            f"{type(self._pipe()).__name__} does not tell which rows see the negative prompt: say accelerate(..., "
            "guided=True) if each call stacks [negative; positive] halves, or use a method that does not drop the "
            "negative ones"
        )

    @property
    def hides_guidance(self) -> bool:
        """Whether the running pipeline is given a scale of guidance, and nothing tells which rows it is for."""
        running = running_call()
        if running is None or self.guided is not None or self._says_guided(running) is not None or running.embeddings:
            return False
        return any(scale > 1 for _, scale in running.guidance_scales)

    def roles(self, conditioning: Any, rows: int, name: str | None, running: RunningCall | None) -> tuple[str, ...]:
        """For each row of a call whether it sees the negative prompt; empty without guidance.

        The facts, in this order: what the caller of `accelerate` said, the name that the pipeline or its guider gives
        the call, and the embeddings of the negative prompt in the pipeline's own call, compared with those that the
        network is given.

        Raises:
            ValueError: if there is guidance and none of them tells.
        """
        pairs = [] if running is None else running.embeddings
        if self.guided is not None:
            return self._as_told(_shown(conditioning, rows, pairs), rows) if self.guided else ()
        says_guided = self._says_guided(running)
        if says_guided is not None and not says_guided:
            return ()
        tells = says_guided or bool(pairs)
        if tells:
            self._require_pairs()
        name = name if running is None or running.prepared is None else running.prepared
        if name is not None and self._pipe() is not None and name.startswith(BESIDE_GUIDANCE):
            return ()
        if name in CONTEXT_ROLES and self._pipe() is not None:
            return (CONTEXT_ROLES[name],) * rows
        if shown := _shown(conditioning, rows, pairs):
            return shown
        if not tells:
            return ()
        if is_one_of(self._pipe(), NEGATIVE_FIRST):
            return halves(rows)
        raise ValueError(self.not_told)


def halves(rows: int) -> tuple[str, ...]:
    """[negative; positive] halves."""
    return (NEGATIVE,) * (rows // 2) + (POSITIVE,) * (rows - rows // 2)


def _shown(conditioning: Any, rows: int, pairs: Sequence[tuple[Any, Any]]) -> tuple[str, ...]:
    """Roles of rows by the first pair of embeddings that is the network's; empty where none is."""
    if not isinstance(conditioning, torch.Tensor):
        return ()
    compared = (_compared(conditioning, negative, positive, rows) for negative, positive in pairs)
    return next(filter(None, compared), ())


def _compared(conditioning: Any, negative: Any, positive: Any, rows: int) -> tuple[str, ...]:
    """Roles of rows by comparing embeddings; waits for the device. Empty where they are neither prompt's."""
    negative, positive, conditioning = (_plain(x) for x in (negative, positive, conditioning))
    if negative is None or _form(negative) != _form(conditioning):
        return ()
    is_negative = [any(_is_row(row, other) for other in negative) for row in conditioning]
    half, paired = len(is_negative) // 2, len(is_negative) == 2 * len(negative)
    ends = is_negative[:half], is_negative[half:]
    if all(is_negative):
        # a call of its own, or halves with one prompt twice, where either will do
        return (NEGATIVE,) * rows if len(negative) >= len(is_negative) else halves(rows)
    if 2 * half == len(is_negative):
        for one, other, found in ((*ends, halves(rows)), (*ends[::-1], halves(rows)[::-1])):
            if all(one) and (paired or not any(other)):
                return found
    if any(is_negative) or positive is None or _form(positive) != _form(conditioning):
        return ()
    # the pipeline may have stacked the negative prompt before or behind it by now
    is_positive = any(_is_row(conditioning[0], positive[row]) for row in {0, len(positive) // 2})
    return (POSITIVE,) * rows if is_positive else ()


def _plain(embeddings: Any) -> Any:
    """Embeddings as (rows, tokens, features) where a pipeline has more dimensions."""
    return embeddings.flatten(1, -2) if embeddings is not None and embeddings.dim() > 3 else embeddings


def _form(embeddings: torch.Tensor) -> tuple[int, int]:
    return embeddings.dim(), embeddings.shape[-1]


def _is_row(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two embeddings (tokens, features) are one; a pipeline may pad the shorter one, or cast it."""
    tokens = min(one.shape[0], other.shape[0]) if one.dim() > 1 else None
    return torch.equal(one[:tokens], other[:tokens].to(one))
