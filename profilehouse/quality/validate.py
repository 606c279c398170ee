"""The gate: every rule of a contract on what is there, and the outcome as other tools read it.

Does not belong here: deciding (sql.py, datasets.py) or printing (cli/).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from profilehouse.contracts import CONTRACTS_DIR, Contract, contracts_of
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.quality.access import dataset, opened
from profilehouse.quality.datasets import check_dataset
from profilehouse.quality.result import CheckResult
from profilehouse.quality.rules import Depends, dataset_rules, row_rules
from profilehouse.quality.sql import (
    Source,
    arrow_source,
    check_references,
    check_rows,
    references_of,
    schema_difference,
)

if TYPE_CHECKING:
    from profilehouse.platform import Platform

Outcome = Mapping[str, Sequence[CheckResult]]
"""What was found, by dataset."""

POSITION = ("delivered_on", "line")
"""What a landed record has beside its contract's columns and is told by."""
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def datasets() -> list[str]:
    """Names of all that hold rows: sources, tables of the warehouse, the profile."""
    profile = profile_contract(load_declaration())
    declared = (*contracts_of("sources"), *contracts_of("warehouse"), profile)
    return [contract.name for contract in declared]


def validate(
    platform: Platform, name: str, now: datetime, sample: int | None = None
) -> list[CheckResult]:
    """Run every rule of a dataset's contract on the rows that are there.

    Args:
        platform: where it is.
        name: one of `datasets`.
        now: UTC, for freshness.
        sample: look at so many rows by chance, and at what they and their keys tell; at all where
            None.

    Returns:
        One result a rule; nothing where the warehouse has no such table yet.

    Raises:
        ProfilehouseError: where it cannot be read.
    """
    declared = dataset(name)
    if declared.kind == "warehouse":
        with platform.warehouse() as warehouse:
            if not warehouse.columns(name):
                return []
            return _checked(platform, declared, warehouse, now, sample)
    with opened(platform, name) as source:
        return _checked(platform, declared, source, now, sample)


def _checked(
    platform: Platform, declared: Contract, source: Source, now: datetime, sample: int | None
) -> list[CheckResult]:
    name, stored = declared.name, declared.kind == "warehouse"
    rules = row_rules(declared, within=() if stored else POSITION[:1])
    keys = () if stored else POSITION
    if sample is not None:
        # A majority among all may be none in a sample.
        rules = tuple(rule for rule in rules if not isinstance(rule.test, Depends))
        with _sampled(source, name, sample) as some:
            return check_rows(declared, rules, some, keys=keys)

    def other(another: str) -> AbstractContextManager[Source]:
        # The warehouse is open already, and DuckDB opens once.
        same = stored and dataset(another).kind == "warehouse"
        return nullcontext(source) if same else opened(platform, another)

    results = check_rows(declared, rules, source, keys=keys)
    if stored:
        results = [schema_difference(declared, source.schema_of(name)), *results]
        results += check_references(declared, references_of(declared), source)
    return results + check_dataset(declared, dataset_rules(declared), source, other, now)


@contextmanager
def _sampled(source: Source, name: str, rows: int) -> Iterator[Source]:
    some = source.query(f"SELECT * FROM {name} ORDER BY RANDOM() LIMIT {rows:d}")  # noqa: S608
    with arrow_source({name: some}) as sampled:
        yield sampled


def errors(outcome: Outcome) -> int:
    """How many rules of severity error fail."""
    return sum(_fails(r) and r.severity == "error" for results in outcome.values() for r in results)


def as_text(outcome: Outcome) -> str:
    """For people: what fails, with what to do, and how many rules passed."""
    lines = []
    for name, results in outcome.items():
        failing = [result for result in results if _fails(result)]
        lines.append(f"{name}: {len(results) - len(failing)} of {len(results)} rules hold")
        for result in failing:
            lines.append(f"  {result.severity:8}{result.name}: {result.observed}")
            lines += [f"          {dict(row)}" for row in result.sample[:3]]
            lines.append(f"          To do: {result.remedy}.")
    return "\n".join(lines) + "\n"


def as_json(outcome: Outcome) -> str:
    """Every result whole, by dataset."""
    found = {name: [asdict(result) for result in results] for name, results in outcome.items()}
    return json.dumps(found, indent=2) + "\n"


def as_junit(outcome: Outcome) -> str:
    """JUnit's XML: a suite a dataset, a case a rule. A warning is no failure; its case says it."""
    root = ElementTree.Element("testsuites", name="profilehouse validate")
    for name, results in outcome.items():
        failed = [r for r in results if _fails(r) and r.severity == "error"]
        suite = ElementTree.SubElement(
            root, "testsuite", name=name, tests=str(len(results)), failures=str(len(failed))
        )
        for result in results:
            case = ElementTree.SubElement(suite, "testcase", classname=name, name=result.name)
            if not _fails(result):
                continue
            text = f"expected: {result.expected}\ntodo: {result.remedy}"
            if result.severity == "error":
                failure = ElementTree.SubElement(case, "failure", message=result.observed)
                failure.text = text
            else:
                said = ElementTree.SubElement(case, "system-out")
                said.text = f"warning: {result.observed}\n{text}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def as_sarif(outcome: Outcome) -> str:
    """SARIF 2.1.0: what fails, at the line of the contract that demands it."""
    findings: list[dict[str, Any]] = []
    rules: dict[str, dict[str, Any]] = {}
    for name, results in outcome.items():
        contract = dataset(name)
        for result in results:
            if not _fails(result):
                continue
            rule_id = f"{name}/{result.name}"
            rules[rule_id] = {"id": rule_id, "shortDescription": {"text": result.description}}
            findings.append(
                {
                    "ruleId": rule_id,
                    "level": result.severity,
                    "message": {"text": f"{result.observed}. To do: {result.remedy}."},
                    "locations": [{"physicalLocation": _place(contract, result.name)}],
                }
            )
    driver = {"name": "profilehouse", "rules": list(rules.values())}
    report = {
        "$schema": SARIF,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": findings}],
    }
    return json.dumps(report, indent=2) + "\n"


FORMATS = {"text": as_text, "json": as_json, "junit": as_junit, "sarif": as_sarif}
"""How an outcome can be written."""


def _place(contract: Contract, rule: str) -> dict[str, Any]:
    """Where a contract demands it: the line of the rule's name, else of its column's."""
    root = CONTRACTS_DIR.parent
    path = contract.path.relative_to(root) if contract.path.is_relative_to(root) else contract.path
    lines = contract.path.read_text("utf-8").splitlines()
    named = {
        line.partition("name:")[2].strip(): number
        for number, line in enumerate(lines, start=1)
        if line.strip().removeprefix("- ").startswith("name:")
    }
    columns = (c.name for c in contract.columns if rule.startswith(f"{c.name}_"))
    line = named.get(rule) or named.get(max(columns, key=len, default=""), 1)
    return {"artifactLocation": {"uri": path.as_posix()}, "region": {"startLine": line}}


def _fails(result: CheckResult) -> bool:
    return not result.passed
