"""The sensor alerts: reads what went wrong, stores it, tells who has to know.

Its cursors, incidents and unsent messages are in the outbox and not in Dagster, as they change
there in one transaction: a tick that dies, or a daemon that is started again, loses nothing.
"""

import time
from pathlib import Path

import dagster as dg

from platform_defs import findings
from profilehouse.alerts.delivery import Send, deliver, send
from profilehouse.alerts.outbox import Outbox
from profilehouse.alerts.rules import Rules, load_rules
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.settings import Settings
from profilehouse.stream.status import read_statuses

NAME = "alerts"
EVERY_SECONDS = 5
FAILURES_TOLD = 3
"""A channel that took nothing so often in a row makes the sensor fail, which is told as well."""


def alerts(settings: Settings) -> dg.SensorDefinition:
    """Tells people what goes wrong, and when it is well again.

    Raises:
        ProfilehouseError: if the file of rules is wrong.
    """
    rules = load_rules(Path(settings.alerts)) if settings.alerts else None

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells people of failing checks and runs, stale assets, a silent live process"
        " and failing sensors, by the rules of the file that PROFILEHOUSE_ALERTS names; each"
        " incident once, and when it is over.",
    )
    def alert(
        context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]
    ) -> dg.SkipReason:
        if rules is None:
            return dg.SkipReason("PROFILEHOUSE_ALERTS names no file of rules: nobody is told.")
        if context.repository_def is None:
            raise TypeError("a sensor of a code location has its repository")
        return dg.SkipReason(
            round_of_alerts(context.instance, context.repository_def, platform, rules, send)
        )

    return alert


def round_of_alerts(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    platform: Platform,
    rules: Rules,
    send: Send,
) -> str:
    """Read, store and send once; in words what was done.

    Raises:
        ProfilehouseError: if the outbox cannot be used, or a channel takes nothing for long.
    """
    with Outbox.opened(Path(platform.settings.outbox)) as outbox:
        _read(outbox, instance, repository, platform, rules)
        done = deliver(outbox, rules, time.time(), send)
        lasting = {c: t for c, t in outbox.troubles().items() if t.failures >= FAILURES_TOLD}
    said = f"{done.sent} messages sent, {done.waiting} wait."
    failed = "; ".join(f"{channel}: {error}" for channel, error in done.failed.items())
    if lasting.keys() & done.failed.keys():
        raise ProfilehouseError(f"{said} Channels that take nothing: {failed}")
    return f"{said} Tried again soon: {failed}" if failed else said


def _read(
    outbox: Outbox,
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    platform: Platform,
    rules: Rules,
) -> None:
    """Store everything that happened since the last time, or nothing of it."""
    now = time.time()
    known = outbox.incidents()
    before = {name: outbox.cursor(name) for name in ("checks", "runs", "sensors")}
    of_checks, checks = findings.checks(instance, repository, before["checks"], now)
    of_runs, runs = findings.runs(instance, repository, before["runs"], known, now)
    of_sensors, sensors = findings.sensors(instance, before["sensors"], now)
    happened = [*of_checks, *of_runs, *of_sensors]
    failing = known.keys() | {finding.fingerprint for finding in happened if finding.problem}
    statuses = read_statuses(platform.settings, platform.aws)
    found = [
        *(finding for finding in happened if finding.fingerprint in failing),
        *findings.stale(instance, repository, known, now),
        *findings.live(statuses, repository, known, now),
    ]
    after = {"checks": checks, "runs": runs, "sensors": sensors}
    changed = {name: text for name, text in after.items() if text != before[name]}
    if changed or found:
        outbox.record(found, changed, rules)
