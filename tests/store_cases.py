"""What every profile store must do, wherever it lies. Subclasses give the fixture `url`.

Profiles are sums here: a row is the decimal sum of its user's values. Run as a program, this is a
live process that folds LOG into the store of a URL and may kill itself on the way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, ClassVar

import pytest

from profilehouse.errors import ProfilehouseError, StaleWriter
from profilehouse.profiles.store import (
    KEPT,
    MAX_KEY,
    Meta,
    Store,
    Stored,
    Write,
    open_store,
)

FINGERPRINT = "a sum"
TOPIC = "topic-1"
META = Meta(version="1.0.0", fingerprint=FINGERPRINT, newest_day=None, deliveries={})
ROOT = Path(__file__).parents[1]

Log = list[list[tuple[str, int]]]
"""Partition -> offset -> (user, value)."""


def log_of(events: int, users: int, partitions: int = 2, seed: int = 1) -> Log:
    random = Random(seed)
    return [
        [(f"user-{random.randrange(users)}", random.randrange(1, 100)) for _ in range(events)]
        for _ in range(partitions)
    ]


def sums(log: Log) -> dict[str, bytes]:
    totals: dict[str, int] = {}
    for user, value in (event for partition in log for event in partition):
        totals[user] = totals.get(user, 0) + value
    return {user: b"%d" % total for user, total in sorted(totals.items())}


LOG = log_of(events=60, users=9)

MOST_CALLS = 1000
"""A live process that folds all of LOG makes some 5,000 calls in a store, 330 a commit."""


@dataclass
class Live:
    """A live process in steps: resume, then take and commit in turn."""

    store: Store
    log: Log
    partitions: Sequence[int] = (0, 1)
    positions: dict[int, int] = field(default_factory=dict)
    taken: tuple[list[Write], dict[int, int]] | None = None

    def resume(self) -> None:
        self.taken = None
        resumed = self.store.resume(TOPIC)
        self.positions = {p: o for p, o in resumed.items() if p in self.partitions}

    def take(self, size: int) -> None:
        """Read the next events of each partition and fold them into what is stored."""
        starts = {p: self.positions.get(p, 0) for p in self.partitions}
        after = {p: min(start + size, len(self.log[p])) for p, start in starts.items()}
        events = [
            (partition, offset, *self.log[partition][offset])
            for partition, end in after.items()
            for offset in range(starts[partition], end)
        ]
        stored = self.store.read(sorted({user for _, _, user, _ in events}))
        new: dict[str, tuple[int, dict[int, int]]] = {}
        for partition, offset, user, value in events:
            if offset >= stored[user].positions.get(partition, 0):
                total, positions = new.get(user, (int(stored[user].row or 0), {}))
                new[user] = total + value, {**positions, partition: after[partition]}
        writes = [
            Write(user, stored[user], b"%d" % total, positions)
            for user, (total, positions) in new.items()
        ]
        self.taken = writes, after

    def commit(self) -> None:
        assert self.taken is not None
        writes, after = self.taken
        self.store.commit(writes, self.positions, after)
        self.positions, self.taken = after, None

    @property
    def done(self) -> bool:
        return all(self.positions.get(p, 0) == len(self.log[p]) for p in self.partitions)

    def finish(self, size: int = 7) -> None:
        self.resume()
        while not self.done:
            self.take(size)
            self.commit()


class StoreCases:
    row_limit: ClassVar[int]

    @pytest.fixture
    def opened(self, url: str) -> Iterator[Callable[[], Store]]:
        """Opens the store of the test, each time as another process would."""
        stores: list[Store] = []

        def open_() -> Store:
            stores.append(open_store(url, FINGERPRINT))
            return stores[-1]

        yield open_
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, opened: Callable[[], Store]) -> Store:
        """A store with an empty generation."""
        store = opened()
        store.rebuild([], META)
        return store

    def test_committed_rows_are_read_back_by_others(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        assert store.resume(TOPIC) == {}
        read = store.read(["7", "é", "nobody"])
        assert read == {"7": Stored(), "é": Stored(), "nobody": Stored()}
        store.commit(
            [Write("7", read["7"], b"seven", {3: 10}), Write("é", read["é"], b"\x00e", {3: 10})],
            {},
            {3: 10},
        )

        reader = opened()
        assert reader.get("7") == b"seven"
        assert reader.get_many(["é", "nobody", "7", "7"]) == {"7": b"seven", "é": b"\x00e"}
        assert sorted(reader.items()) == [("7", b"seven"), ("é", b"\x00e")]
        assert (len(reader), reader.generation, reader.meta) == (2, 1, META)
        assert [reader.get(user) for user in ("nobody", "", "x" * 600)] == [None, None, None]
        assert reader.get_many([]) == {}
        assert opened().resume(TOPIC) == {3: 10}

    def test_a_commit_tells_what_the_next_one_may_fold_onto(self, store: Store) -> None:
        store.resume(TOPIC)
        first = store.commit([Write("7", Stored(), b"1", {0: 1})], {}, {0: 1})
        second = store.commit([Write("7", first[0], b"2", {1: 5})], {}, {1: 5})
        assert (first[0].revision, second[0].revision) == (1, 2)
        assert store.read(["7"]) == {"7": second[0]}
        assert second[0].row == b"2"
        assert store.resume(TOPIC) == {0: 1, 1: 5}

    def test_positions_move_without_rows_too(self, store: Store) -> None:
        store.resume(TOPIC)
        store.commit([], {}, {0: 5, 1: 3})
        store.commit([], {0: 5}, {0: 9})
        assert store.resume(TOPIC) == {0: 9, 1: 3}

    def test_a_commit_that_starts_elsewhere_than_the_store_is_refused(self, store: Store) -> None:
        store.resume(TOPIC)
        write = store.commit([Write("7", Stored(), b"1", {0: 10})], {}, {0: 10})[0]
        for before in ({}, {0: 9}, {0: 11}, {0: 10, 1: 0}):
            with pytest.raises(StaleWriter, match="comes too late"):
                store.commit([], before, {0: 20})
        with pytest.raises(StaleWriter, match="another writer"):
            store.commit([Write("7", Stored(), b"1", {0: 20})], {0: 10}, {0: 20})
        assert store.resume(TOPIC) == {0: 10}
        assert store.read(["7"]) == {"7": write}

    def test_a_topic_created_anew_is_refused_with_the_remedy(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        store.resume(TOPIC)
        store.commit([], {}, {0: 5})
        other = opened()
        with pytest.raises(ProfilehouseError, match=r"topic-1, .* topic-2: .* rebuild"):
            other.resume("topic-2")
        other.rebuild([], META, "topic-2", {0: 2})
        assert opened().resume("topic-2") == {0: 2}
        with pytest.raises(ProfilehouseError, match="created anew"):
            opened().resume(TOPIC)

    def test_a_missing_store_and_one_of_another_declaration_are_refused_with_the_remedy(
        self, opened: Callable[[], Store], url: str
    ) -> None:
        store = opened()
        for call in (lambda: store.get("7"), store.refresh, lambda: store.resume(TOPIC)):
            with pytest.raises(ProfilehouseError, match="no profile store here; materialize prof"):
                call()
        store.rebuild([], META)
        changed = open_store(url, "another fold")
        with pytest.raises(ProfilehouseError, match=r"another declaration.*materialize"):
            changed.resume(TOPIC)
        changed.close()

    def test_a_commit_before_resume_and_one_with_a_user_twice_are_mistakes(
        self, store: Store
    ) -> None:
        with pytest.raises(ValueError, match="resume before"):
            store.commit([], {}, {0: 1})
        store.resume(TOPIC)
        with pytest.raises(ValueError, match="one write for each user"):
            store.commit([Write("7", Stored(), b"1"), Write("7", Stored(), b"2")], {}, {0: 1})

    @pytest.mark.parametrize("user", ["", "x" * (MAX_KEY + 1), "é" * MAX_KEY])
    def test_a_user_id_that_cannot_be_a_key_is_refused_in_one_line(
        self, store: Store, user: str
    ) -> None:
        store.resume(TOPIC)
        says = rf"has {len(user.encode())} bytes; a key .* 1 to {MAX_KEY}"
        with pytest.raises(ProfilehouseError, match=says):
            store.read([user])
        with pytest.raises(ProfilehouseError, match=says):
            store.commit([Write("7", Stored(), b"1"), Write(user, Stored(), b"1")], {}, {0: 1})
        with pytest.raises(ProfilehouseError, match=says):
            store.rebuild([(user, b"1")], META)
        longest = "x" * MAX_KEY
        store.resume(TOPIC)
        store.commit([Write(longest, Stored(), b"1")], {}, {0: 1})
        assert dict(store.items()) == {longest: b"1"}

    def test_many_users_are_written_and_read_at_once(self, store: Store) -> None:
        store.resume(TOPIC)
        rows = {f"user-{number}": b"%d" % number * 100 for number in range(350)}
        read = store.read([*rows, *list(rows)[:5]])
        store.commit([Write(user, read[user], row) for user, row in rows.items()], {}, {0: 1})
        assert store.get_many(rows) == dict(store.items()) == rows
        assert {stored.revision for stored in store.read(list(rows)).values()} == {1}

    def test_a_cut_holds_what_lies_below_its_positions_and_tells_what_has_moved_on(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        live = Live(store, LOG)
        live.resume()
        live.take(20)
        live.commit()
        below = sums([partition[:20] for partition in LOG])
        reader = opened()
        with reader.cut() as cut:
            live.take(1)
            moved = {write.user for write in (live.taken or ([],))[0]}
            live.commit()
            rows = dict(cut.items())
            assert (cut.meta, cut.topic_id, cut.positions) == (META, TOPIC, {0: 20, 1: 20})
            assert cut.read([*rows, "nobody"]) == rows
            left = {user for user, stored in rows.items() if cut.moved_on(stored)}
        assert left in (set(), moved), "all rows are of one moment, or those that moved are told"
        assert rows.keys() == below.keys() | left
        kept = {user: stored.row for user, stored in rows.items() if user not in left}
        assert kept == {user: row for user, row in below.items() if user not in left}

    def test_a_cut_is_of_the_current_generation_and_knows_of_erased_and_large_rows(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        reader = opened()
        assert len(reader) == 0
        large = b"x" * (self.row_limit + 1)
        store.rebuild([("7", b"1"), ("bot", large)], META, TOPIC, {3: 9})
        store.resume(TOPIC)
        store.commit([Write("7", store.read(["7"])["7"], None)], {}, {})
        with reader.cut() as cut:
            rows = {user: (stored.row, stored.oversized) for user, stored in cut.items()}
            assert (cut.topic_id, cut.positions) == (TOPIC, {3: 9})
        assert rows == {"7": (None, False), "bot": (None, True)}

    def test_a_zombie_that_wakes_after_its_partition_went_on_loses(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        zombie, heir = Live(store, LOG), Live(opened(), LOG)
        zombie.resume()
        zombie.take(5)
        zombie.commit()
        zombie.take(20)
        heir.resume()
        heir.take(11)
        heir.commit()

        with pytest.raises(StaleWriter):
            zombie.commit()

        heir.take(3)
        heir.commit()
        with pytest.raises(StaleWriter):
            zombie.commit()
        heir.finish()
        assert dict(sorted(store.items())) == sums(LOG)

    def test_two_writers_of_a_row_do_not_lose_each_others_events(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        log: Log = [[("shared", 1)], [("shared", 10)]]
        one, other = Live(store, log, [0]), Live(opened(), log, [1])
        for live in (one, other):
            live.resume()
            live.take(1)
        one.commit()
        with pytest.raises(StaleWriter):
            other.commit()
        other.finish()
        assert store.get("shared") == b"11"
        assert store.resume(TOPIC) == {0: 1, 1: 1}

    @pytest.mark.parametrize("seed", range(4))
    def test_any_interleaving_of_writers_that_share_partitions_counts_every_event_once(
        self, store: Store, opened: Callable[[], Store], seed: int
    ) -> None:
        random = Random(seed)
        log = log_of(events=25, users=4, seed=seed)
        owned = [[0, 1], [0], [1], [0, 1]]
        writers = [Live(opened(), log, partitions) for partitions in owned]
        for writer in writers:
            writer.resume()
        for _ in range(40):
            writer = random.choice(writers)
            try:
                if writer.taken is None:
                    writer.take(random.randint(1, 6))
                else:
                    writer.commit()
            except StaleWriter:
                if random.random() < 0.7:
                    writer.resume()
        Live(opened(), log).finish()
        assert dict(sorted(store.items())) == sums(log)

    def test_a_row_above_the_limit_is_marked_and_stays_as_it_was(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        store.resume(TOPIC)
        largest, large = b"x" * self.row_limit, b"x" * (self.row_limit + 1)
        first = store.commit(
            [Write("bot", Stored(), largest, {0: 1}), Write("7", Stored(), b"1", {0: 1})],
            {},
            {0: 1},
        )
        assert [stored.oversized for stored in first] == [False, False]
        second = store.commit(
            [Write("bot", first[0], large, {0: 2}), Write("7", first[1], b"2", {0: 2})],
            {0: 1},
            {0: 2},
        )
        assert [stored.oversized for stored in second] == [True, False]
        third = store.commit([Write("bot", second[0], b"small", {0: 3})], {0: 2}, {0: 3})

        reader = opened()
        assert third[0].oversized
        assert reader.get_many(["bot", "7"]) == {"bot": largest, "7": b"2"}
        assert list(reader.oversized()) == ["bot"]
        assert store.read(["bot"])["bot"] == third[0]
        store.commit([Write("bot", third[0], None, {0: 4})], {0: 3}, {0: 4})
        assert (reader.get("bot"), list(reader.oversized())) == (None, [])

    def test_a_rebuild_marks_large_rows_and_tries_those_anew_that_were_marked(
        self, store: Store
    ) -> None:
        store.rebuild([("bot", b"x" * (self.row_limit + 1)), ("7", b"1")], META)
        assert dict(store.items()) == {"7": b"1"}
        assert (list(store.oversized()), len(store)) == (["bot"], 1)
        store.rebuild([("bot", b"small"), ("7", b"1")], META)
        assert list(store.oversized()) == []
        assert store.get("bot") == b"small"

    def test_erasure_leaves_an_empty_value_which_a_zombie_cannot_fill(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        store.resume(TOPIC)
        first = store.commit([Write("7", Stored(), b"1", {0: 5})], {}, {0: 5})
        zombie = opened()
        zombie.resume(TOPIC)
        seen = zombie.read(["7"])["7"]

        store.commit([Write("7", first[0], None)], {}, {})

        erased = store.read(["7"])["7"]
        assert (erased.row, erased.revision, erased.positions) == (None, 2, first[0].positions)
        assert (store.get("7"), dict(store.items()), len(store)) == (None, {}, 0)
        with pytest.raises(StaleWriter):
            zombie.commit([Write("7", seen, b"2", {0: 6})], {0: 5}, {0: 6})
        assert store.get("7") is None
        store.commit([Write("7", erased, b"3", {0: 6})], {0: 5}, {0: 6})
        assert store.get("7") == b"3"

    def test_a_rebuild_replaces_all_rows_and_a_refreshed_reader_sees_them(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        store.rebuild([("1", b"old"), ("2", b"old")], META)
        reader = opened()
        assert reader.get("1") == b"old"
        assert store.rebuild([("1", b"new")], META, TOPIC, {0: 7}) == 3
        assert reader.refresh() == store.generation == 3
        assert dict(reader.items()) == dict(store.items()) == {"1": b"new"}
        assert reader.get_many(["1", "2"]) == {"1": b"new"}

    def test_a_reader_finds_every_user_while_generations_flip(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        store.rebuild([("1", b"0")], META)
        stop, seen, errors = threading.Event(), [], []

        def read() -> None:
            reader = opened()
            try:
                while not stop.is_set():
                    seen.append(reader.get("1"))
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        for number in range(1, 4):
            store.rebuild([("1", b"%d" % number)], META)
        stop.set()
        thread.join()
        assert errors == []
        assert seen
        assert None not in seen
        assert seen == sorted(seen, key=str)

    def test_a_writer_of_the_old_generation_loses_and_resumes_where_the_new_one_stands(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        writer = Live(store, LOG)
        writer.resume()
        writer.take(30)
        writer.commit()
        writer.take(10)
        folded = [partition[:12] for partition in LOG]
        opened().rebuild(sums(folded).items(), META, TOPIC, {0: 12, 1: 12})

        with pytest.raises(StaleWriter):
            writer.commit()

        writer.resume()
        assert writer.positions == {0: 12, 1: 12}
        writer.finish()
        assert dict(sorted(store.items())) == sums(LOG)

    def test_a_staged_generation_catches_up_with_the_log_while_the_old_one_serves(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        live = Live(store, LOG)
        live.resume()
        live.take(40)
        live.commit()
        before = dict(store.items())
        folded = [partition[:12] for partition in LOG]

        staged = opened().stage(sums(folded).items(), META, TOPIC, {0: 12, 1: 12})
        Live(staged, LOG).finish()

        assert dict(opened().items()) == before
        live.take(5)
        live.commit()
        live.take(5)
        staged.flip()
        reader = opened()
        assert (reader.generation, dict(sorted(reader.items()))) == (2, sums(LOG))
        with pytest.raises(StaleWriter):
            live.commit()
        assert reader.resume(TOPIC) == {0: 60, 1: 60}
        staged.close()

    def test_a_staged_generation_left_over_is_removed_by_the_next_rebuild(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        store.rebuild([("1", b"old")], META)
        opened().stage([("1", b"abandoned")], META).close()
        assert opened().get("1") == b"old"
        assert opened().rebuild([("2", b"new")], META) > 2
        assert dict(opened().items()) == {"2": b"new"}

    def test_a_rebuild_whose_rows_fail_leaves_the_old_generation_current(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        def rows() -> Iterator[tuple[str, bytes]]:
            yield "1", b"new"
            raise OSError("the lake went away")

        store.rebuild([("1", b"old")], META)
        with pytest.raises(OSError, match="the lake went away"):
            store.rebuild(rows(), META)
        assert dict(opened().items()) == {"1": b"old"}
        store.rebuild([("1", b"newest")], META)
        assert dict(opened().items()) == {"1": b"newest"}

    @pytest.mark.parametrize("seed", [1, 2])
    def test_a_writer_killed_between_any_two_steps_counts_every_event_once(
        self, store: Store, url: str, seed: int
    ) -> None:
        random = Random(seed)
        deaths = [-signal.SIGKILL] * 4
        lives = [live_process(url, random.randint(1, MOST_CALLS)) for _ in deaths]
        assert lives == deaths
        assert live_process(url, 0) == 0
        assert store.resume(TOPIC) == {0: len(LOG[0]), 1: len(LOG[1])}
        assert dict(sorted(store.items())) == sums(LOG)


class RemoteStoreCases(StoreCases):
    """What Cassandra and DynamoDB must do beyond that. Subclasses give the fixture `server` too."""

    server_class: ClassVar[type]

    def rows_expire_in(self, url: str, server: Any) -> float:
        """In how many seconds the server may remove the row of user 7 in generation 1."""
        raise NotImplementedError

    def test_a_writer_that_dies_before_the_control_row_is_followed_exactly(
        self, store: Store, opened: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Crash(BaseException):
            pass

        def crash(*_: object) -> bool:
            raise Crash

        dying = Live(store, LOG)
        dying.resume()
        dying.take(8)
        dying.commit()
        dying.take(30)
        advance = self.server_class.__dict__["advance"]
        monkeypatch.setattr(self.server_class, "advance", crash)
        with pytest.raises(Crash):
            dying.commit()
        monkeypatch.setattr(self.server_class, "advance", advance)

        heir = Live(opened(), LOG)
        heir.resume()
        assert heir.positions == {0: 8, 1: 8}
        heir.take(10)
        assert heir.taken == ([], {0: 18, 1: 18})
        assert dict(sorted(store.items())) == sums([partition[:38] for partition in LOG])
        heir.finish(size=25)
        assert dict(sorted(store.items())) == sums(LOG)

    def test_rows_are_kept_for_two_years_after_their_last_write(
        self, store: Store, url: str, server: Any
    ) -> None:
        store.resume(TOPIC)
        store.commit([Write("7", Stored(), b"1", {0: 1})], {}, {0: 1})
        assert abs(self.rows_expire_in(url, server) - KEPT.total_seconds()) < 60

    def test_of_two_rebuilds_at_once_the_later_one_is_the_one_to_flip(
        self, store: Store, opened: Callable[[], Store]
    ) -> None:
        earlier = opened().stage([("1", b"earlier")], META)
        later = opened().stage([("1", b"later")], META)
        with pytest.raises(ProfilehouseError, match="another process has begun to rebuild"):
            earlier.flip()
        later.flip()
        assert opened().get("1") == b"later"
        earlier.close()
        later.close()

    def test_a_server_killed_and_started_again_has_all_that_was_committed(
        self, store: Store, opened: Callable[[], Store], server: Any
    ) -> None:
        live = Live(store, LOG)
        live.resume()
        live.take(20)
        live.commit()
        live.take(20)
        server.kill()
        try:
            with pytest.raises(ProfilehouseError) as failure:
                live.commit()
        finally:
            server.start()
        assert not isinstance(failure.value, StaleWriter)
        store.close()
        live.finish()
        assert dict(sorted(store.items())) == dict(sorted(opened().items())) == sums(LOG)


def live_process(url: str, die_after: int) -> int:
    """Run this module as a live process; its exit code."""
    command = [sys.executable, "-m", "tests.store_cases", url, str(die_after)]
    return subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode


def die_after(calls: int) -> None:
    """Kill this process, as kill -9 does, after so many calls made in or by a store's module."""
    made = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal made
        if f"profiles{os.sep}store" in frame.f_code.co_filename:
            made += 1
            if made == calls:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)


if __name__ == "__main__":
    live = Live(open_store(sys.argv[1], FINGERPRINT), LOG)
    live.resume()
    if sys.argv[2] != "0":
        die_after(int(sys.argv[2]))
    live.finish(size=4)
