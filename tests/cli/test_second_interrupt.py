"""The first signal ends a command in order, the second at once; both with exit code 130."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from diffaccel.cli.signals import interruptible

PROGRAM = """
import signal, sys, time
from diffaccel.cli.signals import interruptible
signal.signal(signal.SIGINT, signal.{before})
try:
    with interruptible():
        try:
            print("ready", flush=True)
            time.sleep({work})
        finally:
            print("ending", flush=True)
            time.sleep({inside})
except KeyboardInterrupt:
    time.sleep({outside})
    sys.exit(130)
"""


def program(**pauses: object) -> subprocess.Popen[str]:
    values = {"before": "default_int_handler", "work": 20, "inside": 0, "outside": 0} | pauses
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(**values)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_leaves_time_to_end_in_order(number: signal.Signals) -> None:
    with program(inside=0.1, outside=0.1) as process:
        process.send_signal(number)
        assert process.communicate(timeout=10)[0] == "ending\n"
    assert process.returncode == 130


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_another_ends_it_at_once(place: str, second: signal.Signals) -> None:
    with program(**{place: 20}) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        time.sleep(0.1)
        process.send_signal(second)
        assert process.wait(timeout=10) == 130


def test_what_is_ignored_stays_ignored() -> None:
    with program(before="SIG_IGN", work=0.3) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0


@pytest.fixture
def handlers() -> Iterator[tuple[Any, Any]]:
    """Python's own handlers, also where the tests run as a background job, which ignores Ctrl-C."""
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield tuple(ours.values())
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_signal_nothing_is_left(handlers: tuple[Any, Any]) -> None:
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) != handlers[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_what_is_ignored_goes_on_being_ignored(handlers: tuple[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) not in (handlers[1], signal.SIG_IGN)
