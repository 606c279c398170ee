"""Mentions: fetched from a network that fails, throttles and changes, and on into the star."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.sources.fetching import Fetched
from profilehouse.sources.mentions import fetch_mentions, text_of
from tests.feeds import load
from tests.pipeline import DAYS, Installation
from tests.social import Network, network, status

FIRST, SECOND = DAYS[:2]


@pytest.fixture
def there() -> Iterator[Network]:
    with network() as found:
        yield found


def house_of(tmp_path: Path, there: Network, **changes: Any) -> Installation:
    (tmp_path / "sources").mkdir(exist_ok=True)
    return Installation(tmp_path, feeds="mentions", mentions_url=there.url, **changes)


def fetch(house: Installation, day: date = FIRST) -> Fetched:
    return fetch_mentions(house.settings, house.platform.sources(), day)


def delivered(house: Installation, day: date = FIRST) -> list[dict[str, Any]]:
    path = house.sources / "mentions" / f"{day}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def numbers(house: Installation, day: date = FIRST) -> list[int]:
    return [record["likes"] for record in delivered(house, day)]


def test_all_pages_are_fetched_once_and_then_only_what_is_newer(
    tmp_path: Path, there: Network
) -> None:
    house = house_of(tmp_path, there)
    there.statuses = [status(n) for n in range(1, 9)]
    assert fetch(house) == Fetched(8, 3, 8, f"{FIRST}.jsonl")
    assert numbers(house) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert fetch(house) == Fetched(0, 1, 0, None)
    there.statuses += [status(n) for n in range(9, 14)]
    assert fetch(house) == Fetched(5, 2, 5, f"{FIRST}.jsonl")
    assert numbers(house) == list(range(1, 14))
    there.statuses.append(status(14))
    assert fetch(house, SECOND).new == 1
    assert (numbers(house), numbers(house, SECOND)) == (list(range(1, 14)), [14])


def test_a_network_that_throttles_fails_and_breaks_off_is_asked_again(
    tmp_path: Path, there: Network
) -> None:
    house = house_of(tmp_path, there)
    there.statuses = [status(n) for n in range(1, 8)]
    there.script = ["429 1", "", "503", "half", ""]
    fetched = fetch(house)
    assert (fetched.new, len(there.asked)) == (7, 6)
    assert numbers(house) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (["", "503", "503", "503", "503", "503"], "no whole answer after 5 attempts"),
        (["", "half", "half", "half", "half", "half"], "no whole answer after 5 attempts"),
        (["", "html"], "its answer is not JSON; see that PROFILEHOUSE_MENTIONS_URL"),
    ],
)
def test_a_fetch_that_fails_between_pages_writes_nothing_and_the_next_has_everything(
    tmp_path: Path, there: Network, script: list[str], said: str
) -> None:
    house = house_of(tmp_path, there)
    there.statuses = [status(n) for n in range(1, 8)]
    there.script = script
    with pytest.raises(ProfilehouseError, match=said) as error:
        fetch(house)
    assert "\n" not in str(error.value)
    assert not (house.sources / "mentions").exists()
    there.script = []
    assert fetch(house).new == 7


def test_a_token_that_is_wrong_is_told_apart_and_never_shown(
    tmp_path: Path, there: Network
) -> None:
    there.token = "right-token"
    there.statuses = [status(1)]
    with pytest.raises(ProfilehouseError, match="refused with 401; set PROFILEHOUSE_MENTIONS_T"):
        fetch(house_of(tmp_path, there))
    wrong = house_of(tmp_path, there, mentions_token="wrong-token")
    with pytest.raises(ProfilehouseError) as error:
        fetch(wrong)
    assert "wrong-token" not in str(error.value)
    assert fetch(house_of(tmp_path, there, mentions_token="right-token")).new == 1


def test_a_next_page_at_another_origin_is_not_asked_for_so_no_token_goes_there(
    tmp_path: Path, there: Network
) -> None:
    there.token = "right-token"
    there.statuses = [status(n) for n in range(1, 3)]
    house = house_of(tmp_path, there, mentions_token="right-token")
    with network() as elsewhere:
        there.script = [elsewhere.url]
        with pytest.raises(ProfilehouseError, match="another origin, to which no token is sent"):
            fetch(house)
        assert elsewhere.asked == []
    assert not (house.sources / "mentions").exists()
    assert fetch(house).new == 2


@pytest.mark.parametrize("script", ["429 3600", "429 Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_wait_of_more_than_a_minute_is_left_to_the_next_fetch(
    tmp_path: Path, there: Network, script: str
) -> None:
    house = house_of(tmp_path, there)
    there.statuses = [status(1)]
    there.script = [script]
    with pytest.raises(ProfilehouseError, match=r"after [\d,]+ seconds, more than the 60"):
        fetch(house)
    assert len(there.asked) == 1
    assert fetch(house).new == 1


def test_a_fetch_without_an_address_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    house = Installation(tmp_path, feeds="mentions")
    with pytest.raises(ProfilehouseError, match="PROFILEHOUSE_MENTIONS_URL is not set"):
        fetch(house)


def test_mentions_are_facts_and_what_the_api_changed_is_told_and_kept(
    tmp_path: Path, there: Network
) -> None:
    house = house_of(tmp_path, there)
    there.statuses = [
        status(1),
        status(2, mood="happy"),
        status(3, favourites_count="many"),
        status(4, created_at=None),
        status(5, tags=["bread"]),
    ]
    fetch(house)
    checks = load(house, "mentions", "fct_mention")
    failed = {name for name, passed in checks.items() if not passed}
    assert failed == {"no_record_was_refused", "every_field_is_known"}
    rows = house.query("SELECT * FROM fct_mention ORDER BY line")
    assert [(row["line"], row["likes"], row["topics"]) for row in rows] == [
        (1, 1, "#grocery#"),
        (2, 2, "#grocery#"),
    ]
    assert rows[0]["text"] == "Fresh bread & cheese 1\ntoday\nYes"
    letters = house.dead_letters()
    assert [letter["reason"] for letter in letters] == [
        "Expected `int`, got `str` - at `$.likes`",
        "Object missing required field `created_at`",
        "Expected `str`, got `array` - at `$.hashtags`",
    ]
    assert json.loads(letters[0]["record"])["payload"]["favourites_count"] == "many"
    landed = house.platform.lake().read("mentions").to_pylist()
    assert json.loads(landed[1]["record"])["mood"] == "happy"


def test_text_is_what_a_reader_sees() -> None:
    assert text_of("<p>a &lt;b&gt;</p><p>c<br />d</p>") == "a <b>\nc\nd"
    assert text_of("") == ""
