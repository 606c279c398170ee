"""Completeness: every day delivered and loaded, no record refused, no user unknown."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import date

import dagster as dg

from assets.warehouse import POOL
from checks._common import days_looked_at, reported, spec
from profilehouse.contracts import Contract, contracts_of
from profilehouse.events.build import EVENT_SOURCES
from profilehouse.platform import Platform
from profilehouse.quality.result import CheckResult, sample_of
from profilehouse.quality.sql import Source
from profilehouse.sources.landing import delivered

REFUSED = "no_record_was_refused"
NAMED = "every_file_names_its_day"
DELIVERED = "every_day_was_delivered"
LOADED = "every_delivered_day_is_loaded"
DEMOGRAPHICS = "every_buyer_has_demographics"


def completeness_checks() -> list[dg.AssetChecksDefinition]:
    """For each source, each fact, and the users."""
    return [
        *(_source(source) for source in contracts_of("sources")),
        _loaded_days("fct_purchase"),
        _loaded_days("fct_interaction"),
        _known_users(),
    ]


def _source(source: Contract) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["lake", source.name])
    daily = source.properties["delivery"] == "daily"
    specs = [
        spec(key, REFUSED, f"Every record of {source.name} satisfies its contract", "warning"),
        spec(key, NAMED, f"Every file of {source.name} has a day as its name", "warning"),
    ]
    if daily:
        specs.append(spec(key, DELIVERED, f"{source.name} was delivered every day", "warning"))

    @dg.multi_asset_check(specs=specs, name=f"deliveries_of_{source.name}")
    def deliveries_of_source(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        lake, folder = platform.lake(), platform.sources()
        landed = delivered(lake, source.name)
        days = days_looked_at(context, landed) if source.name in EVENT_SOURCES else list(landed)
        letters = lake.read(
            "dead_letters", columns=["delivered_on", "line", "reason"], days=days, topic=source.name
        ).to_pylist()
        records = lake.read("deliveries", columns=["records"], days=days, topic=source.name)
        total = sum(records.column("records").to_pylist())
        yield reported(key, no_record_was_refused(source, letters, total))
        yield reported(
            key, every_file_names_its_day(source, folder.deliveries(source).unrecognised)
        )
        if daily:
            first = platform.settings.first_day
            span = [day for day in days if day >= first]
            yield reported(key, every_day_was_delivered(source, span, landed))

    return deliveries_of_source


def no_record_was_refused(
    source: Contract, letters: Collection[Mapping[str, object]], total: int
) -> CheckResult:
    """Whether landing refused records: `letters` are their dead letters, `total` all records."""
    reasons = Counter(str(letter["reason"]) for letter in letters)
    most = "; ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
    return CheckResult(
        name=REFUSED,
        state="failed" if letters else "passed",
        severity="warning",
        description=f"every record of {source.name} satisfies its contract",
        expected="no dead letter",
        observed=f"{len(letters):,} of {total:,} records refused" + (f": {most}" if most else ""),
        failing=len(letters),
        total=total,
        remedy=f"Ask {source.owner} to correct the records and deliver these days again",
        sample=sample_of(letters, ()),
        numbers={"dead_letters": len(letters), "records": total},
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


def _loaded_days(table: str) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", table])

    @dg.multi_asset_check(
        specs=[spec(key, LOADED, f"Every day of lake/events is in {table}", "error")],
        name=f"days_of_{table}",
        pool=POOL,
    )
    def days_of_table(platform: dg.ResourceParam[Platform]) -> Iterator[dg.AssetCheckResult]:
        built = delivered(platform.lake(), "events")
        with platform.warehouse() as warehouse:
            ledger = warehouse.query(
                "SELECT delivered_on FROM load_ledger WHERE table_name = ?", (table,)
            )
        loaded = ledger.column("delivered_on").to_pylist()
        yield reported(key, every_delivered_day_is_loaded(table, built, loaded))

    return days_of_table


def every_delivered_day_is_loaded(
    table: str, built: Collection[date], loaded: Collection[date]
) -> CheckResult:
    """Whether each day of the lake's events is in the table's ledger."""
    missing = sorted(set(built) - set(loaded))
    return CheckResult(
        name=LOADED,
        state="failed" if missing else "passed",
        severity="error",
        description=f"every day of lake/events is in {table}",
        expected=f"{len(built)} days",
        observed=f"{len(missing)} of {len(built)} days not loaded",
        failing=len(missing),
        total=len(built),
        remedy=f"Materialize these partitions of warehouse/{table}",
        sample=sample_of(({"delivered_on": day} for day in missing), ()),
        numbers={"missing_days": len(missing), "days": len(built)},
    )


def _known_users() -> dg.AssetChecksDefinition:
    key = dg.AssetKey(["warehouse", "dim_user"])
    fact = dg.AssetKey(["warehouse", "fct_purchase"])

    @dg.multi_asset_check(
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
    [counts] = source.query(
        "SELECT COUNT(*) AS buyers, COUNT(dim_user.user_key) AS known"
        " FROM (SELECT DISTINCT user_key FROM fct_purchase) AS buyer"
        " LEFT JOIN (SELECT DISTINCT user_key FROM dim_user) AS dim_user"
        " ON dim_user.user_key = buyer.user_key"
    ).to_pylist()
    unknown = counts["buyers"] - counts["known"]
    return CheckResult(
        name=DEMOGRAPHICS,
        state="failed" if unknown else "passed",
        severity="warning",
        description="every user who bought is in dim_user",
        expected=f"all {counts['buyers']:,} households that bought are in dim_user",
        observed=f"{unknown:,} of {counts['buyers']:,} households have no demographics",
        failing=unknown,
        total=counts["buyers"],
        remedy="Join dim_user with LEFT JOIN, and ask crm-team for the households they lack",
        numbers={"unknown_users": unknown, "users": counts["buyers"]},
    )
