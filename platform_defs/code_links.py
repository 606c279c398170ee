"""Links from an asset's page in the UI to its code, its contract and its SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from assets._common import REPOSITORY

_REFERENCES = "dagster/code_references"


def with_code_links(assets: Sequence[Any]) -> list[Any]:
    """The assets with references to the files of this checkout that they come from."""
    linked: Sequence[Any] = dg.with_source_code_references(assets)
    return [dg.map_asset_specs(_linked, [asset])[0] for asset in linked]


def _linked(spec: dg.AssetSpec) -> dg.AssetSpec:
    code = spec.metadata.get(_REFERENCES)
    found = list(code.code_references) if isinstance(code, dg.CodeReferencesMetadataValue) else []
    found += [
        dg.LocalFileCodeReference(file_path=str(REPOSITORY / spec.metadata[name]), label=name)
        for name in ("contract", "sql")
        if name in spec.metadata
    ]
    if not found:
        return spec
    return spec.merge_attributes(
        metadata={_REFERENCES: dg.CodeReferencesMetadataValue(code_references=found)}
    )
