from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from profilehouse.cli import main
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.profiles.fold import EVENT_SCHEMA
from profilehouse.profiles.rebuild import fold_all
from profilehouse.profiles.store.lmdb import LmdbStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `profilehouse ARGUMENTS`: exit code, output and errors. One user has one purchase."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROFILEHOUSE_PROFILES", "lmdb:profiles")
    declaration = load_declaration()
    bought = {
        "event_id": "purchases/1/2",
        "event_type": "purchase",
        "user_id": "7",
        "content_id": "2",
        "category": "DELI",
        "value_cents": 250,
        "occurred_at": datetime(2026, 3, 30, 12),
        "received_at": datetime(2026, 3, 31),
    }
    with LmdbStore(tmp_path / "profiles", declaration.fingerprint) as store:
        folded = fold_all(declaration, [pa.Table.from_pylist([bought], EVENT_SCHEMA)], (), {})
        store.rebuild(folded.entries.items(), folded.meta)

    def run_(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["profilehouse", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        printed = capsys.readouterr()
        return int(exited.value.code or 0), printed.out, printed.err

    return run_


def test_a_profile_is_printed_with_the_time_the_lookup_took(run: Run) -> None:
    code, out, err = run("profile", "get", "7")

    assert code == 0
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert list(shown) == [c.name for c in profile_contract(load_declaration()).columns]
    assert shown["as_of"] == "2026-03-30"
    assert shown["purchases_1d"] == "1"
    assert shown["top_categories"] == "DELI"
    took = re.fullmatch(r"looked up in ([0-9.]+) ms\n", err)
    assert took is not None
    assert float(took[1]) < 500


def test_a_rebuild_makes_a_new_generation_of_what_the_lake_holds(run: Run) -> None:
    code, out, _ = run("profile", "rebuild")
    assert (code, out) == (0, "lmdb:profiles: generation 2 of the profiles is current\n")

    code, _, err = run("profile", "get", "7")
    assert code == 1
    assert "no profile of user 7" in err, "the lake holds no event"


def test_json_is_one_object_with_the_columns_of_the_warehouse_table(run: Run) -> None:
    code, out, _ = run("profile", "get", "7", "--json", "--as-of", "2026-04-06")
    found = json.loads(out)

    assert code == 0
    assert list(found) == [c.name for c in profile_contract(load_declaration()).columns]
    assert found["as_of"] == "2026-04-06"
    assert (found["purchases_1d"], found["purchases_7d"], found["purchases_30d"]) == (0, 0, 1)
    assert found["last_seen_at"] == "2026-03-30T12:00:00"
    assert found["recent_contents"] == ["2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("profile", "get", "8"), "no profile of user 8 in profiles"),
        (("profile", "get", "7", "--as-of", "2026-03-29"), "holds events up to 2026-03-30"),
    ],
)
def test_what_cannot_be_answered_is_one_line_and_exit_code_1(
    run: Run, arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = run(*arguments)

    assert (code, out) == (1, "")
    assert err.startswith("profilehouse: ")
    assert says in err
    assert err.count("\n") == 1
