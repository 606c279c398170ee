"""Row rules made from contracts."""

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profilehouse.contract_quality import Expression, QualityRule
from profilehouse.contracts import Column, Contract, contract, load_contracts
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.rules import (
    Between,
    Holds,
    InSet,
    Matches,
    Present,
    Rule,
    Unique,
    python_pattern,
    row_rules,
)
from profilehouse.quality.sql import fails_where
from profilehouse.warehouse.sql import translate


def a_contract(*columns: Column, **more: object) -> Contract:
    given: dict[str, object] = {
        "name": "visits",
        "kind": "sources",
        "version": "1.0.0",
        "description": "Visits.",
        "owner": "web-team",
        "columns": columns,
        "primary_key": (),
        "partition_by": (),
        "cluster_by": (),
        "quality": (),
        "path": Path("contracts/sources/visits.odcs.yaml"),
    }
    return Contract(**(given | more))  # type: ignore[arg-type]


def named(rules: tuple[Rule, ...], name: str) -> Rule:
    return next(rule for rule in rules if rule.name == name)


def test_every_demand_of_a_contract_becomes_a_rule_named_as_a_predicate() -> None:
    visits = a_contract(
        Column("visit_id", "string", "Id.", required=True),
        Column("share", "number", "Share.", minimum=-0.5, maximum=1),
        Column("pages", "integer", "Pages.", minimum=1),
        Column("depth", "integer", "Depth.", maximum=9),
        Column("kind", "string", "Kind.", values=("web", "app")),
        Column("url", "string", "Url.", pattern="^https?://", unique=True),
        primary_key=("visit_id", "kind"),
        quality=(QualityRule("is_deep", Expression("depth > pages"), "Deep.", "warning"),),
    )
    rules = row_rules(visits)
    assert {rule.name: rule.test for rule in rules} == {
        "visit_id_is_present": Present("visit_id"),
        "share_is_between_minus_0_point_5_and_1": Between("share", -0.5, 1),
        "pages_is_at_least_1": Between("pages", 1, None),
        "depth_is_at_most_9": Between("depth", None, 9),
        "kind_is_in_set": InSet("kind", ("web", "app")),
        "url_matches_pattern": Matches("url", "^https?://"),
        "url_is_unique": Unique(("url",)),
        "primary_key_is_unique": Unique(("visit_id", "kind")),
        "is_deep": Holds("depth > pages"),
    }
    assert [rule.name for rule in rules if rule.severity == "warning"] == ["is_deep"]
    assert named(rules, "is_deep").columns == ("depth", "pages")
    assert "contracts/sources/visits.odcs.yaml" in named(rules, "pages_is_at_least_1").remedy


def test_a_key_that_is_also_marked_unique_is_checked_once() -> None:
    rules = row_rules(
        a_contract(Column("id", "string", "Id.", unique=True), primary_key=("id",)),
    )
    assert [rule.name for rule in rules] == ["id_is_unique"]


def test_keys_can_be_unique_within_a_delivery_day() -> None:
    rules = row_rules(contract("products"), within=("delivered_on",))
    unique = named(rules, "product_id_is_unique")
    assert unique.test == Unique(("delivered_on", "product_id"))
    assert unique.description == "(product_id) is unique within one delivered_on"


def test_the_contracts_of_the_project_make_rules_with_names_fit_for_a_check() -> None:
    for declared in load_contracts().values():
        rules = row_rules(declared)
        assert rules
        for rule in rules:
            assert rule.name.isidentifier()
            assert {column.name for column in declared.columns} >= set(rule.columns)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (Column("a", "string", "A.", minimum=1), "minimum and maximum are for integer and number"),
        (Column("a", "integer", "A.", minimum=0.5), "of an integer must be whole"),
        (Column("a", "number", "A.", minimum=2, maximum=1), "minimum 2 is above maximum 1"),
        (Column("a", "integer", "A.", values=("1",)), "enum and pattern are for string only"),
        (Column("a", "date", "A.", pattern="^2"), "enum and pattern are for string only"),
        (Column("a", "string", "A.", pattern=""), "it is empty"),
    ],
)
def test_a_rule_that_does_not_fit_its_column_is_refused(column: Column, says: str) -> None:
    with pytest.raises(ProfilehouseError, match=f"visits.odcs.yaml: property a: .*{says}"):
        row_rules(a_contract(column))


def test_an_expression_that_is_no_sql_is_refused() -> None:
    broken = a_contract(quality=(QualityRule("odd", Expression("a = = ("), "Odd.", "error"),))
    with pytest.raises(ProfilehouseError, match=r"quality rule odd: 'a = = \(' is no SQL"):
        row_rules(broken)


@pytest.mark.parametrize("sql", ["COUNT(*) > 0", "1 = 2"])
def test_an_expression_that_reads_no_column_is_refused(sql: str) -> None:
    broken = a_contract(quality=(QualityRule("odd", Expression(sql), "Odd.", "error"),))
    with pytest.raises(ProfilehouseError, match="quality rule odd reads no column"):
        row_rules(broken)


def test_two_rules_of_one_name_are_refused() -> None:
    twice = a_contract(
        Column("a", "string", "A.", required=True),
        quality=(QualityRule("a_is_present", Expression("a > ''"), "A.", "error"),),
    )
    with pytest.raises(ProfilehouseError, match="two rules are named a_is_present"):
        row_rules(twice)


@pytest.mark.parametrize(
    "pattern",
    [
        r"a(?=b)",
        r"(?i)a",
        r"(a)\1",
        r"\s",
        r"\bword\b",
        r"\pL",
        "a{,3}",
        "a*+",
        "a++",
        "[[:alpha:]]",
        "(",
        "[",
        r"\Z",
    ],
)
def test_a_pattern_that_engines_read_differently_is_refused(pattern: str) -> None:
    with pytest.raises(ProfilehouseError, match="property a: pattern"):
        row_rules(a_contract(Column("a", "string", "A.", pattern=pattern)))


@pytest.mark.parametrize(
    "pattern", [r"^\d{5}$", r"^[^@ ]+@[^@ ]+\.[a-z]{2,}$", r"a|b", r"\$[$]", r"[(?+]", r"\\+"]
)
def test_a_plain_pattern_is_accepted(pattern: str) -> None:
    (rule,) = row_rules(a_contract(Column("a", "string", "A.", pattern=pattern)))
    assert rule.test == Matches("a", pattern)


def test_in_python_a_dollar_is_the_very_end_unless_it_is_a_character() -> None:
    assert python_pattern(r"^\$[$]\d$") == r"(?a)^\$[$]\d\Z"


@settings(max_examples=400)
@given(
    st.text(alphabet=r"ab01.^$*+?{}[]()|\dDwW,-", max_size=8),
    st.lists(st.text(alphabet="ab01.$-^[\\\n é٣", max_size=6), max_size=20),
)
def test_an_accepted_pattern_matches_the_same_texts_in_python_and_in_sql(
    pattern: str, texts: list[str]
) -> None:
    column = Column("a", "string", "A.", pattern=pattern)
    try:
        row_rules(a_contract(column))
    except ProfilehouseError as refusal:
        assert "property a: pattern" in str(refusal)  # noqa: PT017
        return
    with duckdb.connect() as connection:
        connection.register("texts", pa.table({"a": pa.array(texts, pa.string())}))
        sql = translate(
            f"SELECT {fails_where(Matches('a', pattern))} AS fails FROM texts", "duckdb"
        )
        in_sql = [not fails for (fails,) in connection.sql(sql).fetchall()]
    assert in_sql == [bool(re.search(python_pattern(pattern), text)) for text in texts]
