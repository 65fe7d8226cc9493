"""WebRTC: frames in and pictures out between two peers, through the guarded server's signalling."""

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from live_client import StubStream, jpeg, pack_frame, until

from diffaccel.media.errors import MediaError
from diffaccel.realtime import protocol
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions

aiortc = pytest.importorskip("aiortc", reason="no aiortc: pip install 'diffaccel[webrtc]'")


def film(colour: tuple[int, int, int]) -> Any:
    """A track of one colour, 64 x 64."""
    from av import VideoFrame

    class Film(aiortc.VideoStreamTrack):  # type: ignore[misc]
        async def recv(self) -> Any:
            pts, base = await self.next_timestamp()
            frame = VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, base
            return frame

    return Film()


def on_its_own(work: Any) -> Any:
    """What a coroutine returns, run on a thread of its own: in this one, browser tests may have left a loop running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@pytest.fixture
def server() -> Any:
    hub = Hub(lambda controls: StubStream(controls, 0.005))
    about = {"model": "stub", "width": 64, "height": 64}
    with hub, LiveServer(hub, ServerOptions(port=0, token="secret", webrtc=True), about) as server:
        yield server


def post(server: LiveServer, offer: str, token: str = "secret", session: str = "me") -> dict[str, str]:
    url = f"http://127.0.0.1:{server.port}/rtc?token={token}&session={session}"
    body = json.dumps({"type": "offer", "sdp": offer}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, str] = json.load(answer)
        return found


def test_frames_go_in_and_pictures_come_out(server: LiveServer) -> None:
    from websockets.sync.client import connect

    url = f"ws://127.0.0.1:{server.port}/ws?token=secret&session=me"

    async def talk() -> np.ndarray:
        peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        coming: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        peer.on("track", lambda track: coming.set_result(track))
        peer.addTrack(film((200, 30, 30)))
        await peer.setLocalDescription(await peer.createOffer())
        answer = await asyncio.to_thread(post, server, peer.localDescription.sdp)
        await peer.setRemoteDescription(aiortc.RTCSessionDescription(**answer))
        track = await asyncio.wait_for(coming, 5)
        for _ in range(8):
            frame = await asyncio.wait_for(track.recv(), 10)
        await peer.close()
        found: np.ndarray = frame.to_ndarray(format="rgb24")
        return found

    with connect(url, origin=f"http://127.0.0.1:{server.port}") as socket:  # type: ignore[arg-type]
        assert json.loads(socket.recv())["webrtc"] is True
        picture = on_its_own(talk())
        socket.send(
            pack_frame(7, jpeg())
        )  # the page goes on without WebRTC: its numbers and those of video do not meet
        numbers: set[int] = set()
        while 7 not in numbers:
            message = socket.recv(5)
            numbers |= {protocol.Taken.unpack(message).id} if isinstance(message, bytes) and message[0] == 2 else set()
        assert numbers == {0, 7}
        assert picture.shape == (64, 64, 3)
        assert picture.mean((0, 1)) == pytest.approx([55, 225, 225], abs=12)  # inverted, and through a video codec
        tally = next(iter(server.connections.values())).session.tally
        assert tally.to_dict()["shown"] >= 8
    until(lambda: not server.connections)


def test_only_those_who_may_come_in_signal(server: LiveServer) -> None:
    for options, code in (({"token": "wrong"}, 403), ({"session": "nobody"}, 404)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(server, "v=0", **options)
        assert refused.value.code == code
        refused.value.close()


@pytest.mark.parametrize("offer", ["", "v=0", "words", "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\n", "x" * 2**17])
def test_what_is_no_offer_is_refused(offer: str) -> None:
    from diffaccel.realtime.rtc import Peer

    async def ask() -> None:
        await Peer(lambda _: None).answer(offer)

    with pytest.raises(MediaError, match="offer"):
        on_its_own(ask())
