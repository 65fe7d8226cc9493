"""What libraries say while pictures are rendered, kept for the records of these pictures instead of the terminal.

diffusers and transformers write to loggers, others warn as Python does. Each message belongs to the thread on which it
came up, and so to the batch that this thread was at.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

_LIBRARIES = ("diffusers", "transformers", "peft")
_HARMLESS = (
    "Should have t[ab]",  # torchsde: a rounding error at the ends of the time
    "__array_wrap__ must accept",  # numpy, of diffusers' DPM2
    "The following part of your input was truncated",  # said by the row, with its words
    "Token indices sequence length is longer",
    "`upcast_vae` is deprecated",  # diffusers, of its own call
    "were passed to .* but are not expected and will be ignored",  # a sampler that takes over another's configuration
)
_LONGEST = 300


class Remarks(logging.Handler):
    """Collects messages of libraries while it is installed; use it with `installed`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: dict[int, dict[str, None]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a logger's message."""
        self.keep(record.getMessage())

    def keep(self, message: str) -> None:
        """Keep a message, whoever it is from."""
        text = " ".join(message.split())
        if not any(re.search(pattern, text) for pattern in _HARMLESS):
            self._said.setdefault(get_ident(), {})[text[:_LONGEST]] = None

    def taken(self) -> tuple[str, ...]:
        """What was said on this thread since the last time, each message once."""
        return tuple(self._said.pop(get_ident(), {}))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Collect instead of letting libraries print."""
        loggers = [logging.getLogger(name) for name in _LIBRARIES]
        before = [(logger.handlers, logger.propagate) for logger in loggers]
        show = warnings.showwarning
        for logger in loggers:
            logger.handlers, logger.propagate = [self], False
        setattr(warnings, "showwarning", self._show)  # noqa: B010 (whose signature is wider)
        try:
            yield
        finally:
            warnings.showwarning = show
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate

    def _show(self, message: Warning | str, *_place: Any, **_options: Any) -> None:
        self.keep(str(message))
