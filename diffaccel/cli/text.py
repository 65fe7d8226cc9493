"""Words of strangers on a terminal."""


def one_line(text: object) -> str:
    """`text` with its control characters shown, not obeyed: a prompt may hold what clears a screen."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))
