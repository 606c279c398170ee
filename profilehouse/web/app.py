"""The ASGI application: which path answers what.

Belongs here: status codes, headers, tokens. Does not belong here: sockets and signals (server.py).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from profilehouse.errors import ProfilehouseError
from profilehouse.log import Log
from profilehouse.web.intake import BODY_BYTES, Refused, records, too_large
from profilehouse.web.metrics import Metrics
from profilehouse.web.profiles import ProfileReader, TooEarly
from profilehouse.web.writer import Held, Overloaded, Room, Writer

if TYPE_CHECKING:
    from profilehouse.web.webhooks import Webhooks

logger = logging.getLogger(__name__)

_SECONDS_FOR_A_BODY = 10
_SECONDS_FOR_A_COMMIT = 15
_SECONDS_FOR_HEALTH = 3
_SECONDS_BETWEEN_PROBES = 1
_SECONDS_UNTIL_NEXT_TRY = 1
_ID = re.compile(r"[\x21-\x7e]{1,200}")
_HOSTS_OF_THE_DEMO = ["127.0.0.1", "localhost"]
_NOT_KEPT = {"Cache-Control": "no-store"}
_NOT_GUESSED = {"X-Content-Type-Options": "nosniff"}
_OF_A_PAGE = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none';"
    " frame-ancestors 'none'"
}

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Access:
    """Who may do what.

    Attributes:
        origins: of web pages that may send events from elsewhere; `*` for any.
        token: that readers of profiles show; without it nobody reads any.
        demo: whether the demo page is there, and profiles for it without a token. Only for a
            server that listens on loopback.
    """

    origins: Sequence[str] = ()
    token: str | None = None
    demo: bool = False


class Collector:
    """Takes events; gives profiles."""

    def __init__(
        self, log: Log, writer: Writer, room: Room, metrics: Metrics, profiles: ProfileReader
    ) -> None:
        self._log = log
        self._writer = writer
        self._room = room
        self._metrics = metrics
        self._profiles = profiles
        self._last_stamp = datetime.min.replace(tzinfo=UTC)
        self._probe: asyncio.Task[str | None] | None = None
        self._probed_at = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Be at work; at the end all that was taken is in the log."""
        self._writer.start()
        try:
            yield
        finally:
            await self._writer.stop()
            await self._profiles.stop()

    async def events(self, request: Request) -> Response:
        """POST /events."""
        if request.method != "POST":
            return Response(status_code=204, headers={"Allow": "POST"})
        begin = perf_counter()
        try:
            answer = await self._take(request)
        except Refused as refused:
            answer = refusal(refused)
        self._metrics.collected(answer.status_code, perf_counter() - begin)
        return answer

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """GET /health: whether an event would be taken now."""
        if self._probe is None or (
            self._probe.done() and monotonic() > self._probed_at + _SECONDS_BETWEEN_PROBES
        ):
            self._probe = asyncio.create_task(self._look_at_the_log())
        try:
            trouble = await asyncio.wait_for(asyncio.shield(self._probe), _SECONDS_FOR_HEALTH)
        except TimeoutError:
            trouble = "the log does not answer"
        if trouble is None and self._writer.failed_lately:
            trouble = "the log took no events a moment ago"
        if trouble is None:
            return json_answer({"status": "ok"}, headers=_NOT_KEPT)
        return json_answer({"status": "failing", "error": trouble}, 503, _NOT_KEPT)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        text, media_type = self._metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type})

    async def user(self, request: Request) -> Response:
        """GET /profiles/{user}."""
        return await self._profile(
            self._profiles.user, request.path_params["name"], request, "that user"
        )

    async def visitor(self, request: Request) -> Response:
        """GET /visitors/{anonymous_id}."""
        return await self._profile(
            self._profiles.visitor, request.path_params["name"], request, "that visitor"
        )

    async def _take(self, request: Request) -> Response:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "the body must not be compressed")
        with self._room.hold() as held:
            try:
                body = await body_of(request, held)
                batch = records(body, self._stamp())
                await self._writer.write(batch, _SECONDS_FOR_A_COMMIT)
            except Overloaded:
                raise Refused(
                    429, "too many events wait for the log", _SECONDS_UNTIL_NEXT_TRY
                ) from None
            except (ProfilehouseError, TimeoutError):
                raise Refused(503, "the log takes no events now", _SECONDS_UNTIL_NEXT_TRY) from None
        return json_answer({"accepted": len(batch)}, 202)

    def _stamp(self) -> bytes:
        """Now; never before what was stamped last, though the clock be set back."""
        self._last_stamp = max(self._last_stamp, datetime.now(UTC))
        return msgspec.json.encode(self._last_stamp)

    async def _look_at_the_log(self) -> str | None:
        """What is wrong with the log, None where it takes records."""
        loop = asyncio.get_running_loop()
        try:
            await self._writer.write([], _SECONDS_FOR_A_COMMIT)
            await loop.run_in_executor(None, self._log.ends)
        except (ProfilehouseError, TimeoutError) as error:
            logger.warning("the log fails: %s", str(error) or "it does not answer")
            return "the log takes no events now"
        finally:
            self._probed_at = monotonic()
        return None

    async def _profile(
        self,
        read: Callable[[str, date | None], Awaitable[dict[str, Any] | None]],
        name: str,
        request: Request,
        who: str,
    ) -> Response:
        begin = perf_counter()
        try:
            as_of = _day(request.query_params.get("as_of"))
            found = await read(name, as_of) if _ID.fullmatch(name) else None
            if found is None:
                raise Refused(404, f"no profile of {who}")
            answer = json_answer(found, headers=_NOT_KEPT)
        except Refused as refused:
            answer = refusal(refused)
        except TooEarly as error:
            answer = refusal(Refused(400, str(error)))
        except ProfilehouseError as error:
            logger.error("the profile store cannot be read: %s", error)
            answer = refusal(Refused(503, "the profile store cannot be read now", 1))
        self._metrics.read(answer.status_code, perf_counter() - begin)
        return answer


def build_app(collector: Collector, access: Access, webhooks: Webhooks | None = None) -> Starlette:
    """The application of a collector; `webhooks` where it takes them."""
    from_pages = [
        Middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["POST"],
            allow_headers=["content-type"],
            expose_headers=["retry-after"],
            max_age=int(timedelta(hours=1).total_seconds()),
        )
    ]
    routes = [
        Route("/events", collector.events, methods=["POST", "OPTIONS"], middleware=from_pages),
        Route("/health", collector.health),
        Route("/metrics", collector.metrics),
        Route("/tracker.js", _file("tracker.js", {"Cache-Control": "public, max-age=300"})),
        Route("/profiles/{name:path}", _with_token(collector.user, access.token)),
        Route("/visitors/{name:path}", _with_token(collector.visitor, access.token)),
    ]
    if webhooks is not None:
        routes.append(Route("/webhooks", webhooks.receive, methods=["POST"]))
    if access.demo:
        here = [Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS_OF_THE_DEMO)]
        demo = {
            "/": _file("demo.html", _OF_A_PAGE),
            "/demo.css": _file("demo.css"),
            "/demo.js": _file("demo.js"),
            "/demo/profiles/{name:path}": collector.user,
            "/demo/visitors/{name:path}": collector.visitor,
        }
        routes += [Route(path, endpoint, middleware=here) for path, endpoint in demo.items()]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with collector.running(), webhooks.running() if webhooks else nullcontext():
            yield

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_answer, Exception: _fault},
    )
    app.router.redirect_slashes = False
    return app


def refusal(refused: Refused) -> Response:
    """The answer to a request that is not taken."""
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    return json_answer({"error": refused.message}, refused.status, headers)


async def body_of(request: Request, held: Held) -> bytes:
    """All of it, within bounds of size and time.

    Raises:
        Refused: if it is too large, too slow, or its sender went away.
        Overloaded: if there is no room for it.
    """
    if int(request.headers.get("content-length", 0)) > BODY_BYTES:
        raise too_large()
    chunks = []
    size = 0
    try:
        async with asyncio.timeout(_SECONDS_FOR_A_BODY):
            async for chunk in request.stream():
                size += len(chunk)
                if size > BODY_BYTES:
                    raise too_large()
                held.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise Refused(408, f"the body took over {_SECONDS_FOR_A_BODY} seconds") from None
    except ClientDisconnect:
        raise Refused(400, "the body ended early") from None
    return b"".join(chunks)


def _with_token(endpoint: Endpoint, token: str | None) -> Endpoint:
    """The endpoint, for those who show the token; for nobody where there is none."""

    async def guarded(request: Request) -> Response:
        if token is None:
            return refusal(Refused(404, "profiles are not served: set PROFILEHOUSE_API_TOKEN"))
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(shown.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not same:
            answer = refusal(Refused(401, "say Authorization: Bearer and the token"))
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        return await endpoint(request)

    return guarded


def _file(name: str, headers: Mapping[str, str] = _NOT_KEPT) -> Endpoint:
    """Gives a file of this package; it is read once."""
    content = (files(__package__) / "static" / name).read_bytes()
    kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
    kind = kinds[name.rpartition(".")[2]]

    async def give(_: Request) -> Response:
        return Response(content, media_type=kind, headers={**_NOT_GUESSED, **headers})

    return give


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise Refused(400, "as_of is not a day like 2026-06-30") from None


def json_answer(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer in JSON."""
    return Response(
        msgspec.json.encode(content),
        status,
        {**_NOT_GUESSED, **(headers or {})},
        "application/json",
    )


async def _no_answer(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    answer = refusal(Refused(error.status_code, error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _fault(_: Request, __: Exception) -> Response:
    return refusal(Refused(500, "the collector has a fault; its log says which"))
