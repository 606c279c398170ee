from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.store import Meta
from profilehouse.profiles.store.lmdb import ROW_LIMIT, LmdbStore
from tests.store_cases import StoreCases

FINGERPRINT = "a fold"
ROOT = Path(__file__).parents[2]


def meta(version: str = "1.0.0", fingerprint: str = FINGERPRINT) -> Meta:
    return Meta(
        version=version,
        fingerprint=fingerprint,
        newest_day=date(2026, 3, 31),
        deliveries={"purchases/2026-03-31": "ab12"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "profiles"


@pytest.fixture
def store(folder: Path) -> Iterator[LmdbStore]:
    with LmdbStore(folder, FINGERPRINT) as opened:
        yield opened


def process(folder: Path, body: str) -> subprocess.Popen[str]:
    """Another process with a store; `body` may use `store`, `meta` and `sleep`."""
    head = f"""
        import sys
        from pathlib import Path
        from time import sleep
        from profilehouse.profiles.store import Meta
        from profilehouse.profiles.store.lmdb import LmdbStore
        store = LmdbStore(Path({str(folder)!r}), {FINGERPRINT!r})
        meta = Meta(version="2", fingerprint={FINGERPRINT!r}, newest_day=None, deliveries={{}})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def generations(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*generation*"))


def test_what_was_written_is_found(store: LmdbStore) -> None:
    generation = store.rebuild([("2", b"two"), ("10", b"ten"), ("é", b"e")], meta())

    assert generation == store.generation == 1
    assert store.get("10") == b"ten"
    assert store.get("nobody") is None
    assert list(store.items()) == [("10", b"ten"), ("2", b"two"), ("é", b"e")]
    assert len(store) == 3
    assert store.meta == meta()


def test_a_store_may_be_empty(store: LmdbStore) -> None:
    store.rebuild([], meta())

    assert list(store.items()) == []
    assert store.get("1") is None


def test_only_the_owner_can_look_into_the_folder(store: LmdbStore, folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o755)
    store.rebuild([("1", b"one")], meta())

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "generation-1").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "generation-1" / "data.mdb").stat().st_mode) == 0o600


def test_a_rebuild_replaces_all_and_removes_the_old_generation(
    store: LmdbStore, folder: Path
) -> None:
    store.rebuild([("1", b"old"), ("2", b"old")], meta())
    assert store.get("1") == b"old"

    assert store.rebuild([("1", b"new")], meta(version="2")) == 2

    assert list(store.items()) == [("1", b"new")]
    assert store.meta.version == "2"
    assert generations(folder) == ["generation-2"]


def test_a_reader_of_the_old_generation_goes_on_undisturbed(store: LmdbStore, folder: Path) -> None:
    store.rebuild([("1", b"old"), ("2", b"old")], meta())
    elsewhere = process(
        folder,
        """
        for _ in sys.stdin:
            print(store.generation, store.get("1"), len(list(store.items())), flush=True)
        """,
    )
    assert elsewhere.stdin is not None
    with LmdbStore(folder, FINGERPRINT) as reader:
        begun = reader.items()
        assert next(begun) == ("1", b"old")
        elsewhere.stdin.write("read\n")
        elsewhere.stdin.flush()
        assert said(elsewhere) == "1 b'old' 2"

        store.rebuild([("1", b"new")], meta())

        assert next(begun) == ("2", b"old")
        assert (reader.generation, reader.get("1")) == (1, b"old")
        elsewhere.stdin.write("read\n")
        elsewhere.stdin.flush()
        assert said(elsewhere) == "1 b'old' 2"
        begun.close()
        reader.close()
        assert (reader.generation, reader.get("1")) == (2, b"new")
    elsewhere.stdin.close()
    assert elsewhere.wait(timeout=30) == 0


def test_threads_open_and_close_a_store_while_others_do(store: LmdbStore, folder: Path) -> None:
    store.rebuild([("1", b"one")], meta())
    store.close()

    def look(_: int) -> bytes | None:
        with LmdbStore(folder, FINGERPRINT) as own:
            return own.get("1")

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(look, range(1_000))) == {b"one"}


def test_two_stores_of_one_process_read_the_same_generation(store: LmdbStore, folder: Path) -> None:
    store.rebuild([("1", b"one")], meta())

    with LmdbStore(folder, FINGERPRINT) as other:
        assert (store.get("1"), other.get("1")) == (b"one", b"one")
        store.close()
        assert other.get("1") == b"one"
        assert store.get("1") == b"one"


@pytest.mark.parametrize("rows_before_the_kill", [0, 1, 10_001, 25_000])
def test_a_rebuild_killed_in_the_middle_leaves_the_old_generation_current(
    store: LmdbStore, folder: Path, rows_before_the_kill: int
) -> None:
    store.rebuild([("1", b"old")], meta())
    store.close()
    child = process(
        folder,
        f"""
        def rows():
            for number in range({rows_before_the_kill}):
                yield f"{{number}}", b"new" * 100
            print("in the middle", flush=True)
            sleep(60)
        store.rebuild(rows(), meta)
        """,
    )
    assert said(child) == "in the middle"
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(timeout=30) == -signal.SIGKILL

    assert generations(folder) == ["generation-1", "generation-2"]
    assert list(store.items()) == [("1", b"old")]
    store.rebuild([("1", b"newest")], meta())
    assert list(store.items()) == [("1", b"newest")]
    assert generations(folder) == ["generation-2"]


def test_a_rebuild_that_fails_leaves_the_old_generation_current(
    store: LmdbStore, folder: Path
) -> None:
    def rows() -> Iterator[tuple[str, bytes]]:
        yield "1", b"new"
        raise OSError("the lake went away")

    store.rebuild([("1", b"old")], meta())
    with pytest.raises(OSError, match="the lake went away"):
        store.rebuild(rows(), meta())

    assert store.get("1") == b"old"
    assert store.rebuild([("1", b"new")], meta()) == 2
    assert generations(folder) == ["generation-2"]


def test_a_rebuild_removes_nothing_that_is_not_its_own(store: LmdbStore, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "warehouse.duckdb").write_text("somebody else's")
    store.rebuild([("1", b"one")], meta())
    store.rebuild([("1", b"two")], meta())

    assert (folder / "warehouse.duckdb").read_text() == "somebody else's"


def test_two_rebuilds_at_once_are_refused(store: LmdbStore, folder: Path) -> None:
    def rows() -> Iterator[tuple[str, bytes]]:
        with pytest.raises(ProfilehouseError, match="another process is rebuilding"):
            LmdbStore(folder, FINGERPRINT).rebuild([("1", b"other")], meta())
        yield "1", b"first"

    store.rebuild(rows(), meta())

    assert store.get("1") == b"first"


def test_the_map_grows_with_the_rows(store: LmdbStore) -> None:
    rows = {f"{number:03}": bytes([number]) * 1_000_000 for number in range(150)}

    store.rebuild(iter(rows.items()), meta())

    assert dict(store.items()) == rows


def test_a_store_folded_by_another_declaration_is_refused_with_the_remedy(
    store: LmdbStore, folder: Path
) -> None:
    store.rebuild([("1", b"one")], meta())
    changed = LmdbStore(folder, "another fold")

    for _ in range(2):
        with pytest.raises(ProfilehouseError, match=r"another declaration.*materialize"):
            changed.get("1")
    changed.rebuild([("1", b"two")], meta(fingerprint="another fold"))
    assert changed.get("1") == b"two"
    changed.close()


def test_a_missing_or_damaged_store_says_what_to_do(store: LmdbStore, folder: Path) -> None:
    with pytest.raises(ProfilehouseError, match="no profile store here; materialize"):
        store.get("1")
    store.rebuild([("1", b"one")], meta())

    (folder / "current").write_text("9\n")
    with pytest.raises(ProfilehouseError, match=r"cannot open generation 9 .* materialize"):
        store.get("1")
    (folder / "current").write_text("nine")
    with pytest.raises(ProfilehouseError, match=r"remove the file and materialize"):
        store.get("1")
    (folder / "current").write_text("1\n")
    (folder / "generation-1" / "data.mdb").write_bytes(b"not lmdb" * 1000)
    with pytest.raises(ProfilehouseError, match=r"cannot open generation 1 .* materialize"):
        store.get("1")

    store.rebuild([("1", b"whole again")], meta())
    assert store.get("1") == b"whole again"


@pytest.mark.parametrize("user_id", ["", "x" * 512])
def test_a_user_id_that_cannot_be_a_key_is_refused_in_one_line(
    store: LmdbStore, user_id: str
) -> None:
    store.rebuild([("1", b"old")], meta())

    with pytest.raises(ProfilehouseError, match=rf"has {len(user_id)} bytes"):
        store.rebuild([("2", b"new"), (user_id, b"new")], meta())
    assert list(store.items()) == [("1", b"old")]


class TestLmdb(StoreCases):
    row_limit = ROW_LIMIT

    @pytest.fixture
    def url(self, folder: Path) -> str:
        return f"lmdb:{folder}"
