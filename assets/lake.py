"""The lake's assets: every source as it was delivered, and the events made from them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date

import dagster as dg

from assets._common import column_schema, days_of, declared, owners, report_days, spans
from profilehouse.contracts import Contract, contract, contracts_of
from profilehouse.events.build import CATALOG, EVENT_SOURCES, build_events, event_topics
from profilehouse.platform import Platform
from profilehouse.sources.deliveries import Folder
from profilehouse.sources.drift import policy
from profilehouse.sources.landing import Landed, land


def delivered_files(
    feeds: Sequence[Contract], fetched: Mapping[str, dg.AssetsDefinition]
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """What other systems deliver: outside of the platform, where the graph begins; or fetched.

    Args:
        feeds: the optional sources that are on.
        fetched: the assets of those that the platform fetches itself, by name.
    """
    return [
        fetched[source.name]
        if source.name in fetched
        else dg.AssetSpec(
            key=["sources", source.name],
            group_name="sources",
            kinds={"file", "json"},
            description=f"Daily files of {source.name}: {source.description}",
            owners=owners(source),
            metadata={"dagster/column_schema": column_schema(source)},
        )
        for source in (*contracts_of("sources"), *feeds)
    ]


def lake_assets(
    daily: dg.PartitionsDefinition[str], feeds: Sequence[Contract] = ()
) -> list[dg.AssetsDefinition]:
    """One asset a source, and the events.

    The logs that events come from, and the feeds, are partitioned by delivery day. What is
    delivered only when it changes (customers, catalog, campaigns) is not: every run lands whatever
    has arrived.

    Args:
        daily: a partition a delivery day.
        feeds: the optional sources that are on.
    """
    return [
        *(
            _daily_log(source, daily) if source.name in EVENT_SOURCES else _reference(source)
            for source in contracts_of("sources")
        ),
        *(_daily_log(feed, daily) for feed in feeds),
        _events(daily, event_topics(feeds)),
    ]


def _asset(
    table: Contract,
    upstream: Sequence[Sequence[str]],
    daily: dg.PartitionsDefinition[str] | None = None,
) -> Callable[..., dg.AssetsDefinition]:
    """The decorator of a lake table's asset; `daily` where it is partitioned."""
    return dg.asset(
        key=["lake", table.name],
        deps=[dg.AssetKey(key) for key in upstream],
        partitions_def=daily,
        backfill_policy=dg.BackfillPolicy.single_run() if daily else None,
        group_name="lake",
        kinds={"iceberg"},
        description=table.description,
        owners=owners(table),
        metadata=declared(table) | ({"drift": policy(table)} if table.kind == "feeds" else {}),
    )


def _daily_log(source: Contract, daily: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    @_asset(source, [["sources", source.name]], daily)
    def landed(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        days = days_of(context)
        folder, lake = platform.sources(), platform.lake()
        _report_files(context, source, folder)
        result = land(source, days, folder, lake, platform.settings.zone, context.run.run_id)
        if result.problems:
            for day in days:
                if day not in result.problems:
                    context.log_event(
                        dg.AssetMaterialization(context.asset_key, partition=str(day))
                    )
            raise _failure(source, result)
        report_days(context, days, lake.days(source.name))
        return dg.MaterializeResult(metadata=_landed_metadata(result))

    return landed


def _reference(source: Contract) -> dg.AssetsDefinition:
    @_asset(source, [["sources", source.name]])
    def landed(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        folder, lake = platform.sources(), platform.lake()
        days = _report_files(context, source, folder)
        result = land(source, days, folder, lake, platform.settings.zone, context.run.run_id)
        if result.problems:
            raise _failure(source, result)
        rows = sum(lake.days(source.name).values())
        return dg.MaterializeResult(
            metadata={"dagster/row_count": rows, **_landed_metadata(result)}
        )

    return landed


def _report_files(
    context: dg.AssetExecutionContext, source: Contract, folder: Folder
) -> Mapping[date, str]:
    """The files a source has delivered, by day; the source is seen as observed."""
    files = folder.deliveries(source).files
    context.log_event(
        dg.AssetObservation(
            ["sources", source.name],
            metadata={"files": len(files), "newest": str(max(files, default="none"))},
        )
    )
    return files


def _landed_metadata(result: Landed) -> dict[str, int | str]:
    return {
        "records": result.records,
        "dead_letters": result.dead_letters,
        "quarantined": result.quarantined,
        "landed_days": spans(result.days),
        "unchanged_days": result.unchanged,
        **({"unknown_fields": _counted(result.drift)} if result.drift else {}),
    }


def _counted(fields: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in sorted(fields.items()))


def _failure(source: Contract, result: Landed) -> dg.Failure:
    problems = list(result.problems.values())
    count = "one delivery" if len(problems) == 1 else f"{len(problems)} deliveries"
    return dg.Failure(
        f"missing or unreadable: {count} of {source.name}; all others have landed."
        f" {'; '.join(problems[:5])}{' ...' if len(problems) > 5 else ''}",  # noqa: PLR2004
        allow_retries=False,
    )


def _events(daily: dg.PartitionsDefinition[str], topics: Sequence[str]) -> dg.AssetsDefinition:
    @_asset(
        contract("events"),
        [["lake", topic] for topic in (*topics, CATALOG)],
        daily,
    )
    def events(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        days = days_of(context)
        lake = platform.lake()
        built = build_events(lake, days, platform.settings.zone, topics)
        report_days(context, days, lake.days("events"))
        return dg.MaterializeResult(
            metadata={
                "built_events": sum(built.events.values()),
                "built": spans(list(built.events)),
                "unchanged_days": built.unchanged,
            }
        )

    return events
