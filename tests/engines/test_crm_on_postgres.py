"""The CRM on a real PostgreSQL: what is fetched from it, and on into the users' history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest

from platform_defs.build import build_defs
from profilehouse.errors import ProfilehouseError
from profilehouse.sources.crm import fetch_crm
from profilehouse.sources.fetching import Fetched
from services.debian import find_postgres
from services.postgres import DATABASE, PASSWORD, USER, Postgres
from services.process import HOST
from tests.pipeline import DAYS, Installation

FIRST, SECOND = DAYS[:2]
NEW = datetime(2025, 4, 22, 10, tzinfo=UTC)
TABLE = """CREATE TABLE "Households" (
    household_id bigint PRIMARY KEY, age text, income text NOT NULL, home_ownership text,
    marital_status text, household_size text NOT NULL, household_comp text NOT NULL,
    kids_count text NOT NULL, updated_at timestamptz)"""
INSERT = """INSERT INTO "Households" VALUES
    (%s, %s, '50-74K', 'Homeowner', NULL, '2', '2 Adults No Kids', '0', %s)"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    if find_postgres() is None:
        pytest.skip("no PostgreSQL; `python -m services.debian` installs it")
    with Postgres(tmp_path_factory.mktemp("postgres")) as started:
        yield started


class Crm:
    """The database of a CRM, empty but for the table, and who fetches from it."""

    def __init__(self, server: Postgres, folder: Path) -> None:
        self.port = server.variables["DAGSTER_POSTGRES_PORT"]
        (folder / "sources").mkdir()
        self.house = self.reader(folder)
        self.run('DROP TABLE IF EXISTS "Households"')
        self.run(TABLE)

    def reader(
        self, folder: Path, name: str = "Households", password: str = PASSWORD
    ) -> Installation:
        url = f"postgresql://{USER}@{HOST}:{self.port}/{DATABASE}/{name}"
        return Installation(folder, crm_url=url, crm_password=password)

    def run(self, statement: str, *rows: tuple[object, ...]) -> None:
        with (
            closing(
                psycopg2.connect(
                    host=HOST, port=self.port, user=USER, password=PASSWORD, dbname=DATABASE
                )
            ) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            for row in rows or [()]:
                cursor.execute(statement, row)

    def add(self, *households: int, at: datetime | None = NEW, age: str = "35-44") -> None:
        self.run(INSERT, *((household, age, at) for household in households))

    def fetch(self, day: date = FIRST) -> Fetched:
        return fetch_crm(self.house.settings, self.house.platform.sources(), day)

    def delivered(self, day: date = FIRST) -> list[dict[str, Any]]:
        path = self.house.sources / "crm" / f"{day}.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def crm(server: Postgres, tmp_path: Path) -> Crm:
    return Crm(server, tmp_path)


def test_only_what_changed_came_or_went_is_delivered_again(crm: Crm) -> None:
    crm.add(*range(1, 11))
    assert crm.fetch() == Fetched(10, 1, 10, f"{FIRST}.jsonl")
    assert crm.delivered()[0] == {
        "household_id": 1,
        "age": "35-44",
        "income": "50-74K",
        "home_ownership": "Homeowner",
        "household_size": "2",
        "household_comp": "2 Adults No Kids",
        "kids_count": "0",
        "updated_at": "2025-04-22T10:00:00Z",
    }
    assert crm.fetch().new == 0
    crm.add(11, at=NEW + timedelta(days=1))
    assert crm.fetch(SECOND).new == 1
    crm.run(
        """UPDATE "Households" SET age = '45-54', updated_at = %s WHERE household_id = 2""",
        (NEW + timedelta(days=2),),
    )
    crm.run('DELETE FROM "Households" WHERE household_id = 3')
    fetched = crm.fetch(SECOND)
    assert (fetched.new, fetched.deletions) == (2, 1)
    # of eleven rows two are since the cursor less its overlap; the keys are read for deletions
    assert fetched.rows_read == 2 + 10
    _, changed, gone = crm.delivered(SECOND)
    assert (changed["household_id"], changed["age"]) == (2, "45-54")
    assert (gone["household_id"], gone["age"], gone["deleted"]) == (3, "35-44", True)
    assert crm.fetch(SECOND).new == 0


def test_a_change_of_the_same_moment_and_one_committed_late_are_not_missed(crm: Crm) -> None:
    crm.add(1, 2, 3)
    crm.fetch()
    crm.run("""UPDATE "Households" SET age = '65+' WHERE household_id = 1""")
    crm.add(4, at=NEW - timedelta(days=30))
    crm.run(
        """UPDATE "Households" SET income = '250K+', updated_at = %s WHERE household_id = 2""",
        (NEW + timedelta(minutes=30),),
    )
    assert crm.fetch().new == 3
    crm.run(
        """UPDATE "Households" SET income = '250K+', updated_at = %s WHERE household_id = 3""",
        (NEW + timedelta(minutes=1),),
    )
    assert crm.fetch().new == 1
    assert [(r["household_id"], r["age"], r["income"]) for r in crm.delivered()[3:]] == [
        (1, "65+", "50-74K"),
        (2, "35-44", "250K+"),
        (4, "35-44", "50-74K"),
        (3, "35-44", "250K+"),
    ]


def test_a_deletion_closes_the_users_version_and_who_comes_back_has_a_new_one(crm: Crm) -> None:
    crm.add(1, 2, 3)
    crm.fetch()
    crm.run('DELETE FROM "Households" WHERE household_id = 2')
    before = datetime.now(UTC).replace(tzinfo=None)
    crm.fetch()
    load(crm.house)
    by_user = "SELECT * FROM dim_user WHERE user_id = '2' ORDER BY valid_from"
    [version] = crm.house.query(by_user)
    assert version["valid_from"] == NEW.replace(tzinfo=None)
    assert before <= version["valid_to"] <= datetime.now(UTC).replace(tzinfo=None)
    assert not version["is_current"]
    crm.add(2)
    assert crm.fetch(SECOND).new == 1
    assert crm.fetch(SECOND).new == 0
    load(crm.house)
    old, new = crm.house.query(by_user)
    assert (old, new["is_current"], new["valid_to"]) == (version, True, None)
    assert new["valid_from"] > version["valid_to"]
    others = crm.house.query("SELECT is_current FROM dim_user WHERE user_id <> '2'")
    assert others == [{"is_current": True}] * 2


def load(house: Installation) -> None:
    """Land the CRM's files and load the users; all checks pass but that which needs purchases."""
    keys = [dg.AssetKey(["lake", "crm"]), dg.AssetKey(["warehouse", "dim_user"])]
    job = dg.define_asset_job("load", dg.AssetSelection.assets(*keys))
    defs = dg.Definitions.merge(build_defs(house.settings), dg.Definitions(jobs=[job]))
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("load").execute_in_process(
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    checks = result.get_asset_check_evaluations()
    failed = {check.check_name for check in checks if not check.passed}
    assert failed == {"every_buyer_has_demographics"}
    assert "users_are_those_delivered" in {check.check_name for check in checks}


def test_rows_without_a_time_or_with_a_new_column_are_told_once(crm: Crm) -> None:
    crm.add(1, 2)
    crm.add(3, at=None)
    assert (crm.fetch().new, crm.fetch().new) == (3, 0)
    assert "updated_at" not in crm.delivered()[2]
    crm.run('ALTER TABLE "Households" ADD COLUMN loyalty numeric(4, 1)')
    crm.run(
        """UPDATE "Households" SET loyalty = 1.5, updated_at = %s WHERE household_id = 1""",
        (NEW + timedelta(days=1),),
    )
    assert crm.fetch().new == 1
    assert crm.delivered()[3]["loyalty"] == 1.5


def test_a_table_that_lost_most_of_its_rows_is_taken_for_a_mistake(crm: Crm) -> None:
    crm.add(1, 2, 3)
    crm.fetch()
    crm.run('DELETE FROM "Households" WHERE household_id > 1')
    with pytest.raises(ProfilehouseError, match="2 of 3 households are gone at once; see that"):
        crm.fetch()
    assert len(crm.delivered()) == 3


def test_what_keeps_the_crm_from_being_read_is_one_line_without_the_password(
    crm: Crm, tmp_path: Path
) -> None:
    crm.run("CREATE TABLE IF NOT EXISTS other (household_id int, age text)")
    crm.run("CREATE TABLE IF NOT EXISTS closed (household_id int)")
    for reader, said in (
        (crm.reader(tmp_path, password="hunter-2"), "the password was refused; set PROFILEHOUSE_C"),
        (crm.reader(tmp_path, "nothing"), "there is no such table"),
        (crm.reader(tmp_path, "other"), "has no column income, household_size"),
        (Installation(tmp_path, crm_url=f"postgresql://me@{HOST}:1/a/b"), "cannot be read"),
    ):
        with pytest.raises(ProfilehouseError, match=said) as error:
            fetch_crm(reader.settings, reader.platform.sources(), FIRST)
        assert "\n" not in str(error.value)
        assert "hunter-2" not in str(error.value)
    assert not (tmp_path / "sources" / "crm").exists()


def test_the_ui_has_the_crm_as_an_asset_that_tells_what_a_fetch_cost(crm: Crm) -> None:
    crm.add(1)
    defs = build_defs(crm.house.settings)
    job = defs.resolve_job_def("fetch_sources")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
    [made] = result.get_asset_materialization_events()
    told = made.materialization.metadata
    assert made.asset_key == dg.AssetKey(["sources", "crm"])
    assert {name: told[name].value for name in ("new_records", "calls", "rows_read")} == {
        "new_records": 1,
        "calls": 1,
        "rows_read": 1,
    }
