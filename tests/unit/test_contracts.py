"""Contracts: what is read out of a file, and one line for each that cannot be read."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import sqlglot
import yaml

from profilehouse.contract_quality import (
    Dependency,
    Distinct,
    Expression,
    Freshness,
    NullShare,
    Reconciliation,
    Silence,
    Volume,
)
from profilehouse.contracts import (
    ARROW_TYPES,
    SQL_TYPES,
    Contract,
    contract,
    contracts_of,
    load_contract,
    load_contracts,
)
from profilehouse.errors import ProfilehouseError

EVERYTHING = [c for kind in ("sources", "lake", "warehouse") for c in contracts_of(kind)]
TABLES = contracts_of("warehouse")


def document(**changes: Any) -> dict[str, Any]:
    """A contract as YAML holds it: two columns and a rule. Changes go to the dataset."""
    dataset = {
        "name": "visits",
        "description": "Pages\n  seen.",
        "properties": [
            {
                "name": "visit_id",
                "logicalType": "string",
                "description": "The visit.",
                "primaryKey": True,
                "primaryKeyPosition": 1,
                "logicalTypeOptions": {"pattern": "^v[0-9]+$"},
            },
            {
                "name": "page",
                "logicalType": "string",
                "description": "What was seen.",
                "classification": "personal",
                "partitioned": True,
                "partitionKeyPosition": 1,
                "enum": [{"value": "home"}, {"value": "shop"}],
                "relationships": [{"to": "pages.page"}],
            },
        ],
        "customProperties": [
            {"property": "clusterBy", "value": ["page"], "description": "Read\n  by page."}
        ],
        "quality": [
            {
                "type": "sql",
                "name": "home_is_first",
                "description": "Home is seen first.",
                "query": "page = 'home' OR visit_id <> 'v1'",
                "severity": "warning",
            }
        ],
        **changes,
    }
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "visits",
        "version": "1.2.0",
        "status": "active",
        "team": {"name": "web-team"},
        "schema": [dataset],
    }


def column(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "logicalType": "string", "description": "Any.", **changes}


def rule(**changes: Any) -> dict[str, Any]:
    return {"name": "r", "description": "R.", **changes}


def custom(**implementation: Any) -> dict[str, Any]:
    return rule(type="custom", engine="profilehouse", implementation=implementation)


def read(folder: Path, content: Any, name: str = "visits.odcs.yaml") -> Contract:
    path = folder / "lake" / name
    path.parent.mkdir(exist_ok=True)
    text = content if isinstance(content, str | bytes) else yaml.safe_dump(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_contract(path)


# What is declared


def test_a_contract_says_what_its_file_says(tmp_path: Path) -> None:
    visits = read(tmp_path, document())
    assert (visits.name, visits.kind, visits.version) == ("visits", "lake", "1.2.0")
    assert (visits.owner, visits.description) == ("web-team", "Pages seen.")
    assert visits.primary_key == ("visit_id",)
    assert visits.partition_by == visits.cluster_by == ("page",)
    assert visits.layout_reason == "Read by page."
    key, page = visits.columns
    assert key.required, "a key is mandatory without being called so"
    assert key.pattern == "^v[0-9]+$"
    assert (page.required, page.personal, page.values) == (False, True, ("home", "shop"))
    assert page.references == "pages.page"
    [rule] = visits.quality
    assert (rule.name, rule.severity) == ("home_is_first", "warning")
    assert rule.demand == Expression("page = 'home' OR visit_id <> 'v1'")
    assert visits.column("page") is page
    with pytest.raises(KeyError, match="visits has no column colour"):
        visits.column("colour")


def test_rules_on_rows_and_on_the_dataset_are_read_with_their_owner_and_severity(
    tmp_path: Path,
) -> None:
    city = custom(functionalDependency={"determinant": ["zip"], "dependent": "city"})
    fresh = custom(freshness={"column": "seen_at", "hours": 26})
    same = custom(
        reconcile={
            "dataset": "pages",
            "measure": "sum",
            "columns": {"cents": "value"},
            "by": {"day": "delivered_on"},
            "tolerancePercent": 0.5,
            "where": "cents > 0",
        }
    )
    unique = rule(
        type="library", metric="duplicateValues", mustBe=0, arguments={"properties": ["a", "b"]}
    )
    volume = rule(
        type="library", metric="rowCount", mustBeGreaterOrEqualTo=1, arguments={"per": "day"}
    )
    of_page = rule(
        type="library",
        metric="nullValues",
        unit="percent",
        mustBeLessOrEqualTo=2.5,
        severity="warning",
        customProperties=[{"property": "owner", "value": "crm-team"}],
    )
    silence = {
        "rule": "r",
        "partition": date(2026, 1, 31),
        "reason": "Strike.",
        "until": date(2026, 3, 1),
    }
    visits = read(
        tmp_path,
        document(
            quality=[city, fresh, same, unique, volume],
            properties=[column(quality=[of_page])],
            customProperties=[{"property": "silences", "value": [silence]}],
        ),
    )
    assert [rule.demand for rule in visits.quality] == [
        Dependency(("zip",), "city"),
        Freshness("seen_at", 26.0),
        Reconciliation(
            "pages", "sum", {"cents": "value"}, {"day": "delivered_on"}, 0.5, "cents > 0"
        ),
        Distinct(("a", "b")),
        Volume(1, None, "day"),
        NullShare("x", 2.5),
    ]
    assert [(rule.severity, rule.owner) for rule in visits.quality[-2:]] == [
        ("error", None),
        ("warning", "crm-team"),
    ]
    assert visits.silences == (Silence("r", date(2026, 1, 31), "Strike.", date(2026, 3, 1)),)


def test_keys_have_the_order_of_their_positions_not_of_the_columns() -> None:
    assert contract("dead_letters").primary_key == ("topic", "delivered_on", "line")
    assert contract("crm").primary_key == ("household_id", "updated_at")


@pytest.mark.parametrize("declared", EVERYTHING, ids=lambda c: c.name)
def test_the_arrow_schema_has_every_column_in_order_and_mandatory_ones_not_nullable(
    declared: Contract,
) -> None:
    schema = declared.arrow_schema
    assert schema.names == [c.name for c in declared.columns]
    assert schema.types == [ARROW_TYPES[c.type] for c in declared.columns]
    assert [f.nullable for f in schema] == [not c.required for c in declared.columns]
    assert set(declared.primary_key) <= {c.name for c in declared.columns if c.required}


def test_times_are_naive_microseconds_and_identifiers_of_the_platform_are_texts() -> None:
    events = contract("events").arrow_schema
    assert events.field("occurred_at").type == pa.timestamp("us")
    for declared in (*contracts_of("warehouse"), contract("events")):
        for column in declared.columns:
            if column.name.endswith("_id"):
                assert column.type == "string", f"{declared.name}.{column.name}"


@pytest.mark.parametrize("table", TABLES, ids=lambda c: c.name)
def test_the_ddl_makes_a_table_with_the_declared_columns(table: Contract) -> None:
    with duckdb.connect() as connection:
        connection.execute(table.ddl("duckdb"))
        connection.execute(table.ddl("duckdb"))
        made = connection.execute(f"DESCRIBE {table.name}").fetchall()
    assert [(name, null == "NO") for name, _, null, *_ in made] == [
        (c.name, c.required) for c in table.columns
    ]
    assert [kind for _, kind, *_ in made] == [c.sql_type("duckdb") for c in table.columns]


@pytest.mark.parametrize("table", contracts_of("warehouse"), ids=lambda table: table.name)
def test_the_ddl_of_bigquery_is_its_own_with_partitions_and_clusters(table: Contract) -> None:
    statement = table.ddl("bigquery", "another_name")
    parsed = sqlglot.parse_one(statement, read="bigquery")
    assert parsed.sql("bigquery").startswith("CREATE TABLE IF NOT EXISTS another_name")
    rest = statement.partition("\n)")[2]
    clustered = [name for name in table.cluster_by if name not in table.partition_by]
    assert (" PARTITION BY occurred_on" in rest) == (table.partition_by == ("occurred_on",))
    assert ("CLUSTER BY" in rest) == bool(clustered)
    assert rest.endswith(", ".join(clustered))
    assert len(clustered) <= 4


def test_the_ddl_of_a_fact_in_bigquery() -> None:
    statement = load_contracts()["fct_purchase"].ddl("bigquery")
    assert "occurred_at DATETIME NOT NULL" in statement
    assert statement.endswith("\n) PARTITION BY occurred_on CLUSTER BY user_key")


@pytest.mark.parametrize("table", TABLES, ids=lambda c: c.name)
def test_the_ddl_of_snowflake_is_its_own_and_clusters_where_the_contract_does(
    table: Contract,
) -> None:
    statement = table.ddl("snowflake", "another_name")
    [parsed] = sqlglot.parse(statement, read="snowflake")
    assert parsed is not None
    assert [table.name for table in parsed.find_all(sqlglot.exp.Table)] == ["another_name"]
    columns = [definition.name for definition in parsed.find_all(sqlglot.exp.ColumnDef)]
    assert columns == [c.name for c in table.columns]
    assert statement.endswith(f" CLUSTER BY ({', '.join(table.cluster_by)})") == bool(
        table.cluster_by
    )


def test_every_type_is_known_to_every_engine() -> None:
    for dialect, types in SQL_TYPES.items():
        assert types.keys() == ARROW_TYPES.keys(), dialect


def test_references_lead_to_a_column_that_is_there() -> None:
    found = [
        (f"{declared.name}.{c.name}", *c.references.split("."))
        for declared in EVERYTHING
        for c in declared.columns
        if c.references
    ]
    assert found
    for origin, table, name in found:
        assert contract(table).column(name), origin


# What is refused


def message_of(folder: Path, content: object) -> str:
    with pytest.raises(ProfilehouseError) as refused:
        read(folder, content)
    message = str(refused.value)
    assert message == " ".join(message.split()), "one line"
    assert message.startswith(f"{folder}/lake/visits.odcs.yaml: ")
    return message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: caf\xe9", "not a readable ODCS v3 contract"),
        ("{", "not a readable ODCS v3 contract"),
        ("- a list", "not a readable ODCS v3 contract"),
        ("until: 2026-13-01", "not a readable ODCS v3 contract: month must be in 1..12"),
        (document() | {"schema": "none"}, "not a readable ODCS v3 contract"),
        (document() | {"apiVersion": "v2.2.2"}, "apiVersion is 'v2.2.2'; it must be v3.x"),
        (document() | {"schema": []}, "must hold exactly one object"),
        (document() | {"team": None}, "team.name (the owner)"),
        (document() | {"version": None}, "version and team.name"),
        (document(description=None), "needs a name, a description and properties"),
        (document(properties=[]), "needs a name, a description and properties"),
        (document(properties=[column(), column()]), "two properties have the same name"),
        (document(properties=[column(description="")]), "property 'x': needs a name and a desc"),
        (document(properties=[column(logicalType="money")]), "property x: logicalType is 'money'"),
        (document(properties=[column(logicalType=None)]), "property x: logicalType is None"),
        (
            document(properties=[column(logicalTypeOptions={"format": "uuid"})]),
            "property x: unknown logicalTypeOptions ['format']",
        ),
        (
            document(properties=[column(relationships=[{"to": "pages"}])]),
            "property x: relationships: one `to: table.column` at most",
        ),
        (
            document(
                properties=[
                    column(
                        relationships=[
                            {
                                "to": "pages.page",
                                "customProperties": [{"property": "severity", "value": "bad"}],
                            }
                        ]
                    )
                ]
            ),
            "property x: relationships: customProperties may say severity, one of",
        ),
        (document(quality=[{"type": "sql", "name": "r"}]), "quality rule 'r': needs a description"),
        (document(quality=[rule(type="text")]), "quality rule 'r': must be type: sql with a query"),
        (document(quality=[rule(name="a b")]), "'a b': needs a description and a name of letters"),
        (
            document(quality=[rule(type="library", metric="rowCount", mustBeBetween=[9, 1])]),
            "quality rule 'r': rowCount needs mustBeBetween",
        ),
        (
            document(quality=[rule(type="library", metric="duplicateValues", mustBe=0)]),
            "quality rule 'r': duplicateValues needs mustBe: 0 and arguments",
        ),
        (
            document(
                properties=[column(quality=[rule(type="sql", query="1 = 1")])], customProperties=[]
            ),
            "quality rule 'r': of a property it must be type: library with metric: nullValues",
        ),
        (
            document(quality=[custom(freshness={"column": "x", "hours": -1})]),
            "quality rule 'r': implementation must be one of functionalDependency",
        ),
        (
            document(quality=[custom(reconcile={"dataset": "pages", "measure": "mean"})]),
            "quality rule 'r': reconcile: measure must be one of",
        ),
        (
            document(quality=[custom(reconcile={"dataset": "pages", "measure": "sum"})]),
            "reconcile: count takes no columns, sum takes one, keys take some",
        ),
        (
            document(customProperties=[{"property": "clusterBy", "value": ["page", "colour"]}]),
            "clusterBy: there is no column colour",
        ),
        (
            document(customProperties=[{"property": "silences", "value": [{"rule": "r"}]}]),
            "silences: each has exactly rule, partition, reason, until",
        ),
        (
            document(customProperties=[{"property": "incidents", "value": "2026-01-31"}]),
            "incidents: must be a list",
        ),
        (
            document(
                customProperties=[
                    {
                        "property": "incidents",
                        "value": [{"partition": datetime(2026, 1, 31), "reason": "Strike."}],
                    }
                ]
            ),
            "incidents: partition is datetime.datetime(2026, 1, 31, 0, 0); it must be a day as",
        ),
        (
            document(
                quality=[
                    {
                        "type": "sql",
                        "name": "r",
                        "description": "R.",
                        "query": "1 = 1",
                        "severity": "fatal",
                    }
                ]
            ),
            "quality rule 'r': severity must be one of",
        ),
    ],
)
def test_a_broken_contract_is_refused_with_its_file_and_the_place_in_it(
    tmp_path: Path, content: object, says: str
) -> None:
    assert says in message_of(tmp_path, content)


def test_a_dataset_declared_twice_and_a_folder_without_contracts_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(ProfilehouseError, match=r"no contracts .* found below"):
        load_contracts(tmp_path / "nowhere")
    read(tmp_path, document(), "a.odcs.yaml")
    read(tmp_path, document(), "b.odcs.yaml")
    with pytest.raises(ProfilehouseError, match=r"b\.odcs\.yaml: visits is declared in .*a\.odcs"):
        load_contracts(tmp_path)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ProfilehouseError, match=r"no contract named sales; there are: .*crm"):
        contract("sales")
