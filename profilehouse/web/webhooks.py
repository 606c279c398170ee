"""Webhooks: what other systems post when something happens there, into a log of their own.

Belongs here: who may post, and what is kept beside the payload. Does not belong here: what a
payload must hold (sources/payloads.py); whatever is JSON and signed is taken.

The headers are those of GitHub's webhooks: `X-GitHub-Event` names the event, `X-GitHub-Delivery`
the delivery, `X-Hub-Signature-256` is `sha256=` and the HMAC-SHA256 of the body in hex.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from profilehouse.errors import ProfilehouseError
from profilehouse.log import MAX_RECORD_BYTES
from profilehouse.web.app import body_of, json_answer, refusal
from profilehouse.web.intake import Refused
from profilehouse.web.metrics import Metrics
from profilehouse.web.writer import Overloaded, Room, Writer

_NAME = re.compile(r"[\x21-\x7e]{1,200}")
_SECONDS_FOR_A_COMMIT = 9
"""Senders mostly wait for ten."""
_SECONDS_UNTIL_NEXT_TRY = 1


class Webhooks:
    """Takes webhooks."""

    def __init__(self, writer: Writer, room: Room, metrics: Metrics, secret: str) -> None:
        self._writer = writer
        self._room = room
        self._metrics = metrics
        self._secret = secret.encode()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Be at work; at the end all that was taken is in the log."""
        self._writer.start()
        try:
            yield
        finally:
            await self._writer.stop()

    async def receive(self, request: Request) -> Response:
        """POST /webhooks: 202 once it is durable in the log."""
        try:
            await self._take(request)
            answer = json_answer({"accepted": 1}, 202)
        except Refused as refused:
            answer = refusal(refused)
        self._metrics.webhook(answer.status_code)
        return answer

    async def _take(self, request: Request) -> None:
        with self._room.hold() as held:
            try:
                body = await body_of(request, held)
                self._refuse_unsigned(body, request.headers.get("x-hub-signature-256", ""))
                delivery = request.headers.get("x-github-delivery")
                value = _record(body, request.headers.get("x-github-event", ""), delivery)
                key = (delivery or "").encode()
                await self._writer.write([(key, value)], _SECONDS_FOR_A_COMMIT)
            except Overloaded:
                raise Refused(429, "too many webhooks wait", _SECONDS_UNTIL_NEXT_TRY) from None
            except (ProfilehouseError, TimeoutError):
                raise Refused(503, "the log takes nothing now", _SECONDS_UNTIL_NEXT_TRY) from None

    def _refuse_unsigned(self, body: bytes, shown: str) -> None:
        right = "sha256=" + hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(shown.encode(), right.encode()):
            raise Refused(401, "X-Hub-Signature-256 is not that of this body and the secret")


def _record(body: bytes, event: str, delivery: str | None) -> bytes:
    """What goes to the log.

    Raises:
        Refused: where the body is no JSON object, or the headers do not say which event it is.
    """
    if not _NAME.fullmatch(event):
        raise Refused(400, "X-GitHub-Event does not name an event")
    if delivery is not None and not _NAME.fullmatch(delivery):
        raise Refused(400, "X-GitHub-Delivery is not an id")
    try:
        body.decode()
        payload = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        raise Refused(
            400, "the body is not a JSON object; let the sender post application/json"
        ) from None
    record = {
        "delivery_id": delivery,
        "event": event,
        "taken_at": datetime.now(UTC),
        "payload": payload,
    }
    value = msgspec.json.encode(record)
    if len(value) + len(delivery or "") > MAX_RECORD_BYTES:
        raise Refused(413, f"the body is too large: at most {MAX_RECORD_BYTES} bytes")
    return value
