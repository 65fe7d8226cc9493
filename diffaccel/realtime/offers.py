"""What a person may change to without a restart: other models, LoRAs, and clips; each is loaded on first use.

All of them take turns and share the room of one host. Who changes to another model leaves the others' as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffaccel import models
from diffaccel.config.words import did_you_mean
from diffaccel.realtime.controls import ControlNetControls, Controls
from diffaccel.realtime.dream import DreamModel, DreamStream
from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.remarks import unread
from diffaccel.realtime.settings import DREAMS, LINES, LiveSettings, load_pipeline, own_size, reading
from diffaccel.stream.host import StreamHost
from diffaccel.stream.report import StreamOutput

OFF = "off"


@dataclass(frozen=True)
class Painter:
    """A model that paints: its pipeline, its place among the turns, and how streams on it are opened."""

    pipe: Any
    host: StreamHost
    settings: LiveSettings


class Offers:
    """What is offered beside the model that a server begins with.

    Args:
        settings: of that model, with the names of what else is offered.
        pipe: its pipeline.
        host: where all take turns.

    Raises:
        ModelError: where two models, or two LoRAs, have one name.
    """

    def __init__(self, settings: LiveSettings, pipe: Any, host: StreamHost) -> None:
        self.first = Path(settings.model).name
        self._settings, self._host = settings, host
        self._models = named((self.first, settings.model), *((Path(model).name, model) for model in settings.offers))
        self._loras = named(*settings.offered_loras)
        self._painters = {self.first: Painter(pipe, host, settings)}
        self._lock = threading.Lock()
        dreams = settings.lora is None and DREAMS.get(settings.model) in models.names("video")
        self._dream = DreamModel(settings, pipe, host) if dreams else None

    @property
    def about(self) -> dict[str, Any]:
        """What a page is told."""
        offered = ["", *self._loras] if self._loras else []
        return {"models": list(self._models), "loras": offered, "dream": self._dream is not None}

    def painter(self, name: str) -> Painter:
        """A model, loaded if it was not yet. Raises `ModelError` for one that is not offered, or unusable."""
        chosen = name or self.first
        if chosen in self._painters:  # also while another is being loaded, which may take minutes
            return self._painters[chosen]
        with self._lock:
            if chosen not in self._painters:
                self._painters[chosen] = self._load(chosen)
            return self._painters[chosen]

    def _load(self, name: str) -> Painter:
        if name not in self._models:
            hint = did_you_mean(name, self._models)
            raise models.ModelError(f"{name} is not offered here{hint}: {', '.join(self._models)}")
        model, lines = self._models[name], self._settings.controlnet
        settings = replace(
            self._settings,
            model=model,
            config=None,
            lora=None,
            embeddings=None,
            vae=None,
            width=None,
            height=None,
            compiled=False,
            controlnet=(LINES[model],) if lines and model in LINES else (),
        )
        pipe = load_pipeline(settings)
        return Painter(pipe, StreamHost(pipe, beside=self._host), settings)

    def _with_lora(self, painter: Painter, controls: Controls) -> Painter:
        """The model with a LoRA, in copies of the networks that it changes, for one person alone."""
        if controls.lora not in self._loras:
            hint = did_you_mean(controls.lora, self._loras)
            raise models.ModelError(
                f"{controls.lora} is not offered here{hint}: {', '.join(self._loras) or 'no LoRA is'}"
            )
        pipe = models.with_lora(painter.pipe, self._loras[controls.lora], controls.lora_scale)
        pipe = reading(pipe, painter.settings)
        return Painter(pipe, StreamHost(pipe, beside=self._host), painter.settings)

    def open(self, controls: Controls) -> EngineStream | DreamStream:
        """What the controls ask for. Raises ValueError where it cannot be had."""
        if controls.dream != OFF:
            if self._dream is None or controls.model not in ("", self.first):
                raise ValueError(
                    f"there are no clips of {controls.model or self.first} here: Dream goes with {', '.join(DREAMS)}"
                )
            return DreamStream(self._dream.open, controls)
        painter = self.painter(controls.model)
        if controls.lora:
            painter = self._with_lora(painter, controls)
        settings = replace(painter.settings, controls=self._for(painter, controls))
        return OfferedStream(painter, settings, self._for)

    def _for(self, painter: Painter, controls: Controls) -> Controls:
        """The controls as a model can follow them: in its own size where nobody chose one, and without lines.

        Raises:
            ValueError: where lines should be followed and it has no ControlNet.
        """
        first, own = self._painters[self.first], own_size(painter.pipe, painter.settings)
        if controls.picture_size == "{}x{}".format(*own_size(first.pipe, first.settings)):
            controls = controls.model_copy(update={"picture_size": "{}x{}".format(*own)})
        if not isinstance(controls, ControlNetControls) or getattr(painter.pipe, "controlnet", None) is not None:
            return controls
        if controls.follow_lines:
            raise ValueError(f"{controls.model} has no ControlNet here: switch off “Follow my lines” first")
        return Controls(**{name: getattr(controls, name) for name in Controls.model_fields})

    def remark(self, controls: Controls) -> str:
        """What is not done of the controls, or otherwise, and what they cost in memory, in sentences."""
        painter = self._painters[controls.model or self.first]
        words = [unread(painter.pipe, controls)]
        size = self._for(painter, controls).picture_size
        if size != controls.picture_size:
            words.append(
                f"{controls.model} paints in its own size, {size.replace('x', ' x ')}, until you choose another."
            )
        if controls.lora and controls.dream == OFF:
            copied = models.copied_bytes(painter.pipe) / 2**20
            words.append(f"{controls.lora} has a copy of the network to itself while you use it, {copied:.0f} MiB.")
        return " ".join(filter(None, words))


def named(*pairs: tuple[str, str]) -> Mapping[str, str]:
    """Places by name. Raises `ModelError` where two have one name."""
    found: dict[str, str] = {}
    for name, place in pairs:
        if found.setdefault(name, place) != place:
            raise models.ModelError(f"{found[name]} and {place} have the same name: rename one of them")
    return found


class OfferedStream(EngineStream):
    """A stream on a model that is offered, perhaps with a LoRA, whose scale can change.

    Raises:
        ValueError: for settings that the model cannot follow, or that the host has no room for.
    """

    def __init__(self, painter: Painter, settings: LiveSettings, fitting: Any) -> None:
        super().__init__(painter.pipe, settings, painter.host)
        self._painter, self._fitting = painter, fitting
        self._scale = settings.controls.lora_scale

    def configure(self, controls: Controls) -> None:
        """Change what is different."""
        super().configure(self._fitting(self._painter, controls))
        if controls.lora and controls.lora_scale != self._scale:
            self._engine.update(lora_scale=dict.fromkeys(models.adapters(self._pipe), controls.lora_scale))
            self._scale = controls.lora_scale


class ChosenStream:
    """A session's stream: what its controls ask for, painting or dreaming, on the model that they name.

    Raises:
        ValueError: for what cannot be had.
    """

    def __init__(self, offers: Offers, controls: Controls) -> None:
        self._offers = offers
        self._stream = offers.open(controls)
        self._key, self._withheld = _key(controls), 0

    @property
    def frames_in_flight(self) -> int:
        """Frames that were accepted and have not come out."""
        return self._stream.frames_in_flight

    @property
    def not_finite(self) -> int:
        """Pictures that were withheld so far."""
        return self._withheld + self._stream.not_finite

    @property
    def pace(self) -> str:
        """What is painted more cheaply to hold the rate, in words."""
        return self._stream.pace

    def push(self, image: Any, *, frame_id: int) -> list[StreamOutput]:
        """Put in a frame, and get what is finished."""
        return self._stream.push(image, frame_id=frame_id)

    def flush(self) -> list[StreamOutput]:
        """Finish the frames in flight."""
        return self._stream.flush()

    def configure(self, controls: Controls) -> None:
        """Change what is different; another model, LoRA or source is another stream."""
        if _key(controls) == self._key:
            self._stream.configure(controls)
            return
        with self._stream.making_room():
            new = self._offers.open(controls)
        self._withheld = self.not_finite
        self._stream.close()
        self._stream, self._key = new, _key(controls)

    def remark(self, controls: Controls) -> str:
        """What is not done of the controls, in words."""
        return self._offers.remark(controls)

    def close(self) -> None:
        """Let go of everything."""
        self._stream.close()


def _key(controls: Controls) -> Hashable:
    return controls.dream != OFF, controls.model, controls.lora if controls.dream == OFF else ""
