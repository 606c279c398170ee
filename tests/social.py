"""A local server in the shape of Mastodon's API: it paginates, and does what a script tells it to.

Belongs here: that server. Does not belong here: any test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATH = "/api/v1/timelines/tag/profilehouse"
PAGE = 3


def status(number: int, **changes: Any) -> dict[str, Any]:
    """A status as the API's documentation shows one."""
    return {
        "id": str(109_000_000_000_000_000 + number),
        "created_at": f"2025-04-22T10:00:{number % 60:02}.000Z",
        "in_reply_to_id": None,
        "sensitive": False,
        "language": "en",
        "uri": f"https://example.social/users/ann/statuses/{number}",
        "url": f"https://example.social/@ann/{number}",
        "replies_count": 1,
        "reblogs_count": 2,
        "favourites_count": number,
        "content": f"<p>Fresh <b>bread</b> &amp; cheese {number}<br>today</p><p>Yes</p>",
        "account": {"id": "1", "acct": "ann@example.social"},
        "tags": [{"name": "Grocery", "url": "https://example.social/tags/grocery"}],
        **changes,
    }


class Network:
    """What the server has and what it was asked; `script` has its next answers.

    Each is the name of one, `429` and a `Retry-After`, or where else it says the next page is.
    """

    def __init__(self) -> None:
        self.statuses: list[dict[str, Any]] = []
        self.script: list[str] = []
        self.asked: list[dict[str, list[str]]] = []
        self.token: str | None = None
        self.url = ""


@contextmanager
def network() -> Iterator[Network]:
    """A network that is there on a free port of this machine."""
    here = Network()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, here)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_port}{PATH}"
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(handler: BaseHTTPRequestHandler, here: Network) -> None:  # noqa: PLR0911
    query = parse_qs(urlsplit(handler.path).query)
    here.asked.append(query)
    if here.token and handler.headers.get("Authorization") != f"Bearer {here.token}":
        return _send(handler, 401, b'{"error": "The access token is invalid"}')
    match here.script.pop(0) if here.script else "":
        case str(wait) if wait.startswith("429 "):
            return _send(handler, 429, b"{}", ("Retry-After", wait.removeprefix("429 ")))
        case str(there) if there.startswith("http"):
            link = ("Link", f'<{there}?max_id=1>; rel="next"')
            return _send(handler, 200, _page(here, query)[0], link)
        case "503":
            return _send(handler, 503, b"<html>Maintenance</html>", kind="text/html")
        case "html":
            return _send(handler, 200, b"<html>Log in</html>", kind="text/html")
        case "half":
            return _send(handler, 200, _page(here, query)[0], cut=True)
    page, older = _page(here, query)
    more = [("Link", f'<{here.url}?max_id={older}{_since(query)}>; rel="next"')] if older else []
    return _send(handler, 200, page, *more)


def _since(query: dict[str, list[str]]) -> str:
    return f"&since_id={query['since_id'][0]}" if "since_id" in query else ""


def _page(here: Network, query: dict[str, list[str]]) -> tuple[bytes, str | None]:
    low = int(query.get("since_id", ["0"])[0])
    high = int(query.get("max_id", [str(2**63)])[0])
    found = [s for s in here.statuses if low < int(s["id"]) < high]
    found.sort(key=lambda s: -int(s["id"]))
    older = found[PAGE - 1]["id"] if len(found) > PAGE else None
    return json.dumps(found[:PAGE]).encode(), older


def _send(
    handler: BaseHTTPRequestHandler,
    code: int,
    body: bytes,
    *headers: tuple[str, str],
    kind: str = "application/json",
    cut: bool = False,
) -> None:
    handler.send_response(code)
    for name, value in (*headers, ("Content-Type", kind), ("Content-Length", str(len(body)))):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2] if cut else body)
    if cut:
        handler.close_connection = True
