"""Completeness: every day delivered and loaded, no record refused, no user unknown."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.warehouse import POOL, table_sql
from checks._common import asset_checks, days_between, days_looked_at, days_of_run, reported, spec
from profilehouse.contracts import Contract, Severity, contract, contracts_of
from profilehouse.events.build import event_topics, is_daily_log, stale_days
from profilehouse.platform import Platform
from profilehouse.profiles.features import LATE_DAYS
from profilehouse.quality.reconcile import same_rows
from profilehouse.quality.result import CheckResult, sample_of
from profilehouse.quality.sql import Source
from profilehouse.sources.drift import policy
from profilehouse.sources.feeds import tables_of
from profilehouse.sources.landing import delivered, unlanded_days
from profilehouse.warehouse.load import stale_days as stale_loads
from profilehouse.warehouse.visits import IDENTITY, SESSIONS, counted

REFUSED = "no_record_was_refused"
LANDED = "every_file_is_landed"
KNOWN_FIELDS = "every_field_is_known"
NAMED = "every_file_names_its_day"
DELIVERED = "every_day_was_delivered"
ANNOUNCED = "every_announced_file_arrived_whole"
LOADED = "every_delivered_day_is_loaded"
BUILT = "every_landed_day_is_built"
DEMOGRAPHICS = "every_buyer_has_demographics"
GAPLESS = "every_day_is_there"
PROFILED = "every_user_with_events_has_a_profile"
OWNED = "every_visit_with_a_login_has_its_owner"
IN_SESSIONS = "every_event_is_in_one_session"

LOADED_FROM = {
    "fct_purchase": "events",
    "fct_interaction": "events",
    "dim_user": "crm",
    "dim_content": "products",
    "dim_campaign": "campaigns",
}
"""The lake table whose days each table of the warehouse has to hold."""


def completeness_checks(feeds: Sequence[Contract] = ()) -> list[dg.AssetChecksDefinition]:
    """For each source, the events, each table of the warehouse, the profiles, and the visits.

    Args:
        feeds: the optional sources that are on.
    """
    loaded_from = {table.name: feed.name for feed in feeds for table in tables_of(feed)}
    return [
        *(_source(source) for source in (*contracts_of("sources"), *feeds)),
        *(_known_fields(feed) for feed in feeds),
        _built_days(event_topics(feeds)),
        *(_loaded_days(table, topic) for table, topic in {**LOADED_FROM, **loaded_from}.items()),
        _known_users(),
        _calendar(),
        _known_profiles(),
        _owned_visits(),
        _whole_sessions(),
    ]


def _source(source: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", source.name])
    daily = source.properties["delivery"] == "daily"
    specs = [
        spec(key, REFUSED, f"Every record of {source.name} satisfies its contract", "error"),
        spec(key, LANDED, f"Every file of {source.name} is landed as it is now", "warning"),
        spec(key, NAMED, f"Every file of {source.name} has a day as its name", "warning"),
        spec(key, ANNOUNCED, f"Every announced file of {source.name} arrived whole", "warning"),
    ]
    if daily:
        specs.append(spec(key, DELIVERED, f"{source.name} was delivered every day", "warning"))

    @asset_checks(specs=specs, name=f"deliveries_of_{source.name}")
    def deliveries_of_source(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        lake, folder = platform.lake(), platform.sources()
        landed = delivered(lake, source.name)
        days = days_looked_at(context, landed) if is_daily_log(source) else list(landed)
        letters = lake.read(
            "dead_letters", columns=["delivered_on", "line", "reason"], days=days, topic=source.name
        ).to_pylist()
        rows = lake.read("deliveries", columns=["delivered_on", "records"], topic=source.name)
        records = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
        total = sum(records[day] for day in days if day in records)
        found = folder.deliveries(source)
        yield reported(key, no_record_was_refused(source, letters, total))
        yield reported(key, every_file_names_its_day(source, found.unrecognised))
        of_run = days_of_run(context) if is_daily_log(source) else []
        last = max(of_run, default=date.max)
        announced = {
            day: folder.announcement(source, name).records
            for day, name in found.announced.items()
            if day <= last
        }
        yield reported(key, every_announced_file_arrived_whole(source, announced, records))
        waiting = unlanded_days(source, folder, lake, platform.settings.zone)
        yield reported(
            key, every_file_is_landed(source, [day for day in waiting if day <= last], landed)
        )
        if daily:
            first = platform.settings.first_day
            due = of_run or days_between(first, max(landed, default=first))
            yield reported(
                key, every_day_was_delivered(source, [day for day in due if day >= first], landed)
            )

    return deliveries_of_source


def no_record_was_refused(
    source: Contract, letters: Collection[Mapping[str, object]], total: int
) -> CheckResult:
    """Whether landing refused records: `letters` are their dead letters, `total` all records.

    Some are worth a warning; if it refused all, the source has changed, and nothing may go on.
    """
    reasons = Counter(str(letter["reason"]) for letter in letters)
    most = "; ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
    return CheckResult(
        name=REFUSED,
        state="failed" if letters else "passed",
        severity="error" if letters and len(letters) == total else "warning",
        description=f"every record of {source.name} satisfies its contract",
        expected="no dead letter",
        observed=f"{len(letters):,} of {total:,} records refused" + (f": {most}" if most else ""),
        failing=len(letters),
        total=total,
        remedy=f"Ask {source.owner} to correct the records and deliver these days again",
        sample=sample_of(letters, ()),
        numbers={"dead_letters": len(letters), "records": total},
    )


def every_file_is_landed(
    source: Contract, waiting: Sequence[date], landed: Collection[date]
) -> CheckResult:
    """Whether files wait to be landed: late ones, and corrections of what is landed."""
    changed = sum(day in landed for day in waiting)
    return CheckResult(
        name=LANDED,
        state="failed" if waiting else "passed",
        severity="warning",
        description=f"every file of {source.name} is landed as it is now",
        expected="no file that is new or has changed",
        observed=f"{len(waiting)} files wait: {len(waiting) - changed} new, {changed} changed since"
        " they were landed",
        failing=len(waiting),
        total=len({*landed, *waiting}),
        remedy=f"Materialize these days of lake/{source.name} and what is made of them",
        sample=sample_of(({"delivered_on": day} for day in waiting), ()),
        numbers={"new_files": len(waiting) - changed, "changed_files": changed},
    )


def every_file_names_its_day(source: Contract, names: Collection[str]) -> CheckResult:
    """Whether files lie in the source's folder that no day was read from."""
    return CheckResult(
        name=NAMED,
        state="failed" if names else "passed",
        severity="warning",
        description=f"every file of {source.name} has a day as its name",
        expected="YYYY-MM-DD.jsonl or YYYY-MM-DD.jsonl.gz",
        observed=f"{len(names)} files of {source.name} are not read: {', '.join(sorted(names)[:5])}"
        if names
        else "no other file",
        failing=len(names),
        total=len(names),
        remedy=f"Rename the files of {source.name} to their day, or move them away",
        sample=sample_of(({"file": name} for name in sorted(names)), ()),
        numbers={"unrecognised_files": len(names)},
    )


def every_announced_file_arrived_whole(
    source: Contract, announced: Mapping[date, int], landed: Mapping[date, int]
) -> CheckResult:
    """Whether each announced file is landed with as many records as it was announced to have.

    Args:
        source: the contract.
        announced: records by day.
        landed: records by day, refused ones included.
    """
    wrong = {day: count for day, count in announced.items() if landed.get(day) != count}
    absent = sum(day not in landed for day in wrong)
    return CheckResult(
        name=ANNOUNCED,
        state="failed" if wrong else "passed",
        severity="warning",
        description=f"every announced file of {source.name} arrived whole",
        expected=f"{len(announced)} announced files, each with the records it was announced with",
        observed=f"{len(wrong)} of {len(announced)} announced files: {absent} did not arrive,"
        f" {len(wrong) - absent} have another number of records",
        failing=len(wrong),
        total=len(announced),
        remedy=f"Ask {source.owner} to deliver these days whole, then materialize their partitions",
        sample=sample_of(
            (
                {"delivered_on": day, "announced": count, "landed": landed.get(day, "no file")}
                for day, count in sorted(wrong.items())
            ),
            (),
        ),
        numbers={"absent_files": absent, "other_counts": len(wrong) - absent},
    )


def every_day_was_delivered(
    source: Contract, days: Collection[date], landed: Collection[date]
) -> CheckResult:
    """Whether each of the days is among the landed ones."""
    missing = sorted(set(days) - set(landed))
    listed = ", ".join(str(day) for day in missing[:5]) + (" ..." if len(missing) > 5 else "")  # noqa: PLR2004
    return CheckResult(
        name=DELIVERED,
        state="failed" if missing else "passed",
        severity="warning",
        description=f"{source.name} was delivered every day",
        expected=f"{len(days)} days",
        observed=f"{len(missing)} of {len(days)} days not delivered"
        + (f": {listed}" if missing else ""),
        failing=len(missing),
        total=len(days),
        remedy=f"Ask {source.owner} for these days, then materialize their partitions",
        sample=sample_of(({"delivered_on": day} for day in missing), ()),
        numbers={"missing_days": len(missing), "days": len(days)},
    )


def _known_fields(feed: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", feed.name])
    description = f"No record of {feed.name} has a field that its contract or schema does not know"

    @asset_checks(
        specs=[spec(key, KNOWN_FIELDS, description, "warning")], name=f"fields_of_{feed.name}"
    )
    def fields_of_feed(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        rows = platform.lake().read("deliveries", topic=feed.name).to_pylist()
        days = set(days_looked_at(context, [row["delivered_on"] for row in rows]))
        looked_at = [row for row in rows if row["delivered_on"] in days]
        yield reported(key, every_field_is_known(feed, looked_at))

    return fields_of_feed


def every_field_is_known(feed: Contract, deliveries: Collection[Mapping[str, Any]]) -> CheckResult:
    """Whether records had fields beyond their contract: the source has changed."""
    fields: Counter[str] = Counter()
    for row in deliveries:
        fields.update(json.loads(row["drift"] or "{}"))
    records = sum(row["records"] for row in deliveries)
    told = ", ".join(f"{name} ({count:,})" for name, count in fields.most_common(5))
    landed = policy(feed) == "evolve"
    return CheckResult(
        name=KNOWN_FIELDS,
        state="failed" if fields else "passed",
        severity="warning",
        description=f"no record of {feed.name} has a field that the contract does not know",
        expected="no unknown field",
        observed=f"{len(fields)} unknown fields" + (f": {told}" if told else ""),
        failing=max(fields.values(), default=0),
        total=records,
        remedy=f"Ask {feed.owner} what the fields mean and add them to the contract"
        + ("" if landed else "; then materialize the days again"),
        sample=sample_of(({"field": f, "records": n} for f, n in fields.most_common()), ()),
        numbers={"unknown_fields": len(fields), "records": records},
    )


def _built_days(topics: Sequence[str]) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", "events"])

    @asset_checks(
        specs=[spec(key, BUILT, "Every day is built from what is landed now", "error")],
        name="days_of_events",
    )
    def days_of_events(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        lake = platform.lake()
        landed = {day for topic in topics for day in delivered(lake, topic)}
        wanted = landed.intersection(days_of_run(context) or landed)
        stale = stale_days(lake, wanted, platform.settings.zone, topics)
        yield reported(key, every_day_is_there(BUILT, "lake/events", wanted, wanted - set(stale)))

    return days_of_events


def _loaded_days(table: str, topic: str) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table])

    @asset_checks(
        specs=[spec(key, LOADED, f"Every day of lake/{topic} is in {table} as it is now", "error")],
        name=f"days_of_{table}",
        pool=POOL,
    )
    def days_of_table(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        wanted = delivered(platform.lake(), topic)
        with platform.warehouse() as warehouse:
            stale = stale_loads(warehouse, contract(table), table_sql(table), wanted)
        loaded = wanted.keys() - set(stale)
        yield reported(key, every_day_is_there(LOADED, f"warehouse/{table}", wanted, loaded))

    return days_of_table


def every_day_is_there(
    name: str, asset: str, wanted: Collection[date], there: Collection[date]
) -> CheckResult:
    """Whether each delivery day that is wanted is among those that are in an asset."""
    missing = sorted(set(wanted) - set(there))
    return CheckResult(
        name=name,
        state="failed" if missing else "passed",
        severity="error",
        description=f"every delivery day is in {asset}",
        expected=f"{len(wanted)} days",
        observed=f"{len(missing)} of {len(wanted)} days are missing or outdated in {asset}",
        failing=len(missing),
        total=len(wanted),
        remedy=f"Materialize these days of {asset}",
        sample=sample_of(({"delivered_on": day} for day in missing), ()),
        numbers={"missing_days": len(missing), "days": len(wanted)},
    )


def _known_users() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", "dim_user"])
    fact = dg.AssetKey(["warehouse", "fct_purchase"])

    @asset_checks(
        specs=[spec(key, DEMOGRAPHICS, "Every user who bought is in dim_user", "warning", fact)],
        name="buyers_in_dim_user",
        pool=POOL,
    )
    def buyers_in_dim_user(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            yield reported(key, every_buyer_has_demographics(warehouse))

    return buyers_in_dim_user


def every_buyer_has_demographics(source: Source) -> CheckResult:
    """How many users of fct_purchase have no row in dim_user."""
    users = source.query(
        "SELECT COUNT(*) AS users, COUNT(dim_user.user_key) AS known"
        " FROM (SELECT DISTINCT user_key FROM fct_purchase) AS buyer"
        " LEFT JOIN (SELECT DISTINCT user_key FROM dim_user) AS dim_user"
        " ON dim_user.user_key = buyer.user_key"
    )
    return _every_user_has(
        DEMOGRAPHICS,
        "households",
        "demographics",
        users,
        "Join dim_user with LEFT JOIN, and ask crm-team for the households they lack",
        "warning",
    )


def _calendar() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", "dim_date"])

    @asset_checks(
        specs=[spec(key, GAPLESS, "From the first to the last day none is missing", "error")],
        name="days_of_dim_date",
        pool=POOL,
    )
    def days_of_dim_date(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            there = warehouse.query("SELECT date FROM dim_date").column("date").to_pylist()
        wanted = days_between(min(there), max(there)) if there else []
        yield reported(key, every_day_is_there(GAPLESS, "warehouse/dim_date", wanted, there))

    return days_of_dim_date


def _known_profiles() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", "profile"])

    @asset_checks(
        specs=[spec(key, PROFILED, "Every user with a counted event has a profile", "error")],
        name="users_of_profile",
        pool=POOL,
    )
    def users_of_profile(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            yield reported(key, every_user_with_events_has_a_profile(warehouse))

    return users_of_profile


def every_user_with_events_has_a_profile(source: Source) -> CheckResult:
    """How many users whose events count, as docs/profiles.md defines it, have no profile."""
    counts = f"received_at <= DATEADD(day, {LATE_DAYS}, occurred_at)"
    users = source.query(
        "SELECT COUNT(*) AS users, COUNT(profile.user_id) AS known FROM ("  # noqa: S608
        f" SELECT user_id FROM fct_purchase WHERE {counts}"
        " UNION"
        f" SELECT user_id FROM fct_interaction WHERE {counts}"
        ") AS seen LEFT JOIN profile ON profile.user_id = seen.user_id"
    )
    return _every_user_has(
        PROFILED, "users", "profile", users, "Materialize warehouse/profile again", "error"
    )


def _owned_visits() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", IDENTITY])

    @dg.multi_asset_check(
        specs=[spec(key, OWNED, "Every visit with a login that counts has its owner", "error")],
        name=f"owners_of_{IDENTITY}",
        pool=POOL,
    )
    def owners_of_visits(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            yield reported(key, every_visit_with_a_login_has_its_owner(warehouse))

    return owners_of_visits


def every_visit_with_a_login_has_its_owner(source: Source) -> CheckResult:
    """Whether as many visits have an owner as have a login, of the events that count."""
    logins = (
        f"SELECT DISTINCT anonymous_id, session_id FROM ({counted()}) AS event"  # noqa: S608
        " WHERE NOT user_id IS NULL AND NOT session_id IS NULL"
    )
    return same_rows(
        OWNED,
        source.query(f"SELECT 'all' AS of_what, COUNT(*) AS visits FROM ({logins}) AS login"),  # noqa: S608
        source.query(
            f"SELECT 'all' AS of_what, COUNT(*) AS visits FROM {IDENTITY} WHERE is_current"  # noqa: S608
        ),
        key=["of_what"],
        description=f"every visit with a login has its owner in {IDENTITY}",
        remedy=f"Materialize warehouse/{IDENTITY}, then warehouse/{SESSIONS}",
    )


def _whole_sessions() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", SESSIONS])

    @dg.multi_asset_check(
        specs=[spec(key, IN_SESSIONS, "Every event that counts is in one session", "error")],
        name=f"events_of_{SESSIONS}",
        pool=POOL,
    )
    def events_of_sessions(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        with platform.warehouse() as warehouse:
            yield reported(key, every_event_is_in_one_session(warehouse))

    return events_of_sessions


def every_event_is_in_one_session(source: Source) -> CheckResult:
    """Whether the sessions of each device have as many events as count, and no others.

    A sample names devices by masks.
    """
    event = f"SELECT anonymous_id, COUNT(*) AS events FROM ({counted()}) AS event GROUP BY 1"  # noqa: S608
    session = f"SELECT anonymous_id, SUM(events) AS events FROM {SESSIONS} GROUP BY 1"  # noqa: S608
    differing = (
        "SELECT {0}.anonymous_id, {0}.events FROM ({1}) AS event FULL JOIN ({2}) AS session"
        " ON session.anonymous_id = event.anonymous_id"
        " WHERE COALESCE(event.events, 0) <> COALESCE(session.events, 0)"
        " AND NOT {0}.anonymous_id IS NULL"
    )
    return same_rows(
        IN_SESSIONS,
        source.query(differing.format("event", event, session)),
        source.query(differing.format("session", event, session)),
        key=["anonymous_id"],
        description=f"every event that counts is in one session of its device in {SESSIONS}",
        remedy=f"Materialize warehouse/{IDENTITY}, then warehouse/{SESSIONS}",
        personal=["anonymous_id"],
    )


def _every_user_has(
    name: str, who: str, what: str, users: pa.Table, remedy: str, severity: Severity
) -> CheckResult:
    """Whether as many users are `known` as there are `users`, both columns of one row."""
    [counts] = users.to_pylist()
    lacking = counts["users"] - counts["known"]
    return CheckResult(
        name=name,
        state="failed" if lacking else "passed",
        severity=severity,
        description=f"all {who} of the facts have their {what}",
        expected=f"all {counts['users']:,} {who} have their {what}",
        observed=f"{lacking:,} of {counts['users']:,} {who} have no {what}",
        failing=lacking,
        total=counts["users"],
        remedy=remedy,
        numbers={"lacking": lacking, "users": counts["users"]},
    )
