"""A Ray cluster to work on: the one at an address, or one that is started on this machine."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

from diffaccel.models.source import ModelError

REACHABLE_WITHIN = 10.0  # seconds


def connect(address: str | None, actors: int) -> Any:
    """Ray, connected and quiet, on a cluster with room for the actors, which Ray would otherwise await for ever.

    Raises:
        ModelError: where Ray is not installed or cannot be reached, or the cluster is too small.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # lesser things Ray mends itself, or raises
    try:
        import ray
    except ImportError as error:
        raise ModelError("--engine ray needs Ray: pip install 'diffaccel[ray]'") from error
    _require_reachable(address)
    try:
        with _own_sigterm():
            own = {} if address else {"address": "local", "include_dashboard": False}
            ray.init(**{"address": address, "logging_level": "ERROR", "log_to_driver": False, **own})
    except (ConnectionError, ValueError) as error:
        raise ModelError(f"no Ray cluster at {address}: {error}") from error
    room = int(ray.cluster_resources().get("GPU", ray.cluster_resources().get("CPU", 0)))
    if actors > room:
        ray.shutdown()
        raise ModelError(f"--processes {actors} is more than the Ray cluster has room for: {room}")
    return ray


def each_actor(ray: Any) -> dict[str, int]:
    """What an actor is given of the cluster: a core, and a GPU where there are any."""
    return {"num_cpus": 1, "num_gpus": int("GPU" in ray.cluster_resources())}


def _require_reachable(address: str | None) -> None:
    """Raise `ModelError` where nobody listens at HOST:PORT, for which Ray would wait many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise ModelError(f"no Ray cluster at {address}: {error}") from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces by one of its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if current_thread() is main_thread():
            signal.signal(signal.SIGTERM, handler)
