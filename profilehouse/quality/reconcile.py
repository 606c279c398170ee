"""Reconciliation: two sides that must be equal, compared part by part (a day, a source).

Belongs here: the comparison. Does not belong here: where the two sides come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profilehouse.quality.result import CheckResult, sample_of


def reconcile(
    name: str,
    description: str,
    expected: Mapping[Any, int],
    observed: Mapping[Any, int],
    remedy: str,
) -> CheckResult:
    """Compare whole numbers (rows, cents) of the same parts on two sides, exactly.

    Args:
        name: of the check.
        description: what is compared, in one sentence.
        expected: the number of each part; a part that is absent has 0.
        observed: the same on the other side.
        remedy: what to do about a difference.
    """
    parts = sorted({*expected, *observed}, key=str)
    differences = [
        {"part": part, "expected": expected.get(part, 0), "observed": observed.get(part, 0)}
        for part in parts
        if expected.get(part, 0) != observed.get(part, 0)
    ]
    wanted, found = sum(expected.values()), sum(observed.values())
    return CheckResult(
        name=name,
        state="failed" if differences else "passed",
        severity="error",
        description=description,
        expected=f"{wanted:,} in {len(parts)} parts",
        observed=f"{found:,} of {wanted:,}; {len(differences)} of {len(parts)} parts differ",
        failing=len(differences),
        total=len(parts),
        remedy=remedy,
        sample=sample_of(differences, ()),
        numbers={"expected_total": wanted, "observed_total": found},
    )
