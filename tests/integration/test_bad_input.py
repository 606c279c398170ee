"""Bad input, through the daily job: what a person reads, what is kept, what stays as it was."""

from __future__ import annotations

import gzip
import socket
from pathlib import Path

import pytest

from tests.pipeline import DAYS, Installation, Ran, Record, deliver, differences, of_day

FIRST, SECOND, THIRD, LAST = DAYS
UNREADABLE = Path("/proc/self/mem")
"""A file that is there and cannot be read, not even by root."""


def delivered_to(folder: Path, factory: pytest.TempPathFactory) -> Installation:
    """The days are delivered, nothing is loaded."""
    deliver(factory.getbasetemp(), folder / "sources")
    return Installation(folder)


@pytest.fixture
def house(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return delivered_to(tmp_path, tmp_path_factory)


def is_one_line(message: str) -> bool:
    return message == " ".join(message.split())


# Records


def test_bad_records_are_dead_letters_with_a_reason_and_good_ones_are_loaded(
    house: Installation,
) -> None:
    good = house.records("purchases", FIRST)
    some = good[0]
    bad: list[tuple[Record | bytes, str]] = [
        (b'{"household_id": 1', "Input data was truncated"),
        (b"household_id;store_id", "JSON is malformed"),
        (b"[1, 2]", "Expected `object`, got `array`"),
        (b'{"household_id": 1, "st\xe9re": 1}', "can't decode byte 0xe9"),
        (some | {"shoe_size": 44}, "Object contains unknown field `shoe_size`"),
        (some | {"quantity": "2"}, "Expected `int`, got `str` - at `$.quantity`"),
        (some | {"quantity": 1.5}, "Expected `int`, got `float` - at `$.quantity`"),
        (some | {"sales_value": -1}, "Expected `float` >= 0.0 - at `$.sales_value`"),
        (some | {"transaction_timestamp": "now"}, "at `$.transaction_timestamp`"),
        ({name: some[name] for name in some if name != "week"}, "required field `week`"),
    ]
    mixed = [line for i, (record, _) in enumerate(bad) for line in (good[i], record)]
    house.deliver("purchases", FIRST, [*mixed, *good[len(bad) :]])
    ran = house.run(FIRST)
    assert ran.success

    letters = house.dead_letters()
    assert [letter["line"] for letter in letters] == [2 * (n + 1) for n in range(len(bad))]
    assert [
        reason if reason in letter["reason"] else letter["reason"]
        for letter, (_, reason) in zip(letters, bad, strict=True)
    ] == [reason for _, reason in bad]
    lines = house.files("purchases")[FIRST].read_bytes().split(b"\n")
    assert [letter["record"] for letter in letters] == [lines[n["line"] - 1] for n in letters]

    check = "lake/purchases no_record_was_refused"
    assert ran.failing[check] == "WARN"
    assert ran.metadata[check]["dead_letters"] == len(bad)
    [loaded] = house.query("SELECT COUNT(*) AS n, SUM(value_cents) AS cents FROM fct_purchase")
    assert loaded == {"n": len(good), "cents": sum(round(r["sales_value"] * 100) for r in good)}


# Days


@pytest.fixture(scope="module")
def odd_days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Installation, Ran]:
    """Every record of the first day comes twice, the second is empty, the third is UTF-16."""
    house = delivered_to(tmp_path_factory.mktemp("odd"), tmp_path_factory)
    house.deliver("purchases", FIRST, [r for r in house.records("purchases", FIRST) for _ in "12"])
    house.deliver("purchases", SECOND, [])
    [(path, data)] = house.withhold("purchases", THIRD).items()
    foreign = path.with_name(f"{THIRD}.jsonl")
    foreign.write_bytes(gzip.decompress(data).decode().encode("utf-16"))
    return house, house.run(checked=False)


def test_a_record_that_comes_twice_in_a_file_is_one_fact(
    odd_days: tuple[Installation, Ran],
) -> None:
    house, ran = odd_days
    assert ran.success
    state = house.state()
    delivered = len(of_day(state, "lake/purchases", FIRST))
    assert delivered == len(house.records("purchases", FIRST))
    assert 2 * len(of_day(state, "warehouse/fct_purchase", FIRST)) == delivered
    [twice] = house.query("SELECT SUM(purchases_lifetime) AS lines FROM profile")
    assert twice["lines"] == len(state["warehouse/fct_purchase"])


def test_an_empty_file_is_a_day_on_which_nothing_was_bought(
    odd_days: tuple[Installation, Ran],
) -> None:
    house, _ = odd_days
    state = house.state()
    assert of_day(state, "lake/purchases", SECOND) == []
    assert of_day(state, "warehouse/fct_purchase", SECOND) == []
    assert of_day(state, "warehouse/fct_interaction", SECOND) != []
    [ledger] = house.query(
        "SELECT staged_rows FROM load_ledger WHERE table_name = ? AND delivered_on = ?",
        "fct_purchase",
        SECOND,
    )
    assert ledger["staged_rows"] == 0


def test_a_file_that_is_not_utf_8_is_all_dead_letters(odd_days: tuple[Installation, Ran]) -> None:
    house, _ = odd_days
    state = house.state()
    assert of_day(state, "lake/purchases", THIRD) == []
    refused = [letter for letter in house.dead_letters() if letter["delivered_on"] == THIRD]
    assert refused[0]["reason"] == "JSON is malformed: invalid character (byte 0)"
    [counts] = [row for row in of_day(state, "lake/deliveries", THIRD) if "purchases/" in row]
    assert f"'records': {len(refused)}, 'dead_letters': {len(refused)}" in counts


# Files


def test_files_that_cannot_be_used_are_named_and_change_nothing(house: Installation) -> None:
    assert house.run(checked=False).success
    before = house.state()
    whole = {path: path.read_bytes() for path in house.files("purchases").values()}
    [products] = house.files("products").values()

    first, second, third, last = whole
    first.with_suffix("").write_bytes(b"")
    second.write_bytes(whole[second][:-20])
    third.write_bytes(gzip.decompress(whole[third]))
    last.unlink()
    last.symlink_to(UNREADABLE)
    catalog = products.with_name(f"{products.name}.gz")
    products.rename(house.folder / "products")
    catalog.write_bytes(gzip.compress(b"{}")[:-8])
    ran = house.run(checked=False)
    assert not ran.success
    assert ran.errors.keys() == {"lake__purchases", "lake__products"}
    assert all(map(is_one_line, ran.errors.values()))
    again = "ask the source to deliver it again"
    for said in (
        "missing or unreadable: 4 deliveries of purchases; all others have landed.",
        f"more than one file for {FIRST}: {FIRST}.jsonl, {FIRST}.jsonl.gz; remove the wrong one",
        f"{SECOND}.jsonl.gz: not a whole gzip file (Compressed file ended before",
        f"{THIRD}.jsonl.gz: not a whole gzip file (Not a gzipped file",
        again,
        f"{LAST}.jsonl.gz: cannot be read (",
    ):
        assert said in ran.errors["lake__purchases"]
    assert f"products/{catalog.name}: not a whole gzip file" in ran.errors["lake__products"]
    assert again in ran.errors["lake__products"]
    assert differences(house.state(), before) == []

    first.with_suffix("").unlink()
    last.unlink()
    for path, data in whole.items():
        path.write_bytes(data)
    catalog.unlink()
    (house.folder / "products").rename(products)
    assert house.run(checked=False).success
    assert differences(house.state(), before) == []


# Places


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """One day is loaded, the others are delivered."""
    house = delivered_to(tmp_path_factory.mktemp("places"), tmp_path_factory)
    assert house.run(FIRST, checked=False).success
    (house.folder / "a file").write_text("not a place\n" * 1000, "ascii")
    return house


@pytest.mark.parametrize(
    ("setting", "value", "says", "remedy"),
    [
        ("sources", "{}/nowhere", "{}/nowhere: no such folder", "create it or correct the setting"),
        (
            "lake",
            "{}/a file/lake",
            "lake {}/a file/lake: cannot open its catalog",
            "set PROFILEHOUSE_LAKE",
        ),
        (
            "warehouse",
            "duckdb:{}/a file",
            "warehouse {}/a file cannot be opened",
            "check PROFILEHOUSE_WAREHOUSE",
        ),
        (
            "warehouse",
            "duckdb:{}/a file/w",
            "warehouse {}/a file/w cannot be opened",
            "check PROFILEHOUSE_WAREHOUSE",
        ),
        ("profiles", "lmdb:{}/a file", "{}/a file", "PROFILEHOUSE_PROFILES"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_with_the_remedy_and_the_rest_stays(
    loaded: Installation, setting: str, value: str, says: str, remedy: str
) -> None:
    before = loaded.state()
    broken = Installation(loaded.folder, **{setting: value.format(loaded.folder)})
    ran = broken.run(SECOND, checked=False)
    assert not ran.success
    assert ran.errors
    for message in ran.errors.values():
        assert is_one_line(message)
        assert says.format(loaded.folder) in message
        assert remedy in message
    behind = {"sources": "", "lake": "", "warehouse": "warehouse/", "profiles": "profiles/"}
    changed = differences(loaded.state(), before)
    assert [name for name in changed if name.startswith(behind[setting])] == []


def test_a_bucket_that_does_not_answer_is_named_with_the_remedy_and_nothing_changes(
    loaded: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    before = loaded.state()
    ran = Installation(loaded.folder, sources="s3://house/in").run(SECOND, checked=False)
    assert not ran.success
    for message in ran.errors.values():
        assert is_one_line(message)
        assert message.startswith("s3://house/in: Could not connect to the endpoint URL")
        assert message.endswith("check the network and, where set, AWS_ENDPOINT_URL")
    assert differences(loaded.state(), before) == []
