"""Prompt accuracy: whether a picture still shows what was asked for, judged by the bundled emoji-clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from diffaccel.config.checks import check
from diffaccel.models import path
from diffaccel.models.quiet import quiet_loading

CHUNK = 64  # pictures at a time


@dataclass(frozen=True)
class Accuracy:
    """Share of pictures whose own caption is the nearest of all (top-1), or among the five nearest (top-5)."""

    top1: float
    top5: float


@cache
def captions() -> tuple[str, ...]:
    """The things that the bundled models were trained to draw, as they are called."""
    return tuple((Path(__file__).parent / "captions.txt").read_text(encoding="utf-8").splitlines())


class Judge:
    """Ranks captions by their similarity to a picture, as emoji-clip sees it.

    Args:
        captions: all captions to choose from; those of the pictures must be among them.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        check(bool(captions), "a judge needs at least one caption; got none")
        self.captions = list(captions)
        with quiet_loading():
            self.model: Any = CLIPModel.from_pretrained(path("emoji-clip")).eval()
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(path("emoji-clip"))
        with torch.no_grad():
            text = self.model.text_model(input_ids=self._tokens()).pooler_output
            self.text = F.normalize(self.model.text_projection(text), dim=-1)  # (captions, features)

    @torch.no_grad()
    def ranks(self, pictures: torch.Tensor, truth: Sequence[str]) -> torch.Tensor:
        """Place of the true caption of each picture, (n,); 0 is the nearest.

        Args:
            pictures: (n, 3, height, width) in [0, 1]; resized to the 128 pixels that emoji-clip takes.
            truth: the caption of each picture.

        Raises:
            ValueError: if a true caption is not one of the judge's, or there is not one for each picture.
        """
        check(len(pictures) == len(truth), f"{len(pictures)} pictures cannot have {len(truth)} captions")
        unknown = sorted(set(truth) - set(self.captions))
        check(not unknown, f"the judge does not know the caption {unknown[:1]}: give it to Judge(captions)")
        scores = F.normalize(self.features(pictures), dim=-1) @ self.text.T
        own = scores.gather(1, torch.tensor([self.captions.index(caption) for caption in truth])[:, None])
        return (scores > own).sum(1)

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Image features as emoji-clip projects them, not normalised: (n, 128).

        Args:
            pictures: (n, 3, height, width) in [0, 1]; resized to the 128 pixels that emoji-clip takes.
        """
        size = self.model.config.vision_config.image_size
        scaled = pictures.to("cpu", torch.float32) * 2 - 1
        if tuple(scaled.shape[-2:]) != (size, size):
            scaled = F.interpolate(scaled, (size, size), mode="bicubic", antialias=True)
        seen = [self.model.vision_model(pixel_values=part).pooler_output for part in torch.split(scaled, CHUNK)]
        features: torch.Tensor = self.model.visual_projection(torch.cat(seen))
        return features

    def accuracy(self, pictures: torch.Tensor, truth: Sequence[str]) -> Accuracy:
        """Top-1 and top-5 over pictures (n, 3, height, width) in [0, 1], given the caption of each."""
        ranks = self.ranks(pictures, truth)
        return Accuracy(top1=(ranks < 1).float().mean().item(), top5=(ranks < 5).float().mean().item())

    def _tokens(self) -> torch.Tensor:
        """Token ids, (captions, length), padded with the end token as Stable Diffusion does."""
        tokens: torch.Tensor = self.tokenizer(
            self.captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return tokens
