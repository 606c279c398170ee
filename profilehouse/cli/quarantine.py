"""`profilehouse quarantine`: records that a rule holds back."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from profilehouse.cli.dead_letters import printable
from profilehouse.errors import ProfilehouseError


@click.group()
def quarantine() -> None:
    """Records that break a rule of their contract: list, show, fix and replay them."""


@quarantine.command("list")
@click.option("--source", help="Only of this source.")
@click.option("--rule", help="Only those that break this rule.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Only of this day and later.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, for machines.")
def list_(
    source: str | None, rule: str | None, since: datetime | None, limit: int, as_json: bool
) -> None:
    """List what is held back, newest delivery first; no value of a record is shown."""
    import msgspec  # noqa: PLC0415

    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.quarantine import held  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    lake = Platform(load_settings()).lake()
    found = held(lake, source, rule, since.date() if since else None)
    for one in found[:limit]:
        if as_json:
            fields = {"id": one.id, "rules": one.rules, "run": one.run, "fixed": one.fixed}
            click.echo(msgspec.json.encode(fields))
        else:
            mark = "  (fixed, not replayed)" if one.fixed else ""
            click.echo(f"{one.id}  {', '.join(one.rules)}{mark}")
    told = f"{len(found):,} records are held back" if found else "no record is held back"
    told += f", the newest {limit:,} shown" if len(found) > limit else ""
    click.echo(told, err=True)


@quarantine.command()
@click.argument("record_id", metavar="ID")
@click.option("--raw", is_flag=True, help="The record alone.")
def show(record_id: str, raw: bool) -> None:
    """Show one record: which rules it breaks, what to do, where it came from, and its content."""
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.quarantine import find, record_of, rules_of  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    lake = Platform(load_settings()).lake()
    [one] = find(lake, [record_id])
    record = record_of(lake, one)
    if raw:
        click.echo(record)
        return
    lines = {
        "id": one.id,
        "rules": ", ".join(one.rules),
        "contract": f"version {one.contract_version}",
        "position": one.position,
        "run": one.run or "none",
        "fixed": "yes, not replayed" if one.fixed else "no",
        "record": printable(record.encode()),
    }
    for name, value in lines.items():
        click.echo(f"{name:12} {value}")
    for rule in rules_of(one):
        click.echo(f"{'to do':12} {rule.description}. {rule.remedy}.")


@quarantine.command()
@click.argument("record_id", metavar="ID")
@click.option(
    "--with",
    "fixed",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
    required=True,
    help="File with what the record should have been; - for standard input.",
)
def fix(record_id: str, fixed: Path) -> None:
    """Note what a record should have been; nothing else changes until the replay."""
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.quarantine import find  # noqa: PLC0415
    from profilehouse.quarantine import fix as note  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    lake = Platform(load_settings()).lake()
    [one] = find(lake, [record_id])
    note(lake, one, sys.stdin.buffer.read() if str(fixed) == "-" else fixed.read_bytes())
    click.echo(f"{one.id} is fixed; bring it in with `profilehouse quarantine replay`", err=True)


@quarantine.command()
@click.argument("record_id", metavar="[ID]...", nargs=-1)
@click.option("--source", help="Only of this source.")
def replay(record_id: tuple[str, ...], source: str | None) -> None:
    """Land the days of fixed records again: of these, or of all that are fixed.

    Named records without a fix are tried too: their contract may have been mended. What still
    breaks a rule stays held back and is named, and the command ends with 1.
    """
    from profilehouse.events.build import EVENT_SOURCES  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.quarantine import find, held  # noqa: PLC0415
    from profilehouse.quarantine import replay as bring_in  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    platform = Platform(load_settings())
    lake = platform.lake()
    if record_id:
        chosen = find(lake, record_id)
    else:
        chosen = [one for one in held(lake, source) if one.fixed]
    done = bring_in(platform, chosen)
    click.echo(f"{len(done.freed):,} of {len(chosen):,} records are held back no longer", err=True)
    for topic, days in done.landed.items():
        follows = f"what follows lake/{topic}"
        if topic in EVENT_SOURCES:
            follows = f"lake/events and what follows for {', '.join(map(str, days))}"
        click.echo(f"lake/{topic} was landed again; materialize {follows}", err=True)
    for name, reason in done.left.items():
        click.echo(f"{name} stays: {printable(reason.encode())}", err=True)
    if done.left:
        raise ProfilehouseError(f"{len(done.left):,} stay held back, see above")
