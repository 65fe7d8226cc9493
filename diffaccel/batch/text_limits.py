"""How much of a prompt a model's text encoders read, told from its tokenizers, without its weights."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from diffaccel.batch.call_defaults import call_defaults
from diffaccel.models import ModelError, ModelSource
from diffaccel.models.embedding import in_any_case

CLIP_LIMIT = 77
MOST_WORDS, LONGEST_WORD = 50_000, 40  # that are remembered: in scripts without spaces, a whole text is a word
_CLIP = "CLIPTokenizer"


class TextLimits:
    """The encoders of a model, and what of a text is beyond the reach of all of them.

    Args:
        vectors: how many each learned word has, every one of which is a token; of models that read with CLIP alone.
    """

    def __init__(self, source: ModelSource, vectors: Mapping[str, int] = MappingProxyType({})) -> None:
        self._source, self._vectors = source, vectors
        self._learned = in_any_case(vectors)

    @cached_property
    def reach(self) -> tuple[str, int] | None:
        """Name of the tokenizer that reads most, and its tokens, marks of begin and end included; None if unknown."""
        limits = {name: limit for name in self._names if (limit := self._limit(name))}
        return max(limits.items(), key=lambda item: item[1], default=None)

    def lost(self, texts: Sequence[str]) -> list[str]:
        """What of each text no encoder reads; empty where all of it is read.

        An ASCII character is at most one token of CLIP's, or two with a space of others': most texts need no counting.
        """
        if self.reach is None:
            return [""] * len(texts)
        if self._vectors and self._only_clip:
            texts = [self._learned.sub(lambda found: " ".join(self._spelt(found[0].lower())), text) for text in texts]
        most = self.reach[1] - 2
        characters = most // (1 if self._only_clip else 2)
        long = [index for index, text in enumerate(texts) if len(text) > characters or not text.isascii()]
        found = [""] * len(texts)
        if self._only_clip:
            for index in long:
                found[index] = self._words.beyond(texts[index], most)
        elif long:
            for index, encoding in zip(long, self._tokenizer.encode_batch([texts[i] for i in long]), strict=True):
                found[index] = _beyond(texts[index], encoding, self.reach[1])
        return found

    def _spelt(self, word: str) -> list[str]:
        """A learned word's tokens, as diffusers names them."""
        return [word, *(f"{word}_{index}" for index in range(1, self._vectors[word]))]

    @cached_property
    def _words(self) -> "_Words":
        return _Words(self._tokenizer)

    @cached_property
    def _names(self) -> list[str]:
        index = self._source.index
        return [
            name
            for name, value in index.items()
            if name.startswith("tokenizer") and isinstance(value, list) and value[-1] and self._folder(name).is_dir()
        ]

    @cached_property
    def _only_clip(self) -> bool:
        return all(self._kind(name).startswith(_CLIP) for name in self._names)

    def _kind(self, name: str) -> str:
        return str(self._source.index[name][-1])

    def _folder(self, name: str) -> Any:
        return self._source.folder / name

    def _limit(self, name: str) -> int | None:
        """Tokens that this tokenizer's encoder reads: of several, pipelines cut CLIP's at its own limit."""
        asked = None if self._kind(name).startswith(_CLIP) and self._by_itself else self._pipelines_limit
        return asked or self._own_limit(name)

    @cached_property
    def _by_itself(self) -> bool:
        """Whether CLIP's tokens are counted by its tokenizer, not by a limit of the pipeline's for its only encoder."""
        return len(self._names) > 1 or str(self._source.index.get("_class_name", "")).startswith("StableDiffusion")

    @cached_property
    def _pipelines_limit(self) -> int | None:
        """`max_sequence_length`, as the pipeline's call has it by default."""
        limit = call_defaults(str(self._source.index["_class_name"])).get("max_sequence_length")
        return limit if isinstance(limit, int) else None

    def _own_limit(self, name: str) -> int | None:
        file = self._folder(name) / "tokenizer_config.json"
        try:
            limit = json.loads(file.read_text(encoding="utf-8")).get("model_max_length")
        except (OSError, ValueError, AttributeError):
            limit = None
        known = isinstance(limit, int | float) and 2 < limit < 100_000
        return int(limit) if known else CLIP_LIMIT if self._kind(name).startswith(_CLIP) else None

    @cached_property
    def _tokenizer(self) -> Any:
        """The fast tokenizer of the encoder that reads most, which neither cuts nor pads. Raises `ModelError`."""
        assert self.reach is not None, "no tokenizer with a known limit"
        name = self.reach[0]
        file = self._folder(name) / "tokenizer.json"
        try:
            tokenizer = _from_file(str(file)) if file.is_file() else _from_folder(str(self._folder(name)))
        except Exception as error:  # the library raises bare exceptions
            raise ModelError(f"cannot read the {name} of {self._source.name}: {error}") from error
        tokenizer.add_tokens([token for word in self._vectors for token in self._spelt(word)])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


class _Words(dict[str, tuple[int, ...]]):
    """Where the tokens of a word begin; of words that were looked at some are remembered.

    CLIP's tokens never reach across a space, so that those of a text's words, found once each, are the text's.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) > MOST_WORDS:
            self.clear()
        begins = tuple(begin for begin, _ in self._tokenizer.encode(word, add_special_tokens=False).offsets)
        if len(word) <= LONGEST_WORD:
            self[word] = begins
        return begins

    def beyond(self, text: str, room: int) -> str:
        """The text that belongs to tokens beyond the first `room`."""
        words = list(map(self.__getitem__, text.split()))
        if sum(map(len, words)) > room:
            for found, begins in zip(re.finditer(r"\S+", text), words, strict=True):
                if len(begins) > room:
                    return text[found.start() + begins[room] :].strip()
                room -= len(begins)
        return ""


def _from_file(file: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)


def _from_folder(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def _beyond(text: str, encoding: Any, limit: int) -> str:
    """The text that belongs to tokens beyond the limit, whose last place the mark of the end takes."""
    words = [span for span, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special]
    room = limit - (len(encoding.offsets) - len(words))
    return text[words[room][0] :].strip() if len(words) > room else ""
