"""Running the collector as a server.

Belongs here: sockets, signals and the order in which parts are opened and closed. Does not belong
here: what is answered (app.py).
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import closing, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import load_declaration
from profilehouse.settings import PREFIX
from profilehouse.web.app import Access, Collector, build_app
from profilehouse.web.metrics import Metrics
from profilehouse.web.profiles import ProfileReader
from profilehouse.web.webhooks import Webhooks
from profilehouse.web.writer import Room, Writer

if TYPE_CHECKING:
    from profilehouse.platform import Platform

LOOPBACK = ("127.0.0.1", "localhost")

_MAX_WAITING_BYTES = 64 * 2**20
_SECONDS_TO_FINISH = 30
_SECONDS_TO_KEEP_ALIVE = 75
"""Longer than proxies keep an idle connection, so that it is they who close it."""
_BACKLOG = 2048


def serve(
    platform: Platform,
    host: str,
    port: int,
    max_waiting: int,
    *,
    demo: bool,
    ready: Callable[[str], None],
) -> None:
    """Collect events until SIGTERM or Ctrl-C; requests that were begun are answered first.

    Args:
        platform: whose log and profile store are used.
        host: to listen on.
        port: to listen on; 0 for a free one.
        max_waiting: events in memory on their way to the log, at most.
        demo: also serve the demo page, and profiles to it without a token.
        ready: told the server's address once it listens.

    Raises:
        ProfilehouseError: if the log takes no records, the port is not free, or the demo page would
            be served to others than this machine.
    """
    if demo and host not in LOOPBACK:
        raise ProfilehouseError(
            f"--demo shows profiles without a token, so only on this machine: not on {host}, say"
            f" --host {LOOPBACK[0]}"
        )
    settings = platform.settings
    token = settings.api_token.get_secret_value() if settings.api_token else None
    access = Access([one for one in settings.origins.split(",") if one], token, demo)
    declaration = load_declaration()
    secret = settings.webhooks_secret
    if secret and settings.webhooks == settings.log:
        raise ProfilehouseError(
            f"{PREFIX}WEBHOOKS and {PREFIX}LOG name the same log; webhooks need one of their own"
        )
    with (
        _listening(host, port) as listener,
        platform.log() as log,
        platform.webhooks() if secret else nullcontext() as webhooks_log,
    ):
        room = Room(max_waiting, _MAX_WAITING_BYTES)
        metrics = Metrics(room)
        collector = Collector(
            log,
            Writer(log.producer, room, metrics.committed),
            room,
            metrics,
            ProfileReader(platform.profile_store(declaration), declaration),
        )
        webhooks = None
        if secret and webhooks_log:
            waiting = Room(max_waiting, _MAX_WAITING_BYTES)
            writer = Writer(webhooks_log.producer, waiting, lambda *_: None)
            webhooks = Webhooks(writer, waiting, metrics, secret.get_secret_value())
        config = uvicorn.Config(
            build_app(collector, access, webhooks),
            access_log=False,
            log_level="warning",
            lifespan="on",
            ws="none",
            backlog=_BACKLOG,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_SECONDS_TO_KEEP_ALIVE,
            timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        )
        server = uvicorn.Server(config)

        def stop(_number: int, _frame: FrameType | None) -> None:
            server.should_exit = True

        # uvicorn has handlers of its own while it runs, and raises the signal again for these.
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        ready(f"http://{host}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> closing[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return closing(socket.create_server((host, port), family=family, backlog=_BACKLOG))
    except OSError as error:
        raise ProfilehouseError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); say another --host or"
            " --port"
        ) from error
