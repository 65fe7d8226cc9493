"""Video over a network, both ways: against servers on this machine, which PyAV or ffmpeg plays in listening mode."""

import io
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import videos
from live_client import until

from diffaccel.media import network
from diffaccel.media.errors import MediaError
from diffaccel.media.network import NetworkVideo, NetworkWriter, waits, without_options
from diffaccel.media.sources import open_source
from diffaccel.realtime.local import run
from diffaccel.realtime.sinks import check_sink, open_sink
from diffaccel.stream.engine import StreamEngine


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_server(port: int) -> None:
    """Until somebody listens; without knocking, as a server here takes one caller."""
    if not Path("/proc/net/tcp").exists():  # elsewhere than on Linux
        time.sleep(1)
        return
    begin = time.monotonic()
    while time.monotonic() - begin < 30:
        for table, state in (("tcp", "0A"), ("udp", "07")):
            rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
            if any(int(row[1].split(":")[1], 16) == port and row[3] == state for row in rows):
                return
        time.sleep(0.05)
    pytest.fail(f"nobody listens at {port}")


class Listener:
    """A server that takes one caller's video."""

    def __init__(self, address: str, port: int) -> None:
        self.frames: list[np.ndarray] = []

        self.end: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(address,), daemon=True)
        self._thread.start()
        wait_for_server(port)

    def _run(self, address: str) -> None:
        try:
            with open_source(address) as source:
                for frame in source:
                    self.frames.append(frame.pixels)
        except MediaError as error:
            self.end = error

    def wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


WAYS = {
    "rtmp": ("rtmp://127.0.0.1:{port}/live/key?listen=1", "rtmp://127.0.0.1:{port}/live/key"),
    "rtsp": ("rtsp://127.0.0.1:{port}/key?listen=1", "rtsp://127.0.0.1:{port}/key"),
    "tcp": ("tcp://127.0.0.1:{port}?listen=1", "tcp://127.0.0.1:{port}"),
    "udp": ("udp://127.0.0.1:{port}?timeout=1500000", "udp://127.0.0.1:{port}"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("listens", "calls"), WAYS.values(), ids=WAYS.keys())
def test_what_is_sent_arrives(port: int, listens: str, calls: str) -> None:
    server = Listener(listens.format(port=port), port)
    with open_sink(calls.format(port=port)) as sink:
        assert sink.where == calls.format(port=port)
        number = 0
        while len(server.frames) < 20 and number < 900:  # its process takes a second to start
            sink.write(videos.picture(number % 12, 64, 48), Fraction(number, 30))
            time.sleep(1 / 30)
            number += 1
    server.wait()
    assert len(server.frames) >= 15
    for pixels in (server.frames[1], server.frames[-1]):
        off = [np.abs(pixels.astype(int) - videos.picture(number, 64, 48)).mean() for number in range(12)]
        assert min(off) < 8


@pytest.mark.slow
def test_a_live_run_reads_and_sends(port: int, open_engine: Callable[..., StreamEngine], tmp_path: Path) -> None:
    server = Listener(f"rtmp://127.0.0.1:{port}/live/key?listen=1", port)
    source = videos.make(tmp_path / "in.mp4", times=[Fraction(k, 15) for k in range(30)], audio=None)
    report = run(open_engine, source=str(source), sink=f"rtmp://127.0.0.1:{port}/live/key")
    server.wait()
    assert report.stream.frames_out > 0
    assert server.frames
    assert server.frames[0].shape == (32, 64, 3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg to be an RTMP server")
def test_an_rtmp_server_is_read(port: int, tmp_path: Path) -> None:
    source = videos.make(tmp_path / "in.mp4", times=[Fraction(k, 25) for k in range(50)], audio=None)
    words = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-re", "-i", str(source), "-c", "copy", "-f", "flv",
             "-listen", "1", f"rtmp://127.0.0.1:{port}/live/key"]  # fmt: skip
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as server:
        wait_for_server(port)
        with open_source(f"rtmp://127.0.0.1:{port}/live/key") as video:
            frames = list(video)
        server.kill()
    assert len(frames) >= 40
    assert np.abs(frames[5].pixels.astype(int) - videos.picture(5, 64, 48)).mean() < 8


def test_a_file_on_a_web_server_plays_at_its_own_speed(tmp_path: Path, port: int) -> None:
    videos.make(tmp_path / "in.mp4", times=[Fraction(k, 10) for k in range(8)], audio=None)
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_for_server(port)
        with open_source(f"http://127.0.0.1:{port}/in.mp4") as source:
            begin = time.monotonic()
            frames = list(source)
        server.kill()
    assert len(frames) == 8
    assert time.monotonic() - begin >= 0.6
    assert float(frames[-1].time) == pytest.approx(0.7, abs=0.2)


def keep_sending(writer: NetworkWriter) -> None:
    for number in range(400):
        writer.write(videos.picture(0, 64, 48), number / 20)
        time.sleep(0.05)


def test_the_last_pictures_are_sent_or_it_is_said(port: int) -> None:
    """A clip may be over before the sender has begun."""
    refused = pytest.raises(MediaError, match=r"cannot send to tcp://.*: Connection refused")
    with refused, open_sink(f"tcp://127.0.0.1:{port}") as sink:
        sink.write(videos.picture(0, 64, 48), 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with open_sink(f"tcp://127.0.0.1:{server.getsockname()[1]}") as sink:
            for number in range(3):
                sink.write(videos.picture(number, 64, 48), number / 30)
        caller, _ = server.accept()
        with caller:
            caller.settimeout(5)
            sent = b"".join(iter(lambda: caller.recv(65536), b""))
    with av.open(io.BytesIO(sent), format="mpegts") as container:
        assert len(list(container.decode(video=0))) == 3


def test_a_sink_that_waits_for_a_viewer_waits(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT", 0.1)
    address = f"tcp://127.0.0.1:{port}?listen=1"
    sink = open_sink(address)
    for number in range(network.MOST_UNSENT + 4):
        sink.write(videos.picture(number, 64, 48), number / 30)
        time.sleep(0.05)
    with pytest.raises(MediaError, match="nobody called at tcp"):
        sink.close(complete=True)
    monkeypatch.setattr(network, "TIMEOUT", 20)
    with open_sink(address) as sink:
        sink.write(videos.picture(0, 64, 48), 0.0)
        wait_for_server(port)
        viewer = socket.create_connection(("127.0.0.1", port))
        until(lambda: sink.write(videos.picture(1, 64, 48), 1.0) or not sink._writer._waits)
    with viewer:
        assert viewer.recv(65536)


def test_nobody_there_is_said(port: int) -> None:
    writer = NetworkWriter(f"tcp://127.0.0.1:{port}")
    with pytest.raises(MediaError, match=rf"cannot send to tcp://127.0.0.1:{port}: Connection refused"):
        keep_sending(writer)
    writer.close()
    with pytest.raises(MediaError, match=r"cannot open rtmp.*: Connection refused"):
        NetworkVideo(f"rtmp://127.0.0.1:{port}/live/key")


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"rtmp://127.0.0.1:{mute.getsockname()[1]}/live/key"
        writer = NetworkWriter(address)
        with pytest.raises(MediaError, match="takes no pictures for"):
            keep_sending(writer)
        assert writer.left_out > 0
        writer.close()
        with pytest.raises(MediaError, match=r"cannot open .*: nothing came for 0.5 s"):
            NetworkVideo(address)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gopher://host/x", r"cannot send to gopher:// addresses: use rtmp, rtmps, rtsp, srt, tcp, udp"),
        ("udp://host", r"has to look like udp://host:port/name"),
        ("rtmp:///live", "is no address"),
        ("http://host/x", "cannot send to http:// addresses"),
        ("rtmp://[::1/x", "is no address"),
    ],
)
def test_an_address_that_means_nothing_is_said(name: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        check_sink(name)


def test_options_are_taken_out_of_addresses() -> None:
    assert without_options("rtmp://a/b?listen=1&k=2") == ("rtmp://a/b?k=2", {"listen": "1"})
    assert without_options("rtmp://a/b?k=2") == ("rtmp://a/b?k=2", {})
    assert without_options("tcp://a:1?listen=1") == ("tcp://a:1?listen=1", {})
    assert without_options("rtsp://a/b") == ("rtsp://a/b", {"rtsp_transport": "tcp"})
    assert without_options("rtsp://a/b?listen=1")[1]["rtsp_flags"] == "listen"
    assert all(map(waits, ("rtmp://a/b?k=2&listen=1", "tcp://a:1?listen=1", "srt://a:1?mode=listener&latency=9")))
    assert not any(map(waits, ("rtmp://a/listeners", "rtmp://a/b?listen=0", "srt://a:1?mode=caller", "clip.mp4")))


def test_a_virtual_camera_gets_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Device:
        def __init__(self, **options: Any) -> None:
            self.options, self.sent, self.closed = options, [], False
            made.append(self)

        def send(self, pixels: np.ndarray) -> None:
            self.sent.append(pixels)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=Device))
    with open_sink("virtual-camera:/dev/video9") as sink:
        for number in range(2):
            sink.write(videos.picture(number, 64, 48), number)
    (device,) = made
    assert device.options == {"width": 64, "height": 48, "fps": 30, "device": "/dev/video9"}
    assert [np.array_equal(p, videos.picture(k, 64, 48)) for k, p in enumerate(device.sent)] == [True, True]
    assert device.closed


def test_without_a_virtual_camera_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(MediaError, match=r"pip install 'diffaccel\[virtual-camera\]'"):
        check_sink("virtual-camera")

    def none(**_: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=none))
    with pytest.raises(MediaError, match="no virtual camera: no device; on Linux: modprobe v4l2loopback"):
        open_sink("virtual-camera").write(videos.picture(0, 64, 48), 0)
