"""How a denoiser names its inputs, so that a timestep is found whether it was given by position or by keyword."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

TIMESTEPS = ("timestep", "timesteps", "t")
# Inputs without a dimension of rows, whose first dimension, or length, may equal the number of rows by chance.
WITHOUT_ROWS = (
    "chunk_partition",
    "conditioning_scale",
    "control_hidden_states_scale",
    "control_type_idx",
    "image_rotary_emb",
    "img_ids",
    "ip_adapter_masks",
    "position_ids",
    "rope_interpolation_scale",
    "rotary_embedding",
    "skip_layers",
    "spatio_temporal_guidance_blocks",
    "text_rope_pos",
    "txt_ids",
    "visual_rope_pos",
)
# Inputs whose second dimension are the rows: the first are the layers of a text encoder.
SECOND_ROWS = ("encoder_hidden_states_llama3",)
# Inputs that are meant for single blocks of one network: what ControlNets and adapters add there in each step, and the
# keys and values that it keeps of other calls, ...
PUT_IN_BLOCKS = re.compile(r"residual|controlnet_(single_)?block|block_controlnet|kv_caches?$")
# ... and which of its blocks a guidance leaves out.
LEFT_OUT = ("skip_layers", "spatio_temporal_guidance_blocks")
CONDITIONINGS = ("controlnet_cond", "encoder_hidden_states", "encoder_hidden_states_t5", "cap_feats", "class_labels")


@dataclass(frozen=True)
class Inputs:
    """The inputs of one network call by name.

    Attributes:
        values: every argument given.
        names: names of the sample, the timestep and the conditioning among them.
    """

    values: Mapping[str, Any]
    names: tuple[str, str | None, str | None]

    @property
    def sample(self) -> Any:
        """What is denoised: a tensor whose first dimension is the rows, or whatever the network takes for it."""
        return self.values[self.names[0]]

    @property
    def rows(self) -> int:
        """How many rows; a network that takes no tensor has one."""
        return self.sample.shape[0] if isinstance(self.sample, torch.Tensor) and self.sample.dim() else 1

    @property
    def timestep(self) -> Any:
        """The timestep, None if the network takes none."""
        return self._named(1)

    @property
    def conditioning(self) -> Any:
        """The prompt embeddings or class labels, None if the network takes none."""
        return self._named(2)

    def gives_prompt(self, path: tuple[str, ...]) -> bool:
        """Whether cross-attention has something to attend to; without it, it attends to the sample as self-attention.

        Args:
            path: modules that a prompt goes through, which make one of other inputs where it is not given by name.
        """
        return bool(path) or self.values.get("encoder_hidden_states") is not None

    @property
    def constants(self) -> list[Any]:
        """The tensors and other values in inputs that usually stay the same during a run."""
        return tree_leaves([value for name, value in self.values.items() if self.is_constant(name)])

    def is_constant(self, name: str) -> bool:
        """Whether an input usually stays the same: all but sample, timestep and what is put in blocks do."""
        return name not in self.names[:2] and not PUT_IN_BLOCKS.search(name)

    @property
    def of_blocks(self) -> list[str]:
        """Names of the inputs that are meant for single blocks of the network that they are given to."""
        given = (name for name, value in self.values.items() if value is not None)
        return [name for name in given if PUT_IN_BLOCKS.search(name) or name in LEFT_OUT]

    @property
    def fills_cache(self) -> bool:
        """Whether the network is called for the keys and values that it keeps itself, and not for its output."""
        return bool((self.values.get("kv_cache_flag") or {}).get("is_cache_step"))

    def replace(self, **values: Any) -> "Inputs":
        """These inputs with some values changed."""
        return replace(self, values={**self.values, **values})

    def _named(self, index: int) -> Any:
        name = self.names[index]
        return None if name is None else self.values.get(name)


class Signature:
    """Names of a denoiser's inputs, read from its class once.

    Args:
        model: the denoiser. Its first input is the sample.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self.names = self.parameters[0], self._first(TIMESTEPS), self._first(CONDITIONINGS)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
        """Name the inputs of one call.

        Raises:
            TypeError: if the sample is missing, or more inputs are given than the network takes.
        """
        values = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        if len(args) > len(self.parameters) or self.names[0] not in values:
            raise TypeError(
                f"the network takes {', '.join(self.parameters)}; got {len(args)} inputs and {list(kwargs)}"
            )
        return Inputs(values, self.names)

    def _first(self, candidates: tuple[str, ...]) -> str | None:
        """The first of `candidates` that the network takes."""
        return next((name for name in candidates if name in self.parameters), None)
