"""What pages are told of their controls while those that were asked for are still followed."""

from typing import Any

from diffaccel.realtime.client import Client
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.metrics import Metrics


class Follows:
    """A stream that follows everything, and during whose work more is asked for."""

    def __init__(self) -> None:
        self.meanwhile: Any = lambda: None

    def configure(self, controls: Controls) -> None:
        self.meanwhile()

    def remark(self, controls: Controls) -> str:
        return ""


def test_the_model_that_paints_is_told_while_another_one_is_asked_for() -> None:
    posted: list[Any] = []
    client, stream = Client(Controls(model="here"), posted.append, Metrics()), Follows()
    client.work(client.asked, None, lambda controls: stream)
    stream.meanwhile = lambda: client.ask({"model": "other"})
    client.work(client.ask({"prompt": "a cat"}), None, lambda controls: stream)
    told = posted[-1].values
    assert (told["values"]["prompt"], told["values"]["model"], told["model"]) == ("a cat", "other", "here")
