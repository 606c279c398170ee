"""docs/reference.md is what settings and contracts say."""

from __future__ import annotations

import os

from profilehouse.contracts import contracts_of
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.reference import FILE, reference
from profilehouse.settings import PREFIX, Settings


def test_the_reference_is_that_of_the_settings_and_contracts() -> None:
    now = reference()
    if os.environ.get("RENEW_SNAPSHOTS"):
        FILE.write_text(now, "utf-8")
    assert FILE.read_text("utf-8").splitlines() == now.splitlines(), (
        "docs/reference.md is not of these settings and contracts: run python -m"
        " profilehouse.reference and look at the difference"
    )


def test_every_setting_and_every_column_is_in_the_reference() -> None:
    text = reference()
    for name in Settings.model_fields:
        assert f"| `{PREFIX}{name.upper()}` |" in text
    for kind in ("sources", "stream", "lake", "warehouse", "feed_tables"):
        for contract in contracts_of(kind):
            assert f"\n### {contract.name}\n" in text
            for column in contract.columns:
                assert f"| `{column.name}` | {column.type}" in text
    assert "api_token" not in text.lower().replace(f"{PREFIX.lower()}api_token", "")


def test_every_table_of_the_warehouse_says_how_it_lies_on_disk_and_why() -> None:
    text = reference()
    tables = [*contracts_of("warehouse"), *contracts_of("feed_tables")]
    for table in (*tables, profile_contract(load_declaration())):
        assert table.layout_reason
        said = f"Partitions: {', '.join(table.partition_by) or 'none'}."
        assert f"\n{said} Clusters: {', '.join(table.cluster_by) or 'none'}. " in text
        assert f" {table.layout_reason}\n" in text
