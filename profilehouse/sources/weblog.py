"""Lines of a web server's access log as records, in the Combined Log Format of Apache and nginx.

The format is described in the documentation of Apache's mod_log_config.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(
    rf"(\S+) (\S+) (\S+) \[([^\]]+)\] {_QUOTED} (\d{{3}}) (\d+|-) {_QUOTED} {_QUOTED}\s*"
)
_REQUEST = re.compile(r"([A-Z]+) (\S+)(?: (HTTP/\d(?:\.\d)?))?")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TIME = re.compile(r"(\d\d)/(\w{3})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d{4})")
_BOT = re.compile("bot|crawl|spider|slurp", re.IGNORECASE)


def web_log_records(lines: Sequence[bytes]) -> tuple[list[bytes], dict[int, str]]:
    """Each line as a JSON object, and why by index where it is not in the format.

    A record has host, login, requested_at, method, path, protocol, status, bytes, referrer,
    user_agent and is_bot; what the log has as "-" is left out.
    """
    records: list[bytes] = []
    refused: dict[int, str] = {}
    for index, line in enumerate(lines):
        record = _record(line) if line.strip() else b""
        if isinstance(record, str):
            refused[index] = record
            record = line
        records.append(record)
    return records, refused


def is_bot(user_agent: str) -> bool:
    """Whether a user agent calls itself a crawler, which honest ones do."""
    return _BOT.search(user_agent) is not None


def _record(line: bytes) -> bytes | str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return "Invalid UTF-8"
    match = _LINE.fullmatch(text)
    if match is None:
        return "Expected a line in the Combined Log Format"
    host, _, user, time, request, status, size, referrer, agent = match.groups()
    asked = _REQUEST.fullmatch(request)
    moment = _moment(time)
    if asked is None or moment is None:
        return f"Expected {'a time' if moment is None else 'an HTTP request'} in its field"
    fields = {
        "host": host,
        "login": user,
        "requested_at": moment,
        "method": asked[1],
        "path": asked[2],
        "protocol": asked[3],
        "status": int(status),
        "bytes": None if size == "-" else int(size),
        "referrer": referrer,
        "user_agent": agent,
    }
    told = {name: value for name, value in fields.items() if value not in (None, "", "-")}
    return msgspec.json.encode({**told, "is_bot": is_bot(agent)})


def _moment(text: str) -> str | None:
    match = _TIME.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        return None
    day, month, year, clock, offset = match.groups()
    number = _MONTHS.index(month) + 1
    try:
        moment = datetime.strptime(
            f"{year}-{number:02}-{day} {clock} {offset}", "%Y-%m-%d %H:%M:%S %z"
        )
    except ValueError:
        return None
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
