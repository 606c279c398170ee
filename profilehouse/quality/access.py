"""Datasets by the names of their contracts, wherever they are, as something to ask with SQL.

Does not belong here: what is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.quality.sql import Source, arrow_source
from profilehouse.sources.landing import records

if TYPE_CHECKING:
    from profilehouse.contracts import Contract
    from profilehouse.platform import Platform


def dataset(name: str) -> Contract:
    """The contract of a dataset, the profile among them.

    Raises:
        ProfilehouseError: where there is none.
    """
    profile = profile_contract(load_declaration())
    return profile if name == profile.name else contract(name)


@contextmanager
def opened(
    platform: Platform,
    name: str,
    days: Collection[date] | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[Source]:
    """Open a dataset, which can then be asked under its name.

    Args:
        platform: where it is.
        name: of its contract: a source (its landed records), a table of the lake or warehouse.
        days: delivery days of a source or a table of the lake; all where None.
        columns: of a table of the lake, all where None.

    Raises:
        ProfilehouseError: where there is no such dataset, or it cannot be read.
    """
    declared = dataset(name)
    if declared.kind == "sources":
        with arrow_source({name: records(declared, platform.lake(), days)}) as source:
            yield source
    elif declared.kind == "lake":
        rows = platform.lake().read(name, columns=columns, days=days)
        with arrow_source({name: rows}) as source:
            yield source
    elif declared.kind == "warehouse":
        with platform.warehouse() as warehouse:
            yield warehouse
    else:
        raise ProfilehouseError(f"{name}: {declared.kind} is nothing that holds rows")
