"""`diffaccel live`, as a user starts and stops it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from diffaccel.cli import main
from diffaccel.cli.model_options import ModelChoice
from diffaccel.realtime.tls import check_certificate


@pytest.mark.slow
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
    assert about.pop("sizes")[0] == "32x64"
    assert {"prompt", "steps"} <= set(about.pop("followed_by_clips"))
    assert {name: about.pop(name) for name in ("models", "loras", "dream")} == {
        "models": [tiny_sd.name], "loras": [], "dream": False,
    }  # fmt: skip
    assert about == {"model": tiny_sd.name, "width": 32, "height": 64, "fit": "crop", "fps": None}
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
        (["--strength", "nan"], "--strength: must be a finite number"),
        (["--guidance-scale", "inf"], "--guidance-scale: must be a finite number"),
        (["--sink", "window"], "--sink needs --source"),
        (["--address", "127.0.0.1:6379"], "add --engine ray"),
        (["--engine", "ray", "--osc", "0"], "--engine ray serves the page alone: leave out --osc"),
        (["--source", "camera", "--offer", "emoji-sd"], "--offer is for the page: leave it out, or --source"),
        (["--source", "camera", "--osc", "9000"], "--osc is for the page"),
        (["--source", "camera", "--host", "0.0.0.0"], "--host is for the page"),
        (["--source", __file__, "--sink", "new.mp4", "--fps", "5"], "a file into a file keeps every frame"),
        (["--offer", "emoji-sdd"], "emoji-sdd"),
        (["--offer-lora", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["live", "--no-browser", *arguments])
    assert result.exit_code == 2
    assert words in result.output


MISTAKES = """
import json, sys
from click.testing import CliRunner
from diffaccel.cli import main

for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(main, ["live", "--no-browser", *arguments])
    assert result.exit_code == 2, result.output
    heavy = sorted({"torch", "diffusers"} & set(sys.modules))
    print(json.dumps([" ".join(result.output.split()), heavy]))
"""


@pytest.mark.slow
def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    mine, other = pair(tmp_path / "mine"), pair(tmp_path / "other")
    locked = tmp_path / "locked.pem"
    encrypt = ["openssl", "pkey", "-in", str(mine[1]), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(encrypt, check=True, capture_output=True)
    (tmp_path / "there.mp4").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = {
            ("--strength", "7"): "--strength: must be at most 1 (got 7.0)",
            ("--steps", "0"): "--steps: must be at least 1 (got 0)",
            ("--port", port): f"cannot listen on 127.0.0.1 port {port}",
            ("--model", "emoji-ds"): "unknown model 'emoji-ds' (did you mean emoji-sd?)",
            ("--lora", "nowhere"): "no LoRA at 'nowhere'",
            ("--vae", "nowhere"): "no autoencoder at 'nowhere'",
            ("--controlnet", "nowhere"): "no ControlNet at 'nowhere'",
            ("--control", "canny"): "this model has no ControlNet: choose one with --controlnet",
            ("--source", str(tmp_path), "--sink", "mjpeg"): "is a folder, not a video file",
            ("--source", "kamera"): "no source 'kamera' (did you mean camera?)",
            ("--source", "camera", "--sink", "wndow"): "no sink 'wndow' (did you mean window?)",
            ("--source", "camera", "--sink", str(tmp_path / "there.mp4")): "replace it with --overwrite",
            ("--ssl-certfile", str(mine[0])): "--ssl-certfile and --ssl-keyfile go together",
            tls(mine[0], other[1]): "are not a certificate and its key: key values mismatch",
            tls(mine[0], tmp_path / "there.mp4"): "are not a certificate and its key: one of them is no PEM file",
            tls(mine[0], locked): f"the key {locked} has a password: decrypt it",
        }
        command = [sys.executable, "-c", MISTAKES]
        result = subprocess.run(command, input=json.dumps(list(cases)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [heavy for _, heavy in told] == [[]] * len(cases)
    for (output, _), words in zip(told, cases.values(), strict=True):
        assert words in output


def pair(folder: Path) -> tuple[Path, Path]:
    """A certificate and its key, by OpenSSL."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder.mkdir()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    files = ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files], check=True, capture_output=True
    )
    return certificate, key


def tls(certificate: Path, key: Path) -> tuple[str, ...]:
    return "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)


def test_a_certificate_with_its_key_is_taken(tmp_path: Path) -> None:
    check_certificate(*pair(tmp_path / "mine"))


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


@pytest.mark.parametrize(("fit", "corner"), [("pad", 0), ("crop", 255)])
def test_pictures_take_the_shape_of_the_input_and_say_so(tiny_sd: Path, tmp_path: Path, fit: str, corner: int) -> None:
    from diffaccel.cli.streaming import fitted, live_settings
    from diffaccel.realtime.settings import load_pipeline, open_engine

    given: dict[str, Any] = dict.fromkeys(each.name for each in fields(ModelChoice))
    given |= {"model": str(tiny_sd), "lora": "none", "lora_partial": False, "controlnet": (), "compiled": False}
    given |= {"size": "fit", "fit": fit}
    settings = live_settings(given, {"prompt": "a cat"})
    pipe = load_pipeline(settings)
    settings = fitted(pipe, settings, (64, 16), quiet=True)
    assert settings.width is not None
    assert settings.height is not None
    assert settings.width > settings.height
    with open_engine(pipe, settings) as engine:
        seen = engine._intake.accept(np.full((64, 64, 3), 255, np.uint8), None, None, engine.config)[0].pixels
    assert seen is not None
    assert ((seen[0, :, 0, 0] + 1) * 127.5).round().tolist() == [corner] * 3


def test_the_shape_of_the_input_needs_an_input() -> None:
    result = CliRunner().invoke(main, ["live", "--size", "fit"])
    assert result.exit_code == 2
    assert "--size fit needs --source" in result.output
