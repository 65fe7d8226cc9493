"""Ten thousand rows with every kind of trouble in them: counted exactly, and nothing outside the folder."""

import json
import time
from pathlib import Path

from click.testing import CliRunner

from diffaccel.cli import main

BAD = (
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "x"',
    b'{"prompt": "a\\u0000b"}',
    b'{"prompt": "a", "custom_id": "../../outside"}',
    b'{"prompt": "' + b"x" * 100_000 + b'"}',
)


def rows() -> list[bytes]:
    lines = []
    for number in range(10_000):
        if number % 100 == 99:
            lines.append(BAD[number // 100 % len(BAD)])
        elif number % 20 == 10:
            lines.append(lines[number - 10])
        else:
            lines.append(json.dumps({"prompt": f"prompt {number}", "seed": number}).encode())
    return lines


def test_exact_counts_within_five_seconds(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(rows()))
    command = ["generate", tmp_path / "p.jsonl", "--model", tiny_sd, "-o", tmp_path / "out"]
    start = time.perf_counter()
    result = CliRunner().invoke(main, [*map(str, command), "--dry-run", "--format", "json"])
    assert time.perf_counter() - start < 5
    assert json.loads(result.output) == {"jobs": 9400, "todo": 9400, "bad": 100, "duplicates": 500}
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
