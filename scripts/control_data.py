"""Pairs of drawings and lines for training control: what a control image may look like, from edges to a scribble.

A sample is a drawing of one of both sets, bent smoothly (so that lines, not the caption, say where things are), with
its caption. The lines are white on black as `diffaccel.stream`'s `control="edges"` makes them, or as a person might
draw them: thinned, thickened, displaced, with gaps, inner details left out, or as the two sides of a stroke.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from emoji_data import SIZE, Concept, Emojis, Placed, compose, concepts, place, render_all
from safetensors.torch import load_file, safe_open
from training import has_fast_bf16, save_shard

from diffaccel.measure import thinned

HELD_OUT_ONE_IN = 6
P_BENT = 0.6


def held_out(icon: str) -> bool:
    """Whether the Noto drawing of an icon is kept out of training."""
    return zlib.crc32(f"control {icon}".encode()) % HELD_OUT_ONE_IN == 0


class Drawings(Emojis):
    """Samples by index, half of them of the concepts as the base model was trained on, the rest any other drawing."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        super().__init__(folder, seed=seed)
        known = concepts(folder)
        rendered = render_all(folder)
        noto = [
            Concept(c.name, c.icon, {"noto": rendered["noto"][c.icon]}) for c in known if c.icon in rendered["noto"]
        ]
        self._sets = (
            known,
            tuple(concept for concept in noto if not held_out(concept.icon)),
            tuple(
                Concept(name.replace("-", " "), name, {style: rgba})
                for style, drawings in rendered.items()
                for name, rgba in drawings.items()
                if not held_out(name)
            ),
        )

    def describe(self, index: int) -> tuple[str, list[Placed], np.ndarray]:
        """Caption, drawings to place, background colour."""
        rng = np.random.default_rng((self.seed, index, 1))
        self.concepts = self._sets[rng.choice(3, p=(0.5, 0.25, 0.25))]
        return super().describe(index)

    def batch(self, indices: range) -> tuple[list[str], torch.Tensor]:  # type: ignore[override]
        """Captions and bent pictures in [-1, 1], (batch, 3, 128, 128)."""
        described = [self.describe(i) for i in indices]
        pictures = compose([(placed, background) for _, placed, background in described])
        return [caption for caption, _, _ in described], bent(pictures, self.seed + indices[0])


class HeldOut:
    """Noto drawings of known things that no training has seen, upright on white, with their captions and edges."""

    def __init__(self, folder: Path) -> None:
        noto = render_all(folder)["noto"]
        known = [c for c in concepts(folder) if c.icon in noto and held_out(c.icon)]
        self.captions = [c.name for c in known]
        white = np.ones(3, np.float32)
        self.pictures = compose([([place(noto[c.icon], 0.9, 0.0, 0.0, 0.0)], white) for c in known])
        self.edges = soft_edges((self.pictures.mean(1, keepdim=True) + 1) / 2).expand(-1, 3, -1, -1)

    def batch(self, size: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Captions, pictures (size, 3, 128, 128) in [-1, 1] and control images (size, 3, 128, 128) of the first."""
        return self.captions[:size], self.pictures[:size], self.edges[:size]


def smooth_noise(rows: int, cells: int, rng: torch.Generator) -> torch.Tensor:
    """Smooth displacements, (rows, SIZE, SIZE, 2), of about unit variance, `cells` bumps along each side."""
    coarse = torch.randn((rows, 2, cells + 2, cells + 2), generator=rng)
    return F.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=True).movedim(1, -1)


def moved(pictures: torch.Tensor, displacement: torch.Tensor, padding: str) -> torch.Tensor:
    """Pictures (n, C, SIZE, SIZE) sampled at displaced places, in units of half the side."""
    eye = torch.eye(2, 3).expand(len(pictures), -1, -1)
    grid = F.affine_grid(eye, [len(pictures), 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(pictures, grid + displacement, padding_mode=padding, align_corners=False)


def bent(pictures: torch.Tensor, seed: int) -> torch.Tensor:
    """P_BENT of the pictures bent by up to some 10 pixels and stretched along one side by up to a third."""
    rng = torch.Generator().manual_seed(seed)
    rows = len(pictures)
    bend = smooth_noise(rows, 2, rng) * 0.08 * torch.rand((rows, 1, 1, 1), generator=rng)
    line = torch.linspace(-1, 1, SIZE)
    place = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (SIZE, SIZE, 2), x then y
    stretch = torch.rand((rows, 1, 1, 2), generator=rng) * 0.35
    chosen = torch.rand((rows, 1, 1, 1), generator=rng) < P_BENT
    return moved(pictures, torch.where(chosen, bend + stretch * place, 0.0), "border")


def soft_edges(grey: torch.Tensor) -> torch.Tensor:
    """`diffaccel.stream`'s edges of grey pictures (n, 1, h, w) in [0, 1], all at once: (n, 1, h, w)."""
    grey = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    along = grey[..., :-2, :] + 2 * grey[..., 1:-1, :] + grey[..., 2:, :]
    across = grey[..., :-2] + 2 * grey[..., 1:-1] + grey[..., 2:]
    strength = torch.hypot(along[..., 2:] - along[..., :-2], across[..., 2:, :] - across[..., :-2, :]) / 4
    return (2 * strength).clamp(0, 1)


def thickened(lines: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Lines (n, 1, h, w) of one pixel drawn `width` (n,) pixels wide with soft borders."""
    drawn, result = lines, torch.zeros_like(lines)
    for radius in range(5):  # a cross and a square in turn make an octagon
        reach = (width / 2 - radius).clamp(0, 1)[:, None, None, None]
        result = torch.maximum(result, drawn * reach)
        if radius % 2:
            drawn = F.max_pool2d(drawn, 3, 1, 1)
        else:
            tall, wide = F.max_pool2d(drawn, (3, 1), 1, (1, 0)), F.max_pool2d(drawn, (1, 3), 1, (0, 1))
            drawn = torch.maximum(tall, wide)
    return result


def scribbled(edges: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Edges (n, 1, h, w) as a person might draw them: strong ones only, displaced, with gaps, of any width."""
    rows = len(edges)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand((rows, 1, 1, 1), generator=rng)

    strongest = edges.amax((1, 2, 3), keepdim=True)
    lines = thinned(edges > strongest * uniform(0.2, 0.8)).float()
    rough = uniform(0, 1)
    gaps = smooth_noise(rows, 12, rng)[..., :1].movedim(-1, 1) > uniform(1.2, 3.0)
    lines = lines * ~(gaps & (rough > 0.3))
    drawn = thickened(lines, uniform(1.5, 6.5).flatten())
    shake = smooth_noise(rows, 5, rng) * (2.5 / SIZE) + smooth_noise(rows, 24, rng) * (0.8 / SIZE)
    return moved(drawn, shake * rough, "zeros").clamp(0, 1)


def conditions(grey: torch.Tensor, seed: int) -> torch.Tensor:
    """Control images (n, 3, SIZE, SIZE) of grey pictures (n, 1, SIZE, SIZE) in [0, 1].

    Half are soft edges, some of a noisy picture; the rest are scribbles, a third of them as edges of the stroke.
    """
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(grey.shape, generator=rng) * 0.02 * torch.rand((len(grey), 1, 1, 1), generator=rng)
    noisy = torch.rand((len(grey), 1, 1, 1), generator=rng) < 0.3
    edges = soft_edges(grey + noise * noisy)
    kind = torch.rand(len(grey), generator=rng)
    result = edges.clone()
    rows = (kind > 0.5).nonzero()[:, 0]
    if len(rows):
        result[rows] = scribbled(edges[rows], rng)
    twice = (kind > 0.83).nonzero()[:, 0]
    if len(twice):
        result[twice] = soft_edges(1 - result[twice])
    return result.expand(-1, 3, -1, -1)


class ControlPool:
    """Encoded drawings and their grey pictures in shards on disk, made when first asked for; equal for equal seed.

    With `encode`, which makes latents of control images, each drawing has one control image, whose latents are kept:
    to encode one in every step would take as long as the step.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        vae: AutoencoderTiny,
        seed: int = 0,
        shards: int = 12,
        encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.folder = folder / f"control-{seed}"
        self.vae, self.shards, self.shard_size, self.encode = vae, shards, 1024, encode
        self.drawings = Drawings(data, seed + 11)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._current: tuple[int, list[str], dict[str, torch.Tensor]] | None = None

    @torch.no_grad()
    def _make(self, shard: int, file: Path) -> None:
        captions: list[str] = []
        latents, greys = [], []
        device = next(self.vae.parameters()).device
        for start in range(shard * self.shard_size, (shard + 1) * self.shard_size, 64):
            names, pictures = self.drawings.batch(range(start, start + 64))
            captions += names
            greys.append(((pictures.mean(1, keepdim=True) + 1) * 127.5).round().byte())
            pictures = pictures.to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
                # four at a time: what they need stays in a processor's cache
                latents += [self.vae.encode(few).latents.half().cpu().contiguous() for few in pictures.split(4)]
        save_shard(file, {"latents": torch.cat(latents), "grey": torch.cat(greys)}, captions)

    def _lines(self, shard: int, grey: torch.Tensor) -> torch.Tensor:
        """Latents (1024, 4, 16, 16) of one control image for each grey picture (1024, 1, 128, 128)."""
        assert self.encode
        file = self.folder / f"{shard:03d}-lines.safetensors"
        if not file.exists():
            control = conditions(grey.float() / 255, shard)
            save_shard(file, {"lines": torch.cat([self.encode(few).half().cpu() for few in control.split(64)])})
        return load_file(file)["lines"]

    def _shard(self, shard: int) -> tuple[list[str], dict[str, torch.Tensor]]:
        if self._current is None or self._current[0] != shard:
            file = self.folder / f"{shard:03d}.safetensors"
            if not file.exists():
                self._make(shard, file)
            with safe_open(file, "pt") as opened:
                captions = opened.metadata()["captions"].split("\n")
            stored = load_file(file)
            if self.encode:
                stored["lines"] = self._lines(shard, stored["grey"])
            self._current = (shard, captions, stored)
        return self._current[1], self._current[2]

    def batch(self, step: int, size: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Captions, latents of unit variance (size, 4, 16, 16), and what the control network takes, of a step.

        That is control images (size, 3, 128, 128), or with `encode` their latents.
        """
        visit, position = divmod(step, self.shard_size // size)
        captions, stored = self._shard(visit % self.shards)
        order = np.random.default_rng((visit, 7)).permutation(self.shard_size)
        chosen = torch.from_numpy(order[position * size : (position + 1) * size])
        latents = stored["latents"][chosen].float() * self.vae.config.scaling_factor
        if self.encode:
            control = stored["lines"][chosen].float()
        else:
            control = conditions(stored["grey"][chosen].float() / 255, step)
        return [captions[i] for i in chosen], latents, control
