"""`profilehouse backup`: copy the local parts while everything runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def backup(folder: Path) -> None:
    """Copy warehouse, profiles, outbox, lake and log, as far as they are local, into FOLDER.

    Nothing has to be stopped. FOLDER must not be there yet.
    """
    from profilehouse.backup import back_up  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    about = back_up(Platform(load_settings()), folder)
    click.echo(f"{folder}: {', '.join(about.parts) or 'nothing is there yet'}")
    if about.elsewhere:
        click.echo(f"not on this machine, back them up there: {', '.join(about.elsewhere)}")
