"""Open Sound Control: other programs move the controls, as in ``/diffaccel/strength 0.7``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from math import isfinite
from socketserver import UDPServer
from typing import Any, Self

from pydantic import ValidationError

from diffaccel.media.errors import MediaError, need
from diffaccel.realtime.connection import words
from diffaccel.realtime.controls import ControlNetControls

logger = logging.getLogger(__name__)

ROOT = "/diffaccel"
HOST = "127.0.0.1"
"""OSC knows no passwords: whoever reaches it moves the controls."""
DIGITS = 7
"""That OSC's numbers hold, in 32 bits: 0.9 arrives as 0.89999998, which is below a least value of 0.9."""
MOST_TOLD, LAST = 1000, "; of other addresses nothing more is told"
AskForChange = Callable[[str | None, Mapping[str, Any]], int]


class OscServer:
    """Listens for UDP messages; used with ``with``.

    ``/diffaccel/NAME VALUE`` changes a control of everyone who paints, ``/diffaccel/SESSION/NAME VALUE`` of one
    session. Messages act in the order in which they come; those of a bundle act at once, whatever time it names. What
    cannot be followed is told in the log, once for each of the first thousand addresses.

    Args:
        change: changes controls of a session (None: of all), and tells how many sessions there were. Raises
            ValidationError for what cannot be followed.
        port: where to listen; 0 for any that is free.

    Raises:
        MediaError: where python-osc is missing (extra ``osc``), or the port is taken.
    """

    def __init__(self, change: AskForChange, *, port: int) -> None:
        need("pythonosc", extra="osc", purpose="Open Sound Control")
        from pythonosc.osc_packet import OscPacket

        self._change, self._told, self._packet = change, set[str](), OscPacket
        try:
            self._server = UDPServer((HOST, port), lambda request, *_: self._take(request[0]))  # type: ignore[arg-type]
        except OSError as error:
            reason = error.strerror or error
            raise MediaError(f"cannot listen for OSC on {HOST} port {port}: {reason}; choose another") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="osc")

    def _take(self, datagram: bytes) -> None:
        """Hear what one datagram says."""
        try:
            messages = [each.message for each in self._packet(datagram).messages]
        except Exception as error:  # strangers break it in more ways than its own kind of error
            self._tell("message", f"this is none of Open Sound Control: {error}")
            return
        for message in messages:
            self._hear(message.address, *message.params)

    def _hear(self, address: str, *values: Any) -> None:
        parts = address.removeprefix(f"{ROOT}/").split("/")
        if not address.startswith(f"{ROOT}/") or len(parts) > 2 or len(values) != 1:
            self._tell(address, f"say {ROOT}/strength 0.7, or {ROOT}/SESSION/strength 0.7")
            return
        session, name = ([None, *parts])[-2:]
        try:
            if not self._change(session, {str(name): _as_meant(str(name), values[0])}):
                self._tell(address, f"nobody paints as {session} now" if session else "nobody paints now")
        except ValidationError as error:
            self._tell(address, words(error))

    def _tell(self, address: str, what: str) -> None:
        if address in self._told or len(self._told) == MOST_TOLD:
            return
        self._told.add(address)
        logger.warning("OSC %s: %s%s", address, what, LAST if len(self._told) == MOST_TOLD else "")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _as_meant(name: str, value: Any) -> Any:
    """A fraction as it was written, before it went through 32 bits; of a fader of whole numbers the nearest one."""
    if not isinstance(value, float):
        return value
    field = ControlNetControls.model_fields.get(name)
    whole = field is not None and field.annotation is int and isfinite(value)
    return round(value) if whole else float(f"{value:.{DIGITS}g}")
