"""Sessions in the warehouse and profiles in the store: the same pages of the same people."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from profilehouse.contracts import contract
from profilehouse.profiles.features import load_declaration
from profilehouse.profiles.rebuild import fold_all
from profilehouse.profiles.serving import read_profile
from profilehouse.profiles.store.lmdb import LmdbStore
from profilehouse.warehouse.on_duckdb import open_duckdb

pytest.register_assert_rewrite("tests.warehouse_suite", "tests.session_suite")
from tests.session_suite import SESSIONS, a_day, load  # noqa: E402
from tests.warehouse_suite import rows_of  # noqa: E402


def test_the_pages_in_a_users_sessions_are_those_of_the_live_profile(tmp_path: Path) -> None:
    log, declaration = a_day(), load_declaration()
    with_device = [row for row in log.partitions[0] if row["anonymous_id"]]
    log.partitions[0] = with_device
    with open_duckdb(tmp_path / "warehouse.duckdb") as warehouse:
        load(warehouse, log, (6, len(with_device)), (0, 6))
        pages: Counter[str] = Counter()
        for user, views in rows_of(warehouse, SESSIONS, "user_id", "page_views"):
            pages[user] += views
    events = pa.Table.from_batches(log.read(log.ends()), contract("web_events").arrow_schema)
    folded = fold_all(declaration, [], [events], {})
    with LmdbStore(tmp_path / "profiles", declaration.fingerprint) as store:
        store.rebuild(folded.entries.items(), folded.meta, log.topic_id, {0: len(with_device)})
        for user in ("anna", "ben"):
            profile = read_profile(store, declaration, user, date(2026, 3, 9))
            assert profile is not None
            assert profile["page_views_lifetime"] == pages[user] > 0
