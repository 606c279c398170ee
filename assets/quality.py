"""What tells people about quality beside the checks: Great Expectations' Data Docs."""

from pathlib import Path

import dagster as dg

from profilehouse.contracts import contract, contracts_of
from profilehouse.events.build import EVENT_SOURCES
from profilehouse.platform import Platform

GROUP = "quality"


def quality_assets() -> list[dg.AssetsDefinition]:
    """The Data Docs; no job makes them, as nothing needs them."""
    return [_data_docs()]


def _data_docs() -> dg.AssetsDefinition:
    sources = contracts_of("sources")

    @dg.asset(
        key=["quality", "data_docs"],
        deps=[dg.AssetKey(["lake", source.name]) for source in sources],
        group_name=GROUP,
        kinds={"greatexpectations"},
        description="Great Expectations' pages on the row rules of what the sources delivered last:"
        " how many rows break which, without any value of them. Materialize it to read them.",
        owners=[f"team:{contract('deliveries').owner}"],
    )
    def data_docs(platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[None]:
        from profilehouse.quality.gx import write_data_docs  # noqa: PLC0415
        from profilehouse.quality.rules import row_rules  # noqa: PLC0415
        from profilehouse.sources.held_back import landed_and_held  # noqa: PLC0415

        lake = platform.lake()
        slices = []
        for source in sources:
            newest = sorted(lake.days(source.name))[-1:]
            days = newest if source.name in EVENT_SOURCES else None
            rules = row_rules(source, within=("delivered_on",))
            slices.append((source, rules, landed_and_held(source, lake, days)))
        folder = Path(platform.settings.data_docs).absolute()
        page = write_data_docs(slices, folder)
        return dg.MaterializeResult(
            metadata={
                "page": dg.MetadataValue.url(page.as_uri()),
                "rules": sum(len(rules) for _, rules, _ in slices),
            }
        )

    return data_docs
