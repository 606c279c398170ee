"""docs/reference.md is what settings and contracts say."""

from __future__ import annotations

import os

from profilehouse.contracts import contracts_of
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
    for kind in ("sources", "stream", "lake", "warehouse"):
        for contract in contracts_of(kind):
            assert f"\n### {contract.name}\n" in text
            for column in contract.columns:
                assert f"| `{column.name}` | {column.type}" in text
    assert "api_token" not in text.lower().replace(f"{PREFIX.lower()}api_token", "")
