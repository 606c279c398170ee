"""The definitions as Dagster loads them.

What every asset and check is lies in snapshots/definitions.yaml. After a change that is meant,
renew it and look at the difference:

    RENEW_SNAPSHOTS=1 python -m pytest tests/unit/test_definitions.py
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import yaml
from dagster_snowflake import SnowflakeResource

from assets.warehouse import POOL, SQL_DIR, TOPICS
from checks.anomaly import anomaly_checks
from checks.completeness import completeness_checks
from checks.consistency import consistency_checks
from checks.live import live_checks
from checks.schema import schema_checks
from platform_defs import freshness
from platform_defs.build import build_defs
from platform_defs.resources import open_platform, snowflake_resource, with_credentials
from profilehouse.contracts import Contract, contract, contracts_of
from profilehouse.events.build import EVENT_SOURCES
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.settings import Settings
from profilehouse.stream.status import Status, utc_now, write_status

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).parent / "snapshots" / "definitions.yaml"
HEAVY = ("great_expectations", "snowflake.connector", "dagster_snowflake", "pyspark", "pandas")
ENGINES = ("duckdb", "pyiceberg", "boto3", "pyarrow.dataset")
BOOKKEEPING = {
    "raw",
    "dead_letters",
    "deliveries",
    "quarantine",
    "repairs",
    "load_ledger",
    "web_load_ledger",
    "metric_history",
}
"""Tables that loads and checks keep for themselves; they have no asset of their own."""
NO_TABLES = {
    "live/live_process",
    "lake/upkeep/compacted",
    "lake/upkeep/expired",
    "lake/upkeep/cleared",
    "quality/data_docs",
    "health/live_path",
    "health/storage",
    "health/alerts",
}
"""Assets that are no data of their own: a process, and what is done to tables."""
SETTINGS = Settings(timezone="America/New_York", first_day=date(2026, 1, 1), _env_file=None)


@cache
def definitions() -> dg.Definitions:
    return build_defs(SETTINGS)


@cache
def steps() -> tuple[dg.AssetsDefinition, ...]:
    """All that runs: assets first, then checks."""
    defs = definitions()
    runs = [*(defs.assets or ()), *(defs.asset_checks or ())]
    return tuple(step for step in runs if isinstance(step, dg.AssetsDefinition))


def specs() -> dict[str, dg.AssetSpec]:
    found = {spec.key.to_user_string(): spec for spec in definitions().resolve_all_asset_specs()}
    return dict(sorted(found.items()))


def pools() -> dict[str, str | None]:
    return {key.to_user_string(): step.op.pool for step in steps() for key in step.keys}


def declared_tables() -> Iterator[tuple[str, Contract]]:
    """The asset each contract declares, and the contract."""
    for source in contracts_of("sources"):
        yield f"sources/{source.name}", source
        yield f"lake/{source.name}", source
    for kind in ("lake", "warehouse"):
        for table in contracts_of(kind):
            if table.name not in BOOKKEEPING:
                yield f"{kind}/{table.name}", table
    yield "live/event_log", contract("web")
    yield "warehouse/profile", profile_contract(load_declaration())
    yield "profiles/profile_store", profile_contract(load_declaration())


# Loading


def in_a_new_process(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PROFILEHOUSE_", "DAGSTER_HOME", "SNOWFLAKE_"))
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


LOADING = """
import json, sys, time
import dagster
import pydantic_settings
start, before = time.process_time(), set(sys.modules)
import platform_defs.definitions
json.dump({"seconds": time.process_time() - start, "imported": sorted(set(sys.modules) - before)},
          sys.stdout)
"""


@pytest.mark.parametrize(
    "warehouse",
    ["duckdb:data/warehouse.duckdb", "snowflake://me@acme/HOUSE/STAR?warehouse=LOAD"],
    ids=["duckdb", "snowflake"],
)
def test_loading_is_quick_and_imports_no_engine_and_no_great_expectations(warehouse: str) -> None:
    ran = in_a_new_process(
        LOADING,
        PROFILEHOUSE_WAREHOUSE=warehouse,
        PROFILEHOUSE_LAKE="s3://bucket/lake",
        PROFILEHOUSE_CATALOG="glue:",
    )
    loaded = json.loads(ran.stdout)
    assert "platform_defs.build" in loaded["imported"]
    assert "checks.schema" in loaded["imported"]
    assert [
        name
        for name in loaded["imported"]
        for unwanted in (*HEAVY, *ENGINES)
        if name == unwanted or name.startswith(f"{unwanted}.")
    ] == []
    assert loaded["seconds"] < 6, "seconds of CPU, without bytecode; about 1 s is usual"


def test_a_wrong_setting_is_named_in_one_line_when_definitions_load() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        in_a_new_process("import platform_defs.definitions", PROFILEHOUSE_WAREHOUSE="oracle:x")
    last = failed.value.stderr.splitlines()[-1]
    assert "ProfilehouseError: settings: PROFILEHOUSE_WAREHOUSE is 'oracle:x': must be" in last


@pytest.mark.timeout(180)
def test_dg_finds_the_definitions_from_the_root(tmp_path: Path) -> None:
    ran = subprocess.run(
        [Path(sys.executable).parent / "dg", "check", "defs"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PROFILEHOUSE_")}
        | {"DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "All definitions loaded successfully" in ran.stdout


def test_resources_given_by_name_stand_in_for_those_of_the_settings(tmp_path: Path) -> None:
    elsewhere = open_platform(SETTINGS.model_copy(update={"lake": str(tmp_path)}))
    defs = build_defs(SETTINGS, platform=elsewhere, notes="further ones are kept")
    assert defs.resources == {"platform": elsewhere, "notes": "further ones are kept"}
    assert definitions().resources == {"platform": open_platform(SETTINGS)}


# What is defined


def described() -> dict[str, Any]:
    """All assets with their checks as plain values, in a fixed order."""
    checks: dict[str, dict[str, Any]] = defaultdict(dict)
    for step in steps():
        for check in step.check_specs:
            checks[check.asset_key.to_user_string()][check.name] = without_nothing(
                blocking=check.blocking,
                pool=step.op.pool,
                deps=sorted(d.asset_key.to_user_string() for d in check.additional_deps),
                step=step.op.name,
                description=check.description,
            )
    return {
        key: without_nothing(
            description=spec.description,
            group=spec.group_name,
            kinds=sorted(spec.kinds),
            owners=list(spec.owners),
            tags=[tag for tag in spec.tags if not tag.startswith("dagster/kind/")],
            deps=sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            partitions=str(spec.partitions_def) if spec.partitions_def else None,
            pool=pools().get(key),
            code_version=spec.code_version,
            contract=spec.metadata.get("contract"),
            contract_version=spec.metadata.get("contract_version"),
            sql=spec.metadata.get("sql"),
            columns=[
                f"{column.name}: {column.type}"
                for column in getattr(spec.metadata.get("dagster/column_schema"), "columns", ())
            ],
            checks=dict(sorted(checks[key].items())),
        )
        for key, spec in specs().items()
    }


def without_nothing(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, [], {}, False)}


def test_assets_and_checks_are_those_of_the_snapshot() -> None:
    now = yaml.safe_dump(described(), sort_keys=False, default_flow_style=None, width=1000)
    if os.environ.get("RENEW_SNAPSHOTS"):
        SNAPSHOT.write_text(now, "utf-8")
    kept = SNAPSHOT.read_text("utf-8") if SNAPSHOT.exists() else ""
    assert now.splitlines() == kept.splitlines(), (
        "The assets or checks are no longer those of tests/unit/snapshots/definitions.yaml. If"
        " that is meant, run RENEW_SNAPSHOTS=1 python -m pytest tests/unit/test_definitions.py"
        " and look at the difference."
    )


def test_every_asset_says_what_it_is_and_whose() -> None:
    lacking = {
        key: [
            name
            for name, value in {
                "group": spec.group_name,
                "owner": spec.owners,
                "kind": spec.kinds,
                "description": spec.description,
                "columns": key in NO_TABLES or spec.metadata.get("dagster/column_schema"),
            }.items()
            if not value
        ]
        for key, spec in specs().items()
    }
    assert len(lacking) > 20
    assert {key: names for key, names in lacking.items() if names} == {}


def test_every_contract_has_an_asset_whose_documented_columns_are_its_own() -> None:
    found = specs()
    assert dict(declared_tables()).keys() | NO_TABLES == found.keys()
    for key, table in declared_tables():
        columns = found[key].metadata["dagster/column_schema"].columns
        assert [(c.name, c.type, c.description) for c in columns] == [
            (c.name, c.type, c.description) for c in table.columns
        ], key


def test_every_asset_links_to_its_code_its_contract_and_its_sql_which_are_there() -> None:
    links: dict[str, list[str]] = {}
    for key, spec in specs().items():
        found = spec.metadata.get("dagster/code_references")
        files = [ref.file_path for ref in found.code_references] if found else []
        assert all(Path(file).is_file() for file in files), key
        links[key] = [Path(file).relative_to(ROOT).as_posix() for file in files]
    assert links["warehouse/fct_purchase"] == [
        "assets/warehouse/__init__.py",
        "contracts/warehouse/fct_purchase.odcs.yaml",
        "assets/warehouse/sql/fct_purchase.sql",
    ]
    made = definitions().resolve_asset_graph().executable_asset_keys
    assert [key for key in made if not links[key.to_user_string()]] == []


def test_columns_that_hold_personal_data_are_marked() -> None:
    marked = {
        column.name
        for column in specs()["warehouse/dim_user"].metadata["dagster/column_schema"].columns
        if "personal" in column.constraints.other
    }
    assert marked == {c.name for c in contract("dim_user").columns if c.personal} != set()


def test_every_file_of_sql_belongs_to_the_asset_of_its_name() -> None:
    feeds = ",".join(feed.name for feed in contracts_of("feeds"))
    everything = build_defs(SETTINGS.model_copy(update={"feeds": feeds})).resolve_all_asset_specs()
    named = {
        spec.metadata["sql"]: spec.key.to_user_string()
        for spec in everything
        if "sql" in spec.metadata
    }
    assert named == {
        file.relative_to(ROOT).as_posix(): f"warehouse/{file.stem}" for file in SQL_DIR.iterdir()
    }


def test_steps_that_open_the_warehouse_and_no_others_are_in_its_pool() -> None:
    opening = {
        step.op.name: ".warehouse(" in inspect.getsource(step.op.compute_fn.decorated_fn)  # type: ignore[union-attr]
        for step in steps()
    }
    assert sum(opening.values()) > 10
    assert {name: POOL if opens else None for name, opens in opening.items()} == {
        step.op.name: step.op.pool for step in steps()
    }


def test_every_dagster_yaml_pool_admits_one_step() -> None:
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text("utf-8"))
    assert instance["concurrency"]["pools"] == {"default_limit": 1, "granularity": "op"}


# Checks


def checked(*kinds: list[dg.AssetChecksDefinition]) -> set[str]:
    return {
        key.asset_key.to_user_string() for kind in kinds for step in kind for key in step.check_keys
    }


def test_every_source_and_table_is_checked() -> None:
    sources = {f"lake/{source.name}" for source in contracts_of("sources")}
    tables = {key for key, _ in declared_tables() if key.startswith("warehouse/")}
    facts = {"warehouse/fct_purchase", "warehouse/fct_interaction"}
    assert checked(schema_checks()) == sources | tables | {"lake/events"}
    web = {"warehouse/fct_web_event"}
    assert checked(completeness_checks()) == sources | tables - web | {"lake/events"}
    assert checked(consistency_checks()) == sources | facts | web | {
        "warehouse/fct_session",
        "lake/events",
        "profiles/profile_store",
    }
    assert checked(anomaly_checks()) == {
        "warehouse/fct_purchase",
        "lake/purchases",
        "lake/events",
    }
    assert checked(live_checks()) == {
        "live/live_process",
        "lake/web_events",
        "lake/web_dead_letters",
        "warehouse/fct_web_event",
        "profiles/profile_store",
    }


def test_the_events_of_every_source_are_in_exactly_one_fact() -> None:
    assert sorted(topic for topics in TOPICS.values() for topic in topics) == sorted(EVENT_SOURCES)


def test_every_column_that_must_be_there_or_refers_to_another_table_has_a_check() -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for check in definitions().resolve_asset_graph().asset_check_keys:
        names[check.asset_key.to_user_string()].add(check.name)
    tables = {
        key: table
        for key, table in declared_tables()
        if key.startswith("warehouse/") or (key.startswith("lake/") and table.kind == "sources")
    }
    wanted = {
        (key, f"{column.name}_{words}")
        for key, table in tables.items()
        for column in table.columns
        for words, needed in (
            ("is_present", column.required),
            ("is_in_set", bool(column.values)),
            (f"is_in_{str(column.references).split('.')[0]}", column.references is not None),
        )
        if needed
    }
    assert len(wanted) > 100
    assert {(key, name) for key, name in wanted if name not in names[key]} == set()


def test_what_the_real_data_breaks_and_anomalies_warn_and_all_else_of_rows_blocks() -> None:
    blocking = {
        (check.asset_key.to_user_string(), check.name): check.blocking
        for step in steps()
        for check in step.check_specs
    }
    assert not blocking["warehouse/fct_purchase", "content_key_is_in_dim_content"]
    assert not blocking["warehouse/dim_user", "every_buyer_has_demographics"]
    assert not any(blocks for (_, name), blocks in blocking.items() if name.endswith("_usual"))
    assert all(blocks for (_, name), blocks in blocking.items() if name.endswith("_is_present"))
    assert blocking["warehouse/fct_purchase", "money_of_facts_is_that_of_events"]
    assert blocking["profiles/profile_store", "store_and_warehouse_agree"]
    of_live = [
        blocking[c.asset_key.to_user_string(), c.name] for s in live_checks() for c in s.check_keys
    ]
    assert len(of_live) == 7
    assert not any(of_live)


# Schedules


def test_schedules_run_from_the_start_in_the_zone_of_the_business_day() -> None:
    schedules = {schedule.name: schedule for schedule in definitions().schedules or ()}
    assert {
        name: (s.job_name, s.cron_schedule, s.execution_timezone, s.default_status.value)
        for name, s in schedules.items()
    } == {
        "every_morning": ("daily_load", "*/15 6-23 * * *", "America/New_York", "RUNNING"),
        "every_sunday": ("all_checks", "0 8 * * 0", "America/New_York", "RUNNING"),
        "every_ten_minutes": ("live_checks", "*/10 * * * *", None, "RUNNING"),
        "every_hour": ("expire_lake", "17 * * * *", "America/New_York", "RUNNING"),
        "every_night": ("tidy_lake", "0 3 * * *", "America/New_York", "RUNNING"),
        "every_sunday_night": ("forget_runs", "30 4 * * 0", "America/New_York", "RUNNING"),
    }


def test_sensors_run_from_the_start() -> None:
    repository = definitions().get_repository_def()
    assert {
        s.name: (s.minimum_interval_seconds, s.default_status.value) for s in repository.sensor_defs
    } == {
        "observe_live": (60, "RUNNING"),
        "observe_health": (300, "RUNNING"),
        "fresh_events": (20, "RUNNING"),
        "alerts": (5, "RUNNING"),
    }


def test_what_is_made_here_by_schedule_has_a_freshness_policy_and_nothing_else_has() -> None:
    graph = definitions().resolve_asset_graph()
    policies = {
        key.to_user_string(): str(graph.get(key).freshness_policy)
        for key in graph.get_all_asset_keys()
        if graph.get(key).freshness_policy
    }
    made = {key.to_user_string() for key in graph.executable_asset_keys}
    assert policies.keys() == {key for key in made if not key.startswith("quality/")}
    assert graph.get(dg.AssetKey(["lake", "purchases"])).freshness_policy == freshness.DAILY
    hourly = dg.AssetKey(["lake", "upkeep", "expired"])
    assert graph.get(hourly).freshness_policy == freshness.HOURLY


def test_the_live_checks_wait_for_a_live_process(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"status": str(tmp_path)})
    repository = build_defs(settings).get_repository_def()

    def tick() -> Any:
        context = dg.build_schedule_context(
            resources={"platform": open_platform(settings)}, repository_def=repository
        )
        return repository.get_schedule_def("every_ten_minutes").evaluate_tick(context)

    assert "no live process has run yet: start one with" in tick().skip_message
    now = utc_now()
    fields = {"state": "stopped", "started_at": now, "written_at": now, "log": "", "topic_id": ""}
    write_status(settings, Status(instance="a-1", **fields))
    assert len(tick().run_requests) == 1


def test_the_jobs_of_the_live_path_make_and_check_what_is_theirs() -> None:
    def made(job: str) -> set[str]:
        layer = definitions().resolve_job_def(job).asset_layer
        return {key.to_user_string() for key in layer.selected_asset_keys}

    visits = {"fct_web_event", "dim_identity", "fct_session"}
    assert made("load_fresh_events") == {f"warehouse/{table}" for table in visits}
    assert made("expire_lake") == {"lake/upkeep/expired"}
    assert made("tidy_lake") == {"lake/upkeep/compacted", "lake/upkeep/cleared"}
    graph = definitions().resolve_job_def("live_checks").asset_layer.asset_graph
    assert {k.name for k in graph.asset_check_keys} == {
        k.name for step in live_checks() for k in step.check_keys
    }
    fresh = definitions().resolve_job_def("load_fresh_events").asset_layer.asset_graph
    assert {k.asset_key.path[-1] for k in fresh.asset_check_keys} == visits
    assert len(fresh.asset_check_keys) > 10


@dataclass
class Mornings:
    """The schedule every_morning on a folder of deliveries."""

    settings: Settings
    instance: dg.DagsterInstance

    def deliver(self, day: date, *sources: str) -> None:
        for source in sources or ("purchases",):
            folder = Path(self.settings.sources) / source
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{day}.jsonl").touch()

    def ask(self, at: datetime) -> tuple[list[str], str]:
        """The partitions of the runs that it asks for, or why there is none."""
        defs = build_defs(self.settings)
        context = dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=at,
            repository_def=defs.get_repository_def(),
            resources={"platform": open_platform(self.settings)},
        )
        found = defs.resolve_schedule_def("every_morning").evaluate_tick(context)
        requests = found.run_requests or ()
        assert [r.run_key for r in requests] == [r.partition_key for r in requests]
        return [str(r.partition_key) for r in requests], found.skip_message or ""


@pytest.fixture
def mornings(tmp_path: Path) -> Iterator[Mornings]:
    settings = SETTINGS.model_copy(update={"sources": str(tmp_path / "sources")})
    Path(settings.sources).mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Mornings(settings, instance)


def local(day: date, hour: int = 6, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo("America/New_York"))


@pytest.mark.parametrize(
    "morning", [date(2026, 1, 2), date(2026, 3, 8), date(2026, 3, 9), date(2026, 11, 2)]
)
def test_each_morning_asks_for_the_day_that_ended_also_when_clocks_change(
    mornings: Mornings, morning: date
) -> None:
    ended = morning - timedelta(days=1)
    mornings.deliver(ended)
    assert mornings.ask(local(morning)) == ([str(ended)], "")
    assert mornings.ask(local(morning).astimezone(ZoneInfo("UTC"))) == ([str(ended)], "")


def test_a_day_whose_delivery_is_late_waits_for_it_and_holds_up_no_other(
    mornings: Mornings,
) -> None:
    late, next_day = date(2026, 2, 1), date(2026, 2, 2)
    first = local(date(2026, 1, 2))
    assert mornings.ask(first) == ([], "Days wait for deliveries: 2026-01-01 for purchases.")
    for n in range(1, 32):
        mornings.deliver(date(2026, 1, n))
    for n in range(1, 32):
        event = dg.AssetMaterialization(["lake", "events"], partition=str(date(2026, 1, n)))
        mornings.instance.report_runless_asset_event(event)
    asked, why = mornings.ask(local(date(2026, 2, 2)))
    assert (asked, why) == ([], "Days wait for deliveries: 2026-02-01 for purchases.")
    mornings.deliver(next_day)
    assert mornings.ask(local(date(2026, 2, 3)))[0] == [str(next_day)]
    mornings.deliver(late)
    assert mornings.ask(local(date(2026, 2, 3), 14, 15))[0] == [str(late), str(next_day)]
    assert mornings.ask(local(date(2026, 2, 20)))[1].startswith(
        "Days wait for deliveries: 2026-02-13"
    )


def test_nothing_is_asked_for_when_all_days_are_loaded_or_before_the_first(
    mornings: Mornings,
) -> None:
    assert mornings.ask(local(date(2026, 1, 1))) == ([], "All days are loaded.")


def test_the_daily_job_makes_every_asset_and_runs_every_check() -> None:
    job = definitions().resolve_job_def("daily_load")
    made = {key.to_user_string() for key in job.asset_layer.selected_asset_keys}
    outside = {"live/event_log", "live/live_process", "lake/web_events", "lake/web_dead_letters"}
    by_hand = ("sources/", "lake/upkeep/", "quality/", "health/")
    assert made == {key for key in specs() if not key.startswith(by_hand)} - outside
    graph = definitions().resolve_asset_graph()
    checks = {k for k in graph.asset_check_keys if k.asset_key.path[0] != "health"}
    assert set(job.asset_layer.asset_graph.asset_check_keys) == checks
    others = ("lake__upkeep__", "quality__", "health_")
    ops = {step.op.name for step in steps() if not step.op.name.startswith(others)}
    assert ops == {node.definition.name for node in job.nodes}


def test_partitions_begin_with_the_first_day_and_end_with_yesterday() -> None:
    partitions = specs()["warehouse/fct_purchase"].partitions_def
    assert partitions is not None
    now = datetime(2026, 1, 4, 3, tzinfo=ZoneInfo("UTC"))  # 22:00 of the third in New York
    assert partitions.get_partition_keys(now) == ["2026-01-01", "2026-01-02"]


# Snowflake


@pytest.fixture
def on_snowflake(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("SNOWFLAKE_PRIVATE_KEY_FILE", "SNOWFLAKE_PRIVATE_KEY_FILE_PWD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "never shown")
    url = "snowflake://loader%40retail@acme-eu1/HOUSE/STAR?warehouse=LOAD&role=LOADER&host=h.test"
    return SETTINGS.model_copy(update={"warehouse": url})


def test_the_url_of_snowflake_becomes_dagsters_resource(on_snowflake: Settings) -> None:
    resource = snowflake_resource(on_snowflake)
    assert isinstance(resource, SnowflakeResource)
    shown = {
        "account": resource.account,
        "user": resource.user,
        "database": resource.database,
        "schema": resource.schema_,
        "warehouse": resource.warehouse,
        "role": resource.role,
        "paramstyle": resource.paramstyle,
    }
    assert shown == {
        "account": "acme-eu1",
        "user": "loader@retail",
        "database": "HOUSE",
        "schema": "STAR",
        "warehouse": "LOAD",
        "role": "LOADER",
        "paramstyle": "qmark",
    }
    further = resource.additional_snowflake_connection_args or {}
    assert further["host"] == "h.test"
    assert further["session_parameters"]["QUERY_TAG"] == '{"application":"profilehouse"}'
    assert resource.process_config_and_initialize().password == "never shown"


def test_a_token_of_snowflake_reaches_the_connection_and_is_not_shown(
    on_snowflake: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SNOWFLAKE_PASSWORD")
    monkeypatch.setenv("SNOWFLAKE_TOKEN", "never shown")
    resource = snowflake_resource(on_snowflake)
    assert "never shown" not in repr(resource)
    opened = with_credentials(resource)
    assert opened.authenticator == "oauth"
    assert (opened.additional_snowflake_connection_args or {})["token"] == "never shown"


def test_credentials_of_snowflake_are_never_shown(on_snowflake: Settings) -> None:
    resource = snowflake_resource(on_snowflake)
    defs = build_defs(on_snowflake)
    for shown in (repr(resource), str(resource), repr(on_snowflake), repr(defs.resources)):
        assert "never shown" not in shown
    assert "SNOWFLAKE_PASSWORD" in repr(resource)
