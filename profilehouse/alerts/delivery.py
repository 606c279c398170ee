"""Delivery: what waits in the outbox goes to its channels, through Apprise.

A message leaves the outbox once its channel took it. A channel that refuses, hangs or cannot be
reached is tried again after ever longer pauses, and holds up no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from profilehouse.alerts.incidents import Message
from profilehouse.alerts.outbox import Outbox, Trouble
from profilehouse.alerts.rules import Rules
from profilehouse.alerts.words import Text, digest_of, text_of
from profilehouse.errors import ProfilehouseError
from profilehouse.redaction import secrets_of, without_secrets

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 300.0
"""After a failed delivery, and twice as long after each further one, up to the longest."""
SECONDS_FOR_A_ROUND = 30.0
"""No delivery begins later than this; what is left waits for the next round."""

logger = logging.getLogger(__name__)

Send = Callable[[str, Text], None]
"""Sends a text to an Apprise URL; raises ProfilehouseError if it was not taken."""


@dataclass(frozen=True)
class Delivered:
    """What a round did: messages that were taken, that still wait, and what failed, by channel."""

    sent: int
    waiting: int
    failed: Mapping[str, str]


def deliver(outbox: Outbox, rules: Rules, now: float, send: Send) -> Delivered:
    """Send what is due: each message by itself, or a digest where there are many.

    Args:
        outbox: open.
        rules: as they are now; messages for a channel that is no more go to the default ones.
        now: seconds since 1970.
        send: usually `send`.
    """
    _redirect(outbox, rules)
    troubles = outbox.troubles()
    waiting = outbox.messages()
    due: dict[str, list[int]] = {}
    for number, message in waiting.items():
        severity = message.incident.severity
        if not rules.holds_back(message.channel, severity, now):
            due.setdefault(message.channel, []).append(number)
    began, sent, failed = monotonic(), 0, {}
    for channel in sorted(due, key=lambda name: (name in troubles, name)):  # well ones first
        trouble = troubles.get(channel)
        if trouble is not None and now < trouble.retry_at:
            failed[channel] = trouble.error
            continue
        for numbers in _parcels(due[channel], rules.digest_above):
            if monotonic() - began > SECONDS_FOR_A_ROUND:
                break
            try:
                send(rules.address(channel), _text([waiting[n] for n in numbers], rules))
            except ProfilehouseError as error:
                failed[channel] = str(error)
                outbox.refused(channel, _next(trouble, now, str(error)))
                break
            outbox.delivered(channel, numbers)
            sent += len(numbers)
    return Delivered(sent, len(waiting) - sent, failed)


def send(address: str, text: Text) -> None:
    """Send a text through Apprise, which gives up on a silent receiver after seconds.

    Raises:
        ProfilehouseError: if the address is not one, or the text was not taken.
    """
    import apprise  # noqa: PLC0415

    logging.getLogger("apprise").propagate = False  # its lines show addresses
    asset = apprise.AppriseAsset(app_id="Profilehouse", app_desc="Alerts of Profilehouse")
    channel = apprise.Apprise(asset=asset)
    caught = apprise.LogCapture(level=logging.WARNING, fmt="%(message)s")  # type: ignore[no-untyped-call]
    with caught as said:
        if not channel.add(address):
            raise ProfilehouseError(
                "Apprise does not know this kind of address, or it lacks a part; see Apprise's list"
                " of services"
            )
        taken = channel.notify(
            body=text.body,
            title=text.title,
            notify_type=apprise.NotifyType(text.kind),
            body_format=apprise.NotifyFormat.TEXT,
        )
        why = " ".join(said.getvalue().split())
    if not taken:
        why = without_secrets(why, [*secrets_of(), *_parts(address)])
        raise ProfilehouseError(f"not taken: {why[-300:] or 'no answer'}")


def _parts(address: str) -> list[str]:
    """What an address is made of: any of it may be a token."""
    return [address, *address.partition("://")[2].replace("?", "/").replace("@", "/").split("/")]


def _redirect(outbox: Outbox, rules: Rules) -> None:
    for number, message in outbox.messages().items():
        if message.channel not in rules.channels:
            logger.warning("alerts: the channel %s is no more", message.channel)
            outbox.redirect(number, message, rules.default)


def _parcels(numbers: Sequence[int], digest_above: int) -> list[list[int]]:
    return [list(numbers)] if len(numbers) > digest_above else [[number] for number in numbers]


def _text(messages: Sequence[Message], rules: Rules) -> Text:
    return text_of(messages[0], rules.ui) if len(messages) == 1 else digest_of(messages, rules.ui)


def _next(trouble: Trouble | None, now: float, error: str) -> Trouble:
    failures = (trouble.failures if trouble else 0) + 1
    pause = min(RETRY_SECONDS * 2 ** min(failures - 1, 10), LONGEST_RETRY_SECONDS)
    return Trouble(failures, trouble.since if trouble else now, now + pause, error)
