"""The warehouse's profile table: one SELECT over the facts, generated from the declaration.

Belongs here: features and segments as SQL in the Snowflake dialect. Does not belong here: running
it or translating it for other engines (warehouse/).
"""

# Every name in these strings is an identifier that the validated declaration allows.
# ruff: noqa: S608

from __future__ import annotations

from datetime import date, timedelta

import sqlglot

from profilehouse.profiles import features as f

Keyed = f.Decayed | f.Last


def profile_sql(declaration: f.Declaration, as_of: date) -> str:
    """One SELECT in the Snowflake dialect that gives the rows of the table `profile`.

    It reads fct_purchase and fct_interaction and counts what the fold counts (see fold.py) up to
    and with the UTC day as_of. Columns are those of the profile's contract, in order.
    """
    keyed = [feature for feature in declaration.features if isinstance(feature, Keyed)]
    tables = {
        "event": _events(as_of),
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


def _events(as_of: date) -> str:
    facts = {
        "fct_purchase": ("'purchase' AS event_type", "value_cents"),
        "fct_interaction": ("event_type", "CAST(NULL AS BIGINT) AS value_cents"),
    }
    happened_at = "LEAST(occurred_at, DATEADD(MICROSECOND, -1, received_at))"
    return " UNION ALL ".join(
        f"SELECT event_id, {event_type}, user_id, content_id, category, {value_cents},"
        f" {happened_at} AS happened_at, CAST({happened_at} AS DATE) AS happened_on FROM {fact}"
        f" WHERE received_at <= DATEADD(DAY, {f.LATE_DAYS}, occurred_at)"
        f" AND CAST({happened_at} AS DATE) <= {_day(as_of)}"
        for fact, (event_type, value_cents) in facts.items()
    )


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
