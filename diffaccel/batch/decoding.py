"""A pipeline call in two halves: everything up to the decoder now, decoding at another time on another thread.

A diffusers pipeline ends with `image_processor.postprocess(vae.decode(latents))`. The first call with a new picture
size is watched: if that is all that happens to the decoder's output (no safety checker, no cropping), then later calls
leave both out, and hand back a function that does them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Decoded:
    """The pictures of one call, and for each whether the pipeline's safety checker found something, if it has one."""

    pictures: Any
    flagged: Sequence[bool] | None = None


Finish = Callable[[], Decoded]
_PICTURES = "the pictures, which are decoded later"


class Decoding:
    """Calls a pipeline and leaves decoding to the caller, wherever the pipeline allows it.

    Args:
        overlap: False decodes everything at once.
    """

    def __init__(self, overlap: bool = True) -> None:
        self._overlap = overlap
        self._splits: dict[Any, bool] = {}

    def __call__(self, pipe: Any, arguments: dict[str, Any]) -> Finish:
        """Run `pipe(**arguments)` up to the decoder; the returned function gives the pictures of the call."""
        key = (type(pipe), arguments.get("width"), arguments.get("height"))
        vae, processor = getattr(pipe, "vae", None), getattr(pipe, "image_processor", None)
        possible = self._overlap and hasattr(vae, "decode") and hasattr(processor, "postprocess")
        possible = possible and not _changes_its_format(pipe)
        if possible and key not in self._splits:
            pictures, self._splits[key] = _watched(pipe, arguments)
            return lambda: pictures
        if possible and self._splits[key]:
            return _split(pipe, arguments)
        decoded = _whole(pipe, arguments)
        return lambda: decoded


def _changes_its_format(pipe: Any) -> bool:
    """Whether the pipeline has its autoencoder in float32 while it computes with it and in less at all other times.

    SDXL's do. Neither decoding after the call nor beside another call would find it as it must be.
    """
    forced = getattr(pipe.vae.config, "force_upcast", False) and pipe.vae.dtype != torch.float32
    return bool(forced) and hasattr(pipe, "upcast_vae")


def _whole(pipe: Any, arguments: dict[str, Any]) -> Decoded:
    output = pipe(**arguments)
    return Decoded(output.images, getattr(output, "nsfw_content_detected", None))


def _watched(pipe: Any, arguments: dict[str, Any]) -> tuple[Decoded, bool]:
    """The pictures of a whole call, and whether the decoder's one output went to the postprocessor unchanged."""
    decode, postprocess = pipe.vae.decode, pipe.image_processor.postprocess
    decoded: list[Any] = []
    seen: list[Any] = []

    def watching_decode(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        decoded.append(output[0])
        return output

    def watching_postprocess(image: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(image)
        return postprocess(image, *args, **kwargs)

    with (
        _replaced(pipe.vae, "decode", watching_decode),
        _replaced(pipe.image_processor, "postprocess", watching_postprocess),
    ):
        pictures = _whole(pipe, arguments)
    return pictures, len(decoded) == 1 and len(seen) == 1 and decoded[0] is seen[0]


def _split(pipe: Any, arguments: dict[str, Any]) -> Finish:
    """The call without its last two functions, and a function that makes up for them."""
    decode, postprocess = pipe.vae.decode, pipe.image_processor.postprocess
    asked: dict[str, Any] = {}

    def later_decode(latents: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        from diffusers.models.autoencoders.vae import DecoderOutput

        asked["decode"] = lambda: decode(latents, *args, return_dict=False, **kwargs)[0]
        asked["stand-in"] = latents.new_zeros(()).expand(latents.shape[0], 3, 1, 1)
        return DecoderOutput(sample=asked["stand-in"]) if return_dict else (asked["stand-in"],)

    def later_postprocess(image: Any, *args: Any, **kwargs: Any) -> Any:
        assert image is asked["stand-in"], "the pipeline changed what it decoded, as it did not when it was watched"
        asked["postprocess"] = lambda decoded: postprocess(decoded, *args, **kwargs)
        return _PICTURES

    with _replaced(pipe.vae, "decode", later_decode), _replaced(pipe.image_processor, "postprocess", later_postprocess):
        pipe(**arguments)

    def finish() -> Decoded:
        with torch.inference_mode():
            return Decoded(asked["postprocess"](asked["decode"]()))

    return finish


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let `owner` have another method for a while; its class is left alone."""
    before = dict(owner.__dict__)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        del owner.__dict__[name]
        if name in before:
            owner.__dict__[name] = before[name]
