"""The sample that runs a video file through a stream, and the benchmark's command."""

import subprocess
import sys
from pathlib import Path

import av
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VIDEO = ROOT / "samples" / "drawing.mp4"


def frames(path: Path) -> list[av.VideoFrame]:
    """Every frame of a video."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("options", [[], ["--frame-buffer", "1", "--cache"]], ids=["buffer", "cache"])
def test_a_video_keeps_its_number_of_frames_and_is_painted(options: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    command = [sys.executable, str(ROOT / "samples" / "stream_video.py"), "--output", str(output), "--side-by-side"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "96 frames in, 96 out" in result.stdout
    assert "frames per second" in result.stdout
    assert [(frame.width, frame.height) for frame in frames(VIDEO)] == [(128, 128)] * 96
    painted = [frame.to_ndarray(format="rgb24") for frame in frames(output)]
    assert [picture.shape for picture in painted] == [(128, 256, 3)] * 96
    red, purple = painted[0][64, 85].astype(int), painted[0][64, 128 + 85].astype(int)
    assert red[0] > red[2] + 80  # the heart of the drawing,
    assert purple[2] > purple[1] + 40  # painted as the prompt says


def test_the_benchmark_lists_its_parts() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "stream", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "guidance|batch|buffer|cache|overhead|sd15|turbo" in result.stdout
