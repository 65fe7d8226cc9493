"""What a prompt seems to ask for in the language of other programs: weights, alternatives, and LoRAs by name."""

import re

_MEANT = re.compile(r"(?<!\\)\([^()\[\]]+:\s*\d*\.?\d+\s*\)|\bBREAK\b")
_LORA = re.compile(r"<(lora|lyco|hypernet):[^<>]+>")
_TEMPLATE = re.compile(r"\{[^{}]*\|[^{}]*\}|__[A-Za-z0-9*][\w*/-]*?__")


def markup(prompt: str, *, weights: bool = False, templates: bool = False, remedies: bool = False) -> list[str]:
    """Notes about what a prompt seems to ask for in the language of other programs.

    Args:
        weights, templates: what is read, and not drawn as text.
        remedies: name the options by which `diffaccel generate` reads it.
    """
    found = {
        "weights such as (word:1.3) and BREAK are drawn as text": "--prompt-weights reads them",
        "{a|b} and __name__ are drawn as text": "--dynamic-prompts draws one of them",
        "<lora:...> is drawn as text": "name the LoRA with --lora, or in a column lora",
    }
    meant = (
        not weights and _MEANT.search(prompt),
        not templates and _TEMPLATE.search(prompt),
        _LORA.search(prompt),
    )
    return [
        f"prompt: {what}: {remedy}" if remedies else f"prompt: {what}"
        for (what, remedy), is_meant in zip(found.items(), meant, strict=True)
        if is_meant
    ]
