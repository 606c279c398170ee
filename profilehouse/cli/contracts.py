"""`profilehouse contracts`: checking contracts themselves, and handing them to other tools."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from profilehouse.errors import ProfilehouseError


@click.group()
def contracts() -> None:
    """Contracts: lint them, compare them with a revision, write them as suites."""


@contracts.command()
def lint() -> None:
    """Read every contract and make all its rules; ends with 1 and one line for each mistake."""
    from profilehouse.contract_lint import problems  # noqa: PLC0415

    found = problems()
    for problem in found:
        click.echo(problem, err=True)
    if found:
        sys.exit(1)


@contracts.command()
@click.argument("revision")
def diff(revision: str) -> None:
    """Say how the contracts differ from those at the Git REVISION.

    Ends with 1 where a change breaks who sends or reads the data and the major version is the
    same, or where a contract changed and its version did not.
    """
    from profilehouse.contract_changes import changes, contracts_at, refused  # noqa: PLC0415
    from profilehouse.contracts import load_contracts  # noqa: PLC0415

    before, after = contracts_at(revision), load_contracts()
    found = changes(before, after)
    for change in found:
        mark = "breaking  " if change.breaking else "compatible"
        click.echo(f"{mark}  {change.dataset}: {change.what}")
    reasons = refused(before, after, found)
    for reason in reasons:
        click.echo(f"refused: {reason}", err=True)
    if reasons:
        raise ProfilehouseError(f"{len(reasons)} changes of contracts are refused, see above")
    click.echo(f"{len(found)} changes since {revision}, none refused", err=True)


@contracts.command()
@click.argument("dataset")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of a Great Expectations project; made where it is not there.",
)
def suite(dataset: str, into: Path) -> None:
    """Write the row rules of DATASET as a suite that Great Expectations opens."""
    from profilehouse.quality.access import dataset as declared  # noqa: PLC0415
    from profilehouse.quality.gx import write_suite  # noqa: PLC0415
    from profilehouse.quality.rules import row_rules  # noqa: PLC0415

    contract = declared(dataset)
    into.mkdir(parents=True, exist_ok=True)
    path = write_suite(contract, row_rules(contract), into)
    click.echo(f"{path}", err=True)
