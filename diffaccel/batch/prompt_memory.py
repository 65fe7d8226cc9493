"""Text is encoded once for each distinct prompt, by itself, however often and in whatever batch it comes up.

A hook on each text encoder looks at the rows of token ids that the pipeline asks for, runs those that are new, and puts
the answer together from what it remembers. So it works on every pipeline, knows nothing of how it uses its encoders,
and an embedding depends on nothing but its prompt.

Padding is left out where the denoiser is told which tokens are padding and never looks at their embeddings (PixArt,
Sana). Stable Diffusion and its kin attend to the embeddings of the padding, which therefore has to be encoded.
"""

import inspect
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from diffaccel._diffusers import Hook, registry_of
from diffaccel.runtime.lanes import cat_rows
from diffaccel.runtime.trees import tensors_in

HOOK = "diffaccel_text"
MAX_BYTES = 256 * 2**20
_MASKED = ("PixArtTransformer2DModel", "SanaTransformer2DModel")


class TextMemory:
    """Embeddings of the prompts of a pipeline. Attaches to its text encoders; `detach` takes it off again.

    Args:
        max_bytes: storage of the embeddings that are kept; the ones that were not used for longest go first.

    Attributes:
        encoded: rows of text that were run through an encoder.
    """

    def __init__(self, pipe: Any, max_bytes: int = MAX_BYTES) -> None:
        self._encoders = [part for name, part in pipe.components.items() if _is_text_encoder(name, part)]
        self._trims = type(getattr(pipe, "transformer", None)).__name__ in _MASKED
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = RLock()
        self.encoded = 0
        for index, encoder in enumerate(self._encoders):
            _Remembering(self, index).put_on(encoder, HOOK)

    def detach(self) -> None:
        """Take the hooks off, and forget everything."""
        for encoder in self._encoders:
            registry_of(encoder).remove_hook(HOOK, recurse=False)
        self._encoders = []
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    @contextmanager
    def changed_weights(self) -> Iterator[None]:
        """Keep out of the encoders while their weights change, and forget what the old ones gave."""
        with self._lock:
            yield
            self.clear()

    def answer(self, hook: "_Remembering", ids: torch.Tensor, mask: torch.Tensor | None, rest: dict[str, Any]) -> Any:
        """What the encoder of `hook` gives for token ids and attention mask of shape `(rows, tokens)`."""
        with self._lock:
            masks = [None] * len(ids) if mask is None else torch.split(mask, 1)
            rows = [self._row(hook, *row, rest) for row in zip(torch.split(ids, 1), masks, strict=True)]
        return cat_rows(rows)

    def _row(self, hook: "_Remembering", ids: torch.Tensor, mask: torch.Tensor | None, rest: dict[str, Any]) -> Any:
        """One row, remembered or encoded."""
        key = (hook.index, tuple(ids[0].tolist()), mask is None or tuple(mask[0].tolist()), tuple(sorted(rest.items())))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        self.encoded += 1
        output = hook.encode(ids, mask, rest, trim=self._trims)
        size = sum(tensor.nbytes for tensor in tensors_in(output))
        self._kept[key] = output, size
        self._bytes += size
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1][1]
        return output


class _Remembering(Hook):
    """Stands in front of one text encoder."""

    def __init__(self, memory: TextMemory, index: int) -> None:
        super().__init__()
        self._memory = memory
        self.index = index

    def new_forward(self, _module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Answer calls for token ids alone; others, such as those with a picture, reach the encoder as they are."""
        names = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        ids, mask = names.pop("input_ids", None), names.pop("attention_mask", None)
        plain = len(args) <= 2 and all(value is None or isinstance(value, bool | int) for value in names.values())
        if plain and _is_rows(ids) and (mask is None or (_is_rows(mask) and mask.shape == ids.shape)):
            return self._memory.answer(self, ids, mask, names)
        return self.original(*args, **kwargs)

    def encode(self, ids: torch.Tensor, mask: torch.Tensor | None, rest: dict[str, Any], *, trim: bool) -> Any:
        """The encoder's output for one row; with `trim`, zeros stand where the padding was."""
        total = ids.shape[1]
        length = total
        if trim and mask is not None and mask.any():
            length = int(mask[0].nonzero().max()) + 1
        kept = {} if mask is None else {"attention_mask": mask[:, :length]}
        output = self.original(ids[:, :length], **kept, **rest)
        return output if length == total else _padded(output, length, total)


def _is_text_encoder(name: str, part: Any) -> bool:
    return name.startswith("text_encoder") and isinstance(part, torch.nn.Module)


def _is_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2


def _padded(output: Any, length: int, total: int) -> Any:
    """Hidden states of shape `(1, length, width)` as `(1, total, width)`, with zeros behind them."""
    leaves, spec = tree_flatten(output)
    hidden = [isinstance(leaf, torch.Tensor) and leaf.dim() == 3 and leaf.shape[1] == length for leaf in leaves]
    pads = ((0, 0, 0, total - length) if is_hidden else () for is_hidden in hidden)
    return tree_unflatten([F.pad(leaf, p) if p else leaf for leaf, p in zip(leaves, pads, strict=True)], spec)


def encode_ahead(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any]) -> None:
    """Encode prompts as a call of `pipe` with `arguments` will; nothing where it cannot be known how it will."""
    call = inspect.signature(pipe.__call__).parameters
    known = {"prompt": list(prompts), "device": pipe._execution_device, "num_images_per_prompt": 1}
    values: dict[str, Any] = {}
    for name, parameter in inspect.signature(pipe.encode_prompt).parameters.items():
        if name in known or name in arguments or name == "do_classifier_free_guidance":
            values[name] = known.get(name, arguments.get(name, False))
        elif name in call and call[name].default is not inspect.Parameter.empty:
            values[name] = call[name].default
        elif parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            return
    with torch.inference_mode():
        pipe.encode_prompt(**values)
