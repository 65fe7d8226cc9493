"""Prompts that a CLIP encoder cannot take in one piece, or with weights: encoded in parts of its length by compel.

Prompts that need neither take the pipeline's own road, so that reading in parts changes nothing about them.
"""

import inspect
from collections.abc import Sequence
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

import torch

from diffaccel.models.quiet import hold_back_lengths
from diffaccel.models.source import ModelError
from diffaccel.models.weighted_text import TextPart, WeightedText, read_as, reading_problem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MOST_PARTS = 4
"""Of prompts that are not known beforehand. One, two and four parts fill as many exactly."""
_EMPTY: WeightedText = ((("", 1.0),),)
Embeddings = dict[str, torch.Tensor]


class PartedText:
    """Encodes texts in parts with the text encoders of a pipeline that reads with CLIP alone."""

    def __init__(self, pipe: "DiffusionPipeline") -> None:
        self._pipe = pipe
        self._compel: list[Any] | None = None

    def needed(self, text: WeightedText) -> bool:
        """Whether a text has several parts or weights, or is too long for one part."""
        return any(weight != 1 for part in text for _, weight in part) or self.parts(text) > 1

    def parts(self, text: WeightedText) -> int:
        """How many parts a text has, for the encoder that needs most of them."""
        return max(len(self._chunks(encoder, text)) for encoder in self._encoders)

    def beyond(self, text: WeightedText, parts: int) -> str:
        """What of a text is not in its first parts, for the encoder that reads most of it."""
        lost = [(encoder, self._chunks(encoder, text)[parts:]) for encoder in self._encoders]
        encoder, chunks = min(lost, key=lambda pair: len(pair[1]))
        return words_of(encoder.conditioning_provider.tokenizer, [token for chunk in chunks for token in chunk])

    @torch.no_grad()
    def encode(self, text: WeightedText) -> Embeddings:
        """Embeddings of a text, ``(1, parts * tokens, width)``, and for SDXL pooled ones of its first part."""
        columns = [self._embedded(encoder, text) for encoder in self._encoders]
        most = max(column.shape[1] for column in columns)
        pairs = zip(columns, self._encoders, strict=True)
        even = [_behind(column, self._embedded(encoder, _EMPTY), most) for column, encoder in pairs]
        found = {"prompt_embeds": torch.cat(even, dim=-1)}
        if getattr(self._pipe, "text_encoder_2", None) is not None:
            provider = self._encoders[-1].conditioning_provider
            found["pooled_prompt_embeds"] = provider.get_pooled_embeddings(["".join(words for words, _ in text[0])])
        return found

    def padded(self, rows: Sequence[Embeddings]) -> list[Embeddings]:
        """Rows with as many empty parts behind them as the longest needs none of."""
        most = max(row["prompt_embeds"].shape[1] for row in rows)
        return [{**row, "prompt_embeds": self._padded(row["prompt_embeds"], most)} for row in rows]

    def filled(self, row: Embeddings, parts: int) -> Embeddings:
        """A row in a number of parts: cut off, repeated, which changes no attention to it, or padded."""
        embeds = row["prompt_embeds"]
        each = int(self._encoders[0].conditioning_provider.max_token_count)
        own = embeds.shape[1] // each
        even = embeds.repeat(1, parts // own, 1) if parts % own == 0 else self._padded(embeds, parts * each)
        return {**row, "prompt_embeds": even[:, : parts * each]}

    def _padded(self, embeds: torch.Tensor, tokens: int) -> torch.Tensor:
        """Embeddings ``(1, n, width)`` and empty parts, ``(1, tokens, width)``."""
        if embeds.shape[1] >= tokens:
            return embeds
        return _behind(embeds, self.encode(_EMPTY)["prompt_embeds"], tokens)

    def _embedded(self, encoder: Any, text: WeightedText) -> torch.Tensor:
        """Embeddings of all parts behind one another, of one encoder, ``(1, tokens, width)``."""
        from compel.prompt_parser import Conjunction, FlattenedPrompt

        prompts = [FlattenedPrompt(self._pieces(encoder, part)) for part in text]
        found: torch.Tensor = encoder.build_conditioning_tensor_for_conjunction(Conjunction(prompts))[0]
        return found if found.dim() == 3 else found[None]

    def _chunks(self, encoder: Any, text: WeightedText) -> list[list[int]]:
        """The token ids of each part that the encoder is given, its marks and padding included."""
        provider, chunks = encoder.conditioning_provider, []
        for part in text:
            pieces, weights = zip(*self._pieces(encoder, part), strict=True)
            ids = provider.get_token_ids_and_expand_weights(list(pieces), list(weights), "cpu")[0].tolist()
            most = int(provider.max_token_count)
            chunks += [ids[start : start + most] for start in range(0, len(ids), most)]
        return chunks

    def _pieces(self, encoder: Any, part: TextPart) -> list[tuple[str, float]]:
        """The pieces of a part, learned words of several tokens spelt out, as the pipeline itself does."""
        spell = getattr(self._pipe, "maybe_convert_prompt", None)
        pieces = part or (("", 1.0),)
        return [
            (spell(text, encoder.conditioning_provider.tokenizer) if spell else text, weight) for text, weight in pieces
        ]

    @property
    def _encoders(self) -> list[Any]:
        """compel on each of the pipeline's encoders, set up as its own pipelines' wrappers do."""
        if self._compel is None:
            from compel import Compel, ReturnedEmbeddingsType

            kinds = ReturnedEmbeddingsType
            pairs = [("", kinds.LAST_HIDDEN_STATES_NORMALIZED)]
            if getattr(self._pipe, "text_encoder_2", None) is not None:
                pairs = [(suffix, kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED) for suffix in ("", "_2")]
            hold_back_lengths()
            self._compel = [
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
        return self._compel


class Reading:
    """A pipeline's `encode_prompt` by which every prompt is read in the same number of parts.

    So prompts of different lengths share calls, follow one another in streams and blend.

    Args:
        pipe: reads with CLIP alone.
        weights: `(word:1.3)`, `[word]` and `BREAK` are weights.
        texts: all prompts that will be read; the longest says how many parts there are. None allows `MOST_PARTS`.

    Attributes:
        weights: as given.
        parts: of every prompt.
    """

    def __init__(self, pipe: "DiffusionPipeline", *, weights: bool, texts: Sequence[str] | None) -> None:
        self.weights, self._text, self._plain = weights, PartedText(pipe), pipe.encode_prompt
        counts = [self._text.parts(self._read(text)) for text in texts or [""]]
        self.parts = MOST_PARTS if texts is None else max(counts)
        self._zeros = bool(pipe.config.get("force_zeros_for_empty_prompt"))
        self._signature = inspect.signature(self._plain)
        update_wrapper(self, self._plain)

    def beyond(self, text: str) -> str:
        """The end of a prompt that is not read; empty where all of it is."""
        return self._text.beyond(self._read(text), self.parts)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Embeddings of prompts, as `encode_prompt` of the pipeline takes and gives them.

        Raises:
            ValueError: for weights that are not understood, and `clip_skip` with a prompt that is read in parts.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        prompts, guided = _listed(given["prompt"]), given["do_classifier_free_guidance"]
        negatives = _listed(given["negative_prompt"]) if guided else []
        embedded = any(given.get(f"{name}prompt_embeds") is not None for name in ("", "negative_"))
        texts = [*(prompts or ()), *(negatives or ())]
        if embedded or prompts is None or not (self.parts > 1 or any(map(self._needed, texts))):
            return self._plain(*args, **kwargs)
        given |= self._rows(prompts, given)
        if guided:
            rows = self._rows([*(negatives or [""])] * (len(prompts) // len(negatives or [""])), given)
            zeros = self._zeros and negatives is None
            given |= {f"negative_{name}": torch.zeros_like(row) if zeros else row for name, row in rows.items()}
        return self._plain(*bound.args, **bound.kwargs)

    def _rows(self, texts: Sequence[str], given: dict[str, Any]) -> Embeddings:
        rows = [self._row(text, given) for text in texts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _row(self, text: str, given: dict[str, Any]) -> Embeddings:
        """Embeddings of one text; those of the pipeline itself where it needs no more."""
        if self._needed(text):
            if given.get("clip_skip") is not None:
                raise ValueError("clip_skip: prompts in parts or with weights are read to the last layer: leave it out")
            return self._text.filled(self._text.encode(self._read(text)), self.parts)
        alone = {"prompt": text, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        own = {name: given[name] for name in ("device", "lora_scale", "clip_skip") if name in given}
        embeds, _, *pooled = self._plain(**own, **alone)
        found = {"prompt_embeds": embeds} | ({"pooled_prompt_embeds": pooled[0]} if pooled else {})
        return self._text.filled(found, self.parts)

    def _needed(self, text: str) -> bool:
        return self._text.needed(self._read(text))

    def _read(self, text: str) -> WeightedText:
        return read_as(text, weights=self.weights)


def words_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of some tokens, without special ones. CLIP's end of a word is lost on copies of its tokenizer."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text.replace("</w>", " ").strip()


def _behind(embeds: torch.Tensor, empty: torch.Tensor, tokens: int) -> torch.Tensor:
    """Embeddings ``(1, n, width)`` and as many empty parts behind them as make them ``(1, tokens, width)``."""
    return torch.cat([embeds, *[empty] * ((tokens - embeds.shape[1]) // empty.shape[1])], dim=1)


def _listed(texts: Any) -> list[str] | None:
    return [texts] if isinstance(texts, str) else texts


def read_in_parts(pipe: "DiffusionPipeline", *, long: bool, weights: bool, texts: Sequence[str] | None = None) -> None:
    """Have a pipeline read its prompts in parts from now on, where it is asked for.

    What libraries say of prompts that are too long is held back in any case: remarks name the words.

    Args:
        pipe: whose `encode_prompt` a `Reading` stands in for.
        long, weights: prompts beyond the encoder's limit, and weights, are read; either reads in parts.
        texts: all prompts that will be read, if they are known.

    Raises:
        ModelError: for pipelines that do not read with CLIP alone, and without compel.
    """
    hold_back_lengths()
    if not (long or weights):
        return
    name = type(pipe).__name__
    problem = reading_problem(name, texts or (), long=long, weights=weights)
    if problem is None and not hasattr(pipe, "encode_prompt"):
        problem = f"long_prompts: {name} has a way of its own to read prompts: leave it out"
    if problem:
        raise ModelError(problem)
    pipe.encode_prompt = Reading(pipe, weights=weights, texts=texts)


def reading_of(pipe: Any) -> Reading | None:
    """How a pipeline reads in parts; None where it does not."""
    found = vars(pipe).get("encode_prompt") if hasattr(pipe, "__dict__") else None
    return found if isinstance(found, Reading) else None
