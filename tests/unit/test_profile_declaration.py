from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from profilehouse.contracts import ARROW_TYPES
from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import (
    PROFILE_PATH,
    Declaration,
    load_declaration,
    profile_contract,
    weights,
)


def declared(tmp_path: Path, **changes: Any) -> Declaration:
    document = yaml.safe_load(PROFILE_PATH.read_text("utf-8")) | changes
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return load_declaration(path)


def changed(feature: str, /, **changes: Any) -> list[dict[str, Any]]:
    features = yaml.safe_load(PROFILE_PATH.read_text("utf-8"))["features"]
    return [f | changes if f["name"] == feature else f for f in features]


def test_the_contract_of_the_profile_table_has_a_described_required_column_for_each_feature() -> (
    None
):
    contract = profile_contract(load_declaration())
    types = {c.name: c.type for c in contract.columns}

    assert contract.primary_key == ("user_id",)
    assert list(types)[:6] == [
        "user_id",
        "as_of",
        "purchases_1d",
        "purchases_7d",
        "purchases_30d",
        "purchases_lifetime",
    ]
    assert (
        types
        | {
            "user_id": "string",
            "as_of": "date",
            "clicks_lifetime": "integer",
            "spend_cents_30d": "integer",
            "top_categories": "array",
            "top_categories_scores": "array",
            "recent_contents": "array",
            "first_seen_at": "timestamp",
            "last_seen_at": "timestamp",
            "days_since_last_seen": "integer",
            "is_lapsed": "boolean",
        }
        == types
    )
    assert all(c.description and c.required and c.type in ARROW_TYPES for c in contract.columns)
    assert [c.name for c in contract.columns if c.personal] == ["user_id"]


def test_weights_are_whole_numbers_that_halve_with_the_half_life() -> None:
    found = weights(14, 90)

    assert len(found) == 90
    assert (found[0], found[14], found[28], found[84]) == (65536, 32768, 16384, 1024)
    assert found[1] == 62370  # 65536 / 2 ** (1 / 14) = 62370.06
    assert list(found) == sorted(found, reverse=True)


def test_the_fingerprint_changes_with_what_a_row_holds_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    here = load_declaration().fingerprint

    assert declared(tmp_path, description="Other words.").fingerprint == here
    assert declared(tmp_path, segments=[]).fingerprint == here
    for same in (
        changed("spend_cents", name="paid_cents"),
        changed("spend_cents", windows=[7, 30]),
        changed("top_categories", half_life_days=20, top=3),
    ):
        assert declared(tmp_path, features=same).fingerprint == here
    for other in (
        changed("spend_cents", windows=[7, 31]),
        changed("spend_cents", lifetime=False),
        changed("spend_cents", event_type="click"),
        changed("top_categories", window=60),
        changed("top_categories", key="content_id"),
        changed("recent_contents", count=11),
    ):
        assert declared(tmp_path, features=other).fingerprint != here


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": changed("purchases", kind="cuont")}, "Invalid value 'cuont'"),
        ({"features": changed("purchases", windows=[0])}, "Expected `int` >= 1"),
        ({"features": changed("purchases", window=[7])}, "unknown field `window`"),
        ({"features": changed("purchases", event_type="buy")}, "feature purchases: event_type is"),
        ({"features": changed("purchases", name="Big Spend")}, "matching regex"),
        ({"features": changed("spend_cents", field="price")}, "Invalid enum value 'price'"),
        (
            {"features": changed("spend_cents", windows=[], lifetime=False)},
            "feature spend_cents: needs windows or lifetime: true",
        ),
        ({"features": changed("clicks", name="purchases")}, "make the column purchases_1d"),
        ({"features": changed("purchases", windows=[7, 7])}, "make the column purchases_7d"),
        ({"features": changed("last_seen_at", name="seen")}, "must end in _at"),
        (
            {"features": changed("top_categories", half_life_days=1)},
            "feature top_categories: after 90 days nothing is left",
        ),
        (
            {"segments": [{"name": "x", "when": "purchases_9d > 1", "description": "No."}]},
            "segment x: purchases_9d is not a column",
        ),
        ({"features": []}, "Expected `array` of length >= 1"),
        ({"owner": None}, "Expected `str`, got `null` - at `$.owner`"),
    ],
)
def test_a_wrong_declaration_is_refused_in_one_line_that_names_the_place(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ProfilehouseError) as refused:
        declared(tmp_path, **changes)

    message = str(refused.value)
    assert says in message
    assert "profile.yaml" in message
    assert "\n" not in message


def test_a_missing_or_unreadable_declaration_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "profile.yaml"
    broken.write_text("features: [", "utf-8")

    for path in (broken, tmp_path / "none.yaml"):
        with pytest.raises(ProfilehouseError, match=path.name) as refused:
            load_declaration(path)
        assert "\n" not in str(refused.value)
