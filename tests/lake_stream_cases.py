"""What every lake must do with what comes from a log. Subclasses give the fixture `settings`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest

from profilehouse.contracts import Column, contract
from profilehouse.errors import ProfilehouseError, StaleWriter
from profilehouse.lake import Lake, open_lake, reading
from profilehouse.settings import Settings
from tests.lake_cases import day, layouts, raw

EVENTS, LETTERS = "web_events", "web_dead_letters"
TOPIC = "topic-1"
Position = tuple[date, int, int]


NOON = timedelta(hours=12)


def midnight(of: date) -> datetime:
    return datetime.combine(of, datetime.min.time())


def web(of: date, partition: int, offsets: Iterable[int], topic: str = TOPIC) -> pa.Table:
    """Events of one partition, received on that day."""
    rows = [
        {
            "event_id": f"{partition}/{offset}",
            "event_type": "click",
            "user_id": f"u{offset % 7}",
            "occurred_at": midnight(of) - NOON,
            "received_at": midnight(of) + NOON,
            "consent": True,
            "properties": '{"a": [1, "ü"]}',
            "contract_version": "1.0.0",
            "topic_id": topic,
            "log_partition": partition,
            "log_offset": offset,
            "delivered_on": of,
        }
        for offset in offsets
    ]
    return pa.Table.from_pylist(rows, schema=contract(EVENTS).arrow_schema)


def refused(of: date, partition: int, offsets: Iterable[int]) -> pa.Table:
    """Refused records of one partition, received on that day."""
    rows = [
        {
            "received_at": midnight(of) + NOON,
            "reason": "no JSON",
            "contract_version": "1.0.0",
            "record": b"\xff" * (offset % 1000),
            "topic_id": TOPIC,
            "log_partition": partition,
            "log_offset": offset,
            "delivered_on": of,
        }
        for offset in offsets
    ]
    return pa.Table.from_pylist(rows, schema=contract(LETTERS).arrow_schema)


def put(
    lake: Lake,
    rows: Sequence[pa.Table],
    before: Mapping[int, int],
    after: Mapping[int, int],
    name: str = EVENTS,
) -> None:
    nothing = contract(name).arrow_schema.empty_table()
    table = pa.concat_tables([nothing, *rows])
    lake.append(name, table, topic_id=TOPIC, before=before, after=after)


def found(lake: Lake, name: str = EVENTS, **chosen: object) -> list[Position]:
    columns = ["delivered_on", "log_partition", "log_offset"]
    read = lake.read(name, columns=columns, **chosen)  # type: ignore[arg-type]
    return [tuple(row.values()) for row in read.to_pylist()]


class LakeStreamCases:
    @pytest.fixture
    def lake(self, settings: Settings) -> Lake:
        return open_lake(settings)

    def test_a_table_that_nothing_was_appended_to_has_no_positions(self, lake: Lake) -> None:
        stored = lake.positions(EVENTS)
        assert (stored.topic_id, stored.offsets) == (None, {})
        assert found(lake, offsets={0: (0, 10)}) == []

    def test_appended_rows_come_back_in_order_of_their_position(
        self, lake: Lake, settings: Settings
    ) -> None:
        put(lake, [web(day(0), 1, [6, 5]), web(day(0), 0, [0, 1])], {}, {0: 2, 1: 7})
        put(lake, [web(day(1), 0, [4]), web(day(0), 0, [2, 3])], {0: 2}, {0: 5})
        expected = [
            web(day(0), 0, range(4)),
            web(day(0), 1, [5, 6]),
            web(day(1), 0, [4]),
        ]
        assert lake.read(EVENTS).to_pylist() == pa.concat_tables(expected).to_pylist()
        assert lake.read(EVENTS).schema.types == contract(EVENTS).arrow_schema.types
        assert lake.days(EVENTS) == {day(0): 6, day(1): 1}
        for other in (lake, open_lake(settings)):
            stored = other.positions(EVENTS)
            assert (stored.topic_id, stored.offsets) == (TOPIC, {0: 5, 1: 7})

    def test_each_day_of_an_append_is_a_file(self, lake: Lake) -> None:
        put(lake, [web(day(1), 0, [1]), web(day(0), 0, [0]), web(day(1), 1, [0])], {}, {0: 2, 1: 1})
        assert len(self.data_files(lake, EVENTS)) == 2

    def test_an_append_without_rows_moves_the_positions(self, lake: Lake) -> None:
        put(lake, [], {}, {0: 4}, LETTERS)
        put(lake, [], {0: 4}, {0: 9, 1: 3}, LETTERS)
        assert lake.positions(LETTERS).offsets == {0: 9, 1: 3}
        assert lake.positions(EVENTS).offsets == {}
        put(lake, [refused(day(0), 0, [10])], {0: 9}, {0: 11}, LETTERS)
        assert lake.read(LETTERS, columns=["record"]).to_pylist() == [{"record": b"\xff" * 10}]

    @pytest.mark.parametrize(
        ("before", "after"),
        [({0: 2}, {0: 6}), ({0: 5}, {0: 6}), ({}, {0: 6}), ({0: 4, 1: 1}, {0: 6, 1: 2})],
        ids=["behind", "ahead", "not stored", "one right, one wrong"],
    )
    @pytest.mark.parametrize("rows", [[5], []], ids=["rows", "no rows"])
    def test_who_starts_from_other_positions_than_stored_is_refused_and_leaves_nothing(
        self, lake: Lake, before: dict[int, int], after: dict[int, int], rows: list[int]
    ) -> None:
        put(lake, [web(day(0), 0, range(4))], {}, {0: 4})
        with pytest.raises(StaleWriter, match=r"stands at .*resume from the stored positions"):
            put(lake, [web(day(0), 0, rows)], before, after)
        assert lake.positions(EVENTS).offsets == {0: 4}
        assert found(lake) == [(day(0), 0, offset) for offset in range(4)]
        assert len(self.data_files(lake, EVENTS)) == 1

    def test_of_two_writers_of_a_partition_the_zombie_loses_all(self, settings: Settings) -> None:
        zombie, heir = open_lake(settings), open_lake(settings)
        put(zombie, [web(day(0), 0, range(4))], {}, {0: 4})
        put(heir, [web(day(0), 0, range(4, 6))], {0: 4}, {0: 6})
        for rows, after in (([web(day(0), 0, [4, 5, 6])], 7), ([], 5), ([], 6)):
            with pytest.raises(StaleWriter, match="partition 0 stands at 6, not at 4"):
                put(zombie, rows, {0: 4}, {0: after})
        put(heir, [web(day(0), 0, [6])], {0: 6}, {0: 7})
        put(zombie, [web(day(0), 1, [0])], {}, {1: 1})
        assert found(heir) == [*[(day(0), 0, offset) for offset in range(7)], (day(0), 1, 0)]
        assert len(self.data_files(heir, EVENTS)) == 4

    def test_a_log_that_was_made_anew_is_refused_with_the_remedy(self, lake: Lake) -> None:
        put(lake, [web(day(0), 0, [0])], {}, {0: 1})
        rows = web(day(0), 1, [0], "topic-2")
        with pytest.raises(ProfilehouseError, match=r"topic-1.*topic-2.*PROFILEHOUSE_LOG") as error:
            lake.append(EVENTS, rows, topic_id="topic-2", before={}, after={1: 1})
        assert not isinstance(error.value, StaleWriter)
        assert lake.positions(EVENTS).offsets == {0: 1}

    @pytest.mark.parametrize(
        ("rows", "before", "after", "fault"),
        [
            (web(day(0), 0, [3]), {0: 1}, {0: 3}, "not between"),
            (web(day(0), 0, [0]), {0: 1}, {0: 3}, "not between"),
            (web(day(0), 1, [1]), {0: 1}, {0: 3}, "not between"),
            (web(day(0), 0, [1], "topic-2"), {0: 1}, {0: 3}, "other topics"),
            (web(day(0), 0, []), {0: 1}, {0: 0}, "never go back"),
            (web(day(0), 0, []), {0: 1, 1: 1}, {0: 3}, "none after"),
            (web(day(0), 0, [1]).drop_columns("url"), {0: 1}, {0: 3}, "url"),
        ],
        ids=["beyond", "before", "partition", "topic", "back", "half", "column"],
    )
    def test_rows_that_do_not_belong_there_are_refused(
        self,
        lake: Lake,
        rows: pa.Table,
        before: dict[int, int],
        after: dict[int, int],
        fault: str,
    ) -> None:
        put(lake, [], {}, {0: 1})
        with pytest.raises(ValueError, match=fault):
            lake.append(EVENTS, rows, topic_id=TOPIC, before=before, after=after)
        assert lake.positions(EVENTS).offsets == {0: 1}

    @pytest.mark.parametrize("at_once", [500_000, 12])
    def test_ranges_of_offsets_are_read_exactly_and_in_order(
        self, lake: Lake, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reading, "ROWS_AT_ONCE", at_once)
        before: dict[int, int] = {}
        for step in range(4):
            after = {0: 5 * (step + 1), 1: 2 * (step + 1), 7: 70 * (step + 1)}
            rows = [
                web(day(step // 2), p, range(before.get(p, 0), end, 10 if p == 7 else 1))
                for p, end in after.items()
            ]
            put(lake, rows, before, after)
            before = after
        everything = found(lake)
        assert everything == sorted(everything)
        assert len(everything) == 20 + 8 + 28
        for offsets in (
            {0: (3, 12)},
            {7: (65, 141), 1: (7, 8)},
            {0: (4, 4), 1: (6, 2)},
            {2: (0, 5)},
            {},
        ):
            expected = [
                (of, p, offset)
                for of, p, offset in everything
                if p in offsets and offsets[p][0] <= offset < offsets[p][1]
            ]
            assert found(lake, offsets=offsets) == expected
        assert found(lake, offsets={0: (0, 20)}, days=[day(1)]) == [
            (day(1), 0, offset) for offset in range(10, 20)
        ]
        few = lake.read(EVENTS, columns=["event_id"], offsets={1: (1, 3)})
        assert few.to_pylist() == [{"event_id": "1/1"}, {"event_id": "1/2"}]

    def test_compaction_makes_one_file_of_a_closed_day_and_changes_no_row(self, lake: Lake) -> None:
        for n in range(6):
            rows = [web(day(n // 2), p, [n]) for p in (1, 0)]
            put(lake, rows, {0: n, 1: n} if n else {}, {0: n + 1, 1: n + 1})
        before = lake.read(EVENTS)
        assert len(self.data_files(lake, EVENTS)) == 6
        report = lake.compact(EVENTS, day(2))
        assert (report.days, report.files_before, report.files_after) == ((day(0), day(1)), 4, 2)
        assert 0 < report.bytes_after < report.bytes_before
        lake.expire(EVENTS, timedelta(0))
        assert len(self.data_files(lake, EVENTS)) == 4
        assert lake.read(EVENTS).equals(before)
        assert lake.positions(EVENTS).offsets == {0: 6, 1: 6}
        assert lake.compact(EVENTS, day(2)).days == ()
        put(lake, [web(day(0), 0, [6])], {0: 6}, {0: 7})
        assert lake.compact(EVENTS, day(2)).files_before == 2
        assert found(lake, offsets={0: (0, 9)}, days=[day(0)]) == [
            (day(0), 0, offset) for offset in (0, 1, 6)
        ]

    def test_rows_from_before_a_column_was_gained_are_compacted_too(
        self, settings: Settings
    ) -> None:
        old = contract(EVENTS)
        new = replace(old, columns=(*old.columns, Column("colour", "string", "Seen on it.")))
        put(open_lake(settings), [web(day(0), 0, [0])], {}, {0: 1})
        lake = open_lake(settings, layouts=layouts(web_events=new))
        rows = web(day(0), 0, [1]).append_column("colour", pa.array(["red"]))
        lake.append(EVENTS, rows, topic_id=TOPIC, before={0: 1}, after={0: 2})
        assert lake.compact(EVENTS, day(1)).files_after == 1
        assert lake.read(EVENTS, columns=["colour"])["colour"].to_pylist() == [None, "red"]

    def test_tables_of_deliveries_have_nothing_to_compact(self, lake: Lake) -> None:
        lake.replace("purchases", raw(day(0), [1]), days=[day(0)])
        assert lake.compact("purchases", day(9)).days == ()
        assert lake.compact("deliveries", day(9)).days == ()

    def test_expiry_says_what_it_did(self, lake: Lake) -> None:
        for n in range(4):
            put(lake, [web(day(0), 0, [n])], {0: n} if n else {}, {0: n + 1})
        assert lake.expire(EVENTS).forgotten == 0
        report = lake.expire(EVENTS, timedelta(0))
        assert (report.forgotten, report.left) == (3, 1)
        assert report.files == 3
        assert len(found(lake)) == 4

    def test_files_that_no_state_needs_are_removed_once_they_are_old(self, lake: Lake) -> None:
        for n in range(3):
            put(lake, [web(day(0), 0, [n])], {0: n} if n else {}, {0: n + 1})
        lake.compact(EVENTS, day(1))
        orphans = self.leave_orphans(lake, EVENTS)
        files = set(self.files(lake, EVENTS))
        assert orphans <= files
        assert lake.remove_orphans(EVENTS).files == 0
        assert lake.remove_orphans("purchases").files == 0
        report = lake.remove_orphans(EVENTS, timedelta(0))
        assert (report.files, report.bytes) == (len(orphans), 6 * len(orphans))
        assert set(self.files(lake, EVENTS)) == files - orphans
        assert report.left == len(files - orphans)
        assert len(found(lake)) == 3
        put(lake, [web(day(0), 0, [3])], {0: 3}, {0: 4})
        assert len(found(lake)) == 4

    def data_files(self, lake: Lake, name: str) -> list[str]:
        """All Parquet files of the table that exist."""
        return [path for path in self.files(lake, name) if path.endswith(".parquet")]

    def files(self, lake: Lake, name: str) -> list[str]:
        """All files of the table that exist."""
        raise NotImplementedError

    def leave_orphans(self, lake: Lake, name: str) -> set[str]:
        """Write files of six bytes that no state needs: data and metadata."""
        raise NotImplementedError
