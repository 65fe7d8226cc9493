"""Two replicas of the live server behind Ray Serve; one is killed."""

import gc
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from warnings import catch_warnings

import psutil
import pytest
from live_client import Client, get, jpeg, until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from diffaccel.models import ModelError
from diffaccel.realtime import address
from diffaccel.realtime.server import ServerOptions
from diffaccel.realtime.settings import LiveSettings

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of itself
]


UNHURRIED = {"RAY_worker_niceness": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""For machines that are busy otherwise: Ray's processes give way to all others, and Serve awaits them for 5 s."""


def free_port() -> int:
    with address.listen("127.0.0.1", 0, another="") as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def server(tiny_sd: Path) -> Iterator[Any]:
    from diffaccel.realtime.ray_serve import serving

    small = partial(ray.init, num_cpus=2, object_store_memory=100 * 2**20)
    options = ServerOptions(port=free_port(), token="secret")
    settings = LiveSettings(model=str(tiny_sd), device="cpu", width=32, height=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", small)
        for name, value in UNHURRIED.items():
            patch.setenv(name, value)
        with serving(settings, options, limit=2, replicas=2) as url:
            assert url == f"http://127.0.0.1:{options.port}/?token=secret"
            yield SimpleNamespace(port=options.port)
    with catch_warnings(action="ignore"):  # Ray leaves processes that it ended to the garbage collector
        gc.collect()


def paints(client: Client) -> bool:
    client.frame(jpeg())
    client.frame(jpeg())
    return bool(client.picture())


def again(server: Any, session: str, within: float = 60) -> Client:
    """A client that tries again until it is let in and gets a picture, as the page does."""
    end = time.monotonic() + within
    while True:
        try:
            client = Client(server, session=session)
            if paints(client):
                return client
        except (ConnectionClosed, InvalidStatus, OSError, TimeoutError):
            assert time.monotonic() < end, "it was not let in again"
            time.sleep(0.5)


def replicas() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [each for each in children if "ServeReplica" in " ".join(each.cmdline())]


def test_one_replica_dies_and_its_page_connects_again(server: Any) -> None:
    with Client(server, session="one") as one, Client(server, session="two") as two:
        assert paints(one)
        assert paints(two)
        for name in ("one", "two"):
            for _ in range(4):
                status, text, _ = get(server, f"/controls?token=secret&session={name}")
                assert (status, '"prompt"' in text) == (200, True)
        assert len(replicas()) == 2
        replicas()[0].kill()
        sockets = {"one": one, "two": two}
        lost = []
        end = time.monotonic() + 20
        while not lost and time.monotonic() < end:
            for name, client in sockets.items():
                try:
                    assert paints(client)
                except ConnectionClosed as error:
                    print(name, error)
                    lost.append(name)
        assert len(lost) == 1
        (other,) = sockets.keys() - lost
        with again(server, lost[0]) as back:
            for _ in range(5):
                assert paints(back)
                assert paints(sockets[other])
        until(lambda: len(replicas()) == 2, 60, "the dead replica was not replaced")


@pytest.mark.parametrize("path", ["/controls?session=one", "/schema?token=wrong", "/metrics"])
def test_the_token_counts_in_every_replica(server: Any, path: str) -> None:
    assert {get(server, path)[0] for _ in range(4)} == {403}


def test_a_cluster_that_is_not_there() -> None:
    from diffaccel.realtime.ray_serve import serving

    asked = serving(LiveSettings(), ServerOptions(), limit=2, cluster="127.0.0.1:1")
    with pytest.raises(ModelError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        asked.__enter__()


def test_strangers_get_no_websocket(server: Any) -> None:
    for stranger in ({"token": "wrong"}, {"origin": "http://evil.example"}):
        with pytest.raises((InvalidStatus, ConnectionClosed)):
            Client(server, **stranger).read()
