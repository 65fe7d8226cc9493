"""The training data: emoji drawings from registry packages, augmented so that a model must obey words and geometry.

Drawings come from two permissively licensed npm packages (`@iconify-json/fluent-emoji-flat`, MIT, and `@iconify-
json/noto`, Apache-2.0), their names are the captions. A sample is one drawing, scaled, shifted and turned; or one
drawing recoloured, with the colour's name in the caption ("purple star"); or two drawings side by side ("red heart
and blue circle"); some stand on a coloured background ("... on a green background"). Every sample is a pure function
of its index and the seed.
"""

from __future__ import annotations

import colorsys
import io
import json
import math
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

PACKAGES = {"fluent": "@iconify-json/fluent-emoji-flat@1.2.6", "noto": "@iconify-json/noto@1.2.9"}
SIZE = 128
HELD_OUT_BASE = 1 << 40  # sample indices from here on are never trained on

# Concepts of the text-to-image models. "icon" or "icon=caption" where everyday English differs from the icon's name.
CONCEPTS = tuple((Path(__file__).parent / "emoji_concepts.txt").read_text().split())

# name: (hue in turns, factor on saturation, factor on value); "gray" and "black" take the colour away
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.99, 1.0, 0.95),
    "orange": (0.075, 1.0, 1.0),
    "yellow": (0.14, 1.0, 1.05),
    "green": (0.37, 0.95, 0.85),
    "blue": (0.58, 1.0, 0.95),
    "purple": (0.76, 0.85, 0.9),
    "pink": (0.91, 0.6, 1.08),
    "brown": (0.06, 0.75, 0.58),
    "gray": (0.0, 0.0, 0.8),
    "black": (0.0, 0.0, 0.25),
}
# Colour and noun are never seen together in training: the test of obeying colours.
HELD_OUT_COLOURED = (
    "blue cat",
    "purple star",
    "green car",
    "pink house",
    "red fish",
    "yellow umbrella",
    "blue tree",
    "purple apple",
    "green rocket",
    "pink key",
    "orange whale",
    "blue mushroom",
    "green crown",
    "purple butterfly",
    "pink bell",
    "yellow guitar",
    "red cloud",
    "blue burger",
    "purple bus",
    "pink elephant",
    "red frog",
    "orange umbrella",
    "blue dog",
    "green bear",
)
TEMPLATES = ("{0}", "{0}", "{0}", "{1} {0}", "{1} {0}", "a drawing of {1} {0}")


@dataclass(frozen=True)
class Concept:
    """One caption with its drawings: premultiplied RGBA, uint8, (size, size, 4), by style."""

    name: str
    icon: str
    drawings: dict[str, np.ndarray] = field(repr=False)

    @property
    def noun(self) -> str:
        """The caption without a leading colour: what a recolouring is called after."""
        first, _, rest = self.name.partition(" ")
        return rest if first in COLOURS and rest else self.name

    @property
    def coloured(self) -> bool:
        """Whether the caption names its colour already."""
        return self.noun != self.name


def fetch(folder: Path) -> None:
    """Download the drawings' packages with npm into `folder`, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for style, package in PACKAGES.items():
        if (folder / f"{style}.json").exists():
            continue
        with tempfile.TemporaryDirectory() as tmp:
            subprocess.run(["npm", "pack", package, "--pack-destination", tmp], check=True, capture_output=True)
            archive = next(Path(tmp).glob("*.tgz"))
            with tarfile.open(archive) as tar:
                member = tar.extractfile("package/icons.json")
                assert member is not None
                (folder / f"{style}.json").write_bytes(member.read())


def rasterise(body: str, width: float, height: float, size: int = SIZE) -> np.ndarray:
    """An SVG body as premultiplied RGBA uint8 of (size, size, 4), drawn at twice the size and averaged down."""
    import resvg_py

    side = max(width, height)
    box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} viewBox="{box}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size)
    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255.0
    return rgba.reshape(size, 2, size, 2, 4).mean((1, 3)).round().astype(np.uint8)


def render_all(folder: Path, styles: tuple[str, ...] = ("fluent", "noto")) -> dict[str, dict[str, np.ndarray]]:
    """Every drawing, {style: {icon: RGBA}}, without people's skin tones and flags; kept as .npz in `folder`."""
    fetch(folder)
    result = {}
    for style in styles:
        file = folder / f"{style}-{SIZE}.npz"
        if not file.exists():
            data = json.loads((folder / f"{style}.json").read_text())
            drawings = {
                name: rasterise(
                    icon["body"], icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
                )
                for name, icon in data["icons"].items()
                if not any(
                    word in name for word in ("skin-tone", "light", "dark", "medium", "flag", "person", "man-", "woman")
                )
            }
            np.savez(file, **drawings)
        with np.load(file) as stored:
            result[style] = {name: stored[name] for name in stored.files}
    return result


@cache
def concepts(folder: Path, styles: tuple[str, ...] = ("fluent",)) -> tuple[Concept, ...]:
    """The concepts in order, each with its drawing in every style that has it (the first style must)."""
    rendered = render_all(folder)
    found = []
    for entry in CONCEPTS:
        icon, _, caption = entry.partition("=")
        drawings = {style: rendered[style][icon] for style in styles if icon in rendered[style]}
        if styles[0] not in drawings:
            continue
        found.append(Concept((caption or icon).replace("-", " "), icon, drawings))
    return tuple(found)


def recolour(rgba: np.ndarray, colour: str) -> np.ndarray:
    """The drawing in one hue: saturated pixels move to the colour, a tenth of the spread of hues stays as shading."""
    hue, saturation_factor, value_factor = COLOURS[colour]
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgb = np.divide(rgba[..., :3] / 255.0, alpha, out=np.zeros_like(rgba[..., :3], dtype=np.float32), where=alpha > 0)
    hsv = np.asarray(Image.fromarray((rgb * 255).clip(0, 255).astype(np.uint8)).convert("HSV"), dtype=np.float32) / 255
    h, s, v = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    if not (s[alpha[..., 0] > 0.5] > 0.25).mean() > 0.35:  # a gray drawing: tint it
        s = np.where(v > 0.15, np.maximum(s, 0.65), s)
    angle = np.exp(2j * np.pi * h) * s * alpha[..., 0]
    main = np.angle(angle.sum()) / (2 * np.pi)
    spread = (h - main + 0.5) % 1 - 0.5
    new_h = (hue + 0.1 * spread) % 1
    strong = np.clip((s - 0.1) / 0.2, 0, 1)
    lift = 1 + (value_factor - 1) * strong
    new_s = s * (1 + (saturation_factor - 1) * strong)
    if colour in ("red", "orange", "yellow", "green", "blue", "purple"):
        new_s = np.where(s > 0.2, np.maximum(new_s, 0.55 * saturation_factor), new_s)
    mixed = np.stack([new_h, new_s.clip(0, 1), (v * lift).clip(0, 1)], -1)
    out = np.asarray(Image.fromarray((mixed * 255).astype(np.uint8), "HSV").convert("RGB"), dtype=np.float32) / 255
    return np.concatenate([out * alpha, alpha], -1).__mul__(255).round().astype(np.uint8)


def background_rgb(colour: str, rng: np.random.Generator) -> np.ndarray:
    """A light to full background of the colour, RGB in [0, 1]."""
    hue, saturation, value = COLOURS[colour]
    rgb = colorsys.hsv_to_rgb(
        hue, min(1.0, saturation * rng.uniform(0.35, 0.9)), min(1.0, value * rng.uniform(0.85, 1.0))
    )
    return np.array(rgb, dtype=np.float32)


@dataclass(frozen=True)
class Placed:
    """A drawing with the affine map that puts it on the canvas (theta of `F.affine_grid`, (2, 3))."""

    rgba: np.ndarray
    theta: np.ndarray


def place(rgba: np.ndarray, scale: float, x: float, y: float, degrees: float) -> Placed:
    """`scale` 1 fills the canvas; the centre goes to (x, y), in [-1, 1]."""
    c, s = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    return Placed(rgba, np.array([[c, s, -c * x - s * y], [-s, c, s * x - c * y]], dtype=np.float32))


class Emojis:
    """Samples by index: caption and picture, the same for the same (seed, index)."""

    def __init__(
        self,
        folder: Path,
        styles: tuple[str, ...] = ("fluent",),
        seed: int = 0,
        p_colour: float = 0.22,
        p_pair: float = 0.2,
        p_background: float = 0.1,
        p_centred: float = 0.0,
    ) -> None:
        self.concepts = concepts(folder, styles)
        self.seed, self.p_colour, self.p_pair, self.p_background = seed, p_colour, p_pair, p_background
        self.p_centred = p_centred

    @property
    def captions(self) -> list[str]:
        """The plain captions, one per concept."""
        return [c.name for c in self.concepts]

    def _object(self, rng: np.random.Generator, p_colour: float) -> tuple[str, np.ndarray]:
        concept = self.concepts[rng.integers(len(self.concepts))]
        rgba = concept.drawings[list(concept.drawings)[rng.integers(len(concept.drawings))]]
        if rng.random() < p_colour:
            colour = list(COLOURS)[rng.integers(len(COLOURS))]
            caption = f"{colour} {concept.noun}"
            if caption not in HELD_OUT_COLOURED:
                return caption, recolour(rgba, colour)
        return concept.name, rgba

    def describe(self, index: int) -> tuple[str, list[Placed], np.ndarray]:
        """Caption, drawings to place, background colour."""
        rng = np.random.default_rng((self.seed, index))
        background, suffix = np.ones(3, np.float32), ""
        if rng.random() < self.p_background:
            colour = list(COLOURS)[rng.integers(len(COLOURS))]
            background, suffix = (
                background_rgb(colour, rng),
                f" on {'an' if colour[0] == 'o' else 'a'} {colour} background",
            )
        if rng.random() < self.p_pair:
            (first, left), (second, right) = self._object(rng, 0.4), self._object(rng, 0.4)
            caption = f"{first} and {second}"
            placed = [
                place(
                    rgba,
                    rng.uniform(0.42, 0.52),
                    side * rng.uniform(0.46, 0.52),
                    rng.uniform(-0.25, 0.25),
                    rng.uniform(-8, 8),
                )
                for rgba, side in ((left, -1), (right, 1))
            ]
            return caption + suffix, placed, background
        caption, rgba = self._object(rng, self.p_colour / max(1e-9, 1 - self.p_pair))
        caption = TEMPLATES[rng.integers(len(TEMPLATES))].format(caption, "an" if caption[0] in "aeiou" else "a")
        if self.p_centred and rng.random() < self.p_centred:
            shift = rng.uniform(-0.06, 0.06, 2)
            return caption + suffix, [place(rgba, rng.uniform(0.92, 1.0), *shift, rng.uniform(-4, 4))], background
        scale = rng.uniform(0.85, 1.0) if rng.random() < 0.5 else rng.uniform(0.5, 0.85)
        room = 1 - scale + 0.04
        placed = [place(rgba, scale, rng.uniform(-room, room), rng.uniform(-room, room), rng.uniform(-12, 12))]
        return caption + suffix, placed, background

    def batch(self, indices: Sequence[int]) -> tuple[list[str], torch.Tensor]:
        """Captions and pictures in [-1, 1], (batch, 3, 128, 128)."""
        described = [self.describe(i) for i in indices]
        return [caption for caption, _, _ in described], compose([(placed, bg) for _, placed, bg in described])


def compose(scenes: list[tuple[list[Placed], np.ndarray]]) -> torch.Tensor:
    """Draw the scenes: (batch, 3, size, size) in [-1, 1]."""
    canvas = torch.stack([torch.from_numpy(bg) for _, bg in scenes])[:, :, None, None].repeat(1, 1, SIZE, SIZE)
    for layer in range(max(len(placed) for placed, _ in scenes)):
        rows = [i for i, (placed, _) in enumerate(scenes) if len(placed) > layer]
        rgba = torch.stack([torch.from_numpy(scenes[i][0][layer].rgba) for i in rows]).permute(0, 3, 1, 2).float() / 255
        theta = torch.stack([torch.from_numpy(scenes[i][0][layer].theta) for i in rows])
        moved = F.grid_sample(rgba, F.affine_grid(theta, list(rgba.shape), align_corners=False), align_corners=False)
        canvas[rows] = canvas[rows] * (1 - moved[:, 3:]) + moved[:, :3]
    return canvas.clamp(0, 1) * 2 - 1


def to_image(picture: torch.Tensor) -> Image.Image:
    """A (3, h, w) tensor in [-1, 1] as a picture."""
    return Image.fromarray(((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def contact_sheet(pictures: torch.Tensor, columns: int) -> Image.Image:
    """A grid of (n, 3, h, w) pictures in [-1, 1]."""
    h, w = pictures.shape[-2:]
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (w + 2), rows * (h + 2)), (225, 225, 225))
    for i, picture in enumerate(pictures):
        sheet.paste(to_image(picture), ((i % columns) * (w + 2) + 1, (i // columns) * (h + 2) + 1))
    return sheet
