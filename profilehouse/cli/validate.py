"""`profilehouse validate`: every rule of the contracts on what is there, for people and for CI."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from profilehouse.errors import ProfilehouseError

FAILED, NOT_CHECKED = 1, 2
"""Exit codes: a rule of severity error fails; something could not be checked."""


@click.command()
@click.argument("dataset", required=False)
@click.option("--sample", type=click.IntRange(min=1), help="Look at so many rows by chance.")
@click.option(
    "--changed-since",
    metavar="REF",
    help="Only datasets whose contract or SQL differs from this Git revision.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "junit", "sarif"]),
    default="text",
    show_default=True,
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write there instead."
)
def validate(
    dataset: str | None,
    sample: int | None,
    changed_since: str | None,
    form: str,
    output: Path | None,
) -> None:
    """Check DATASET, or all, against every rule of its contract.

    Ends with 0 where all rules of severity error hold (warnings are told), with 1 where one fails,
    and with 2 where something could not be checked, also a DATASET that is not there. A sample is
    checked by what single rows and their keys tell; volume, freshness, references and other
    datasets need all rows.
    """
    from profilehouse.contract_changes import changed_since as names_changed  # noqa: PLC0415
    from profilehouse.platform import Platform  # noqa: PLC0415
    from profilehouse.quality import validate as gate  # noqa: PLC0415
    from profilehouse.settings import load_settings  # noqa: PLC0415
    from profilehouse.times import utc_now  # noqa: PLC0415

    try:
        known = gate.datasets()
        if dataset is not None and dataset not in known:
            raise ProfilehouseError(f"no dataset {dataset}; there are: {', '.join(known)}")
        names = [dataset] if dataset else known
        if changed_since is not None:
            changed = names_changed(changed_since)
            names = [name for name in names if name in changed]
        platform, now = Platform(load_settings()), utc_now()
        found = {name: gate.validate(platform, name, now, sample) for name in names}
    except ProfilehouseError as error:
        click.echo(f"profilehouse: {error}", err=True)
        sys.exit(NOT_CHECKED)
    absent = [name for name, results in found.items() if not results]
    outcome = {name: results for name, results in found.items() if results}
    report = gate.FORMATS[form](outcome)
    if output is None:
        click.echo(report, nl=False)
    else:
        output.write_text(report, "utf-8")
    failed = gate.errors(outcome)
    rules = sum(len(results) for results in outcome.values())
    click.echo(f"{len(outcome)} datasets, {rules} rules, {failed} errors", err=True)
    if absent:
        click.echo(f"nothing is there of {', '.join(absent)}", err=True)
    if dataset in absent:
        sys.exit(NOT_CHECKED)
    sys.exit(FAILED if failed else 0)
