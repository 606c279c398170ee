"""`profilehouse profile`: looking a user up in the profile store."""

from __future__ import annotations

import time
from datetime import datetime

import click

from profilehouse.errors import ProfilehouseError


@click.group()
def profile() -> None:
    """User profiles."""


@profile.command()
@click.argument("user")
@click.option(
    "--as-of",
    type=click.DateTime(["%Y-%m-%d"]),
    help="UTC day that counts as today. Default: the day of the newest event in the store.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def get(user: str, as_of: datetime | None, as_json: bool) -> None:
    """Print the profile of USER from the profile store.

    The time the lookup took, from opening the store, goes to standard error.
    """
    import msgspec  # noqa: PLC0415

    from profilehouse.profiles.features import load_declaration  # noqa: PLC0415
    from profilehouse.profiles.reading import profile_at  # noqa: PLC0415
    from profilehouse.profiles.serving import user_row  # noqa: PLC0415
    from profilehouse.profiles.store import open_store  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    declaration = load_declaration()
    url = load_settings().profiles
    start = time.perf_counter()
    with open_store(url, declaration.fingerprint) as store:
        row = user_row(store, declaration, user)
        newest_day = store.meta.newest_day
    if row is None:
        raise ProfilehouseError(f"no profile of user {user} in {url.removeprefix('lmdb:')}")
    day = as_of.date() if as_of else max(newest_day or row.newest_day, row.newest_day)
    found = profile_at(user, row, declaration, day)
    milliseconds = (time.perf_counter() - start) * 1000
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        width = max(len(column) for column in found)
        for column, value in found.items():
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            click.echo(f"{column:{width}}  {shown}")
    click.echo(f"looked up in {milliseconds:.1f} ms", err=True)
