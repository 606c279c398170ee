"""The one result of every check: what was expected, what was seen and what to do.

Belongs here: the type, and how values are shown in it. Does not belong here: any checking.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from profilehouse.contracts import Severity

State = Literal["passed", "failed", "not enough history"]

SAMPLE_SIZE = 20
"""Most entries of a sample."""
TEXT_SIZE = 80
"""Most characters of a value in a sample."""
_MASK_KEY = secrets.token_bytes(16)


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: of the check, a predicate of letters, digits and underscores.
        state: `passed`, `failed`, or `not enough history` where nothing can be said yet.
        severity: what a failure is: an `error` blocks what is downstream, a `warning` does not.
        description: what is checked, in one sentence.
        expected: what should be the case.
        observed: what is the case, with exact counts.
        failing: how many fail, exactly.
        total: how many were looked at.
        sample: at most SAMPLE_SIZE of those that fail, as text by column; personal values are
            masked. The same however often the check runs on the same data, masks excepted.
        remedy: what to do about a failure, in one sentence.
        numbers: what to plot over time.
        chart: the near past as a line of blocks, where there is one.
    """

    name: str
    state: State
    severity: Severity
    description: str
    expected: str
    observed: str
    failing: int
    total: int
    remedy: str
    sample: tuple[Mapping[str, str], ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    chart: str = ""

    @property
    def passed(self) -> bool:
        """False only for `failed`: without enough history nothing is wrong, and `state` says so."""
        return self.state != "failed"


def sample_of(
    rows: Iterable[Mapping[str, Any]], personal: Collection[str]
) -> tuple[Mapping[str, str], ...]:
    """The first rows as text, with the values of personal columns masked."""
    bounded = (row for row, _ in zip(rows, range(SAMPLE_SIZE), strict=False))
    return tuple(
        {name: mask(value) if name in personal else shown(value) for name, value in row.items()}
        for row in bounded
    )


def shown(value: Any) -> str:
    """A value as text, cut where it is long."""
    text = "null" if value is None else str(value)
    return text if len(text) <= TEXT_SIZE else f"{text[: TEXT_SIZE - 1]}…"


def mask(value: Any) -> str:
    """A personal value made unreadable: equal values get equal masks, in this process only.

    The hash has a random key that lives as long as the process, so ids cannot be found by trying
    them all. A missing value is shown as such.
    """
    if value is None:
        return shown(value)
    text = str(value).encode("utf-8", "surrogatepass")
    return f"#{blake2b(text, key=_MASK_KEY, digest_size=4).hexdigest()}"


def percent(part: int, whole: int) -> float:
    """The share of a part in percent, to 4 decimals; 0 of nothing."""
    return round(100 * part / whole, 4) if whole else 0.0
