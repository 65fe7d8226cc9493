"""The network of one engine and its ControlNets: called on rows, with or without a slot cache, and counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffaccel.networks.network import Network
from diffaccel.stream.batch import Call
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.controlnet import ControlNets
from diffaccel.stream.feature_reuse import FeatureReuse
from diffaccel.stream.slot_cache import as_slot_cache
from diffaccel.stream.text_kv import TextKeysValues


@dataclass(frozen=True)
class NetworkWork:
    """Network calls, their rows, and the rows among them that reused features."""

    calls: int = 0
    rows: int = 0
    replayed: int = 0


class Denoiser:
    """Runs network calls.

    Args:
        network: what is called.
        config: whose cache is used.

    Attributes:
        work: what was done.
    """

    def __init__(self, network: Network, config: StreamConfig) -> None:
        self.network = network
        self._config = config
        self._control = ControlNets(network.pipe)
        self._reuse = self._build(config)
        self._text = TextKeysValues(network.model)
        self.work = NetworkWork()

    def _build(self, config: StreamConfig) -> FeatureReuse | None:
        cache = as_slot_cache(config.cache)
        return None if cache is None else cache.build(self.network.model, self._control.models)

    def enter(self, pixels: torch.Tensor | None) -> None:
        """Note what enters with the next call, ``(frames, channels, H, W)``; None for text-to-image."""
        if self._reuse is not None:
            self._reuse.enter(pixels)

    def predict(self, call: Call) -> torch.Tensor:
        """Prediction for the rows of ``call``, ``(rows, C, h, w)``."""
        return self._run(call) if self._reuse is None else self._reuse.predict(self._run, call)

    def _run(self, call: Call, reuses: bool = False) -> torch.Tensor:
        rows, done = len(call.latents), self.work
        self.work = NetworkWork(done.calls + 1, done.rows + rows, done.replayed + rows * reuses)
        with self._text.using(call):
            latents = call.latents.to(self.network.dtype)
            inputs = {**call.inputs, **self._control.residuals(latents, call)}
            return self.network.predict(latents, call.timesteps, inputs)

    def configured(self, config: StreamConfig) -> Denoiser:
        """The denoiser for a new configuration: this one, or another one where the cache changed; counts go on.

        Raises:
            UnsupportedModelError, ValueError, RuntimeError: where the cache does not fit; this one goes on then.
        """
        if config.cache == self._config.cache:
            return self
        other = Denoiser(self.network, config)
        other.work = self.work
        return other

    def forget(self) -> None:
        """Reuse nothing that was stored so far."""
        if self._reuse is not None:
            self._reuse.forget()

    def close(self) -> None:
        """Take all hooks off the network."""
        self._text.close()
        self._control.close()
        if self._reuse is not None:
            self._reuse.close()
