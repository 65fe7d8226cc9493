"""Ten thousand rows with every kind of trouble in them: 1 % bad, 5 % repeated."""

import json
from pathlib import Path

BAD = (
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "x"',
    b'{"prompt": "a\\u0000b"}',
    b'{"prompt": "a", "custom_id": "../../outside"}',
    b'{"prompt": "' + b"x" * 100_000 + b'"}',
)


def write_rows(path: Path, count: int = 10_000) -> None:
    """Write JSON lines: of each hundred, one bad and five that repeat another."""
    lines: list[bytes] = []
    for number in range(count):
        if number % 100 == 99:
            lines.append(BAD[number // 100 % len(BAD)])
        elif number % 20 == 10:
            lines.append(lines[number - 10])
        else:
            lines.append(json.dumps({"prompt": f"prompt {number}", "seed": number}).encode())
    path.write_bytes(b"\n".join(lines))
