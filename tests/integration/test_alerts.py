"""Alerts: what Dagster knows of troubles reaches a real mail server and a real web server, once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus

from assets.live import LIVE_PROCESS
from platform_defs import findings
from platform_defs.alerts import alerts, round_of_alerts
from platform_defs.findings import LATE
from profilehouse.alerts import delivery
from profilehouse.alerts.outbox import Outbox
from profilehouse.alerts.rules import load_rules
from profilehouse.errors import ProfilehouseError
from profilehouse.platform import Platform
from profilehouse.settings import Settings, load_settings
from profilehouse.stream.status import Status, write_status
from profilehouse.times import utc_now
from services.process import HOST
from tests.receivers import Mail, Web, mail, web

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DAYS = dg.DailyPartitionsDefinition("2026-01-01")
SALES = dg.AssetKey(["lake", "sales"])
TOTALS = dg.AssetKey(["warehouse", "totals"])
CHECKS = [f"rule_{n:03}" for n in range(160)]


def definitions() -> dg.RepositoryDefinition:
    """A partitioned asset that fails when told so, one after it, and many checks."""

    @dg.asset(key=SALES, partitions_def=DAYS, owners=["team:sales-team"])
    def sales(context: dg.AssetExecutionContext) -> None:
        if context.run.tags.get("fail") == "sales":
            raise ValueError("the file 2026-01-01.jsonl is cut short; password=hunter22")

    @dg.asset(
        key=TOTALS,
        deps=[SALES],
        owners=["team:finance"],
        freshness_policy=dg.FreshnessPolicy.time_window(timedelta(hours=2), timedelta(hours=1)),
    )
    def totals(context: dg.AssetExecutionContext) -> None:
        if context.run.tags.get("fail") == "totals":
            raise ValueError("no space left")

    @dg.asset_check(asset=SALES, name="adds_up", blocking=True)
    def adds_up(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return evaluation(passed=context.run.tags.get("fail") != "check")

    specs = [dg.AssetCheckSpec(name, asset=SALES) for name in CHECKS]

    @dg.multi_asset_check(specs=specs, name="rules")
    def rules() -> Iterator[dg.AssetCheckResult]:
        yield from ()

    tables = dg.AssetSelection.assets(SALES, TOTALS)
    loaded = tables.without_checks() | dg.AssetSelection.checks(adds_up)
    live = dg.AssetSpec(LIVE_PROCESS, owners=["team:web-team"])
    return dg.Definitions(
        assets=[sales, totals, live],
        asset_checks=[adds_up, rules],
        jobs=[dg.define_asset_job("load", selection=loaded)],
        executor=dg.in_process_executor,
    ).get_repository_def()


def evaluation(passed: bool) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "expected": "the lines of a basket add up to its total",
            "observed": "2 of 900 baskets do not",
            "what to do": "Ask sales-team to deliver the day again",
            "sample": dg.MetadataValue.table(
                [dg.TableRecord({"basket": "17", "off_by": "0.05"})],
                dg.TableSchema([dg.TableColumn("basket"), dg.TableColumn("off_by")]),
            ),
        },
    )


@dataclass
class House:
    """An installation with a Dagster instance of its own, and where its alerts go."""

    folder: Path
    instance: dg.DagsterInstance
    web: Web
    mail: Mail
    mail_address: str
    repository: Any = field(default_factory=definitions)

    @property
    def settings(self) -> Settings:
        return load_settings(
            alerts=str(self.folder / "alerts.yaml"),
            outbox=str(self.folder / "outbox" / "outbox.sqlite"),
            status=str(self.folder / "status"),
        )

    def rule(self, **changes: Any) -> None:
        """Write the rules: all goes to the web server, what is finance's by mail."""
        file: dict[str, Any] = {
            "ui": "https://dagster.example.com",
            "channels": {"web": {"env": "WEB_URL"}, "mail": {"env": "MAIL_URL"}},
            "default": ["web"],
            "routes": [{"to": ["mail"], "match": {"owner": "finance"}}],
        }
        Path(self.settings.alerts).write_text(yaml.safe_dump({**file, **changes}), "utf-8")
        os.environ |= {"WEB_URL": self.web.address, "MAIL_URL": self.mail_address}

    def tick(self) -> str:
        rules = load_rules(Path(self.settings.alerts))
        platform = Platform(self.settings)
        return round_of_alerts(self.instance, self.repository, platform, rules, delivery.send)

    def tell(
        self, *names: str, passed: bool = False, severity: str = "ERROR", description: str = ""
    ) -> None:
        """Report evaluations of checks outside of any run."""
        for name in names:
            self.instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=SALES,
                    check_name=name,
                    passed=passed,
                    severity=dg.AssetCheckSeverity(severity),
                    description=description or "12 of 900 rows are wrong",
                    metadata={},
                )
            )

    def run(self, day: str = "2026-01-01", job: str = "load", **tags: str) -> dg.DagsterRun:
        """A run of a job to its end."""
        result = self.repository.get_job(job).execute_in_process(
            instance=self.instance,
            run_config=QUIET,
            tags={"dagster/partition": day, **tags},
            raise_on_error=False,
        )
        run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def outbox(self) -> tuple[int, int]:
        """Incidents that are open, messages that wait."""
        with Outbox.looked_at(Path(self.settings.outbox)) as outbox:
            return len(outbox.incidents()), len(outbox.messages())


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    for name in ("WEB_URL", "MAIL_URL"):
        monkeypatch.setenv(name, "")
    (tmp_path / "dagster").mkdir()
    with (
        web() as receiver,
        mail() as (postbox, address),
        dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance,
    ):
        made = House(tmp_path, instance, receiver, postbox, address)
        made.rule()
        yield made


# Checks


def test_a_failing_check_is_told_once_with_all_that_helps_and_again_when_it_passes(
    house: House,
) -> None:
    house.tick()
    run = house.run(fail="check")
    assert not run.is_success
    assert house.tick() == "1 messages sent, 0 wait."
    house.run(fail="check")
    assert house.tick() == "0 messages sent, 0 wait."
    house.run()
    assert house.tick() == "1 messages sent, 0 wait."
    assert house.web.titles == [
        "[ERROR] lake/sales: adds_up fails",
        "[RECOVERED] lake/sales: adds_up fails",
    ]
    for said in (
        "asset: lake/sales",
        "partition: 2026-01-01",
        "check: adds_up",
        "expected: the lines of a basket add up to its total",
        "observed: 2 of 900 baskets do not",
        "basket=17, off_by=0.05",
        "owner: sales-team",
        "what to do: Ask sales-team to deliver the day again",
        "https://dagster.example.com/assets/lake/sales?view=checks&checkDetail=adds_up",
        f"https://dagster.example.com/runs/{run.run_id}",
    ):
        assert said in house.web.taken[0]["message"]
    assert house.web.taken[0]["type"] == "failure"
    assert house.outbox() == (0, 0)


def test_a_check_that_fails_outside_of_any_run_is_told_whatever_its_severity(house: House) -> None:
    house.tick()
    house.tell("rule_000", severity="WARN")
    house.tell("rule_001", severity="ERROR")
    house.tick()
    assert house.web.titles == [
        "[WARNING] lake/sales: rule_000 fails",
        "[ERROR] lake/sales: rule_001 fails",
    ]
    assert "run: " not in house.web.text
    house.tell("rule_000", severity="ERROR")
    house.tick()
    assert house.web.titles[2:] == ["[ERROR] lake/sales: rule_000 fails (was a warning)"]


def test_what_fails_when_alerts_begin_is_told_and_what_failed_before_is_not(house: House) -> None:
    house.tell("rule_000", "rule_001")
    house.tell("rule_001", passed=True)
    house.run(fail="totals")
    house.tick()
    assert house.web.titles == ["[ERROR] lake/sales: rule_000 fails"]


def test_a_backlog_of_150_failing_checks_is_one_digest_that_names_each(house: House) -> None:
    house.tick()
    house.tell(*CHECKS[:150])
    assert house.tick() == "150 messages sent, 0 wait."
    [digest] = house.web.taken
    assert digest["title"] == "[ERROR] 150 errors, 0 warnings"
    assert [name for name in CHECKS if f"error {name}: 12 of 900 rows" in digest["message"]] == (
        CHECKS[:150]
    )
    assert house.outbox() == (150, 0)
    house.tell(*CHECKS[:150], passed=True)
    house.tick()
    assert house.web.titles[1:] == ["[RECOVERED] 150 recovered"]


def test_150_evaluations_of_one_check_are_all_read_and_folded(house: House) -> None:
    house.rule(thresholds=[{"failures": 150}])
    house.tick()
    for _ in range(149):
        house.tell("rule_000")
    house.tick()
    assert house.web.titles == []
    house.tell("rule_000")
    house.tick()
    assert house.web.titles == ["[ERROR] lake/sales: rule_000 fails"]
    assert "150 times in a row" in house.web.text


def test_a_check_of_a_run_that_began_before_later_ones_is_not_missed(house: House) -> None:
    """Its row is there since the run was planned: with a lower number than runless ones since."""
    house.tick()
    job = house.repository.get_job("load")
    planned = house.instance.create_run_for_job(job, tags={"dagster/partition": "2026-01-01"})
    house.tick()
    house.tell("adds_up", passed=True)
    house.tick()
    house.instance.report_dagster_event(
        dg.DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
            job_name="load",
            event_specific_data=dg.AssetCheckEvaluation(SALES, "adds_up", False, {}),
        ),
        run_id=planned.run_id,
    )
    house.tick()
    assert house.web.titles == ["[ERROR] lake/sales: adds_up fails"]
    house.tick()
    assert len(house.web.titles) == 1


def test_rows_that_are_old_enough_are_read_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.tick()
    house.tell(*CHECKS[:3])
    house.tick()
    later = time.time() + LATE.total_seconds() + 1
    cursor = None
    with Outbox.looked_at(Path(house.settings.outbox)) as outbox:
        cursor = outbox.cursor("checks")
    found, cursor = findings.checks(house.instance, house.repository, cursor, later)
    assert found == []
    monkeypatch.setattr(findings, "_rows_above", None)
    assert findings.checks(house.instance, house.repository, cursor, later) == ([], cursor)


# Runs


def test_a_failed_step_is_told_by_asset_and_partition_and_is_over_when_it_was_made(
    house: House,
) -> None:
    house.tick()
    run = house.run("2026-01-02", fail="sales")
    house.run("2026-01-03", fail="sales")
    house.tick()
    assert house.web.titles == ["[ERROR] lake/sales was not made"] * 2
    said = house.web.taken[0]["message"]
    assert "partition: 2026-01-02" in said
    assert "observed: the file 2026-01-01.jsonl is cut short" in said
    assert "owner: sales-team" in said
    assert f"/runs/{run.run_id}" in said
    house.run("2026-01-04")
    house.tick()
    assert len(house.web.titles) == 2
    house.run("2026-01-02")
    house.tick()
    assert house.web.titles[2:] == ["[RECOVERED] lake/sales was not made"]
    assert "partition: 2026-01-02" in house.web.taken[2]["message"]
    assert house.outbox() == (1, 0)


def test_a_step_that_succeeds_in_a_failing_run_is_well(house: House) -> None:
    house.tick()
    house.run(fail="sales")
    house.tick()
    house.run(fail="totals")
    house.tick()
    assert house.web.titles == [
        "[ERROR] lake/sales was not made",
        "[RECOVERED] lake/sales was not made",
    ]
    assert "warehouse/totals was not made" in house.mail.text
    assert "finance" in house.mail.text


def test_a_run_that_dagster_runs_again_by_itself_is_not_told(house: House) -> None:
    house.tick()
    house.run(fail="sales", **{"dagster/will_retry": "true"})
    house.tick()
    assert house.web.titles == []
    house.run(fail="sales")
    house.tick()
    assert house.web.titles == ["[ERROR] lake/sales was not made"]


def test_a_run_whose_process_died_is_told(house: House) -> None:
    house.tick()
    job = house.repository.get_job("load")
    run = house.instance.create_run_for_job(job, tags={"dagster/partition": "2026-01-01"})
    house.instance.report_run_failed(run, "Run timed out due to exceeding its maximum runtime.")
    house.tick()
    assert house.web.titles == ["[ERROR] a run of load ended without a result"]
    assert "exceeding its maximum runtime" in house.web.text
    house.run()
    house.tick()
    assert len(house.web.titles) == 2
    assert house.outbox() == (0, 0)


# Sensors, stale assets, the live process


def test_a_failing_sensor_is_told_after_so_many_failures_in_a_row(house: House) -> None:
    house.rule(thresholds=[{"failures": 2, "match": {"kind": "sensor"}}])

    @dg.sensor(name="fresh", job_name="load", default_status=dg.DefaultSensorStatus.RUNNING)
    def fresh() -> None: ...

    house.tick()
    origin, selector = _sensor(house.instance)
    for n, status in enumerate([TickStatus.FAILURE, TickStatus.SKIPPED, TickStatus.FAILURE]):
        _add_tick(house.instance, origin, selector, status, time.time() + n)
    house.tick()
    assert house.web.titles == []
    _add_tick(house.instance, origin, selector, TickStatus.FAILURE, time.time() + 5)
    house.tick()
    assert house.web.titles == ["[ERROR] the sensor or schedule fresh fails"]
    assert "observed: the catalog cannot be reached" in house.web.text
    _add_tick(house.instance, origin, selector, TickStatus.SUCCESS, time.time() + 9)
    house.tick()
    assert house.web.titles[1:] == ["[RECOVERED] the sensor or schedule fresh fails"]


def _sensor(instance: dg.DagsterInstance) -> tuple[str, str]:
    """A running sensor, as its daemon enters it."""
    from dagster._core.remote_origin import (  # noqa: PLC0415
        InProcessCodeLocationOrigin,
        RemoteInstigatorOrigin,
        RemoteRepositoryOrigin,
    )
    from dagster._core.scheduler.instigation import (  # noqa: PLC0415
        InstigatorState,
        InstigatorStatus,
        SensorInstigatorData,
    )
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin  # noqa: PLC0415

    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(python_file="a.py"))
    origin = RemoteInstigatorOrigin(
        repository_origin=RemoteRepositoryOrigin(location, "house"), instigator_name="fresh"
    )
    state = InstigatorState(
        origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData()
    )
    instance.add_instigator_state(state)
    return state.instigator_origin_id, state.selector_id


def _add_tick(
    instance: dg.DagsterInstance, origin: str, selector: str, status: TickStatus, at: float
) -> None:
    from dagster._utils.error import SerializableErrorInfo  # noqa: PLC0415

    error = SerializableErrorInfo("ValueError: the catalog cannot be reached\n", [], "ValueError")
    instance.create_tick(
        TickData(
            instigator_origin_id=origin,
            instigator_name="fresh",
            instigator_type=InstigatorType.SENSOR,
            status=status,
            timestamp=at,
            end_timestamp=at,
            selector_id=selector,
            error=error if status == TickStatus.FAILURE else None,
            run_ids=[],
        )
    )


def test_a_stale_asset_is_told_when_it_is_late_when_it_is_too_late_and_when_it_is_made(
    house: House,
) -> None:
    for state in ("PASS", "WARN", "WARN", "FAIL", "FAIL", "PASS", "PASS"):
        house.instance._report_runless_asset_event(
            FreshnessStateChange(
                key=TOTALS,
                new_state=FreshnessState(state),
                previous_state=FreshnessState.UNKNOWN,
                state_change_timestamp=time.time(),
            )
        )
        house.tick()
    subjects = [str(message["subject"]) for message in house.mail.taken]
    assert subjects == [
        "[WARNING] warehouse/totals is stale",
        "[ERROR] warehouse/totals is stale (was a warning)",
        "[RECOVERED] warehouse/totals is stale",
    ]
    assert "made anew every 2:00:00" in house.mail.text


def test_a_live_process_that_falls_silent_is_told_once_and_when_it_is_back(house: House) -> None:
    def says(seconds_ago: float, state: str = "running") -> None:
        when = utc_now() - timedelta(seconds=seconds_ago)
        status = Status(
            instance="a-1", state=state, started_at=when, written_at=when, log="", topic_id=""
        )  # type: ignore[arg-type]
        write_status(house.settings, status)

    house.tick()
    assert house.web.titles == []
    for age in (1, 40, 45, 0):
        says(age)
        house.tick()
    assert house.web.titles == ["[ERROR] no live process runs", "[RECOVERED] no live process runs"]
    assert "owner: web-team" in house.web.text
    says(1, "stopped")
    house.tick()
    assert house.web.titles[2:] == ["[WARNING] no live process runs"]


# Delivery


def test_a_receiver_that_fails_hangs_and_comes_back_gets_everything_once_and_holds_up_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("platform_defs.alerts.time.time", lambda: now)
    house.tick()
    house.web.mode = "fail"
    house.run(fail="totals")
    house.run(fail="sales")
    now += 1
    assert "1 messages sent, 1 wait. Tried again soon: web: not taken" in house.tick()
    assert "warehouse/totals was not made" in house.mail.text
    tried = house.web.tried
    now += 1
    house.tick()
    assert house.web.tried == tried, "not before the pause is over"
    house.web.mode = "hang"
    now += 10
    began = time.monotonic()
    assert "web: not taken" in house.tick()
    assert time.monotonic() - began < 15
    now += 60
    with pytest.raises(ProfilehouseError, match=r"1 wait\. Channels that take nothing: web: not"):
        house.tick()
    house.web.mode = "take"
    house.web.released.set()
    now += 300
    assert house.tick() == "1 messages sent, 0 wait."
    assert house.web.titles == ["[ERROR] lake/sales was not made"]
    assert house.outbox() == (2, 0)


def test_a_mail_server_that_is_full_for_a_while_gets_the_message_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("platform_defs.alerts.time.time", lambda: now)
    house.tick()
    house.mail.full = True
    house.run(fail="totals")
    assert "mail: not taken" in house.tick()
    house.mail.full = False
    now += 10
    assert house.tick() == "1 messages sent, 0 wait."
    [message] = house.mail.taken
    assert str(message["subject"]) == "[ERROR] warehouse/totals was not made"
    assert "what to do: See the run for what went wrong" in house.mail.text


def test_what_comes_in_quiet_hours_is_told_at_their_end_unless_it_is_an_error(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0 // 86_400 * 86_400 + 86_400  # midnight, after all that is recorded
    monkeypatch.setattr("platform_defs.alerts.time.time", lambda: now)
    quiet = {"from": "22:00", "to": "07:00"}
    house.rule(channels={"web": {"env": "WEB_URL", "quiet": quiet}, "mail": {"env": "MAIL_URL"}})
    house.tick()
    house.tell("rule_000", severity="WARN")
    house.tell("rule_001", severity="ERROR")
    house.tick()
    assert house.web.titles == ["[ERROR] lake/sales: rule_001 fails"]
    now += 7 * 3600
    house.tick()
    assert house.web.titles[1:] == ["[WARNING] lake/sales: rule_000 fails"]


def test_messages_of_a_channel_that_is_no_more_go_to_the_default(house: House) -> None:
    house.tick()
    house.mail.full = True
    house.run(fail="totals")
    house.tick()
    house.rule(channels={"web": {"env": "WEB_URL"}}, routes=[])
    house.tick()
    assert house.web.titles == ["[ERROR] warehouse/totals was not made"]
    assert house.outbox() == (1, 0)


KILLED = """
import sys
from pathlib import Path
import dagster as dg
from tests.integration import test_alerts as t
from platform_defs.alerts import round_of_alerts
from profilehouse.alerts import delivery
from profilehouse.alerts.rules import load_rules
from profilehouse.platform import Platform
folder = Path(sys.argv[1])
house = t.House(folder, None, None, None, "")
instance = dg.DagsterInstance.local_temp(str(folder / "dagster"))
print("begins", flush=True)
round_of_alerts(instance, house.repository, Platform(house.settings),
                load_rules(Path(house.settings.alerts)), delivery.send)
"""


def test_a_daemon_that_is_killed_while_it_sends_loses_nothing(house: House) -> None:
    house.tick()
    house.tell(*CHECKS[:3])
    house.web.mode = "hang"
    os.environ["WEB_URL"] = house.web.address.replace("rto=1", "rto=60")
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(house.folder)], cwd=ROOT, env=dict(os.environ)
    )
    deadline = time.monotonic() + 60
    while house.web.tried == 0 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert house.web.tried == 1
    with pytest.raises(ProfilehouseError, match="another process sends alerts from it"):
        house.tick()
    killed.send_signal(signal.SIGKILL)
    killed.wait(10)
    house.web.mode = "take"
    house.tell(*CHECKS[3:5])
    assert house.tick() == "5 messages sent, 0 wait."
    assert sorted(house.web.titles) == [f"[ERROR] lake/sales: {c} fails" for c in CHECKS[:5]]


def test_secrets_reach_neither_messages_nor_errors_nor_the_outbox(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNOWFLAKE_PASSWORD", "hunter22-hunter22")
    house.tick()
    house.run(fail="sales")
    house.tell("rule_000", description="cannot log in with hunter22-hunter22 to db://u:p4ss@host")
    house.tick()
    assert "cut short; password=***" in house.web.text
    assert "cannot log in with *** to db://***@host" in house.web.text
    for secret in ("hunter22", "p4ss"):
        assert secret not in house.web.text
    port = house.web.server_port
    os.environ["WEB_URL"] = f"json://me:s3cr3t-word@{HOST}:{port}/t0k3n-path?rto=1&cto=1"
    house.web.mode = "fail"
    house.tell("rule_001")
    said = house.tick()
    assert "web: not taken" in said
    stored = b"".join(p.read_bytes() for p in Path(house.settings.outbox).parent.iterdir())
    for secret in ("s3cr3t-word", "t0k3n-path", "hunter22", "p4ss"):
        assert secret not in said
        assert secret.encode() not in stored


def test_only_their_owner_can_read_the_files_of_the_outbox(house: House) -> None:
    house.tick()
    assert Path(house.settings.outbox).stat().st_mode & 0o077 == 0


# The sensor


def test_without_a_file_of_rules_the_sensor_says_that_nobody_is_told(house: House) -> None:
    sensor = alerts(house.settings.model_copy(update={"alerts": ""}))
    context = dg.build_sensor_context(
        instance=house.instance, resources={"platform": Platform(house.settings)}
    )
    assert "nobody is told" in str(sensor.evaluate_tick(context).skip_message)


def test_a_wrong_file_of_rules_stops_the_definitions_from_loading(house: House) -> None:
    house.rule(default=["nobody"])
    with pytest.raises(ProfilehouseError, match="default names the channel 'nobody'"):
        alerts(house.settings)
