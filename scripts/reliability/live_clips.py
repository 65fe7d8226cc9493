"""Reliability of live runs and video files: clips of every kind, devices that hang, settings of a still scene."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from realtime import videos
from reliability.live_clients import megabytes, settings_for

from diffaccel import models
from diffaccel.media.video_reader import DecodedFrame, VideoReader
from diffaccel.realtime.engine_stream import EngineStream

Options = argparse.Namespace
PROGRAM = (sys.executable, "-m", "diffaccel")


@contextmanager
def display() -> Iterator[str]:
    """An X server without a screen of its own."""
    assert shutil.which("Xvfb"), "Xvfb is not installed: apt-get install xvfb"
    words = ["Xvfb", "-displayfd", "1", "-screen", "0", "800x700x24"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        yield f":{server.stdout.readline().decode().strip()}"
        server.terminate()


def check_window(model: str, place: Path, _options: Options) -> str:
    """A clip into the default window plays to its end, and Ctrl-C ends a longer one."""
    short = videos.make(place / "short.mp4", times=[Fraction(k, 25) for k in range(25)])
    long = videos.make(place / "long.mp4", times=[Fraction(k, 25) for k in range(25 * 60)])
    with display() as name:
        environment = os.environ | {"DISPLAY": name}
        words = [*PROGRAM, "live", "--model", model, "--lora", "none", "--source"]
        subprocess.run([*words, str(short)], env=environment, check=True, capture_output=True, timeout=90)
        with subprocess.Popen([*words, str(long)], env=environment, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            while "Pictures go to" not in run.stdout.readline():
                assert run.poll() is None, "it ended before it began"
            time.sleep(1)
            begin = time.monotonic()
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=30)
            seconds = time.monotonic() - begin
    assert seconds <= 5, f"Ctrl-C took {seconds:.1f} s"
    return f"played to its end; Ctrl-C ended another after {seconds:.1f} s"


def check_hanging(model: str, _place: Path, _options: Options) -> str:
    """A network camera that takes the connection and says nothing ends the run within 10 s of its opening."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"camera:rtsp://127.0.0.1:{server.getsockname()[1]}/x"
        words = [*PROGRAM, "live", "--model", model, "--lora", "none", "--source", address, "--sink", "mjpeg:0"]
        begin = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
        seconds = time.monotonic() - begin
    assert done.returncode in (1, 2), done.stdout
    assert "does not answer" in done.stderr, done.stderr
    return f"given up after {seconds:.0f} s, the start of the program included"


def check_matrices(_model: str, place: Path, _options: Options) -> str:
    """All eight display matrices without a slant."""
    worst = 0.0
    for name, matrix in videos.MATRICES.items():
        path = videos.shown_as(videos.make(place / "turned.mp4", audio=None), matrix)
        with VideoReader(path) as reader:
            pixels = next(reader.frames()).pixels
        expected = videos.displayed(videos.picture(0, 64, 48), matrix)
        assert pixels.shape == expected.shape, name
        worst = max(worst, float(np.abs(pixels.astype(int) - expected).mean()))
        assert worst < 8, f"{name}: {worst:.1f} of 255 off"
    return f"{len(videos.MATRICES)} matrices, at most {worst:.1f} of 255 off on average"


def check_joined(_model: str, place: Path, options: Options) -> str:
    """Files joined end to end: pictures and sound go on, all of them, in order."""
    parts = max(3, int(40 * options.scale))
    part = videos.make(place / "part.ts", codec="mpeg2video", time_base=Fraction(1, 25), audio="mp2")
    path = place / "joined.ts"
    path.write_bytes(part.read_bytes() * parts)
    with VideoReader(path) as reader:
        items = list(reader)
    times = [item.time for item in items if isinstance(item, DecodedFrame)]
    sound = [item.dts * item.time_base for item in items if not isinstance(item, DecodedFrame)]
    assert [time - times[0] for time in times] == [Fraction(k, 25) for k in range(12 * parts)]
    assert all(a < b for a, b in pairwise(sound)), "sound falls back"
    assert len(sound) == parts * len(videos.sound(part))
    return f"{parts} parts, {len(times)} frames 40 ms apart, {len(sound)} packets of sound"


def check_settings(model: str, _place: Path, _options: Options) -> str:
    """A still scene shows every change of a control in the next picture that is painted."""
    pipe, still = models.load(model, device="cpu"), np.full((64, 64, 3), 128, np.uint8)
    changes = ({"prompt": "a dog"}, {"seed": 7}, {"strength": 0.9}, {"guidance": "full", "guidance_scale": 3.0})
    for change in changes:
        settings = settings_for(model, similarity=True)
        stream, number = EngineStream(pipe, settings), 0
        before = after = None
        for number in range(6):
            before = (stream.push(still, frame_id=number) or [before])[-1]
        stream.configure(settings.controls.model_copy(update=change))
        for number in range(6, 10):
            after = (stream.push(still, frame_id=number) or [after])[-1]
            if after is not None and not after.skipped:
                break
        stream.close()
        assert before is not None and after is not None  # noqa: PT018
        assert number == 6, f"{change}: seen after {number - 5} frames"
        assert not np.array_equal(np.asarray(before.image), np.asarray(after.image)), f"{change}: the old picture"
    return f"{len(changes)} changes, each in the next frame"


def check_page(_model: str, _place: Path, _options: Options) -> str:
    """What the page says and shows, on a desktop and on a phone both ways."""
    file = Path(__file__).parents[2] / "tests" / "browser" / "test_live_words.py"
    others = [file.with_name("test_dream_page.py"), "-m", "slow or not slow", "-k", "not bundled"]
    with tempfile.TemporaryDirectory() as place:
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            f"--basetemp={place}",
            file,
            *others,
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=file.parents[2])
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout.strip().splitlines()[-1].strip("= ")


def check_address(_model: str, _place: Path, options: Options) -> str:
    """A stream's address shows the pictures of every connection under its name, one after another."""
    import urllib.request

    from realtime.live_client import Client, jpeg, parts, serving, until

    count = max(3, int(50 * options.scale))
    with serving() as server:
        address = f"http://127.0.0.1:{server.port}/mjpeg?token=secret&session=stage"
        with urllib.request.urlopen(address, timeout=10) as watcher:
            seen = parts(watcher)
            for number in range(count):
                red = 40 + number * 60 % 180
                with Client(server, session="stage") as client:
                    client.frame(jpeg((red, 0, 0)))
                    client.picture()
                    assert any(abs(int(next(seen)[0]) - (255 - red)) < 5 for _ in range(5)), f"{number} is not shown"
                until(lambda: server.hub.count == 0)
        until(lambda: server.channels.viewers == 0)
    return f"{count} connections under one address"


def check_endless(_model: str, _place: Path, options: Options) -> str:
    """5,000 frames of a video without end, whose prompt changes now and then; memory stays level."""
    from benchmarks import video
    from diffaccel import CausalContext

    count, levels = max(200, int(5000 * options.scale)) // video.CHUNK, []
    context = CausalContext(window=8, refresh="prompt")
    with video.engine(video.pipeline(video.build("Wan", 32, 1)), num_steps=1, context=context) as engine:
        for number in range(count):
            engine.next()
            if number % max(1, count // 10) == 0:
                levels.append((megabytes(), engine.report().context_bytes))
                engine.update(prompt=f"prompt {number}")
    frames = count * video.CHUNK
    grown, thousands = levels[-1][0] - levels[2][0], frames * 0.7 / 1000
    said = f"{frames} frames, {grown / thousands:+.2f} MB per 1,000"
    assert grown <= max(2, thousands), said  # a few pages come and go in a short run
    assert levels[-1][1] == levels[2][1], f"{said}; keys and values grew from {levels[2][1]} to {levels[-1][1]} bytes"
    return said


CHECKS_OF_CLIPS = {
    "endless clip": check_endless,
    "window": check_window,
    "hanging device": check_hanging,
    "display matrices": check_matrices,
    "joined files": check_joined,
    "still scene, new settings": check_settings,
    "address": check_address,
    "page": check_page,
}
