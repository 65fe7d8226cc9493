"""A network that may stand in for another one: found by name or given, compared with it, loaded beside it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffaccel.models.loader import load, load_part
from diffaccel.models.source import ModelError, resolve

if TYPE_CHECKING:
    import torch

Facts = Mapping[str, Any]
DENOISERS = ("unet", "transformer")
# Where a configuration says how wide the prompt's embeddings are, the outermost first.
TEXT_WIDTHS = (
    "caption_channels",
    "joint_attention_dim",
    "cap_feat_dim",
    "text_embed_dim",
    "text_dim",
    "encoder_hid_dim",
    "cross_attention_dim",
)
IMAGES = "encoder_hid_dim_type"
# What else a network is told, or not; None, False and no mention are the same.
TOLD = (
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "pooled_projection_dim",
    "time_cond_proj_dim",
    "guidance_embeds",
    "class_embed_type",
    "num_class_embeds",
    IMAGES,
    "timestep_scale",
    "use_meanflow",
    "use_rotary_positional_embeddings",
)
NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
LATENTS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


class Counterpart(ABC):
    """A network that may stand in for another one.

    Attributes:
        network: the network, where it was given and not named.
    """

    network: "torch.nn.Module | None" = None

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What must be the same at the network that it stands in for."""

    @abstractmethod
    def load(self, dtype: "torch.dtype", device: "torch.device") -> "torch.nn.Module":
        """The network in this number format and on this device.

        Raises:
            ValueError: where it was given in another format, or on another device.
        """

    def require_fit(self, model: Any, pipe: Any = None) -> None:
        """Check that it can take calls that are made for another network.

        Args:
            model: the other network.
            pipe: its pipeline, if it has one.

        Raises:
            ValueError: naming what differs.
        """
        theirs, own = facts_of(model, pipe), self.facts
        wrong = [
            f"{what} {own[what]!r} instead of {value!r}"
            for what, value in theirs.items()
            if _plain(own.get(what, value)) != _plain(value)
        ]
        if wrong:
            raise ValueError(f"the small network does not fit {type(model).__name__}: it has {', '.join(wrong)}")
        missing = set(getattr(model, "peft_config", ())) - set(getattr(self.network, "peft_config", ()))
        if missing:
            raise ValueError(
                f"the large network has adapters that the small one lacks ({', '.join(sorted(missing))}): load them "
                "into both, fuse them into the large one with fuse_lora(), or unload them"
            )


def counterpart(small: Any) -> Counterpart:
    """What `small` names or is: a bundled name, folder, file or Hub id of a pipeline, a pipeline, or a network.

    Raises:
        ModelError: if there is no such model, or it has no denoiser.
    """
    return _Named(small) if isinstance(small, str) else _Given(small)


class _Given(Counterpart):
    """A pipeline or a network."""

    def __init__(self, small: Any) -> None:
        pipe = small if hasattr(small, "components") else None
        self.network = small if pipe is None else _denoiser(pipe)
        self._pipe = pipe

    @property
    def facts(self) -> Facts:
        return facts_of(self.network, self._pipe)

    def load(self, dtype: "torch.dtype", device: "torch.device") -> "torch.nn.Module":
        network: Any = self.network
        if (network.dtype, network.device) != (dtype, device):
            raise ValueError(
                f"the small network is {network.dtype} on {network.device}, and the large one {dtype} on {device}: "
                "move it there first, with its method to()"
            )
        return network  # type: ignore[no-any-return]


class _Named(Counterpart):
    """A bundled model, or one on disk or on the Hub, of which its denoiser is loaded."""

    def __init__(self, name: str) -> None:
        self._source = source = resolve(name)
        if source.denoiser is None:
            raise ModelError(f"{name} has neither a unet nor a transformer")
        self._part: str = source.denoiser

    @property
    def facts(self) -> Facts:
        config_of = self._source.config_of
        scheduler = config_of("scheduler", "scheduler_config.json")
        return dict(_facts(config_of(self._part), scheduler, str(scheduler.get("_class_name")), config_of("vae")))

    def load(self, dtype: "torch.dtype", device: "torch.device") -> "torch.nn.Module":
        source = self._source
        if source.file:
            network = _denoiser(load(source, dtype=dtype, device="cpu"))
        else:
            what = f"{self._part} of {source.name}"
            network = load_part(what, "AutoModel", source.folder / self._part, dtype=dtype)
        return network.to(device)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # what was read from a file has no tuples


def _denoiser(pipe: Any) -> Any:
    """The denoiser of a pipeline."""
    found = [part for name in DENOISERS if (part := getattr(pipe, name, None)) is not None]
    if len(found) != 1:
        raise ModelError(f"{type(pipe).__name__} has {len(found) or 'no'} denoisers: give the one network")
    return found[0]


def facts_of(model: Any, pipe: Any) -> Facts:
    """What a network that stands in for `model` must have in common with it, and with its pipeline if that is known."""
    scheduler, vae = getattr(pipe, "scheduler", None), getattr(pipe, "vae", None)
    configs = [getattr(part, "config", {}) for part in (model, scheduler, vae)]
    if (shown := getattr(configs[0], IMAGES, None)) is not None:  # loading an IP-Adapter says so beside the settings
        configs[0] = {**configs[0], IMAGES: shown}
    return dict(_facts(configs[0], configs[1], type(scheduler).__name__, configs[2]))


def _facts(network: Facts, scheduler: Facts, sampler: str, vae: Facts) -> Iterator[tuple[str, Any]]:
    yield "latent channels", network.get("in_channels")
    yield "predicted channels", network.get("out_channels") or network.get("in_channels")
    yield "prompt width", next((network[name] for name in TEXT_WIDTHS if network.get(name) is not None), None)
    yield from ((name, network.get(name) or None) for name in TOLD)
    if scheduler:
        flow = "FlowMatch" in sampler or scheduler.get("use_flow_sigmas")
        kind = "flow_prediction" if flow else scheduler.get("prediction_type", "epsilon")
        yield "prediction", f"EDM's {kind}" if sampler.startswith("EDM") else kind
        yield from ((name, scheduler[name]) for name in NOISE if name in scheduler and not flow)
    yield from ((name, vae.get(name)) for name in LATENTS if vae)
