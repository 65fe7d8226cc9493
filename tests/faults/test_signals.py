"""Ctrl-C and SIGTERM end a real run quickly, keep what was rendered, and say how to go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from diffaccel.batch.store import read_manifest

pytestmark = pytest.mark.slow


def accept() -> None:
    """A shell's background job ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_ends_with_130(tiny_sd: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "diffaccel", "generate", "a", "--num-images", "5000", "--batch-size", "1"]
    command += ["--model", str(tiny_sd), "--steps", "2", "--output", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, preexec_fn=accept, **pipes) as run:
        deadline = time.monotonic() + 200
        while len(list(out.glob("*.png"))) < 5 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(number)
        output, errors = run.communicate(timeout=60)  # about two seconds where the machine is not busy
    assert run.returncode == 130, errors
    assert errors == "Interrupted; the same command goes on where this one stopped.\n"
    assert output == ""
    done = [record for record in read_manifest(out).values() if record.status == "done"]
    assert len(done) >= 5
    assert {record.file_name for record in done} == {path.name for path in out.glob("*.png")}
    for record in done:
        with Image.open(out / str(record.file_name)) as picture:
            picture.load()
    assert (out / "index.html").exists()
