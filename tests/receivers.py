"""Where alerts go in tests: a real mail server and a real web server that can misbehave."""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep, time
from typing import Any, Literal, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from services.process import HOST, free_port


class Web(ThreadingHTTPServer):
    """Takes what Apprise's `json://` sends; says 500, or nothing at all, when told so."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.mode: Literal["take", "fail", "hang"] = "take"
        self.taken: list[dict[str, Any]] = []
        self.tried = 0
        self.released = threading.Event()

    @property
    def address(self) -> str:
        """As an Apprise URL that gives up after a second."""
        return f"json://{HOST}:{self.server_port}/alerts?cto=1&rto=1"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.taken]

    @property
    def text(self) -> str:
        """All that was taken."""
        return "\n".join(f"{m['title']}\n{m['message']}" for m in self.taken)

    def until(self, count: int, seconds: float) -> list[dict[str, Any]]:
        """Wait for so many messages; those that came until then."""
        deadline = monotonic() + seconds
        while len(self.taken) < count and monotonic() < deadline:
            sleep(0.05)
        return self.taken


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast(Web, self.server)
        server.tried += 1
        body = self.rfile.read(int(self.headers["content-length"]))
        if server.mode == "hang":
            server.released.wait(60)
            return
        if server.mode == "take":
            server.taken.append({**json.loads(body), "at": time()})
        self.send_response(200 if server.mode == "take" else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def web(port: int = 0) -> Iterator[Web]:
    """A web server; a port makes one that was there come back."""
    server = Web(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Mail:
    """A mail server's postbox."""

    def __init__(self) -> None:
        self.taken: list[EmailMessage] = []
        self.full = False

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.full:
            return "452 Insufficient system storage"
        content = cast(bytes, envelope.content)
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        self.taken.append(cast(EmailMessage, parsed))
        return "250 OK"

    @property
    def text(self) -> str:
        """Subjects and bodies of all that was taken."""
        bodies = [m.get_body(("plain", "html")) for m in self.taken]
        subjects = [str(m["subject"]) for m in self.taken]
        return "\n".join([*subjects, *(b.get_content() for b in bodies if b is not None)])


@contextmanager
def mail() -> Iterator[tuple[Mail, str]]:
    """A mail server: its postbox, and its Apprise URL."""
    postbox = Mail()
    controller = Controller(postbox, hostname=HOST, port=free_port())
    controller.start()
    try:
        yield (
            postbox,
            f"mailto://{HOST}:{controller.port}?from=house@example.com&to=team@example.com",
        )
    finally:
        controller.stop()
