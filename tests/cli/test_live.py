"""`diffaccel live`, as a user starts and stops it."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from diffaccel.cli import main


def test_it_serves_until_it_is_interrupted(tiny_sd: Path) -> None:
    command = [sys.executable, "-m", "diffaccel", "live", "--model", str(tiny_sd), "--device", "cpu", "--size", "32x64"]
    with subprocess.Popen([*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = next(line.strip() for line in process.stdout if "token=" in line)
        try:
            with urllib.request.urlopen(url.replace("/?", "/schema?"), timeout=10) as answer:
                about = json.load(answer)["about"]
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert about == {"model": tiny_sd.name, "width": 32, "height": 64}
    assert "Stopped." in rest
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--strength", "7"], "--strength"),
        (["--prompt", ""], "--prompt"),
        (["--size", "big"], "not a size in pixels"),
        (["--size", "0"], "8 to 8192 pixels"),
        (["--size", "64x99999"], "8 to 8192 pixels"),
        (["--strength", "nan"], "--strength: Input should be a finite number"),
        (["--guidance-scale", "inf"], "--guidance-scale: Input should be a finite number"),
        (["--sink", "window"], "--sink needs --source"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["live", "--no-browser", *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_a_taken_port_is_told(tiny_sd: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["live", "--no-browser", "--model", str(tiny_sd), "--device", "cpu", "--port", port]
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"port {port}" in result.output


def test_a_size_that_the_model_cannot_paint_is_told(tiny_sd: Path) -> None:
    arguments = ["live", "--no-browser", "--model", str(tiny_sd), "--device", "cpu", "--size", "33"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "must be a multiple of" in result.output
