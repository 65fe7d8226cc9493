"""The caching samples run offline on the bundled models and save three pictures side by side."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageStat

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("arguments", [["cache_unet.py"], ["cache_dit.py"], ["cache_dit.py", "--method", "delta"]])
def test_plain_cached_and_difference(arguments: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    script, *options = arguments
    command = [sys.executable, str(ROOT / "samples" / script), *options, "--steps", "4", "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "4 network calls: " in result.stdout
    assert "x as fast, PSNR " in result.stdout
    sheet = Image.open(output)
    assert sheet.size == (3 * 256, 256 + 2 * 24)
    plain, cached, difference = (sheet.crop((i * 256, 24, (i + 1) * 256, 280)) for i in range(3))
    assert plain.tobytes() != cached.tobytes()
    assert max(ImageStat.Stat(difference).sum) > 0


def test_control_follows_lines_with_and_without_the_cache(tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    command = [sys.executable, str(ROOT / "samples" / "control.py"), "--steps", "4", "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ControlNet: 2 computed, 2 replayed" in result.stdout
    sheet = Image.open(output)
    assert sheet.size == (3 * 256, 256)
    plain, cached = (sheet.crop((i * 256, 0, (i + 1) * 256, 256)) for i in (1, 2))
    assert plain.tobytes() != cached.tobytes()
