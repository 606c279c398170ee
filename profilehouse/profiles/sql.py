"""The warehouse's profile table: one SELECT over the facts, generated from the declaration.

Belongs here: features and segments as SQL in the Snowflake dialect. Does not belong here: running
it or translating it for other engines (warehouse/).
"""

# Every name in these strings is an identifier that the validated declaration allows.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, timedelta

import sqlglot

from profilehouse.profiles import features as f

BATCH_FACTS = ("fct_purchase", "fct_interaction")
"""The facts of what batch sources deliver."""
WEB_FACT = "fct_web_event"
FACTS = (*BATCH_FACTS, WEB_FACT)
"""All facts that profiles are made of."""

Keyed = f.Decayed | f.Last


def profile_sql(
    declaration: f.Declaration,
    as_of: date,
    positions: Mapping[int, int] | None = None,
    without: Collection[date] = (),
) -> str:
    """One SELECT in the Snowflake dialect that gives the rows of the table `profile`.

    It reads FACTS and counts what the fold counts (see fold.py), for whom identity.py says it
    counts, up to and with the UTC day as_of. An event that came by batch and by the web counts once
    for a user: the copy received first. Columns are those of the profile's contract, in order.

    Args:
        declaration: what to compute.
        as_of: the day that counts as today; later events have not happened.
        positions: of each partition of the log, the offset below which its events are seen; all
            events where None.
        without: delivery days of batch sources that are not seen.
    """
    keyed = [feature for feature in declaration.features if isinstance(feature, Keyed)]
    tables = {
        **_events(as_of, positions, without),
        "counted": _counted(declaration, as_of),
        **{
            name: query
            for feature in keyed
            for name, query in (
                _decayed(feature, as_of) if isinstance(feature, f.Decayed) else _last(feature)
            ).items()
        },
        "feature": _features(declaration, keyed, as_of),
    }
    columns = ["user_id", "as_of"]
    columns += [c.name for feature in declaration.features for c in f.feature_columns(feature)]
    columns += [
        f"COALESCE({predicate.sql}, FALSE) AS {column}"
        for column, predicate in declaration.predicates.items()
    ]
    with_ = ", ".join(f"{name} AS ({query})" for name, query in tables.items())
    query = f"WITH {with_} SELECT {', '.join(columns)} FROM feature"
    return sqlglot.parse_one(query, read="snowflake").sql(dialect="snowflake", pretty=True)


_COLUMNS = (
    *("event_id", "event_type", "user_id", "content_id", "category", "value_cents"),
    *("received_at", "happened_at", "happened_on"),
)
"""Of an event, wherever it comes from."""


def _events(
    as_of: date, positions: Mapping[int, int] | None, without: Collection[date]
) -> dict[str, str]:
    """The table `event`, whose user_id is the user that an event counts for, and its parts."""
    batch = (
        _seen("fct_purchase", as_of, event_type="'purchase'"),
        _seen("fct_interaction", as_of, value_cents="CAST(NULL AS BIGINT)"),
    )
    days = f" AND NOT delivered_on IN ({', '.join(map(_day, sorted(without)))})" if without else ""
    visit = {"anonymous_id": "anonymous_id", "session_id": "session_id"}
    return {
        "batch_event": " UNION ALL ".join(events + days for events in batch),
        "web_event": f"{_seen(WEB_FACT, as_of, **visit)} AND consent{_below(positions)}",
        "user_event": f"SELECT {', '.join(_COLUMNS)} FROM web_event WHERE NOT user_id IS NULL",
        "login": (
            "SELECT anonymous_id, session_id, user_id FROM web_event"
            " WHERE NOT user_id IS NULL AND NOT anonymous_id IS NULL AND NOT session_id IS NULL"
            " QUALIFY ROW_NUMBER() OVER"
            " (PARTITION BY anonymous_id, session_id ORDER BY received_at, user_id) = 1"
        ),
        "came_twice": (
            "SELECT batch_event.event_id, batch_event.user_id,"
            " user_event.received_at < batch_event.received_at AS web_first"
            " FROM batch_event JOIN user_event ON batch_event.event_id = user_event.event_id"
            " AND batch_event.user_id = user_event.user_id"
        ),
        "event": " UNION ALL ".join(
            (
                _without_copies("batch_event", "web_first"),
                _without_copies("user_event", "NOT web_first"),
                f"SELECT {_of('web_event', user_id='login')} FROM web_event"
                " JOIN login ON web_event.anonymous_id = login.anonymous_id"
                " AND web_event.session_id = login.session_id WHERE web_event.user_id IS NULL",
            )
        ),
    }


def _seen(fact: str, as_of: date, **computed: str) -> str:
    """The events of a fact that were received in time and had happened by the end of as_of."""
    happened_at = "LEAST(occurred_at, DATEADD(MICROSECOND, -1, received_at))"
    happened_on = f"CAST({happened_at} AS DATE)"
    expressions = {
        **{column: column for column in _COLUMNS},
        "happened_at": happened_at,
        "happened_on": happened_on,
        **computed,
    }
    columns = ", ".join(f"{value} AS {column}" for column, value in expressions.items())
    return (
        f"SELECT {columns} FROM {fact}"
        f" WHERE received_at <= DATEADD(DAY, {f.LATE_DAYS}, occurred_at)"
        f" AND {happened_on} <= {_day(as_of)}"
    )


def _below(positions: Mapping[int, int] | None) -> str:
    if positions is None:
        return ""
    parts = [
        f"log_partition = {partition:d} AND log_offset < {offset:d}"
        for partition, offset in sorted(positions.items())
    ]
    return f" AND ({' OR '.join(parts) or 'FALSE'})"


def _without_copies(events: str, later: str) -> str:
    return (
        f"SELECT {_of(events)} FROM {events} LEFT JOIN"
        f" (SELECT event_id, user_id FROM came_twice WHERE {later}) AS later_{events}"
        f" ON {events}.event_id = later_{events}.event_id"
        f" AND {events}.user_id = later_{events}.user_id"
        f" WHERE later_{events}.event_id IS NULL"
    )


def _of(events: str, **elsewhere: str) -> str:
    return ", ".join(f"{elsewhere.get(column, events)}.{column}" for column in _COLUMNS)


def _counted(declaration: f.Declaration, as_of: date) -> str:
    columns = ["user_id"]
    for feature in declaration.features:
        match feature:
            case f.Count() | f.Sum():
                mine = f"event_type = {_text(feature.event_type)}"
                for days in feature.windows:
                    first_day = _day(as_of - timedelta(days=days - 1))
                    total = _total(feature, f"{mine} AND happened_on >= {first_day}")
                    columns.append(f"{total} AS {f.window_column(feature, days)}")
                if feature.lifetime:
                    columns.append(f"{_total(feature, mine)} AS {f.lifetime_column(feature)}")
            case f.FirstSeen():
                columns.append(f"MIN(happened_at) AS {feature.name}")
            case f.LastSeen():
                age = f"DATEDIFF(DAY, MAX(happened_on), {_day(as_of)})"
                columns.append(f"MAX(happened_at) AS {feature.name}")
                columns.append(f"{age} AS {f.days_since_column(feature)}")
    return f"SELECT {', '.join(columns)} FROM event GROUP BY user_id"


def _total(feature: f.Count | f.Sum, condition: str) -> str:
    total = (
        f"COUNT_IF({condition})"
        if isinstance(feature, f.Count)
        else f"COALESCE(SUM(CASE WHEN {condition} THEN {feature.field} END), 0)"
    )
    return f"CAST({total} AS BIGINT)"


def _decayed(feature: f.Decayed, as_of: date) -> dict[str, str]:
    weights = f.weights(feature.half_life_days, feature.window)
    weighed = ", ".join(f"({age}, {weight})" for age, weight in enumerate(weights))
    best_first = "ORDER BY score DESC, item"
    return {
        f"{feature.name}_weight": f"SELECT age, weight FROM (VALUES {weighed}) AS w (age, weight)",
        f"{feature.name}_score": (
            f"SELECT user_id, {feature.key} AS item, CAST(SUM(weight) AS BIGINT) AS score"
            f" FROM event JOIN {feature.name}_weight"
            f" ON age = DATEDIFF(DAY, happened_on, {_day(as_of)})"
            f" WHERE event_type = {_text(feature.event_type)} AND {feature.key} IS NOT NULL"
            f" GROUP BY user_id, {feature.key}"
        ),
        f"{feature.name}_best": (
            f"SELECT user_id, item, score FROM {feature.name}_score"
            f" QUALIFY ROW_NUMBER() OVER (PARTITION BY user_id {best_first}) <= {feature.top}"
        ),
        f"{feature.name}_list": (
            f"SELECT user_id, ARRAY_AGG(item) WITHIN GROUP ({best_first}) AS {feature.name},"
            f" ARRAY_AGG(CAST(score AS VARCHAR)) WITHIN GROUP ({best_first})"
            f" AS {f.scores_column(feature)} FROM {feature.name}_best GROUP BY user_id"
        ),
    }


def _last(feature: f.Last) -> dict[str, str]:
    newest_first = "ORDER BY happened_at DESC, event_id DESC"
    return {
        f"{feature.name}_newest": (
            f"SELECT user_id, {feature.field} AS item, happened_at, event_id FROM event"
            f" WHERE event_type = {_text(feature.event_type)} AND {feature.field} IS NOT NULL"
            f" QUALIFY ROW_NUMBER() OVER (PARTITION BY user_id {newest_first}) <= {feature.count}"
        ),
        f"{feature.name}_list": (
            f"SELECT user_id, ARRAY_AGG(item) WITHIN GROUP ({newest_first}) AS {feature.name}"
            f" FROM {feature.name}_newest GROUP BY user_id"
        ),
    }


def _features(declaration: f.Declaration, keyed: list[Keyed], as_of: date) -> str:
    columns = ["counted.user_id", f"{_day(as_of)} AS as_of"]
    for feature in declaration.features:
        columns += [
            f"COALESCE({feature.name}_list.{column.name}, ARRAY_CONSTRUCT()) AS {column.name}"
            if feature in keyed
            else f"counted.{column.name}"
            for column in f.feature_columns(feature)
        ]
    joins = "".join(
        f" LEFT JOIN {feature.name}_list ON {feature.name}_list.user_id = counted.user_id"
        for feature in keyed
    )
    return f"SELECT {', '.join(columns)} FROM counted{joins}"


def _day(day: date) -> str:
    return f"DATE '{day.isoformat()}'"


def _text(value: str) -> str:
    return sqlglot.exp.Literal.string(value).sql(dialect="snowflake")
