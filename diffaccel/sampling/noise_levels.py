"""Noise levels of a scheduler: a noisy sample, as the network sees it, is x = alpha clean + sigma noise.

They are looked up on the device, so that no timestep is waited for.
"""

from typing import Any

import torch

NO_SIGNAL = 1e8  # sigma / alpha where nothing but noise is left, as in a schedule rescaled to zero terminal SNR
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


class NoiseLevels:
    """Looks up (alpha, sigma) of timesteps, and converts what a network predicts.

    Variance-preserving schedulers take alpha^2 = `alphas_cumprod`, between whole timesteps so that sigma / alpha is
    linear, as diffusers' Euler schedulers do; schedulers that scale their input to unit variance agree with that. Flow
    matching has alpha = 1 - sigma and sigma = t / `num_train_timesteps`; with `invert_sigmas`, as for Mochi, timesteps
    run from noise to data, alpha = t / `num_train_timesteps`, and the prediction is clean - noise.

    Args:
        scheduler: a diffusers scheduler.

    Raises:
        ValueError: if its noise levels are not known from its timesteps.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        self.flow = "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"
        self.inverted = self.flow and bool(config.get("invert_sigmas"))
        self.prediction = "flow_prediction" if self.flow else config.get("prediction_type", "epsilon")
        self.train_timesteps = int(config.get("num_train_timesteps", 1000))
        continuous = config.get("timestep_type") == "continuous" or "EDM" in type(scheduler).__name__
        signal = getattr(scheduler, "alphas_cumprod", None)
        if self.prediction not in PREDICTIONS or continuous or (signal is None and not self.flow):
            raise ValueError(
                f"the noise levels of {type(scheduler).__name__} (prediction_type {self.prediction!r}) are not known "
                f"from its timesteps: use a scheduler with alphas_cumprod or flow matching, which predicts one of "
                f"{', '.join(PREDICTIONS)}"
            )
        self._ratio = None if signal is None else ((1 - signal.double()) / signal.double()).sqrt().clamp(max=NO_SIGNAL)

    def at(self, timestep: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) at a timestep, one number or one per row of `like`, shaped to multiply `like`."""
        t = torch.as_tensor(timestep, device=like.device).double().reshape(-1, *[1] * (like.dim() - 1))
        if self.flow or self._ratio is None:
            sigma = (self.train_timesteps - t if self.inverted else t) / self.train_timesteps
            return (1 - sigma).to(like.dtype), sigma.to(like.dtype)
        self._ratio = self._ratio.to(like.device)
        low = t.floor().clamp(0, len(self._ratio) - 1).long()
        high = (low + 1).clamp(max=len(self._ratio) - 1)
        ratio = torch.lerp(self._ratio[low], self._ratio[high], t - low)
        alpha = (1 + ratio**2).rsqrt()
        return alpha.to(like.dtype), (alpha * ratio).to(like.dtype)

    def clean(
        self, prediction: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """The clean estimate that a prediction implies."""
        if self.prediction == "epsilon":
            return (x - sigma * prediction) / alpha
        if self.prediction == "v_prediction":
            return alpha * x - sigma * prediction
        if self.prediction == "sample":
            return prediction
        return x + sigma * prediction if self.inverted else x - sigma * prediction

    def predict(
        self, noise: torch.Tensor, clean: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """What the network would say of a noise and a clean sample."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "v_prediction":
            return alpha * noise - sigma * clean
        if self.prediction == "sample":
            return clean
        return clean - noise if self.inverted else noise - clean
