"""Ten thousand rows with every kind of trouble in them: counted exactly, and nothing outside the folder."""

import json
import time
from pathlib import Path

from bad_rows import write_rows
from click.testing import CliRunner

from diffaccel.cli import main


def test_exact_counts_within_five_seconds(tiny_sd: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl")
    command = ["generate", tmp_path / "p.jsonl", "--model", tiny_sd, "-o", tmp_path / "out"]
    start = time.process_time()
    result = CliRunner().invoke(main, [*map(str, command), "--dry-run", "--format", "json"])
    assert time.process_time() - start < 5
    assert result.exit_code == 3
    counts = json.loads(result.stdout)
    assert len(counts.pop("bad_rows")) == 100
    assert counts.pop("notes") == []
    assert counts == {"jobs": 9400, "todo": 9400, "bad": 100, "duplicates": 500}
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
