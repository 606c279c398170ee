"""How contracts may change, and which changes are refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from profilehouse.contract_changes import Change, changes, contracts_at, refused
from profilehouse.contract_lint import mistakes, problems
from profilehouse.contract_quality import Expression, QualityRule, Reconciliation, Silence
from profilehouse.contracts import Column, Contract, load_contracts
from profilehouse.errors import ProfilehouseError

KIND = Column("kind", "string", "Kind.", values=("web", "app"))
PAGES = Column("pages", "integer", "Pages.", minimum=1, maximum=9)
RULE = QualityRule("is_short", Expression("pages < 5"), "Short.", "error")


def visits(kind: str, *columns: Column, **more: object) -> Contract:
    given: dict[str, object] = {
        "name": "visits",
        "kind": kind,
        "version": "1.0.0",
        "description": "Visits.",
        "owner": "web-team",
        "columns": columns or (KIND, PAGES),
        "primary_key": ("kind",),
        "partition_by": (),
        "cluster_by": (),
        "quality": (),
        "path": Path(f"contracts/{kind}/visits.odcs.yaml"),
    }
    return Contract(**(given | more))  # type: ignore[arg-type]


def found(old: Contract, new: Contract) -> list[tuple[str, bool]]:
    return [(c.what, c.breaking) for c in changes({"visits": old}, {"visits": new})]


def test_contracts_that_are_the_same_have_no_changes() -> None:
    project = load_contracts()
    assert changes(project, project) == []
    assert problems() == []


@pytest.mark.parametrize("kind", ["sources", "warehouse"])
def test_whoever_relies_on_a_dataset_breaks_when_something_is_gone_or_of_another_type(
    kind: str,
) -> None:
    old = visits(kind)
    assert changes({"visits": old}, {}) == [Change("visits", "the dataset is gone", True)]
    assert found(old, visits(kind, KIND)) == [("column pages is gone", True)]
    text = replace(PAGES, type="string", minimum=None, maximum=None)
    assert ("pages is string instead of integer", True) in found(old, visits(kind, KIND, text))
    assert found(old, visits(kind, primary_key=())) == [("its key is none instead of kind", True)]


@pytest.mark.parametrize(
    ("column", "what", "breaks_senders", "breaks_readers"),
    [
        (replace(PAGES, required=True), "pages is mandatory now", True, False),
        (replace(PAGES, minimum=2), "minimum of pages is 2 instead of 1", True, False),
        (replace(PAGES, minimum=None), "minimum of pages is None instead of 1", False, True),
        (replace(PAGES, maximum=10), "maximum of pages is 10 instead of 9", False, True),
    ],
)
def test_senders_break_by_more_demands_and_readers_by_fewer_promises(
    column: Column, what: str, breaks_senders: bool, breaks_readers: bool
) -> None:
    for kind, breaks in (("sources", breaks_senders), ("warehouse", breaks_readers)):
        assert found(visits(kind), visits(kind, KIND, column)) == [(what, breaks)]


def test_a_value_less_breaks_senders_and_a_value_more_breaks_readers() -> None:
    less, more = replace(KIND, values=("web",)), replace(KIND, values=("web", "app", "tv"))
    for kind, column, breaks in (
        ("sources", less, True),
        ("warehouse", less, False),
        ("sources", more, False),
        ("warehouse", more, True),
    ):
        [(_, breaking)] = found(visits(kind), visits(kind, column, PAGES))
        assert breaking == breaks, (kind, column.values)


def test_a_rule_that_holds_records_back_breaks_senders_and_a_warning_does_not() -> None:
    ruled = visits("sources", quality=(RULE,))
    assert found(visits("sources"), ruled) == [("rule is_short is new", True)]
    assert found(ruled, visits("sources")) == [("rule is_short is gone", False)]
    warned = visits("sources", quality=(replace(RULE, severity="warning"),))
    assert found(visits("sources"), warned) == [("rule is_short is new", False)]


def test_a_rule_that_a_table_no_longer_keeps_breaks_its_readers() -> None:
    bare, ruled = visits("warehouse"), visits("warehouse", quality=(RULE,))
    warned = visits("warehouse", quality=(replace(RULE, severity="warning"),))
    other = visits("warehouse", quality=(replace(RULE, demand=Expression("pages < 7")),))
    assert found(ruled, bare) == [("rule is_short is gone", True)]
    assert found(ruled, warned) == [("rule is_short is another", True)]
    assert found(ruled, other) == [("rule is_short is another", True)]
    assert found(bare, ruled) == [("rule is_short is new", False)]


@pytest.mark.parametrize("kind", ["sources", "warehouse"])
def test_other_words_about_a_rule_break_nobody(kind: str) -> None:
    told = replace(RULE, description="Brief.", owner="geo-team")
    was, now = (visits(kind, quality=(rule,)) for rule in (RULE, told))
    assert found(was, now) == [("rule is_short is another", False)]


def test_a_set_of_values_where_there_was_none_breaks_senders_and_none_any_more_readers() -> None:
    free = replace(KIND, values=())
    for kind, set_breaks, freed_breaks in (("sources", True, False), ("warehouse", False, True)):
        [(_, breaking)] = found(visits(kind, free, PAGES), visits(kind))
        assert breaking == set_breaks, kind
        [(_, breaking)] = found(visits(kind), visits(kind, free, PAGES))
        assert breaking == freed_breaks, kind


def test_a_breaking_change_needs_a_major_version_and_any_other_a_version() -> None:
    old = {"visits": visits("warehouse")}

    def reasons(new: Contract) -> list[str]:
        return refused(old, {"visits": new}, changes(old, {"visits": new}))

    gone = visits("warehouse", KIND)
    assert reasons(replace(gone, version="1.1.0")) == [
        "visits: column pages is gone: agree with web-team and who uses it, then raise the major"
        " version 1.1.0"
    ]
    assert reasons(replace(gone, version="2.0.0")) == []
    more = visits("warehouse", KIND, PAGES, Column("url", "string", "Url."))
    assert reasons(more) == ["visits changed and is version 1.0.0 still: raise it"]
    assert reasons(replace(more, version="1.1.0")) == []
    assert refused(old, {}, changes(old, {})) == ["visits is gone: move what uses it first"]


def test_contracts_are_read_as_they_were_at_a_revision() -> None:
    assert contracts_at("HEAD").keys() >= {"purchases", "fct_purchase"}
    with pytest.raises(ProfilehouseError, match=r"git ls-tree .*: fatal: .*no-such-revision"):
        contracts_at("no-such-revision")


def test_lint_finds_what_one_file_alone_does_not_show() -> None:
    same = Reconciliation("pages", "keys", {"kind": "sort"})
    wrong = visits(
        "warehouse",
        replace(KIND, references="pages.kind"),
        PAGES,
        quality=(QualityRule("same", same, "Same.", "error"),),
        silences=(Silence("is_short", date(2026, 1, 1), "Strike.", date(2026, 2, 1)),),
    )
    others = {"pages": replace(visits("warehouse", PAGES), name="pages")}
    assert mistakes(wrong, others, date(2026, 2, 2)) == [
        "property kind refers to pages.kind, which is no column",
        "quality rule same: pages has no column sort",
        "the silence of is_short for 2026-01-01 ended on 2026-02-01; remove it",
    ]
    assert len(mistakes(wrong, others, date(2026, 2, 1))) == 2
