"""`profilehouse dead-letters`: refused records, of files and of the event log."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from profilehouse.errors import ProfilehouseError


@click.group("dead-letters")
def dead_letters() -> None:
    """Records that broke their contract: list, show, and replay them mended."""


@dead_letters.command("list")
@click.option("--source", help="Only of this source; web is the event log.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Only of this day and later.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--all", "everything", is_flag=True, help="Also those that were replayed.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, for machines.")
def list_(
    source: str | None, since: datetime | None, limit: int, everything: bool, as_json: bool
) -> None:
    """List dead letters, newest first."""
    import msgspec  # noqa: PLC0415

    from profilehouse.dead_letters import letters  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    found = letters(Platform(load_settings()).lake(), source, since.date() if since else None)
    shown = [letter for letter in found if everything or not letter.replayed]
    for letter in shown[:limit]:
        if as_json:
            fields = {"id": letter.id, "received_at": letter.received_at, "reason": letter.reason}
            click.echo(msgspec.json.encode(fields | {"replayed": letter.replayed}))
        else:
            mark = "  (replayed)" if letter.replayed else ""
            reason = printable(letter.reason.encode())
            click.echo(f"{letter.id}  {letter.received_at:%Y-%m-%d %H:%M:%S}  {reason}{mark}")
    hidden = len(found) - len(shown)
    told = f"{len(shown):,} dead letters" if shown else "no dead letters"
    told += f", the newest {limit:,} shown" if len(shown) > limit else ""
    told += f"; {hidden:,} more were replayed (--all)" if hidden else ""
    click.echo(told, err=True)


@dead_letters.command()
@click.argument("letter")
@click.option("--raw", is_flag=True, help="The original bytes alone.")
def show(letter: str, raw: bool) -> None:
    """Show one dead letter: why it was refused, where it came from, its original bytes."""
    from profilehouse.dead_letters import find, record_of  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    lake = Platform(load_settings()).lake()
    [found] = find(lake, [letter])
    record = record_of(lake, found)
    if raw:
        sys.stdout.buffer.write(record)
        return
    lines = {
        "id": found.id,
        "reason": printable(found.reason.encode()),
        "contract": f"version {found.contract_version}",
        "position": found.position,
        "received_at": f"{found.received_at} UTC",
        "replayed": "yes" if found.replayed else "no",
        "record": printable(record),
    }
    for name, value in lines.items():
        click.echo(f"{name:12} {value}")


@dead_letters.command()
@click.argument("letter", nargs=-1)
@click.option(
    "--with",
    "mended",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with what the record should have been; for one letter.",
)
@click.option("--all", "everything", is_flag=True, help="All that were not replayed yet.")
@click.option("--source", help="With --all: only of this source; web is the event log.")
def replay(
    letter: tuple[str, ...], mended: Path | None, everything: bool, source: str | None
) -> None:
    """Replay dead letters, as they are (the contract was mended) or mended.

    What still breaks the contract is named and left alone, and the command ends with 1. An event
    counts once however often it is replayed. Two replays must not run at once.
    """
    from profilehouse.dead_letters import find, letters  # noqa: PLC0415
    from profilehouse.dead_letters import replay as bring_back  # noqa: PLC0415
    from profilehouse.events.build import EVENT_SOURCES  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    if everything == bool(letter):
        raise click.UsageError("say which: ids of dead letters, or --all")
    if mended is not None and len(letter) != 1:
        raise click.UsageError("--with goes with one dead letter")
    platform = Platform(load_settings())
    lake = platform.lake()
    chosen = find(lake, letter) if letter else letters(lake, source)
    again = [one.id for one in chosen if one.replayed]
    if letter and again:
        raise ProfilehouseError(f"{again[0]} was replayed already: nothing was done")
    done = bring_back(
        platform,
        [one for one in chosen if not one.replayed],
        None if mended is None else mended.read_bytes(),
    )
    click.echo(f"{len(done.replayed):,} replayed", err=True)
    if done.known:
        click.echo(f"{len(done.known):,} not needed: a copy of the event had come", err=True)
    for topic, days in done.landed.items():
        follows = f"what follows lake/{topic}"
        if topic in EVENT_SOURCES:
            follows = f"lake/events and what follows for {', '.join(map(str, days))}"
        click.echo(f"lake/{topic} was landed again; materialize {follows}", err=True)
    for name, reason in done.refused.items():
        click.echo(f"{name} was left alone: {printable(reason.encode())}", err=True)
    if done.refused:
        raise ProfilehouseError(f"{len(done.refused):,} were left alone, see above")


def printable(data: bytes) -> str:
    """Bytes as text that no terminal obeys: what is not printable is escaped."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
