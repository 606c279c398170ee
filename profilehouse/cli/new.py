"""`profilehouse new`: the files of a new source, dataset, feature or check, for developers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from profilehouse.scaffold import Made


@click.group()
def new() -> None:
    """Write the files of something new, with a test that passes; then change them."""


@new.command()
@click.argument("name")
def source(name: str) -> None:
    """An optional source NAME with a table fct_NAME."""
    from profilehouse.scaffold import new_source  # noqa: PLC0415

    _tell(new_source(name))


@new.command()
@click.argument("name")
@click.option("--from", "source", required=True, help="The optional source that fills it.")
def dataset(name: str, source: str) -> None:
    """One more table NAME of the star."""
    from profilehouse.scaffold import new_dataset  # noqa: PLC0415

    _tell(new_dataset(name, source))


@new.command()
@click.argument("name")
def feature(name: str) -> None:
    """A feature NAME of the profile."""
    from profilehouse.scaffold import new_feature  # noqa: PLC0415

    _tell(new_feature(name))


@new.command()
@click.argument("name")
@click.option("--of", "dataset", required=True, help="The dataset whose rows it looks at.")
def check(name: str, dataset: str) -> None:
    """A rule NAME for the rows of a dataset."""
    from profilehouse.scaffold import new_check  # noqa: PLC0415

    _tell(new_check(name, dataset))


def _tell(made: Made) -> None:
    for path in made.files:
        click.echo(path)
    for step in made.next_steps:
        click.echo(f"then: {step}", err=True)
