"""Where a server of pictures listens, and the address that its user opens."""

from __future__ import annotations

import os
import socket
from urllib.parse import quote

from diffaccel.media.errors import MediaError
from diffaccel.realtime.guard import LOOPBACK

EVERYWHERE = frozenset({"", "0.0.0.0", "::"})


def listen(host: str, port: int, *, another: str) -> socket.socket:
    """Take a port; who connects from now on waits for the server to run.

    Args:
        host: address to listen on.
        port: 0 takes any that is free.
        another: how the user asks for another port.

    Raises:
        MediaError: where the port is taken or not allowed.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # elsewhere this would let two programs take one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise MediaError(f"cannot listen on {host} port {port}: {reason}; choose another, as in {another}") from error
    return listener


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host in LOOPBACK


def seen_by_others(host: str) -> str | None:
    """The number by which other machines reach a server that listens everywhere; None where none can, or for others."""
    if host not in EVERYWHERE:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it asks from which of its addresses it would
        except OSError:
            return None
        number: str = probe.getsockname()[0]
    return None if number.startswith("127.") else number


def url(host: str, port: int, path: str, *, token: str, scheme: str = "http") -> str:
    """The address of a path on this machine, with the token in it."""
    place = "127.0.0.1" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"{scheme}://{place}:{port}{path}?token={quote(token, safe='')}"
