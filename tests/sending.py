"""Sending events to a log, letting a live process take them, and what came of it.

Belongs here: helpers for tests of `send` and `dead-letters`. Does not belong here: any test.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from threading import Thread
from typing import Any

from click.testing import CliRunner, Result

from profilehouse.cli import cli
from profilehouse.dead_letters import letters, record_of
from profilehouse.events.web import EVENTS
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.serving import read_profile
from profilehouse.stream.process import LiveProcess, Options

DECLARATION = load_declaration()


def run(*arguments: str, data: bytes | None = None) -> Result:
    """The command; what the user can mend is in `result.exception`."""
    return CliRunner().invoke(cli, arguments, input=data)


def event(number: int, **given: Any) -> dict[str, Any]:
    fields = {
        "event_id": f"e{number}",
        "event_type": "click",
        "user_id": "u",
        "content_id": f"c{number}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "consent": True,
    }
    return fields | given


def lines(*events: Any) -> bytes:
    return b"".join(e if isinstance(e, bytes) else json.dumps(e).encode() + b"\n" for e in events)


def follow(platform: Platform) -> None:
    """Let a live process take all that the log has."""
    process = LiveProcess(platform, DECLARATION, Options(lake_seconds=0.1))
    thread = Thread(target=process.run)
    thread.start()
    wanted = ends(platform)
    lake = platform.lake()
    deadline = time.monotonic() + 60
    while lake.positions(EVENTS).offsets != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    process.stop()
    thread.join()
    assert lake.positions(EVENTS).offsets == wanted


def ends(platform: Platform) -> dict[int, int]:
    """The ends of the log's partitions that hold something."""
    with platform.log() as log:
        return {p: end for p, end in log.ends().items() if end}


def refused(platform: Platform) -> list[bytes]:
    """The bytes of all dead letters, as they came."""
    lake = platform.lake()
    return [record_of(lake, letter) for letter in reversed(letters(lake))]


def clicks(platform: Platform) -> list[str]:
    with platform.profile_store(DECLARATION) as store:
        profile = read_profile(store, DECLARATION, "u")
    assert profile is not None
    assert profile["clicks_lifetime"] == len(profile["recent_clicks"])
    return list(profile["recent_clicks"])
