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


@profile.command()
@click.option(
    "--engine",
    type=click.Choice(["process", "spark"]),
    default="process",
    show_default=True,
    help="This process, or Spark.",
)
@click.option(
    "--master",
    default="local[2,4]",
    show_default=True,
    help="Spark only: where it runs, unless spark-submit said it; here 2 cores, 4 tries of a task.",
)
def rebuild(engine: str, master: str) -> None:
    """Fold all events of the lake into a new generation of profiles, and flip the readers to it.

    The live process may run meanwhile, on any engine: it goes on with the new generation.
    """
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.profiles.features import load_declaration  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415
    from profilehouse.sources.landing import delivered  # noqa: PLC0415
    from profilehouse.stream.rebuild import Fold, rebuild_from_lake  # noqa: PLC0415

    platform, declaration = Platform(load_settings()), load_declaration()

    def fold_with(fold: Fold | None) -> int:
        lake = platform.lake()
        deliveries = {day.isoformat(): sha256 for day, sha256 in delivered(lake, "events").items()}
        with platform.profile_store(declaration) as store:
            return rebuild_from_lake(platform, lake, store, declaration, deliveries, fold)

    if engine == "spark":
        from profilehouse.stream.spark_driver import session  # noqa: PLC0415
        from profilehouse.stream.spark_rebuild import FoldOnSpark  # noqa: PLC0415

        with session("rebuilding the profiles", master) as spark:
            generation = fold_with(FoldOnSpark(spark, platform.settings))
    else:
        generation = fold_with(None)
    click.echo(f"{platform.settings.profiles}: generation {generation} of the profiles is current")
