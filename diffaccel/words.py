"""Numbers in sentences."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`number` and what it counts: "1 picture", "2 pictures", "10,000 pictures".

    Args:
        plural: where it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
