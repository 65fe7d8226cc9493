"""The sample that runs a video file through a stream, and the benchmark's command."""

import subprocess
import sys
from pathlib import Path

import av
import pytest
import stream_pipelines

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VIDEO = ROOT / "samples" / "drawing.mp4"


def shapes(path: Path) -> list[tuple[int, int]]:
    """Width and height of every frame."""
    with av.open(str(path)) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_a_video_keeps_its_number_of_frames(tmp_path: Path) -> None:
    stream_pipelines.sd().save_pretrained(tmp_path / "model")
    output = tmp_path / "out.mp4"
    arguments = ["--model", str(tmp_path / "model"), "--output", str(output), "--side-by-side"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "samples" / "stream_video.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "96 frames in, 96 out" in result.stdout
    assert shapes(VIDEO) == [(128, 128)] * 96
    assert shapes(output) == [(256, 128)] * 96


def test_the_benchmark_lists_its_parts() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "stream", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "guidance|batch|buffer|cache|overhead|sd15|turbo" in result.stdout
