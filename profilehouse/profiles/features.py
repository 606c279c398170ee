"""The declaration: contracts/profile.yaml as features and segments, and the columns they make.

Belongs here: what a feature is. Does not belong here: how it is folded, read or computed in SQL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from profilehouse.contracts import CONTRACTS_DIR, Column, Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.segments import Predicate, compile_predicate

PROFILE_PATH = CONTRACTS_DIR / "profile.yaml"

LATE_DAYS = 7
"""An event counts if it was received at most this many days after it occurred."""

FULL_WEIGHT = 2**16
"""Weight of an event of age 0 in a decayed feature."""

FOLD_VERSION = 2
"""Raised whenever the fold or the layout of a stored row changes meaning."""

Name = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_]*$")]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
TextField = Literal["content_id", "category"]


class _Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    description: Text


class _Feature(_Declared, frozen=True, tag_field="kind"):
    pass


class Count(_Feature, frozen=True, tag="count"):
    """How many events of a type, per window of days and over the lifetime."""

    event_type: str
    windows: tuple[Positive, ...] = ()
    lifetime: bool = False


class Sum(_Feature, frozen=True, tag="sum"):
    """The sum of an integer field over events of a type; a null adds nothing."""

    event_type: str
    field: Literal["value_cents"]
    windows: tuple[Positive, ...] = ()
    lifetime: bool = False


class Decayed(_Feature, frozen=True, tag="decayed"):
    """The keys with the highest scores: events of a type, each weighing less the older it is."""

    event_type: str
    key: TextField
    half_life_days: Positive
    window: Positive
    top: Positive


class Last(_Feature, frozen=True, tag="last"):
    """The values of a field in the newest events of a type that have one, newest first."""

    event_type: str
    field: TextField
    count: Positive


class FirstSeen(_Feature, frozen=True, tag="first_seen"):
    """When the user's first event of any type happened."""


class LastSeen(_Feature, frozen=True, tag="last_seen"):
    """When the user's newest event of any type happened."""


class Segment(_Declared, frozen=True):
    """Users that satisfy a predicate over the feature columns; an unknown (NULL) is a no."""

    when: Text


Feature = Count | Sum | Decayed | Last | FirstSeen | LastSeen


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """What a profile is. The order of features and segments is the order of the columns."""

    version: Text
    owner: Text
    description: Text
    features: Annotated[tuple[Feature, ...], msgspec.Meta(min_length=1)]
    segments: tuple[Segment, ...] = ()

    @cached_property
    def tiled(self) -> tuple[Count | Sum | Decayed, ...]:
        """Features kept as integers per day, in the order of a stored row."""
        return tuple(f for f in self.features if isinstance(f, Count | Sum | Decayed) and span(f))

    @cached_property
    def totalled(self) -> tuple[Count | Sum, ...]:
        """Features kept as one integer over the lifetime, in the order of a stored row."""
        return tuple(f for f in self.features if isinstance(f, Count | Sum) and f.lifetime)

    @cached_property
    def listed(self) -> tuple[Last, ...]:
        """Features kept as a list of the newest values, in the order of a stored row."""
        return tuple(f for f in self.features if isinstance(f, Last))

    @cached_property
    def fingerprint(self) -> str:
        """Of what a stored row holds: descriptions, segments, names and decay leave it alone."""
        layout = [
            FOLD_VERSION,
            LATE_DAYS,
            [(type(f).__name__, f.event_type, _source(f), span(f)) for f in self.tiled],
            [(type(f).__name__, f.event_type, _source(f)) for f in self.totalled],
            [(f.event_type, f.field, f.count) for f in self.listed],
        ]
        return hashlib.sha256(msgspec.json.encode(layout)).hexdigest()[:16]

    @cached_property
    def predicates(self) -> dict[str, Predicate]:
        """The compiled predicate of each segment, by its column.

        Raises:
            ValueError: naming the segment and the part of its predicate that is not understood.
        """
        types = {c.name: c.type for f in self.features for c in feature_columns(f)}
        compiled: dict[str, Predicate] = {}
        for segment in self.segments:
            try:
                compiled[segment_column(segment)] = compile_predicate(segment.when, types)
            except ValueError as error:
                raise ValueError(f"segment {segment.name}: {error}") from error
        return compiled


def load_declaration(path: Path = PROFILE_PATH) -> Declaration:
    """Read and validate a profile declaration.

    Raises:
        ProfilehouseError: one line naming the file, the place in it and what is wrong.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
        declaration = msgspec.convert(document, Declaration)
        _validate(declaration)
    except (OSError, yaml.YAMLError, msgspec.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ProfilehouseError(f"{path}: not a valid profile declaration: {reason}") from error
    return declaration


def profile_contract(declaration: Declaration) -> Contract:
    """The contract of the warehouse table `profile`: one row a user with a counted event."""
    return Contract(
        name="profile",
        kind="warehouse",
        version=declaration.version,
        description=declaration.description,
        owner=declaration.owner,
        columns=tuple(_columns(declaration)),
        primary_key=("user_id",),
        partition_by=(),
        cluster_by=(),
        quality=(),
        properties={},
        path=PROFILE_PATH,
        layout_reason="A row a user, written and mostly read as a whole.",
    )


@cache
def weights(half_life_days: int, window: int) -> tuple[int, ...]:
    """Weight of an event by its age in days, 0 to window - 1: FULL_WEIGHT halved each half-life.

    Integers, so that a score is the same number in whatever order and engine it is summed.
    """
    return tuple(round(FULL_WEIGHT * 2 ** (-age / half_life_days)) for age in range(window))


def span(feature: Count | Sum | Decayed) -> int:
    """Days of tiles a feature needs: its longest window, 0 where it has none."""
    if isinstance(feature, Decayed):
        return feature.window
    return max(feature.windows, default=0)


def window_column(feature: Count | Sum, days: int) -> str:
    """Column of a count or sum in the last `days` days."""
    return f"{feature.name}_{days}d"


def lifetime_column(feature: Count | Sum) -> str:
    """Column of a count or sum over everything."""
    return f"{feature.name}_lifetime"


def scores_column(feature: Decayed) -> str:
    """Column of the scores beside the keys of a decayed feature."""
    return f"{feature.name}_scores"


def days_since_column(feature: LastSeen) -> str:
    """Column of the whole days between the newest event and the day the profile is read for."""
    return f"days_since_{feature.name.removesuffix('_at')}"


def segment_column(segment: Segment) -> str:
    """Column that says whether the user is in the segment."""
    return f"is_{segment.name}"


def feature_columns(feature: Feature) -> tuple[Column, ...]:
    """The columns a feature makes; none is ever null."""
    says = feature.description.rstrip(".")
    match feature:
        case Count() | Sum():
            minimum = 0 if isinstance(feature, Count) else None
            columns = [
                Column(
                    window_column(feature, days),
                    "integer",
                    f"{says}, on the day as_of."
                    if days == 1
                    else f"{says}, in the {days} days up to and with as_of.",
                    required=True,
                    minimum=minimum,
                )
                for days in feature.windows
            ]
            if feature.lifetime:
                columns.append(
                    Column(
                        lifetime_column(feature),
                        "integer",
                        f"{says}, ever.",
                        required=True,
                        minimum=minimum,
                    )
                )
            return tuple(columns)
        case Decayed():
            return (
                Column(
                    feature.name,
                    "array",
                    f"{says}: the {feature.top} highest scores of {feature.window} days, best"
                    f" first; an event loses half its weight every {feature.half_life_days} days.",
                    required=True,
                ),
                Column(
                    scores_column(feature),
                    "array",
                    f"Scores of {feature.name}, whole numbers as text;"
                    f" {FULL_WEIGHT} is one event on the day as_of.",
                    required=True,
                ),
            )
        case Last():
            return (
                Column(
                    feature.name,
                    "array",
                    f"{says}: {feature.count} at most, newest first, of equal times the higher"
                    " event_id first.",
                    required=True,
                ),
            )
        case FirstSeen():
            return (Column(feature.name, "timestamp", f"{says}, UTC.", required=True),)
        case LastSeen():
            return (
                Column(feature.name, "timestamp", f"{says}, UTC.", required=True),
                Column(
                    days_since_column(feature),
                    "integer",
                    "Whole days from that event's day to as_of.",
                    required=True,
                    minimum=0,
                ),
            )


def _columns(declaration: Declaration) -> Iterator[Column]:
    yield Column("user_id", "string", "Who.", required=True, unique=True, personal=True)
    yield Column(
        "as_of",
        "date",
        "The UTC day the profile is computed for; it counts as today, later events as not seen.",
        required=True,
    )
    for feature in declaration.features:
        yield from feature_columns(feature)
    for segment in declaration.segments:
        yield Column(
            segment_column(segment),
            "boolean",
            f"{segment.description.rstrip('.')}: {segment.when}.",
            required=True,
        )


def _source(feature: Count | Sum | Decayed) -> str | None:
    match feature:
        case Sum():
            return feature.field
        case Decayed():
            return feature.key
        case Count():
            return None


def _validate(declaration: Declaration) -> None:
    event_types = contract("web").column("event_type").values
    for feature in declaration.features:
        event_type = getattr(feature, "event_type", None)
        if event_type is not None and event_type not in event_types:
            raise ValueError(
                f"feature {feature.name}: event_type is {event_type!r};"
                f" it must be one of {', '.join(event_types)}"
            )
        match feature:
            case Count() | Sum() if not feature.windows and not feature.lifetime:
                raise ValueError(f"feature {feature.name}: needs windows or lifetime: true")
            case Decayed() if weights(feature.half_life_days, feature.window)[-1] == 0:
                raise ValueError(
                    f"feature {feature.name}: after {feature.window} days nothing is left of a"
                    f" half-life of {feature.half_life_days}; shorten window"
                )
            case FirstSeen() | LastSeen() if not feature.name.endswith("_at"):
                raise ValueError(f"feature {feature.name}: its name must end in _at")
    names = [column.name for column in _columns(declaration)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two features or segments make the column {', '.join(twice)}")
    _ = declaration.predicates
