"""Incidents: which findings are worth a message. Pure functions, no clock and no storage.

A finding says of one thing, known by its fingerprint, that it fails or that it is well. The first
failure of a thing opens an incident, further ones are folded into it, and the first time it is well
again closes it. Messages are written when it has failed often enough in a row, when it gets worse,
and when it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from profilehouse.contracts import Severity

Kind = Literal["check", "run", "stale", "live", "sensor"]
State = Literal["new", "worse", "recovered"]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, in words for who has to mend it. Holds no secrets and no personal data.

    Attributes:
        kind: of the thing that fails.
        severity: an `error` stops data, a `warning` does not.
        title: what fails, in one line.
        asset: its key, parts joined by `/`; empty where there is none.
        check: its name; empty where it is none.
        partition: the day, or `first..last`; empty where there is none.
        expected: what should be the case.
        observed: what is the case.
        sample: some of what fails, as text by column.
        owners: of the asset, without Dagster's `team:`.
        path: of the page in the UI that shows the asset or the sensor.
        run_id: of the run that found it; empty where no run did.
        next_step: what to do.
    """

    kind: Kind
    severity: Severity
    title: str
    observed: str
    next_step: str
    expected: str = ""
    asset: str = ""
    check: str = ""
    partition: str = ""
    sample: tuple[dict[str, str], ...] = ()
    owners: tuple[str, ...] = ()
    path: str = ""
    run_id: str = ""


class Finding(msgspec.Struct, frozen=True):
    """One look at one thing.

    Attributes:
        fingerprint: of the thing: equal for all that is one incident.
        at: when it was looked at, seconds since 1970.
        problem: what is wrong; None where it is well.
    """

    fingerprint: str
    at: float
    problem: Problem | None


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A thing that fails.

    Attributes:
        first_at: when it was first seen to fail, seconds since 1970.
        last_at: when it was last seen to fail.
        failures: how often in a row.
        problem: as last seen.
        told: the channels that know of it; none while it has not failed often enough.
        severity: the worst that they were told.
    """

    fingerprint: str
    first_at: float
    last_at: float
    failures: int
    problem: Problem
    told: tuple[str, ...] = ()
    severity: Severity = "warning"


class Message(msgspec.Struct, frozen=True):
    """What is to be told on one channel."""

    channel: str
    state: State
    at: float
    incident: Incident


class Decision(msgspec.Struct, frozen=True):
    """What the rules say of a problem: who is told, after how many failures in a row."""

    channels: tuple[str, ...]
    failures: int


def fold(
    incident: Incident | None, finding: Finding, decision: Decision | None
) -> tuple[Incident | None, Sequence[Message]]:
    """The incident after one more finding, and what is to be told.

    Args:
        incident: of the finding's fingerprint, None where nothing fails.
        finding: what was seen now.
        decision: what the rules say of its problem; None where it is well.
    """
    problem = finding.problem
    if problem is None or decision is None:
        if incident is None:
            return None, ()
        over = tuple(Message(c, "recovered", finding.at, incident) for c in incident.told)
        return None, over
    seen = Incident(
        fingerprint=finding.fingerprint,
        first_at=incident.first_at if incident else finding.at,
        last_at=finding.at,
        failures=(incident.failures if incident else 0) + 1,
        problem=problem,
        told=incident.told if incident else (),
        severity=incident.severity if incident else "warning",
    )
    if not seen.told:
        if seen.failures < decision.failures:
            return seen, ()
        told = msgspec.structs.replace(seen, told=decision.channels, severity=problem.severity)
        return told, tuple(Message(c, "new", finding.at, told) for c in told.told)
    if problem.severity == "error" and seen.severity == "warning":
        further = (c for c in decision.channels if c not in seen.told)
        told = msgspec.structs.replace(seen, told=(*seen.told, *further), severity="error")
        return told, tuple(Message(c, "worse", finding.at, told) for c in told.told)
    return seen, ()
