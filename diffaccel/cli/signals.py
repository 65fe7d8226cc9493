"""Ctrl-C and SIGTERM: the first ends a command in order, the second at once; either way the exit code is 130."""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children

import click

INTERRUPTED = 130
_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible(outcome: str = "") -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first Ctrl-C or SIGTERM, and end the process at the second.

    The first leaves time to finish what is under way; the second kills the processes at work for this one, too. Once a
    signal has come the process is about to end, so the second may come after this context as well, and Python's own
    tidying up, seconds with PyTorch on a busy machine, is left out. What the process was started to ignore, as a
    shell's background job ignores Ctrl-C, it goes on ignoring.

    Args:
        outcome: what becomes of the work, as the text of the `KeyboardInterrupt` that leaves this context.
    """
    previous = {each: signal.getsignal(each) for each in _ENDING if signal.getsignal(each) != signal.SIG_IGN}
    for number in previous:
        signal.signal(number, _first)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(outcome) from None
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is _first:
                signal.signal(number, handler)


def _first(_number: int, _frame: object) -> None:
    for number in _ENDING:
        signal.signal(number, _second)
    atexit.register(_end)
    raise KeyboardInterrupt


def _second(_number: int, _frame: object) -> None:
    for child in active_children():
        child.kill()
    os._exit(INTERRUPTED)


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def give_up(words: str) -> None:
    """End the process from another thread than its main one, which never comes back from a library."""
    click.echo(f"Error: {words}", err=True)
    sys.stdout.flush()
    os._exit(1)
