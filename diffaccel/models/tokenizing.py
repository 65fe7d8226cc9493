"""Tokenizers on several threads: a fast one keeps padding and truncation as state, which every call sets anew.

So two threads that tokenize at once may get each other's: a prompt that is not padded, or not cut off.
"""

import copy
import threading
from typing import Any

ONE_AT_A_TIME = threading.RLock()
"""Held while a prompt is read with the tokenizers of a pipeline that other threads read with, too."""


def with_own_tokenizers(pipe: Any) -> Any:
    """A pipeline of the same parts, for another thread, whose tokenizers are copies."""
    own = copy.copy(pipe)
    for name, part in pipe.components.items():
        if name.startswith("tokenizer") and part is not None:
            setattr(own, name, copy.deepcopy(part))
    return own
