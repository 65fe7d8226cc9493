"""Videos of any length with AnimateDiff, Latte, Wan, SkyReels-V2, AnyFlow-FAR: chunks that see the frames before them.

    pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline="pipelines/causal_video.py", trust_remote_code=True)
    frames = pipe("a rocket flies up", num_frames=80).frames[0]
    more = pipe("a rocket moves left", frames=frames, num_frames=40).frames[0]     # goes on from these
    for chunk in pipe.stream("a rocket flies up"):                                 # without end
        show(chunk.frames)

Time and memory of a chunk do not grow with the video.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.animatediff import AnimateDiffPipelineOutput
from diffusers.pipelines.anyflow.pipeline_output import AnyFlowPipelineOutput
from diffusers.pipelines.latte.pipeline_latte import LattePipelineOutput
from diffusers.pipelines.skyreels_v2.pipeline_output import SkyReelsV2PipelineOutput
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

import diffaccel.pipelines.base
from diffaccel import CausalContext, FullGuidance, NoGuidance, VideoEngine
from diffaccel.methods import Method
from diffaccel.sampling.guidance import Guidance
from diffaccel.video.report import OnStep

logger = logging.getLogger(__name__)
OUTPUTS = {
    "AnimateDiffPipeline": AnimateDiffPipelineOutput,
    "AnimateDiffSDXLPipeline": AnimateDiffPipelineOutput,
    "AnyFlowFARPipeline": AnyFlowPipelineOutput,
    "LattePipeline": LattePipelineOutput,
    "WanPipeline": WanPipelineOutput,
    "SkyReelsV2Pipeline": SkyReelsV2PipelineOutput,
}
OWN_NAMES = {"chunk": "chunk_size", "num_steps": "num_inference_steps", "given": "frames"}
"""What settings of a stream are called in a call."""
_said: set[str] = set()


class CausalVideoPipeline(
    diffaccel.pipelines.base.FastPipeline, stock=tuple(getattr(diffusers, name) for name in OUTPUTS)
):
    """A video in a call, or one without end (`stream`), on the components of a text-to-video pipeline."""

    def stream(
        self, prompt: Any, *, guidance: Any = None, context: Any = None, cache: Any = None, **settings: Any
    ) -> VideoEngine:
        """Open a video without end: iterate over it for chunks of frames, `update` what shall change.

        Args:
            prompt: text, or several with weights.
            guidance: a guidance, as itself, its text or its dictionary.
            context: a CausalContext, likewise.
            cache: a method that reuses features within a chunk, likewise.
            settings: as `diffaccel.VideoEngine` takes them.

        Raises:
            TypeError, ValueError: for unknown or invalid settings; the message names what is valid.
        """
        if "drift" not in _said:
            _said.add("drift")
            logger.warning(
                "%s runs chunk by chunk with any weights, but those that were not trained to see clean earlier frames "
                "(as Self-Forcing's, CausVid's or Ca2-VDM's are) drift away within seconds",
                self.stock_class.__name__ if self.stock_class else type(self).__name__,
            )
        chosen = {
            "guidance": None if guidance is None else diffaccel.config.as_config(guidance, Guidance),  # type: ignore[type-abstract]
            "context": None if context is None else diffaccel.config.as_config(context, CausalContext),
            "cache": None if cache in (None, "none") else diffaccel.config.as_config(cache, Method),  # type: ignore[type-abstract]
        }
        return VideoEngine(self, prompt=prompt, **chosen, **settings)

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        *,
        num_videos_per_prompt: int = 1,
        num_frames: int = 16,
        frames: Any = None,
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        chunk_size: int = 4,
        guidance: Any = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback_on_chunk_end: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> Any:
        """A video of ``num_frames`` new pictures for each prompt.

        Args:
            prompt: text, or a mapping of texts to weights; a list gives a video of each.
            negative_prompt: read by guidance that asks for it; a list has one for each prompt.
            num_videos_per_prompt: videos of each prompt; without a generator, ``seed`` and those that follow it.
            num_frames: pictures to make, those that are given not among them; latents, as many as these pictures take.
            frames: pictures that the video goes on from.
            num_inference_steps: network calls of a chunk.
            guidance_scale: of classifier-free guidance; 1 is without.
            chunk_size: latent frames that are made together.
            guidance: a guidance in place of it.
            generator: draws the seed of each video's noise; a list has one for each video.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False gives a tuple.
            callback_on_step_end: as in diffusers, ``(pipeline, step, timestep, {"latents": ...})`` for each step of a
                chunk, ``(1, C, frames, h, w)``; the latents that it returns are gone on with.
            callback_on_step_end_tensor_inputs: "latents" is there.
            callback_on_chunk_end: called with the pipeline and each `VideoChunk`.
            settings: as for `stream`: ``context``, ``cache``, ``strength``, ``height``, ``seed``, ...

        Raises:
            TypeError, ValueError: for settings that the engine refuses.
        """
        for name in OWN_NAMES.keys() & settings.keys():
            raise TypeError(f"{name} is what stream() takes: give {OWN_NAMES[name]}={settings[name]!r} in a call")
        if num_frames < 1 or num_frames != int(num_frames):
            raise ValueError(f"num_frames must be a positive integer, not {num_frames}")
        on_step = self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        if on_step is not None and settings.get("stream_batch"):
            raise ValueError("steps of a stream batch are of several chunks: give callback_on_chunk_end instead")
        told = _told(prompt, negative_prompt, num_videos_per_prompt)
        if guidance is None:
            guidance = FullGuidance(guidance_scale) if guidance_scale > 1 else NoGuidance()
        settings |= {"chunk": chunk_size, "num_steps": num_inference_steps, "output_type": output_type, "given": frames}
        self._interrupt = False
        videos: list[list[Any]] = []
        seeds = _seeds(generator, len(told), num_videos_per_prompt, settings.pop("seed", 0))
        for (text, negative), seed in zip(told, seeds, strict=True):
            with self.stream(text, negative_prompt=negative, guidance=guidance, seed=seed, **settings) as engine:
                engine.on_step = on_step
                made = self._pictures(engine, num_frames, callback_on_chunk_end)
            if not (self._interrupt and videos and len(made) < len(videos[0])):  # no video is cut short beside others
                videos.append(made)
            if self._interrupt:
                break
        whole = _stacked(videos, output_type)
        return OUTPUTS[self.stock_class.__name__](frames=whole) if return_dict else (whole,)  # type: ignore[union-attr]

    def _pictures(self, engine: VideoEngine, count: int, callback: Callable[..., Any] | None) -> list[Any]:
        """So many new pictures or the latents of them, or fewer if the call is interrupted."""
        pictures: list[Any] = []
        left = count
        with self.progress_bar(total=count) as bar:
            while left > 0 and not self._interrupt:
                coming, wanted = engine.pictures_next, engine.frames_for(left)
                chunk = engine.next()
                bar.update(min(coming, left))
                left -= coming
                pictures += chunk.frames[:wanted]
                if callback is not None:
                    callback(self, chunk)
        return pictures

    def _step_callback(self, callback: Callable[..., Any] | None, names: Sequence[str]) -> OnStep | None:
        """A callback in diffusers' form, which is told the tensors of these names, as one of the engine.

        Raises:
            ValueError: for tensors other than the latents.
        """
        if list(names) not in ([], ["latents"]):
            raise ValueError(f"callbacks get latents, not {', '.join(names)}")
        if callback is None:
            return None

        def on_step(step: int, timestep: float, latents: torch.Tensor) -> torch.Tensor:
            shown = latents.transpose(0, 1)[None]  # (frames, C, h, w) -> (1, C, frames, h, w)
            returned = callback(self, step, timestep, {"latents": shown}) or {}
            changed: torch.Tensor = returned.get("latents", shown)
            return changed[0].transpose(0, 1)

        return on_step


def _told(prompt: Any, negative: Any, each: int) -> list[tuple[Any, Any]]:
    """The prompt and the negative prompt of every video.

    Raises:
        ValueError: where there is none, or not one negative prompt for each prompt.
    """
    prompts = [prompt] if isinstance(prompt, str | Mapping) else list(prompt or ())
    several = isinstance(negative, list | tuple) and all(isinstance(text, str) for text in negative)
    negatives = list(negative) if several else [negative or ""] * len(prompts)
    if not prompts or each < 1:
        raise ValueError(f"there is no video to make: got prompt={prompt!r} and num_videos_per_prompt={each}")
    if len(negatives) != len(prompts):
        raise ValueError(f"give one negative prompt, or one for each of {len(prompts)} prompts, not {len(negatives)}")
    return [pair for pair in zip(prompts, negatives, strict=True) for _ in range(each)]


def _seeds(generator: Any, count: int, each: int, seed: int) -> list[int]:
    """The seed of every video, drawn where there are generators.

    Raises:
        ValueError: for another number of generators than videos.
    """
    if generator is None:
        return [seed + index % each if each > 1 else seed for index in range(count)]
    generators = list(generator) if isinstance(generator, list | tuple) else [generator] * count
    if len(generators) != count:
        raise ValueError(f"give one generator, or one for each of {count} videos, not {len(generators)}")
    return [int(torch.randint(2**62, (1,), generator=one, device=one.device)) for one in generators]


def _stacked(videos: list[list[Any]], output_type: str) -> Any:
    """Videos as diffusers returns them: lists of pictures, arrays or tensors; latents as ``(videos, C, F, h, w)``."""
    if output_type == "pil":
        return videos
    if output_type == "np":
        return np.stack([np.stack(video) for video in videos])
    whole = torch.stack([torch.stack(video) for video in videos])
    return whole.transpose(1, 2) if output_type == "latent" else whole
