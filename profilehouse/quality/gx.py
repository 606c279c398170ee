"""Row rules as a Great Expectations suite, over an Arrow table or pushed down to Snowflake.

Counts are the same as those of the generated SQL (sql.py), which also finds the samples. Great
Expectations and pandas take seconds to import, so they are imported when a suite is run.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa

from profilehouse.contracts import Contract
from profilehouse.errors import ProfilehouseError
from profilehouse.quality.result import CheckResult
from profilehouse.quality.rules import (
    Between,
    Depends,
    Holds,
    InSet,
    Length,
    Matches,
    Present,
    Rule,
    Unique,
    python_pattern,
)
from profilehouse.quality.sql import (
    ArrowSource,
    Counts,
    arrow_source,
    failing_rows,
    passes,
    rows_in,
    run_rules,
    type_name,
)

if TYPE_CHECKING:
    from profilehouse.settings import Settings
    from profilehouse.warehouse import Warehouse

ANALYTICS = "GX_ANALYTICS_ENABLED"
"""The environment variable by which Great Expectations sends no usage statistics."""
_COUNTS_ONLY = {"result_format": "BASIC", "partial_unexpected_count": 0}
COLLECT_BYTES = 2**26
"""From this size of a table on, the reference cycles that hold it afterwards are freed at once."""


def check_table(
    contract: Contract, rules: Sequence[Rule], table: pa.Table, keys: Sequence[str] = ()
) -> list[CheckResult]:
    """Check the rows of an Arrow table, for example a newly landed slice.

    Args:
        contract: of the dataset.
        rules: of that contract.
        table: the rows; it may have further columns.
        keys: columns that say which row fails, by default the primary key.

    Returns:
        As profilehouse.quality.sql.check_rows.

    Raises:
        ProfilehouseError: when Great Expectations could not evaluate a rule.
    """
    name, keys = contract.name, keys or contract.primary_key
    with arrow_source({name: table}) as source:

        def count(runnable: Sequence[Rule], rows: str) -> Counts:
            return table.num_rows, _count_in_pandas(runnable, table, source, rows)

        results = run_rules(contract, rules, source, name, keys, count)
    if table.nbytes > COLLECT_BYTES:
        gc.collect()
    return results


def check_snowflake(
    contract: Contract,
    rules: Sequence[Rule],
    warehouse: Warehouse,
    settings: Settings,
    keys: Sequence[str] = (),
) -> list[CheckResult]:
    """Check a whole table of Snowflake where it is; only counts and samples leave Snowflake.

    Args:
        contract: of the table.
        rules: of that contract.
        warehouse: an open connection, for the samples.
        settings: where Great Expectations opens a connection of its own.
        keys: columns that say which row fails, by default the primary key.

    Returns:
        As profilehouse.quality.sql.check_rows.

    Raises:
        ProfilehouseError: when Snowflake cannot be reached, or Great Expectations could not
            evaluate a rule.
    """
    datasource = _snowflake(settings)
    try:

        def count(runnable: Sequence[Rule], rows: str) -> Counts:
            asset = datasource.add_query_asset(contract.name, _query(runnable, rows))
            batch = asset.add_batch_definition_whole_table("all").get_batch()
            return rows_in(warehouse, rows), _count(runnable, batch)

        keys = keys or contract.primary_key
        return run_rules(contract, rules, warehouse, contract.name, keys, count)
    finally:
        datasource.get_engine().dispose()


def write_suite(contract: Contract, rules: Sequence[Rule], folder: Path) -> Path:
    """Write a contract's row rules as a suite of a Great Expectations project.

    `great_expectations.get_context(mode="file", project_root_dir=folder)` opens it, under the
    contract's name. Rules over several columns or rows are queries in Snowflake's SQL, so they run
    on a SQL data source; all others run on pandas and Spark too.

    Args:
        contract: of the dataset.
        rules: of that contract.
        folder: of the project, made where it is none.

    Returns:
        The file of the suite.
    """
    gx = _quiet_gx()
    expectations = [_expectation(rule, None, str) for rule in rules]
    for expectation, rule in zip(expectations, rules, strict=True):
        expectation.notes = f"{rule.description}. Owner: {rule.owner}. To do: {rule.remedy}."
        expectation.severity = "critical" if rule.severity == "error" else "warning"
    context: Any = gx.get_context(mode="file", project_root_dir=folder)
    meta = {"contract": contract.name, "contract_version": contract.version}
    context.suites.add_or_update(
        gx.ExpectationSuite(name=contract.name, expectations=expectations, meta=meta)
    )
    return folder / "gx" / "expectations" / f"{contract.name}.json"


def write_data_docs(
    slices: Sequence[tuple[Contract, Sequence[Rule], pa.Table]], folder: Path
) -> Path:
    """Run the row rules of some datasets and write Great Expectations' Data Docs of the outcome.

    Only counts are written, never a value of a row.

    Args:
        slices: a contract, its rules and the rows to look at, which have all columns of the rules.
        folder: of a Great Expectations project of its own, made where it is none.

    Returns:
        The page to open.
    """
    import pandas as pd  # noqa: PLC0415

    gx = _quiet_gx()
    context: Any = gx.get_context(mode="file", project_root_dir=folder)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    datasource = context.data_sources.add_or_update_pandas("slices")
    for contract, rules, table in slices:
        name = contract.name
        expectations = [
            _expectation(rule, f"rule_{i}", python_pattern) for i, rule in enumerate(rules)
        ]
        for expectation, rule in zip(expectations, rules, strict=True):
            expectation.notes = f"{rule.description}. To do: {rule.remedy}."
        suite = gx.ExpectationSuite(name=name, expectations=expectations)
        definition = datasource.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        checked = context.validation_definitions.add_or_update(
            gx.ValidationDefinition(
                name=name, data=definition, suite=context.suites.add_or_update(suite)
            )
        )
        checkpoint = gx.Checkpoint(
            name=name, validation_definitions=[checked], result_format=_COUNTS_ONLY
        )
        with arrow_source({name: table}) as source:
            frame = _frame(rules, table, source, name)
        with pd.option_context("mode.copy_on_write", True):
            context.checkpoints.add_or_update(checkpoint).run(batch_parameters={"dataframe": frame})
    context.build_data_docs()
    return folder / "gx" / "uncommitted" / "data_docs" / "local_site" / "index.html"


def _frame(rules: Sequence[Rule], table: pa.Table, source: ArrowSource, rows: str) -> Any:
    """The columns that rules read, and the answers to expressions, for pandas."""
    import pandas as pd  # noqa: PLC0415

    columns = {name: _series(table[name]) for name in _read(rules)}
    if held := _held(rules):
        answers = source.query(f"SELECT {', '.join(held)} FROM {rows}")  # noqa: S608
        columns |= {name: _series(answers[name]) for name in answers.column_names}
    return pd.DataFrame(columns, copy=False)


def _count_in_pandas(
    rules: Sequence[Rule], table: pa.Table, source: ArrowSource, rows: str
) -> dict[str, int]:
    import pandas as pd  # noqa: PLC0415

    frame = _frame(rules, table, source, rows)
    datasource = _context().data_sources.add_pandas("pandas")
    definition = datasource.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    # Great Expectations filters the whole frame anew for every rule; so that costs no copies.
    with pd.option_context("mode.copy_on_write", True):
        return _count(rules, definition.get_batch({"dataframe": frame}), python_pattern)


def _count(
    rules: Sequence[Rule], batch: Any, pattern: Callable[[str], str] = str
) -> dict[str, int]:
    """How many rows of a batch fail each rule; `pattern` translates patterns for its engine."""
    import great_expectations as gx  # noqa: PLC0415

    expectations = [_expectation(rule, f"rule_{i}", pattern) for i, rule in enumerate(rules)]
    outcome = batch.validate(
        gx.ExpectationSuite(name="rules", expectations=expectations),
        result_format=_COUNTS_ONLY,
    )
    counts = {}
    for found in outcome.results:
        name = found.expectation_config.meta["rule"]
        failing = found.result.get("unexpected_count")
        if failing is None and found.result.get("element_count") == 0:
            failing = 0  # SQL's sum over no rows
        if failing is None:
            raise ProfilehouseError(
                f"Great Expectations could not evaluate {name}: {_reason(found.exception_info)}"
            )
        counts[name] = int(failing)
    return counts


def _expectation(rule: Rule, answer: str | None, read: Callable[[str], str]) -> Any:
    """The expectation that says the same as a rule.

    Args:
        rule: to say.
        answer: the column with the answers of an expression; a query where None.
        read: translates a pattern.
    """
    gxe: Any = import_module("great_expectations.expectations")
    kind: Any
    options: dict[str, Any]
    match rule.test:
        case Present(column):
            kind, options = gxe.ExpectColumnValuesToNotBeNull, {"column": column}
        case Between(column, minimum, maximum):
            kind = gxe.ExpectColumnValuesToBeBetween
            options = {"column": column, "min_value": minimum, "max_value": maximum}
        case InSet(column, values):
            kind = gxe.ExpectColumnValuesToBeInSet
            options = {"column": column, "value_set": [*values]}
        case Matches(column, pattern):
            kind = gxe.ExpectColumnValuesToMatchRegex
            options = {"column": column, "regex": read(pattern)}
        case Unique((column,)):
            kind, options = gxe.ExpectColumnValuesToBeUnique, {"column": column}
        case Unique(columns):
            kind = gxe.ExpectCompoundColumnsToBeUnique
            options = {"column_list": [*columns], "ignore_row_if": "any_value_is_missing"}
        case Length(column, shortest, longest):
            kind = gxe.ExpectColumnValueLengthsToBeBetween
            options = {"column": column, "min_value": shortest, "max_value": longest}
        case Holds() | Depends() if answer is None:
            kind = gxe.UnexpectedRowsExpectation
            options = {"unexpected_rows_query": failing_rows(rule.test, "{batch}", ["*"])}
        case Holds() | Depends():
            kind = gxe.ExpectColumnValuesToBeInSet
            options = {"column": answer, "value_set": [True]}
    return kind(**options, meta={"rule": rule.name})


def _reason(exceptions: Mapping[str, Any]) -> str:
    """Why an expectation was not evaluated; there may be one exception or some by metric."""
    found = [exceptions] if "exception_message" in exceptions else exceptions.values()
    return " ".join("; ".join(str(e["exception_message"]) for e in found).split())


def _held(rules: Sequence[Rule]) -> list[str]:
    """The answers to the rules that are expressions, as columns of a SELECT."""
    return [
        f"({passes(rule.test)}) AS rule_{i}"
        for i, rule in enumerate(rules)
        if isinstance(rule.test, Holds | Depends)
    ]


def _read(rules: Sequence[Rule]) -> list[str]:
    """The columns that the other rules read."""
    names = (rule.columns for rule in rules if not isinstance(rule.test, Holds | Depends))
    return list(dict.fromkeys(chain.from_iterable(names)))


def _query(rules: Sequence[Rule], rows: str) -> str:
    """What a suite over SQL reads, with colons that SQLAlchemy does not take for parameters."""
    select = f"SELECT {', '.join(_read(rules) + _held(rules))} FROM {rows}"  # noqa: S608
    return re.sub(r"(?<![:\w\\]):(?=\w)", r"\:", select)


def _series(column: pa.ChunkedArray) -> Any:
    """A column for pandas: of NumPy's types where the expectations are vectorised for them.

    Integers with nulls, which NumPy would make floating, and all that is not a number stay in
    Arrow.
    """
    import pandas as pd  # noqa: PLC0415

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    elif type_name(column.type) == "integer":
        column = column.cast(pa.int64())
    whole = pa.types.is_integer(column.type) and not column.null_count
    if whole or pa.types.is_floating(column.type):
        return column.to_pandas()
    return pd.Series(pd.arrays.ArrowExtensionArray(column))


def _context() -> Any:
    """A Great Expectations context that leaves no files and tells nobody."""
    context: Any = _quiet_gx().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context


def _quiet_gx() -> Any:
    """Great Expectations, sending no usage statistics."""
    os.environ[ANALYTICS] = "False"
    return import_module("great_expectations")


def _snowflake(settings: Settings) -> Any:
    """Great Expectations' datasource.

    It wants a complete URL, but the connector's arguments prevail over what is in it; so
    credentials never are, and what is not set is the user's default.
    """
    from profilehouse.warehouse.on_snowflake import connection_arguments  # noqa: PLC0415

    arguments = {"warehouse": None, "role": None, **connection_arguments(settings)}
    arguments["paramstyle"] = "pyformat"
    place = (arguments[name] for name in ("user", "account", "database", "schema"))
    user, account, database, schema = (quote(part, safe="") for part in place)
    try:
        return _context().data_sources.add_snowflake(
            "snowflake",
            connection_string=f"snowflake://{user}:-@{account}/{database}/{schema}"
            "?warehouse=-&role=-",
            kwargs={"connect_args": arguments},
        )
    except Exception as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ProfilehouseError(
            f"Great Expectations cannot connect to Snowflake: {cause};"
            " check PROFILEHOUSE_WAREHOUSE and its credentials"
        ) from error
