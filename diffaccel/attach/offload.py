"""Offload comes and goes beneath our hooks: what any pipeline does to it takes those on its networks off meanwhile.

While somebody is followed, the methods of pipelines that put offload on or take it off ask. (Attributes on the pipeline
that was accelerated would be carried to its copies, and offload the first one from there; others on its networks would
have none.)
"""

from __future__ import annotations

import functools
import threading
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol
from weakref import WeakSet

from diffusers import DiffusionPipeline

OFFLOADS = ("enable_group_offload", "enable_model_cpu_offload", "enable_sequential_cpu_offload", "remove_all_hooks")


class Follower(Protocol):
    """Who has hooks on networks."""

    def works_on(self, pipe: Any) -> bool:
        """Whether they are on networks of a pipeline."""

    def suspended(self) -> AbstractContextManager[None]:
        """Within, they are off, and after it on again."""


_following: WeakSet[Follower] = WeakSet()
_methods: dict[tuple[type, str], tuple[Any, Any]] = {}  # what a class had, and has now
_changing = threading.RLock()


def follow(user: Follower, pipe: Any = None) -> None:
    """Take a user's hooks off and put them on again where a pipeline changes what lies beneath.

    Args:
        user: whose hooks.
        pipe: whose class may have methods of its own for that.
    """
    with _changing:
        _following.add(user)
        for cls in dict.fromkeys((*type(pipe).__mro__, DiffusionPipeline)):
            for name in OFFLOADS:
                if name in vars(cls) and (cls, name) not in _methods:
                    own = vars(cls)[name]
                    _methods[cls, name] = own, _around(own)
                    setattr(cls, name, _methods[cls, name][1])


def unfollow(user: Follower) -> None:
    """Let go of a user; the last one leaves all classes as they were."""
    with _changing:
        _following.discard(user)
        while _methods and not _following:
            (cls, name), (own, method) = _methods.popitem()
            if vars(cls).get(name) is method:  # nobody else has changed it since
                setattr(cls, name, own)


def _around(before: Any) -> Any:
    """A pipeline's method with the hooks of all users on its networks off."""

    @functools.wraps(before)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _changing:
            users = [user for user in _following if user.works_on(self)]
        with ExitStack() as stack:
            for user in users:
                stack.enter_context(user.suspended())
            return before(self, *args, **kwargs)

    return method
