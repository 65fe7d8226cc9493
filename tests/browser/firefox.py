"""A headless Firefox, driven over its own WebDriver BiDi (https://w3c.github.io/webdriver-bidi)."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live_client import until
from websockets.sync.client import ClientConnection, connect

FIREFOX = os.environ.get("FIREFOX") or shutil.which("firefox-esr") or shutil.which("firefox")
LISTENS = re.compile(r"WebDriver BiDi listening on (ws://\S+)")


@contextmanager
def firefox(profile: Path) -> Iterator[Firefox]:
    """A Firefox with one window, ended with the block; ``profile`` is an empty folder."""
    words = [str(FIREFOX), "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    said = profile / "log.txt"
    with said.open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            until(lambda: process.poll() is not None or LISTENS.search(said.read_text()) is not None, 60)
            found = LISTENS.search(said.read_text())
            if found is None:
                raise RuntimeError(f"Firefox does not listen: {said.read_text()}")
            with connect(f"{found[1]}/session", max_size=None, origin=None) as socket:
                yield Firefox(socket)
        finally:
            process.terminate()


class Firefox:
    """A window that is driven through a socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._count = socket, 0
        self._call("session.new", capabilities={})
        self._window = self._call("browsingContext.getTree")["contexts"][0]["context"]
        viewport = {"width": 1180, "height": 960}
        self._call("browsingContext.setViewport", context=self._window, viewport=viewport)

    def _call(self, method: str, **params: Any) -> Any:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(60))).get("id") != self._count:
            pass
        if answer["type"] == "error":
            raise RuntimeError(f"{method}: {answer['message']}")
        return answer["result"]

    def goto(self, url: str) -> None:
        """Open an address, and wait until it is loaded."""
        self._call("browsingContext.navigate", context=self._window, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, awaited, that JSON can carry."""
        code = f"(async () => JSON.stringify(await ({expression})))()"
        done = self._call("script.evaluate", expression=code, target={"context": self._window}, awaitPromise=True)
        if done["type"] == "exception":
            raise RuntimeError(done["exceptionDetails"]["text"])
        return json.loads(done["result"].get("value", "null"))

    def drag(self, *points: tuple[float, float]) -> None:
        """A stroke of the mouse through points of the window, in pixels."""
        moves = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 30} for x, y in points]
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self._call("input.performActions", context=self._window, actions=[mouse])

    def screenshot(self) -> bytes:
        """The window, as PNG."""
        return base64.b64decode(self._call("browsingContext.captureScreenshot", context=self._window)["data"])
