"""What ships in the package: one row per bundled model, its files beside this one.

A model's figures come from `<name>/figures.json`, which the evaluation script writes, so that what is shown is always
what was measured.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from diffaccel.config.words import did_you_mean

Kind = Literal["pipeline", "video", "lora", "autoencoder", "controlnet", "adapter", "classifier"]
Defaults = Mapping[str, Any]

_FOLDER = Path(__file__).parent


def _defaults(**values: Any) -> Defaults:
    return MappingProxyType(values)


@dataclass(frozen=True)
class Bundled:
    """One bundled model: what it is and the settings with which its pictures look best."""

    name: str
    kind: Kind
    summary: str
    defaults: Defaults = field(default_factory=_defaults)

    @property
    def folder(self) -> Path:
        """Where the files are: diffusers format, safetensors."""
        return _FOLDER / self.name


_ROWS = (
    Bundled(
        "emoji-sd",
        "pipeline",
        "Stable Diffusion architecture, text to 128 x 128 emoji drawings",
        _defaults(
            steps=20,
            guidance_scale=2.0,
            scheduler="dpm++",
            cache="deepcache:interval=3,branch=0,forecast=taylor(1)",
            width=128,
            height=128,
        ),
    ),
    Bundled(
        "emoji-sd-small",
        "pipeline",
        "emoji-sd at half its width, a quarter of its cost: takes the easy calls of a NetworkSwitch",
        _defaults(steps=20, guidance_scale=2.0, scheduler="dpm++", cache="none", width=128, height=128),
    ),
    Bundled(
        "emoji-lcm-lora",
        "lora",
        "LCM-LoRA for emoji-sd: pictures in 1 to 4 steps",
        _defaults(steps=4, guidance_scale=1.0, scheduler="lcm", cache="none"),
    ),
    Bundled(
        "emoji-dit",
        "pipeline",
        "PixArt architecture (a diffusion transformer), text to 128 x 128 emoji drawings",
        _defaults(steps=20, guidance_scale=2.0, scheduler="dpm++", cache="none", width=128, height=128),
    ),
    Bundled(
        "emoji-video",
        "video",
        "AnimateDiff architecture on emoji-sd, text to videos without end, chunk by chunk, 8 pictures a second",
        _defaults(steps=8, guidance_scale=3.0, width=128, height=128),
    ),
    Bundled("emoji-vae-small", "autoencoder", "For emoji-sd in streams: its latents at an eleventh of the cost"),
    Bundled("emoji-control", "controlnet", "For emoji-sd: its pictures follow edges and scribbles, white on black"),
    Bundled("emoji-dit-control", "adapter", "For emoji-dit: RelaCtrl's light control blocks, by FastControlPipeline"),
    Bundled("emoji-clip", "classifier", "Image tower against emoji-sd's text encoder: measures prompt accuracy"),
)
BUNDLED: Mapping[str, Bundled] = MappingProxyType({row.name: row for row in _ROWS})


def names(kind: Kind | None = None) -> tuple[str, ...]:
    """Names of the bundled models whose files are in place, of one kind or of all."""
    return tuple(row.name for row in _ROWS if kind in (None, row.kind) and row.folder.is_dir())


def path(name: str) -> Path:
    """Folder of a bundled model. Raises `KeyError` for a name that is not bundled."""
    if name not in names():
        hint = did_you_mean(name, names())
        raise KeyError(f"{name!r} is not a bundled model{hint}; bundled: {', '.join(names()) or 'none'}")
    return BUNDLED[name].folder


def figures(name: str) -> dict[str, Any]:
    """Measured figures of a bundled model; empty where it was never evaluated."""
    file = path(name) / "figures.json"
    if not file.exists():
        return {}
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def defaults(model: str) -> Defaults:
    """Settings with which a bundled model looks best; empty for any other model, whose pipeline has its own."""
    return BUNDLED[model].defaults if model in BUNDLED else _defaults()
