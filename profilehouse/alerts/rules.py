"""The rules of alerts: one YAML file says who is told of what, when, and after how many failures.

Belongs here: reading and validating it, and what it says of a problem. Does not belong here:
whether a channel can be reached (delivery.py).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import yaml

from profilehouse.alerts.incidents import Decision, Kind, Problem
from profilehouse.contracts import Severity
from profilehouse.errors import ProfilehouseError

_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


class Quiet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from"}):
    """Hours in which a channel is left in peace; what comes in them is told at their end.

    Attributes:
        start: like `22:00`, in the zone of the rules.
        to: like `07:00`; before `start` where the hours go over midnight.
        unless: the severities that are told at any hour.
    """

    start: str
    to: str
    unless: tuple[Severity, ...] = ("error",)

    def holds_back(self, severity: Severity, at: datetime) -> bool:
        """Whether such a message waits at that moment, a local time."""
        if severity in self.unless:
            return False
        start, end, now = time.fromisoformat(self.start), time.fromisoformat(self.to), at.time()
        return start <= now < end if start <= end else now >= start or now < end


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place where people read. Its address, an Apprise URL, holds secrets, so it is elsewhere.

    Attributes:
        env: the variable that holds the address.
        file: the file that holds the address.
        quiet: None where it may be used at any hour.
    """

    env: str = ""
    file: str = ""
    quiet: Quiet | None = None


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which problems are meant: all that fit each pattern (`*` and `?` stand for anything)."""

    owner: str = "*"
    severity: Severity | None = None
    kind: Kind | None = None
    asset: str = "*"
    check: str = "*"

    def fits(self, problem: Problem) -> bool:
        """Whether a problem is meant."""
        return (
            self.severity in (None, problem.severity)
            and self.kind in (None, problem.kind)
            and fnmatchcase(problem.asset, self.asset)
            and fnmatchcase(problem.check, self.check)
            and any(fnmatchcase(owner, self.owner) for owner in problem.owners or ("",))
        )


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Problems that fit go to these channels; every route that fits counts."""

    to: tuple[str, ...]
    match: Match = Match()


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Problems that fit are told after so many failures in a row; the first that fits counts."""

    failures: int
    match: Match = Match()


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        ui: address of the Dagster UI, for links.
        channels: by name.
        default: the channels of what no route fits.
        routes: where else to.
        thresholds: what may fail a few times before anybody is told.
        digest_above: so many messages that wait for a channel become a single one.
        timezone: of the quiet hours.
    """

    ui: str
    channels: dict[str, Channel]
    default: tuple[str, ...]
    routes: tuple[Route, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    digest_above: int = 5
    timezone: str = "UTC"

    def decide(self, problem: Problem) -> Decision:
        """Who is told of a problem, after how many failures."""
        names = [name for route in self.routes if route.match.fits(problem) for name in route.to]
        failures = (t.failures for t in self.thresholds if t.match.fits(problem))
        return Decision(tuple(dict.fromkeys(names or self.default)), next(failures, 1))

    def holds_back(self, channel: str, severity: Severity, at: float) -> bool:
        """Whether a message waits for the end of the channel's quiet hours."""
        quiet = self.channels[channel].quiet
        local = datetime.fromtimestamp(at, ZoneInfo(self.timezone))
        return quiet is not None and quiet.holds_back(severity, local)

    def address(self, channel: str) -> str:
        """A channel's Apprise URL, read anew each time, so that a renewed secret is used.

        Raises:
            ProfilehouseError: if there is none, naming the place and not what is in it.
        """
        return _address(channel, self.channels[channel], os.environ)


def load_rules(path: Path) -> Rules:
    """The rules of a file, validated, addresses included.

    Raises:
        ProfilehouseError: one line that names the file, the place in it and what it must be.
    """
    try:
        rules = msgspec.convert(yaml.safe_load(path.read_text("utf-8")), Rules)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise _wrong(path, " ".join(str(error).split())) from error
    for problem in _problems(rules):
        raise _wrong(path, problem)
    for name in rules.channels:
        if not _is_understood(rules.address(name)):
            raise _wrong(path, f"Apprise does not understand the address of the channel {name}")
    return rules


def _is_understood(address: str) -> bool:
    """Whether Apprise knows this kind of address, and it lacks no part."""
    import apprise  # noqa: PLC0415

    logging.getLogger("apprise").propagate = False  # its lines show addresses
    with apprise.LogCapture():  # type: ignore[no-untyped-call]
        return apprise.Apprise.instantiate(address) is not None


def _problems(rules: Rules) -> list[str]:
    found = []
    if not re.fullmatch(r"https?://\S+", rules.ui):
        found.append("ui must be the address of the Dagster UI, like https://dagster.example.com")
    if rules.timezone not in available_timezones():
        found.append(f"timezone {rules.timezone!r} must be a zone of the IANA database")
    if rules.digest_above < 1:
        found.append("digest_above must be at least 1")
    if not rules.default:
        found.append("default must name a channel, so that nothing goes to nobody")
    named = [("default", rules.default), *((f"routes[{i}].to", r.to) for i, r in _each(rules))]
    for place, names in named:
        if not names:
            found.append(f"{place} must name a channel")
        found += [
            f"{place} names the channel {name!r}; there are {', '.join(rules.channels) or 'none'}"
            for name in names
            if name not in rules.channels
        ]
    found += [
        f"thresholds[{i}].failures must be at least 1"
        for i, threshold in enumerate(rules.thresholds)
        if threshold.failures < 1
    ]
    for name, channel in rules.channels.items():
        if bool(channel.env) == bool(channel.file):
            found.append(f"channels.{name} must have either env or file, which holds its address")
        if channel.quiet is not None:
            found += [
                f"channels.{name}.quiet: {clock!r} must be a time in quotes, like '22:00'"
                for clock in (channel.quiet.start, channel.quiet.to)
                if not _CLOCK.fullmatch(clock)
            ]
    return found


def _each(rules: Rules) -> list[tuple[int, Route]]:
    return list(enumerate(rules.routes))


def _address(name: str, channel: Channel, environment: Mapping[str, str]) -> str:
    if channel.env:
        place, address = f"the variable {channel.env}", environment.get(channel.env, "")
    else:
        place = f"the file {channel.file}"
        try:
            address = Path(channel.file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfilehouseError(
                f"alerts: the channel {name} cannot read {place} ({type(error).__name__}); put its"
                " Apprise URL there"
            ) from error
    if not _ADDRESS.fullmatch(address.strip()):
        raise ProfilehouseError(
            f"alerts: the channel {name} needs {place} to hold an Apprise URL, like"
            " mailtos://USER:PASSWORD@HOST?to=TEAM@HOST"
        )
    return address.strip()


def _wrong(path: Path, problem: str) -> ProfilehouseError:
    return ProfilehouseError(
        f"{path}: {problem}; correct the file that PROFILEHOUSE_ALERTS names, see docs/alerts.md"
    )
