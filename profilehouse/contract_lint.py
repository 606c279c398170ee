"""Mistakes in contracts that reading one file alone does not show.

Does not belong here: rules on data (quality/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime

from profilehouse.contract_quality import Reconciliation
from profilehouse.contracts import CONTRACTS_DIR, Contract, load_contract
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.rules import row_rules


def problems() -> list[str]:
    """One line for each mistake in the project's contracts."""
    found: list[str] = []
    read: dict[str, Contract] = {}
    for path in sorted(CONTRACTS_DIR.glob("*/*.odcs.yaml")):
        try:
            contract = load_contract(path)
            row_rules(contract)
        except ProfilehouseError as error:
            found.append(str(error))
            continue
        if contract.name in read:
            found.append(f"{path}: {contract.name} is declared in {read[contract.name].path} also")
        read[contract.name] = contract
    today = datetime.now(UTC).date()
    for contract in read.values():
        found += [f"{contract.path}: {what}" for what in mistakes(contract, read, today)]
    return found


def mistakes(contract: Contract, others: Mapping[str, Contract], today: date) -> Collection[str]:
    """What is wrong with a contract beside the others.

    Args:
        contract: that was read.
        others: all contracts, by name.
        today: silences that ended before it are to be removed.
    """
    found = []
    for column in contract.columns:
        if column.references is not None:
            table, _, target = column.references.partition(".")
            if not _has(others.get(table), target):
                found.append(
                    f"property {column.name} refers to {column.references}, which is no column"
                )
    for rule in contract.quality:
        if isinstance(rule.demand, Reconciliation):
            other = others.get(rule.demand.dataset)
            wanted = [*rule.demand.columns.values(), *rule.demand.by.values()]
            found += [
                f"quality rule {rule.name}: {rule.demand.dataset} has no column {name}"
                for name in wanted
                if not _has(other, name)
            ]
            if other is None and not wanted:
                found.append(f"quality rule {rule.name}: no dataset {rule.demand.dataset}")
    for silence in contract.silences:
        if silence.until < today:
            found.append(
                f"the silence of {silence.rule} for {silence.partition} ended on {silence.until};"
                " remove it"
            )
    return found


def _has(contract: Contract | None, column: str) -> bool:
    return contract is not None and any(c.name == column for c in contract.columns)
