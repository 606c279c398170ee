"""`profilehouse alerts`: look at the rules, try the channels, see what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from profilehouse.errors import ProfilehouseError

if TYPE_CHECKING:
    from profilehouse.alerts.rules import Rules


@click.group()
def alerts() -> None:
    """Who is told of what goes wrong, and what is wrong now.

    The sensor `alerts` of the Dagster daemon sends; these commands look and try.
    """


@alerts.command()
def check() -> None:
    """Validate the file of rules that PROFILEHOUSE_ALERTS names, addresses included."""
    rules = _rules()
    for name, channel in rules.channels.items():
        click.echo(f"{name}: address in {channel.env or channel.file}")
    click.echo(f"{len(rules.channels)} channels, {len(rules.routes)} routes: all well")


@alerts.command()
@click.argument("channel")
def test(channel: str) -> None:
    """Send a message that says it is a test to CHANNEL."""
    from profilehouse.alerts.delivery import send  # noqa: PLC0415
    from profilehouse.alerts.words import Text  # noqa: PLC0415

    rules = _rules()
    if channel not in rules.channels:
        raise ProfilehouseError(f"no channel {channel!r}: there are {', '.join(rules.channels)}")
    words = f"A test of the channel {channel}: nothing is wrong.\npage: {rules.ui}"
    send(rules.address(channel), Text("[TEST] Profilehouse can reach you", words, "info"))
    click.echo(f"{channel} took the message")


@alerts.command("list")
def show() -> None:
    """Print what is wrong now, and what waits for a channel."""
    from profilehouse.alerts.outbox import Outbox  # noqa: PLC0415
    from profilehouse.alerts.words import name_of  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    path = Path(load_settings().outbox)
    if not path.exists():
        click.echo("nothing is wrong, as far as the sensor `alerts` has looked: it has not run yet")
        return
    with Outbox.looked_at(path) as outbox:
        incidents = outbox.incidents()
        waiting = outbox.messages()
        troubles = outbox.troubles()
    for incident in incidents.values():
        problem = incident.problem
        told = f"told {', '.join(incident.told)}" if incident.told else "not told yet"
        click.echo(f"{name_of(incident)} {problem.severity} {problem.title} ({told})")
    for channel in sorted({message.channel for message in waiting.values()}):
        count = sum(message.channel == channel for message in waiting.values())
        why = f": {troubles[channel].error}" if channel in troubles else ""
        click.echo(f"{count} messages wait for {channel}{why}")
    click.echo(f"{len(incidents)} incidents, {len(waiting)} messages that wait")


def _rules() -> Rules:
    from profilehouse.alerts.rules import load_rules  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    path = load_settings().alerts
    if not path:
        raise ProfilehouseError(
            "PROFILEHOUSE_ALERTS names no file of rules; docs/alerts.md shows one"
        )
    return load_rules(Path(path))
