"""Prompts that a CLIP encoder cannot take in one piece, or with weights: encoded in parts of its length by compel.

Prompts that need neither take the pipeline's own road, so that these options change nothing about them. Each row is
encoded by itself, its prompt and negative prompt to the same number of parts, so that an embedding depends on nothing
but its row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from diffaccel.batch.jobs import Job
from diffaccel.batch.text_rules import parts_of, text_problem
from diffaccel.batch.weights import TextPart

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Embeddings = dict[str, torch.Tensor]


class PartedText:
    """Encodes prompts in parts with the text encoders of a pipeline of Stable Diffusion or SDXL."""

    def __init__(self, pipe: "DiffusionPipeline") -> None:
        self._pipe = pipe
        self._encoders: list[Any] | None = None

    def calls(self, jobs: Sequence[Job]) -> list[tuple[list[int], Embeddings]]:
        """Places of jobs that one call of the pipeline can take, with the embeddings of those that need some."""
        rows = [self._row(job) for job in jobs]
        lengths = [row["prompt_embeds"].shape[1] if row else 0 for row in rows]
        found: list[tuple[list[int], Embeddings]] = []
        for length in dict.fromkeys(lengths):
            places = [place for place, each in enumerate(lengths) if each == length]
            names = rows[places[0]]
            found.append((places, {name: torch.cat([rows[place][name] for place in places]) for name in names}))
        return found

    def _row(self, job: Job) -> Embeddings:
        """Embeddings of the job's prompts, of shape `(1, tokens, width)` and `(1, width)`; none where not needed."""
        if not (job.long_prompts or job.prompt_weights):
            return {}
        if problem := text_problem(type(self._pipe).__name__, job):
            raise ValueError(problem)
        texts = {"": parts_of(job, job.prompt), "negative_": parts_of(job, job.negative_prompt)}
        encoders = self._compel()
        if not any(_needs(parts, encoder) for parts in texts.values() for encoder in encoders):
            return {}
        with torch.inference_mode():
            return self._encoded(texts, encoders, bool(job.negative_prompt))

    def _encoded(self, texts: dict[str, tuple[TextPart, ...]], encoders: list[Any], negative: bool) -> Embeddings:
        columns = [
            encoder.pad_conditioning_tensors_to_same_length([_encode(encoder, parts) for parts in texts.values()])
            for encoder in encoders
        ]
        most = max(column[0].shape[1] for column in columns)
        columns = [_padded(encoder, column, most) for encoder, column in zip(encoders, columns, strict=True)]
        found = {
            f"{name}prompt_embeds": torch.cat([column[index] for column in columns], dim=-1)
            for index, name in enumerate(texts)
        }
        if len(encoders) > 1:
            pooled = encoders[-1].conditioning_provider
            for name, parts in texts.items():
                plain = "".join(text for text, _ in parts[0])
                found[f"{name}pooled_prompt_embeds"] = pooled.get_pooled_embeddings([plain])
            if not negative and self._pipe.config.get("force_zeros_for_empty_prompt"):
                found |= {name: torch.zeros_like(each) for name, each in found.items() if name.startswith("negative_")}
        return found

    def _compel(self) -> list[Any]:
        """compel on each of the pipeline's encoders, set up as its own pipelines' wrappers do."""
        if self._encoders is None:
            from compel import Compel, ReturnedEmbeddingsType

            kinds = ReturnedEmbeddingsType
            pairs = [("", kinds.LAST_HIDDEN_STATES_NORMALIZED)]
            if getattr(self._pipe, "text_encoder_2", None) is not None:
                pairs = [(suffix, kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED) for suffix in ("", "_2")]
            self._encoders = [
                Compel(
                    tokenizer=getattr(self._pipe, f"tokenizer{suffix}"),
                    text_encoder=getattr(self._pipe, f"text_encoder{suffix}"),
                    returned_embeddings_type=kind,
                    truncate_long_prompts=False,
                    device=self._pipe._execution_device,
                )
                for suffix, kind in pairs
                if getattr(self._pipe, f"text_encoder{suffix}", None) is not None
            ]
        return self._encoders


def _needs(parts: tuple[TextPart, ...], encoder: Any) -> bool:
    """Whether a prompt has parts or weights, or is too long for one piece."""
    if len(parts) > 1 or any(weight != 1 for _, weight in parts[0]):
        return True
    text = "".join(text for text, _ in parts[0])
    return len(encoder.get_tokens(text)) + 2 > int(encoder.conditioning_provider.max_token_count)


def _encode(encoder: Any, parts: tuple[TextPart, ...]) -> torch.Tensor:
    """Embeddings of all parts behind one another, of shape `(1, tokens, width)`."""
    from compel.prompt_parser import Conjunction, FlattenedPrompt

    prompts = [FlattenedPrompt([(text, weight) for text, weight in part] or [("", 1.0)]) for part in parts]
    found: torch.Tensor = encoder.build_conditioning_tensor_for_conjunction(Conjunction(prompts))[0]
    return found if found.dim() == 3 else found[None]


def _padded(encoder: Any, column: list[torch.Tensor], length: int) -> list[torch.Tensor]:
    """Embeddings of the same length as those of the other encoder."""
    empty = _encode(encoder, ((("", 1.0),),))
    return [torch.cat([each, *[empty] * ((length - each.shape[1]) // empty.shape[1])], dim=1) for each in column]
