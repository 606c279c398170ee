"""Mentions in a social network, fetched from a public API in the shape of Mastodon's.

Belongs here: fetching what is new and delivering it as a file, as any other source does; from
there it is landed like theirs. Pages, waiting when told to and trying again are dlt's work (extra
`apis`).

The API is described in Mastodon's documentation: timelines by hashtag list statuses, newest first;
`since_id` leaves out what is not newer, and the header `Link` names the next page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import PREFIX, Settings
from profilehouse.sources.fetching import Fetched, deliver
from profilehouse.sources.formats import read_records

if TYPE_CHECKING:
    from dlt.sources.helpers.requests import Client
    from requests import Response

    from profilehouse.sources.deliveries import Folder

FEED = "mentions"
PAGE_SIZE = 40
"""Statuses a page, the most that Mastodon gives."""
ATTEMPTS = 5
"""Times a page is asked for, before the fetch is given up."""
LONGEST_WAIT = 60
"""Seconds between two attempts, at most; told to wait longer, a fetch gives up until the next."""
_UNAUTHORIZED = (401, 403)
_KNOWN = frozenset(
    (
        *("id", "uri", "created_at", "account", "content", "visibility", "sensitive"),
        *("spoiler_text", "media_attachments", "application", "mentions", "tags", "emojis"),
        *("reblogs_count", "favourites_count", "replies_count", "url", "in_reply_to_id"),
        *("in_reply_to_account_id", "reblog", "poll", "card", "language", "text"),
        *("edited_at", "favourited", "reblogged", "muted", "bookmarked", "pinned"),
        *("filtered", "quote", "quotes_count", "quote_approval"),
    )
)
"""The fields of a status that the documentation names."""


def fetch_mentions(settings: Settings, folder: Folder, today: date) -> Fetched:
    """Add the mentions that are newer than all delivered ones to today's file.

    The delivered files themselves say how far the last fetch came. Nothing is written before the
    last page has arrived, so an interrupted fetch is begun again where it began.

    Args:
        settings: where the API is, and the token for it.
        folder: where sources deliver.
        today: business day whose file is written.

    Raises:
        ProfilehouseError: where the API cannot be reached, refuses, or answers something else.
    """
    if not settings.mentions_url:
        raise ProfilehouseError(
            f"{PREFIX}MENTIONS_URL is not set: say which timeline to fetch, such as"
            " https://HOST/api/v1/timelines/tag/NAME"
        )
    source = contract(FEED)
    statuses, requests = _statuses(settings, _newest(source, folder))
    new = [_record(status) for status in sorted(statuses, key=_age)]
    return Fetched(len(new), requests, len(statuses), deliver(source, folder, today, new))


def _newest(source: Contract, folder: Folder) -> str | None:
    """The id of the newest mention that was delivered."""
    for _, name in sorted(folder.deliveries(source).files.items(), reverse=True):
        read = read_records(source, folder.read(source, name), name)
        ids = [json.loads(line)["id"] for line in read.lines if line.strip()]
        if ids:
            return str(max(ids, key=lambda one: (len(one), one)))
    return None


def _statuses(settings: Settings, since_id: str | None) -> tuple[list[dict[str, Any]], int]:
    """All statuses newer than one, newest first, and how many requests that took."""
    from dlt.sources.helpers.rest_client import RESTClient  # noqa: PLC0415
    from dlt.sources.helpers.rest_client.paginators import HeaderLinkPaginator  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    token = settings.mentions_token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    params = {"limit": str(PAGE_SIZE)} | ({"since_id": since_id} if since_id else {})
    session = _client().session
    requests = 0

    def received(response: Response, **_: object) -> None:
        nonlocal requests
        requests += 1
        _refuse_long_waits(settings, response)
        response.raise_for_status()
        _refuse_other_origins(settings, response)

    client = RESTClient(
        settings.mentions_url,
        headers=headers,
        paginator=HeaderLinkPaginator(),
        data_selector="$",
        session=session,
    )
    found: list[dict[str, Any]] = []
    try:
        for page in client.paginate("", params=params, hooks={"response": [received]}):
            if not all(isinstance(status, dict) and "id" in status for status in page):
                raise ProfilehouseError(_unlike(settings, "its answer is no list of statuses"))
            found += page
    except RequestException as error:
        raise ProfilehouseError(_said(settings, error)) from error
    finally:
        session.close()
    return found, requests


def _client() -> Client:
    from dlt.sources.helpers.requests import Client  # noqa: PLC0415
    from requests import ConnectionError as Unreachable  # noqa: PLC0415
    from requests import Timeout  # noqa: PLC0415
    from requests.exceptions import ChunkedEncodingError  # noqa: PLC0415

    return Client(
        raise_for_status=False,
        request_max_attempts=ATTEMPTS,
        request_backoff_factor=0.5,
        request_max_retry_delay=LONGEST_WAIT,
        exceptions=(Unreachable, Timeout, ChunkedEncodingError),
    )


def _refuse_long_waits(settings: Settings, response: Response) -> None:
    """Raise where the API wants to be left alone for longer than a fetch may wait."""
    said = response.headers.get("Retry-After", "").strip()
    if response.ok or not said:
        return
    if said.isdigit():
        seconds = float(said)
    else:
        try:
            until = parsedate_to_datetime(said)
        except ValueError:
            return
        seconds = (until.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    if seconds > LONGEST_WAIT:
        raise ProfilehouseError(
            f"{settings.mentions_url}: answers {response.status_code} and wants to be asked again"
            f" after {seconds:,.0f} seconds, more than the {LONGEST_WAIT} that a fetch waits;"
            " nothing was written, a fetch after that time begins where this one did"
        )


def _refuse_other_origins(settings: Settings, response: Response) -> None:
    """Raise where the next page is elsewhere: whoever is there would be shown the token."""
    link = response.links.get("next", {}).get("url")
    if link is None:
        return
    there = _origin(urljoin(settings.mentions_url, link))
    if there != _origin(settings.mentions_url):
        raise ProfilehouseError(
            f"{settings.mentions_url}: its next page is at {there}, another origin, to which no"
            f" token is sent; set {PREFIX}MENTIONS_URL to the address that the API itself uses"
        )


def _origin(url: str) -> str:
    """Scheme, host and port, the port always written out; what is no address stays as it is."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return url
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _said(settings: Settings, error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None and response.status_code in _UNAUTHORIZED:
        return (
            f"{settings.mentions_url}: refused with {response.status_code};"
            f" set {PREFIX}MENTIONS_TOKEN to a token that is valid and may read"
        )
    if isinstance(error, ValueError):
        return _unlike(settings, "its answer is not JSON")
    reason = " ".join(str(error).split())
    return (
        f"{settings.mentions_url}: no whole answer after {ATTEMPTS} attempts ({reason[:200]});"
        " nothing was written, the next fetch begins where this one did"
    )


def _unlike(settings: Settings, what: str) -> str:
    return (
        f"{settings.mentions_url}: {what}; see that {PREFIX}MENTIONS_URL is the API's address,"
        " such as https://HOST/api/v1/timelines/tag/NAME"
    )


def _age(status: Mapping[str, Any]) -> tuple[int, str]:
    return len(str(status["id"])), str(status["id"])


def _record(status: Mapping[str, Any]) -> bytes:
    """A status as a record of the contract; the whole status is its payload.

    What is missing or has another type stays as it is, so that the record is refused and tells.
    Fields that the documentation does not name stand beside the contract's, as drift.
    """
    account = status.get("account")
    content = status.get("content")
    fields = {
        "id": str(status["id"]),
        "created_at": status.get("created_at"),
        "author": account.get("acct") if isinstance(account, dict) else account,
        "text": text_of(content) if isinstance(content, str) else content,
        "language": status.get("language"),
        "url": status.get("url"),
        "hashtags": _hashtags(status.get("tags") or []),
        "replies": status.get("replies_count"),
        "shares": status.get("reblogs_count"),
        "likes": status.get("favourites_count"),
        "payload": status,
    }
    strange = {name: status[name] for name in status.keys() - _KNOWN - fields.keys()}
    told = {name: value for name, value in fields.items() if value is not None}
    return json.dumps({**strange, **told}, ensure_ascii=False).encode("utf-8", "replace")


def _hashtags(tags: Any) -> Any:
    """Their names; what is no list of them stays as it is."""
    try:
        return "#" + "".join(f"{tag['name'].lower()}#" for tag in tags)
    except (TypeError, KeyError, AttributeError):
        return tags


def text_of(html: str) -> str:
    """What a reader of HTML sees: paragraphs and breaks are new lines."""
    reader = _Text()
    reader.feed(html)
    reader.close()
    return "".join(reader.parts).strip()


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        del attrs
        if tag == "br" or (tag == "p" and self.parts):
            self.parts.append("\n")
