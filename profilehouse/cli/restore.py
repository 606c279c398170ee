"""`profilehouse restore`: a backup back to its place."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def restore(folder: Path) -> None:
    """Copy the backup in FOLDER to where the settings say; nothing may be there.

    Stop everything before.
    """
    from profilehouse.backup import restore as restore_from  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415

    about = restore_from(load_settings(), folder)
    click.echo(f"restored {', '.join(about.parts)} as of {about.made_at:%Y-%m-%d %H:%M:%S} UTC")
