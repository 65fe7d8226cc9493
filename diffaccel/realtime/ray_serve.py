"""The live server on a Ray cluster: replicas of it behind Ray Serve's proxy, as many as there is to do.

A replica is a whole server with a pipeline of its own. A WebSocket stays with the replica that it was given, where
least is to do, and whatever else names its session goes there, too. When a replica dies, Serve starts another, and
pages connect again by themselves, to one that is left.
"""

from __future__ import annotations

import atexit
import logging
import pickle
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.request_router import RequestRouter
from ray.serve.schema import LoggingConfig

from diffaccel.media.errors import MediaError
from diffaccel.models.ray_cluster import connect, each_actor
from diffaccel.realtime import address
from diffaccel.realtime.opening import open_hub
from diffaccel.realtime.server import MOST_VIEWERS, LiveApp, ServerOptions
from diffaccel.realtime.settings import LiveSettings

NAME = "diffaccel-live"
BUSY = 0.5
"""Another replica is started where this share of all places is taken."""
CLOSES_WITHIN = 5.0
"""Seconds that the pages of a replica that is no longer needed may stay."""


class SessionRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica where something of its session is open, and others where least is to do.

    https://docs.ray.io/en/latest/serve/advanced-guides/custom-request-router.html
    """

    def initialize_state(self) -> None:
        """Nothing is open."""
        self._open: dict[str, tuple[str, Any]] = {}

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Replicas by preference; of a list of them Serve takes the one with the fewest requests."""
        name = pending_request and session_of(pending_request)
        homes = [replica for other, replica in self._open.values() if name and other == name]
        at_home = [each for each in candidate_replicas if each.replica_id in homes]
        return [at_home, candidate_replicas] if at_home else [candidate_replicas]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:  # noqa: ARG002
        """Remember where the session is."""
        if name := session_of(pending_request):
            self._open[pending_request.metadata.internal_request_id] = (name, replica_id)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:  # noqa: ARG002
        """Forget it."""
        self._open.pop(internal_request_id, None)


def session_of(request: Any) -> str:
    """The session that a request to the proxy names, or nothing."""
    query: bytes = pickle.loads(request.args[0]).asgi_scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("session", [""])[0]


@contextmanager
def serving(
    settings: LiveSettings,
    options: ServerOptions,
    *,
    limit: int,
    max_rows: int | None = None,
    replicas: int = 1,
    cluster: str | None = None,
) -> Iterator[str]:
    """The page's address, while replicas serve it.

    Args:
        settings: of the model, and to begin with; its paths have to lead to the same on every machine.
        options: how the proxy is reached, which runs on the cluster's head.
        limit, max_rows: sessions, and rows of them, that a replica may have.
        replicas: to begin with and at most; fewer where there is little to do.
        cluster: address of the Ray cluster; None for one of this machine.

    Raises:
        ModelError: where there is no such cluster, or it is too small.
        MediaError: where the cluster serves something already, or a replica cannot paint.
    """
    ray = connect(cluster, replicas)
    try:
        if cluster and serve.status().proxies:
            raise MediaError(
                f"Ray Serve runs on {cluster} already: end it with `serve shutdown`, or take another cluster"
            )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": options.host,
                "port": options.port,
                "ssl_certfile": options.certificate and str(options.certificate),
                "ssl_keyfile": options.key and str(options.key),
            },
            logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False),
        )
        try:
            serve.run(_application(settings.located(), options, limit, max_rows, replicas, each_actor(ray)), name=NAME)
        except RuntimeError as error:
            raise MediaError(f"Ray Serve gave up: {error}") from error
        yield options.url(options.port)
    finally:
        if cluster:
            serve.shutdown()
        ray.shutdown()  # which ends all of a cluster of this machine


def _application(
    settings: LiveSettings,
    options: ServerOptions,
    limit: int,
    max_rows: int | None,
    replicas: int,
    resources: dict[str, int],
) -> Any:
    if not address.is_local(options.host):  # by the name of the proxy's machine, not of the replica's
        options = replace(options, allow_hosts=(*options.allow_hosts, socket.gethostname()))

    def build() -> Any:
        opened = ExitStack()
        atexit.register(opened.close)  # which also keeps it
        hub, about = opened.enter_context(open_hub(settings, limit=limit, max_rows=max_rows))
        return LiveApp(hub, options, about).guarded()

    deployment = serve.deployment(
        name="live",
        ray_actor_options=resources,
        max_ongoing_requests=limit + 2 * MOST_VIEWERS,  # who is one too many is told so by the replica
        autoscaling_config=AutoscalingConfig(
            min_replicas=1, initial_replicas=replicas, max_replicas=replicas, target_ongoing_requests=limit * BUSY
        ),
        request_router_config=RequestRouterConfig(request_router_class=SessionRouter),
        graceful_shutdown_timeout_s=CLOSES_WITHIN,
    )
    return deployment(serve.ingress(build)()).bind()
