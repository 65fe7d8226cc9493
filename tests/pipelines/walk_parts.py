"""What the walk's pipelines are made of: tiny networks with random weights, and random inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import PIL.Image
import torch
from tiny_networks import TEXT
from tiny_transformers import TRANSFORMERS, Tiny
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

TOKENS = 6


@dataclass(frozen=True)
class Stop:
    """One pipeline of the walk.

    Attributes:
        name: its class, and after a comma what is special.
        build: makes it.
        inputs: its arguments, drawn at random.
        step: the network calls of one sampling step, in their order: "b" negative and positive rows in halves, "B"
            positive ones first, "p" and "n" a call with either prompt alone, "x" any other.
        steps: sampling steps, those in which a network is called.
        calls: given the index of a network's call, its step and its place there, where steps differ; None for all alike.
        networks: the denoisers' names, each of which counts its own calls.
        before: for a denoiser the steps of the run before its first call.
        alone: whether methods are put on these denoisers and not on the pipeline's others.
        slow: whether it is left out of the quick tests.
        large: whether its pictures are always large, so that half precision would take a processor too long.
    """

    name: str
    build: Callable[[], Any]
    inputs: Callable[["Draw"], dict[str, Any]]
    step: Sequence[str] = ("p",)
    steps: int = 5
    calls: Callable[[int], tuple[int, int]] | None = None
    networks: tuple[str, ...] = ("transformer",)
    before: Mapping[str, int] = field(default_factory=dict)
    alone: bool = False
    slow: bool = True
    large: bool = False

    def place(self, index: int) -> tuple[int, int]:
        """Step and place in it of a network's call."""
        return divmod(index, len(self.step)) if self.calls is None else self.calls(index)


class Draw:
    """Draws random inputs of one type from one seed."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def picture(self, *shape: int) -> torch.Tensor:
        """Values in 0..1."""
        return torch.rand(shape, generator=self.generator).to(self.dtype)

    def prompts(self, *names: str, tokens: int = TOKENS, width: int = TEXT, mask: str = "") -> dict[str, Any]:
        """Embeddings of each name, ``(1, tokens, width)``, and masks that leave nothing out."""
        found: dict[str, Any] = {}
        for name in names or ("prompt_embeds", "negative_prompt_embeds"):
            found[name] = self.normal(1, tokens, width)
            if mask:
                key = name.replace("prompt_embeds", mask)
                found[key] = torch.ones(1, tokens, dtype=torch.long)
        return found

    def pooled(self, width: int = TEXT) -> dict[str, Any]:
        return {f"{kind}pooled_prompt_embeds": self.normal(1, width) for kind in ("", "negative_")}


def red(size: int) -> Any:
    """A picture."""
    return PIL.Image.new("RGB", (size, size), "red")


def seeded(build: Callable[[], Any]) -> Any:
    """A network whose weights are random, those that begin as zeros, too."""
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        if parameter.numel() and parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def network(name: str, **config: Any) -> Any:
    """A network of diffusers."""
    return seeded(lambda: getattr(diffusers, name)(**config))


def transformer(name: str, **changes: Any) -> Any:
    known = TRANSFORMERS[name]
    return Tiny({**known.config, **changes}, known.inputs).build(name)


def kl(channels: int = 4, levels: int = 4, **more: Any) -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(4,) * levels,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=channels,
            sample_size=32,
            **more,
        )
    )


def vision() -> dict[str, Any]:
    """An encoder of pictures and what prepares them for it."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        projection_dim=TEXT,
    )
    size = {"shortest_edge": 224}
    processor = CLIPImageProcessorPil(size=size, crop_size={"height": 224, "width": 224})
    return {"image_encoder": seeded(lambda: CLIPVisionModelWithProjection(config)), "feature_extractor": processor}


def made(name: str, **parts: Any) -> Any:
    """A pipeline; parts that are not given are left out."""
    import inspect

    cls = getattr(diffusers, name)
    wanted = inspect.signature(cls.__init__).parameters
    missing = {key: None for key, p in wanted.items() if key != "self" and p.default is p.empty and key not in parts}
    pipe = cls(**missing, **{key: value for key, value in parts.items() if key in wanted})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ddim(**more: Any) -> Any:
    return diffusers.DDIMScheduler(**{"steps_offset": 1, "clip_sample": False, **more})


def flow(**more: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)
