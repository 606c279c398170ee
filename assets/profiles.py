"""The profiles: computed in the warehouse, and folded into the store that serves them."""

from collections.abc import Mapping

import dagster as dg

from assets._common import column_lineage, column_schema, declared, owners
from assets.warehouse import POOL, told, work_of
from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.events.build import newest_event_day
from profilehouse.platform import Platform
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.profiles.sql import FACTS, profile_sql
from profilehouse.profiles.store import Store
from profilehouse.sources.landing import delivered
from profilehouse.stream.rebuild import rebuild_from_lake
from profilehouse.warehouse.load import load_derived
from profilehouse.warehouse.sql import lineage


def profile_assets() -> list[dg.AssetsDefinition]:
    """The warehouse's profile table and the profile store, from one declaration."""
    return [_profile_table(), _profile_store()]


def _profile_table() -> dg.AssetsDefinition:
    declaration = load_declaration()
    table = profile_contract(declaration)

    @dg.asset(
        key=["warehouse", table.name],
        deps=[dg.AssetKey(["warehouse", fact]) for fact in FACTS],
        group_name="profiles",
        kinds={"sql", "table"},
        pool=POOL,
        description=table.description,
        owners=owners(table),
        metadata=declared(table),
    )
    def profile(
        context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> dg.MaterializeResult[None]:
        as_of = newest_event_day(platform.lake(), platform.settings.zone)
        sql = profile_sql(declaration, as_of)
        with platform.at_work(**work_of(context)).warehouse() as warehouse:
            report = load_derived(warehouse, table, sql, FACTS, as_of)
            further = told(warehouse)
        columns = {fact: [c.name for c in contract(fact).columns] for fact in FACTS}
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": report.rows,
                "as_of": as_of.isoformat(),
                **further,
                **column_lineage(
                    lineage(sql, columns),
                    {fact: dg.AssetKey(["warehouse", fact]) for fact in FACTS},
                ),
            }
        )

    return profile


def _profile_store() -> dg.AssetsDefinition:
    declaration = load_declaration()

    @dg.asset(
        key=["profiles", "profile_store"],
        deps=[
            dg.AssetKey(["lake", "events"]),
            dg.AssetKey(["lake", "web_events"]),
            dg.AssetKey(["live", "live_process"]),
        ],
        group_name="profiles",
        kinds={"lmdb"},
        description=profile_contract(declaration).description,
        owners=owners(profile_contract(declaration)),
        metadata={"dagster/column_schema": column_schema(profile_contract(declaration))},
    )
    def profile_store(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        """Folded anew when a delivery changed; the live process goes on with the new generation."""
        lake = platform.lake()
        deliveries = {day.isoformat(): sha256 for day, sha256 in delivered(lake, "events").items()}
        with platform.profile_store(declaration) as store:
            if _folded(store) != deliveries:
                rebuild_from_lake(platform, lake, store, declaration, deliveries)
                store.refresh()
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": len(store),
                    "oversized_rows": sum(1 for _ in store.oversized()),
                    "generation": store.generation,
                    "newest_event_day": str(store.meta.newest_day),
                }
            )

    return profile_store


def _folded(store: Store) -> Mapping[str, str] | None:
    """The deliveries that the current generation was folded from; None where it cannot be used."""
    try:
        return store.meta.deliveries
    except ProfilehouseError:
        return None
