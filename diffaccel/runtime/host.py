"""The pipeline around a denoiser, as far as methods need to know it; only weakly referenced."""

import weakref
from typing import Any

import torch

from diffaccel._diffusers import num_timesteps


class Host:
    """What a pipeline tells about its current run. All answers are None for a bare network.

    Args:
        pipe: the pipeline, or None for a bare network.
        guided: whether rows come in halves, negative prompt first, as classifier-free guidance stacks them; None asks
            the pipeline.
    """

    def __init__(self, pipe: Any = None, guided: bool | None = None) -> None:
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self._guided = guided

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
        """The scheduler's timesteps, a new tensor for every run."""
        table = getattr(self.scheduler, "timesteps", None)
        return table if isinstance(table, torch.Tensor) else None

    @property
    def num_timesteps(self) -> int | None:
        """Network calls of the current run, where the pipeline announces them."""
        return num_timesteps(self._pipe())

    @property
    def ends_early(self) -> bool:
        """Whether the current run leaves its last calls to another pipeline, as the base of SDXL does."""
        return getattr(self._pipe(), "denoising_end", None) is not None

    @property
    def guided(self) -> bool:
        """Whether the rows of a call are [negative; positive] halves.

        Raises:
            ValueError: if the pipeline stacks other predictions, which cannot be told apart by halves.
        """
        if self._guided is not None:
            return self._guided
        pipe = self._pipe()
        for other in ("image_guidance_scale", "do_perturbed_attention_guidance"):
            if getattr(pipe, other, False):
                raise ValueError(
                    f"{type(pipe).__name__} stacks more than a negative and a positive prediction ({other}): methods "
                    "that drop the negative one do not work with it"
                )
        return bool(getattr(pipe, "do_classifier_free_guidance", False))
