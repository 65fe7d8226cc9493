"""A disk that is really full: a clear message, and the rest once there is room."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from diffaccel.cli import main


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB in memory; mounting it takes the rights to do so."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk(tiny_sd: Path, small_disk: Path) -> None:
    def generate() -> tuple[int, str]:
        command = ["generate", "p", "--model", tiny_sd, "-o", small_disk / "out", "--num-images", 8, "--steps", 1]
        result = CliRunner().invoke(main, [str(word) for word in command])
        return result.exit_code, result.output

    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 88 * 1024)
    code, output = generate()
    assert code == 1
    assert "cannot write to" in output
    assert "No space left on device" in output
    assert "Traceback" not in output
    ballast.unlink()
    code, output = generate()
    assert code in (0, 1), output
