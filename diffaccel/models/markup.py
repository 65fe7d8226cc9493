"""What a prompt seems to ask for in the language of other programs: weights, alternatives, and LoRAs by name."""

import re
from collections.abc import Collection

_MEANT = re.compile(r"(?<!\\)\([^()\[\]]+:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|\bBREAK\b")
_LORA = re.compile(r"<(lora|lyco|hypernet):[^<>]+>")
_TEMPLATE = re.compile(r"\{[^{}]*\|[^{}]*\}|__[A-Za-z0-9*][\w*/-]*?__")
REMEDIES = {
    "--prompt-weights": "--prompt-weights reads them",
    "--dynamic-prompts": "--dynamic-prompts draws one of them",
    "--lora": "name the LoRA with --lora",
}
"""What each option does about it."""


def markup(
    prompt: str, *, weights: bool = False, templates: bool = False, remedies: Collection[str] = (), name: str = "prompt"
) -> list[str]:
    """Notes about what a prompt seems to ask for in the language of other programs.

    Args:
        weights, templates: what is read, and not drawn as text.
        remedies: options, among `REMEDIES`, that there are to read it.
        name: what the prompt is called.
    """
    found = {
        "weights such as (word:1.3) and BREAK are drawn as text": "--prompt-weights",
        "{a|b} and __name__ are drawn as text": "--dynamic-prompts",
        "<lora:...> is drawn as text": "--lora",
    }
    meant = (
        not weights and _MEANT.search(prompt),
        not templates and _TEMPLATE.search(prompt),
        _LORA.search(prompt),
    )
    return [
        f"{name}: {what}: {REMEDIES[option]}" if option in remedies else f"{name}: {what}"
        for (what, option), is_meant in zip(found.items(), meant, strict=True)
        if is_meant
    ]
