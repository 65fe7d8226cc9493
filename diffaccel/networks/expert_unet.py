"""A UNet whose convolutions are mixed by the timestep from several experts (A-SDM, arXiv 2406.00210).

A small network lacks the capacity for all noise levels. Each 3 x 3 convolution of its layers has a weight for each of K
levels, evenly spaced from the timestep 0 to the last one, and uses the two nearest of them, mixed by how near they are:
W(t) = sum_k max(0, 1 - |s(t) - k|) W_k, with s(t) = (K - 1) t / (T - 1). A convolution is linear in its weight, so that
the mixture is folded into one weight in front of a call and costs as much as any other; only where the rows of a call
have different timesteps, as in training, each expert's output is computed and those are mixed. A-SDM's paper learns
the mixture from the embedded timestep; here it is fixed, so that an expert is of one range of noise from the beginning.
"""

import inspect
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import ModelMixin as ModelMixin  # diffusers asks a component's module for what loads it
from diffusers import UNet2DConditionModel
from torch import nn

from diffaccel.config.checks import check

TIMESTEPS = 1000


class ExpertConv2d(nn.Module):
    """A convolution with several weights and biases, of which `shares` says how much each has.

    Args:
        like: its shape, and the weight and bias that all experts begin with.
        experts: how many.

    Attributes:
        shares: of the experts, ``(1, experts)`` for all rows or ``(rows, experts)``; set in front of each call.
    """

    def __init__(self, like: nn.Conv2d, experts: int) -> None:
        super().__init__()
        assert like.bias is not None
        self.stride, self.padding = like.stride, like.padding
        self.weights = nn.ParameterList(like.weight.detach().clone() for _ in range(experts))
        self.biases = nn.ParameterList(like.bias.detach().clone() for _ in range(experts))
        self.shares = torch.ones(1, experts) / experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features ``(rows, channels, height, width)``.

        Raises:
            ValueError: for rows that are not those whose timesteps are known.
        """
        if len(self.shares) == 1:
            weight, bias = (mixed(self.shares[0], list(each)) for each in (self.weights, self.biases))
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        check(
            len(self.shares) == len(x),
            f"a layer of experts was given {len(x)} of the {len(self.shares)} rows of a call that are at different "
            "timesteps: use a method that keeps rows together, or none",
        )
        outputs = [
            F.conv2d(x, weight, bias, self.stride, self.padding)
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        return mixed(self.shares.T[..., None, None, None], outputs)


def mixed(shares: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
    """sum_k shares[k] values[k], in the values' number format."""
    return torch.stack([value * share.to(value.dtype) for share, value in zip(shares, values, strict=True)]).sum(0)


def shares_at(timesteps: torch.Tensor, experts: int) -> torch.Tensor:
    """How much each expert has at each timestep ``(rows,)``, as ``(rows, experts)``; they add up to 1."""
    place = timesteps.float().clamp(0, TIMESTEPS - 1) * (experts - 1) / (TIMESTEPS - 1)
    return (1 - (place[:, None] - torch.arange(experts, device=place.device)).abs()).clamp(min=0)


class ExpertUNet2DConditionModel(UNet2DConditionModel):  # type: ignore[misc]
    """Stable Diffusion's UNet with a mixture of experts in each convolution of its layers.

    Each has `experts` weights, two at least; all other settings are those of diffusers' `UNet2DConditionModel`.

    Raises:
        ValueError: for fewer experts.
    """

    def __init__(self, *, experts: int = 4, **config: Any) -> None:
        check(isinstance(experts, int) and experts >= 2, f"experts must be an integer >= 2; got {experts!r}")
        super().__init__(**config)
        self.register_to_config(experts=experts)
        self._set_experts(experts)

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # diffusers reads settings off it
        [
            *inspect.signature(UNet2DConditionModel.__init__).parameters.values(),
            inspect.Parameter("experts", inspect.Parameter.KEYWORD_ONLY, default=4),
        ]
    )

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, experts: int = 4) -> Self:
        """A network that computes what `unet` does, whose experts are all the same, to be trained."""
        made = cls.from_config(unet.config, experts=experts)
        known = unet.state_dict()
        for name, parameter in made.state_dict().items():
            parameter.copy_(known[_plain_name(name)])
        return made  # type: ignore[no-any-return]

    def _set_experts(self, experts: int) -> None:
        """Put experts in the places of the 3 x 3 convolutions of residual layers."""
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv2d) and ".resnets." in name and module.kernel_size == (3, 3):
                parent, _, own = name.rpartition(".")
                setattr(self.get_submodule(parent), own, ExpertConv2d(module, experts))
        self._convolutions = [module for module in self.modules() if isinstance(module, ExpertConv2d)]

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float, *args: Any, **kwargs: Any) -> Any:
        """As of `UNet2DConditionModel`; experts are mixed for the timestep first."""
        times = torch.as_tensor(timestep, device=sample.device).flatten()
        alike = times.is_meta or bool((times == times[0]).all())  # where costs are counted there are no values
        shares = shares_at(times[:1] if alike else times, self.config.experts)
        for convolution in self._convolutions:
            convolution.shares = shares
        return super().forward(sample, timestep, *args, **kwargs)

    forward.__signature__ = inspect.signature(UNet2DConditionModel.forward)  # type: ignore[attr-defined]


def _plain_name(name: str) -> str:
    """The name of an expert's weight in a network without experts."""
    head, kind, _ = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
    return {"weights": f"{head}.weight", "biases": f"{head}.bias"}.get(kind, name)
