"""StreamDiffusion as a diffusers pipeline: text-to-image and image-to-image streams on SD 1.x / 2.x / Turbo and SDXL.

pipe = DiffusionPipeline.from_pretrained(
    model, custom_pipeline="pipelines/stream_diffusion.py", trust_remote_code=True
)
images = pipe("a watercolor", image=frames, strength=0.5, num_steps=2).images    # a list in, a list out
engine = pipe.stream("a watercolor", height=512, width=512, timestep_indices=(22, 32, 45))
for frame in camera:
    for output in engine.push(frame):
        show(output.image)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from diffusers.utils.torch_utils import randn_tensor

import diffaccel.pipelines.base
from diffaccel import (
    FullGuidance,
    NoGuidance,
    OneTimeNegative,
    SelfNegative,
    SimilarityFilter,
    SlotCache,
    StreamEngine,
)
from diffaccel.methods import Method
from diffaccel.sampling.guidance import Guidance
from diffaccel.stream.report import StreamOutput

DEFAULT_STEPS = 4
GUIDANCE = {"none": NoGuidance(), "full": FullGuidance(), "self": SelfNegative(), "one-time": OneTimeNegative()}


class StreamDiffusionPipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=(
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionXLControlNetPipeline,
    ),
):
    """A stream per call, or one that stays open (`stream`), on the components of Stable Diffusion or SDXL.

    With a ControlNet among them, `control="edges"` makes control images of the frames.
    """

    def stream(
        self, prompt: Any = None, *, cache: Any = None, guidance: Any = None, similarity: Any = None, **settings: Any
    ) -> StreamEngine:
        """Open a stream: frames in with `push`, finished pictures out.

        Args:
            prompt: text, or several with weights; None where `prompt_embeds` are given.
            cache: a method or a SlotCache, as itself, its text or its dictionary.
            guidance: likewise, or just "none" (default), "full", "self" or "one-time".
            similarity: a SimilarityFilter, likewise.
            settings: as `diffaccel.StreamEngine` takes them; by default four stages from the start.

        Raises:
            TypeError, ValueError: for unknown or invalid settings; the message names what is valid.
        """
        if settings.get("timestep_indices") is None and settings.get("strength") is None:
            settings["strength"] = 1.0
        if settings.get("strength") is not None and settings.get("num_steps") is None:
            settings["num_steps"] = DEFAULT_STEPS
        size = self.unet.config.sample_size * self.vae_scale_factor
        height, width = settings.pop("height", None) or size, settings.pop("width", None) or size
        chosen = {
            "cache": _cache(cache),
            "guidance": _guidance(guidance),
            "similarity": None if similarity is None else diffaccel.config.as_config(similarity, SimilarityFilter),
        }
        return StreamEngine(self, prompt=prompt, height=height, width=width, **chosen, **settings)

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Mapping[str, float] | list[str | Mapping[str, float]] | None = None,
        image: Any = None,
        *,
        control_image: Any = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_frame_end: Any = None,
        **settings: Any,
    ) -> Any:
        """Run a list of pictures, a video `(frames, ...)`, or for text-to-image a number of frames through a stream.

        Args:
            prompt: text, or texts with weights; a list gives the frames of one after those of the other. None where
                `prompt_embeds` are given.
            image: pictures to paint anew, as `StreamEngine.push` takes them; None for text-to-image.
            control_image: control images for a ControlNet, as many as frames, or one for all.
            num_images_per_prompt: frames of each prompt, for text-to-image.
            generator: draws the noise of frames: one for all, or one for each; None leaves it to the stream's seed.
            latents: initial noise `(frames, C, h, w)` in place of it.
            output_type: "pil", "np", "pt" or "latent"; arrays and tensors have a leading dimension of frames.
            return_dict: False gives the tuple `(images, None)`, or `(images,)` for SDXL.
            callback_on_frame_end: called with the pipeline and each finished `StreamOutput`.
            settings: as for `stream`.

        Raises:
            TypeError, ValueError: for settings that the stream refuses, and numbers of frames that do not match.
        """
        prompts = [prompt] if prompt is None or isinstance(prompt, str | Mapping) else list(prompt)
        self._interrupt = False
        frames = None if image is None else _frames(image)
        if frames is not None:
            _require_pictures_alone(latents, num_images_per_prompt)
        count = num_images_per_prompt if frames is None else len(frames)
        controls = _per_frame(control_image, count)
        noises = self._noises(len(prompts) * count, generator, latents, settings)
        images: list[Any] = []
        with self.progress_bar(total=len(prompts) * count) as bar:

            def show(output: StreamOutput) -> None:
                bar.update()
                if callback_on_frame_end is not None:
                    callback_on_frame_end(self, output)

            for k, text in enumerate(prompts):
                own = [None] * count if noises is None else noises[k * count : (k + 1) * count]
                inputs = zip(frames or [None] * count, own, controls, strict=True)
                with self.stream(text, output_type=output_type, **settings) as engine:
                    images += _in_order(self._outputs(engine, inputs), show)
        images = _stacked(images, output_type)
        if isinstance(self, StableDiffusionXLPipeline | StableDiffusionXLControlNetPipeline):
            return StableDiffusionXLPipelineOutput(images=images) if return_dict else (images,)
        result = StableDiffusionPipelineOutput(images=images, nsfw_content_detected=None)
        return result if return_dict else (images, None)

    def _outputs(self, engine: StreamEngine, inputs: Iterable[tuple[Any, Any, Any]]) -> Iterator[StreamOutput]:
        """What a stream gives for pictures, noises and control images, until it is interrupted."""
        for image, noise, control in inputs:
            if self._interrupt:
                return
            yield from engine.push(image, noise, control=control)
        if not self._interrupt:
            yield from engine.flush()

    def _noises(
        self,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        settings: dict[str, Any],
    ) -> torch.Tensor | None:
        """Noise of frames; None leaves it to the stream's seed."""
        if latents is not None:
            if len(latents) != count:
                raise ValueError(f"{count} frames need as many latents, not {len(latents)}")
            return latents
        if generator is None:
            return None
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"{count} frames need as many generators, not {len(generator)}")
        size = self.unet.config.sample_size
        height, width = (
            size if settings.get(side) is None else settings[side] // self.vae_scale_factor
            for side in ("height", "width")
        )
        shape = (count, self.unet.config.out_channels, height, width)
        device, dtype = self._execution_device, self.unet.dtype
        noises: torch.Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return noises


def _guidance(value: Any) -> Guidance:
    """Guidance from an object, its text, its dictionary, or one word."""
    if value is None or (isinstance(value, str) and value in GUIDANCE):
        return GUIDANCE[value or "none"]
    return diffaccel.config.as_config(value, Guidance)  # type: ignore[type-abstract]


def _cache(value: Any) -> Method | SlotCache | None:
    """A cache from an object, its text or its dictionary."""
    if value is None or value == "none":
        return None
    if isinstance(value, SlotCache):
        return value
    name = str(value.get("type")) if isinstance(value, Mapping) else str(value)
    kind = SlotCache if name.lower().startswith("slotcache") else Method
    return diffaccel.config.as_config(value, kind)


def _frames(image: Any) -> Sequence[Any]:
    """Single pictures of a list, of a video, or of one picture."""
    if isinstance(image, list | tuple):
        return image
    if isinstance(image, torch.Tensor | np.ndarray) and image.ndim == 4:
        return list(image)
    return [image]


def _per_frame(control_image: Any, count: int) -> Sequence[Any]:
    """A control image, or None, for each frame."""
    if control_image is None:
        return [None] * count
    given = _frames(control_image)
    if len(given) not in (1, count):
        raise ValueError(f"{count} frames need as many control images, or one for all, not {len(given)}")
    return given if len(given) == count else list(given) * count


def _require_pictures_alone(latents: Any, num_images_per_prompt: int) -> None:
    """Refuse what is for text-to-image alone."""
    if latents is not None:
        raise ValueError("latents are initial noise of text-to-image frames: leave them out, or image")
    if num_images_per_prompt != 1:
        raise ValueError(
            f"every picture of image is painted once for each prompt: leave num_images_per_prompt="
            f"{num_images_per_prompt} out, or give pictures several times"
        )


def _in_order(outputs: Iterable[StreamOutput], show: Callable[[StreamOutput], None]) -> list[Any]:
    """Pictures in the order of their frames, each shown as it comes out.

    A skipped one, which comes out early, repeats the picture before it.
    """
    done = []
    for output in outputs:
        done.append(output)
        show(output)
    images: list[Any] = []
    for output in sorted(done, key=lambda output: output.frame_id):
        images.append(images[-1] if output.skipped else output.image)
    return images


def _stacked(outputs: list[Any], output_type: str) -> Any:
    if output_type == "pil" or not outputs:
        return outputs
    return np.stack(outputs) if output_type == "np" else torch.stack(outputs)
