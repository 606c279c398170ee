"""Three real days of the retailer, small enough to run the whole platform on in seconds, for tests.

The days have purchases, mailings, redemptions and a change of demographics. The catalog is cut to
what was bought on them, so that it lacks exactly what it lacks in the whole year.
"""

import gzip
import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from shutil import copyfile, rmtree

import dagster as dg

from platform_defs.build import build_defs
from platform_defs.schedules import DAILY_JOB
from profilehouse.settings import Settings
from profilehouse.sources.retailer import TIMEZONE, deliver_year

TODAY = date(2026, 3, 18)
DAYS = [date(2025, 3, 16) + timedelta(days=38 + n) for n in range(3)]
"""From the day on which the second campaign's coupons were mailed."""
PURCHASES, UNKNOWN_PRODUCTS = 11_557, 30
BUYERS, UNKNOWN_BUYERS = 771, 373
MAILINGS, REDEMPTIONS = 361, 5


def deliver(folder: Path) -> None:
    """Deliver the three days, and what was delivered before that still holds, below `folder`."""
    year = folder.with_name(f"{folder.name}-year")
    deliver_year(year, TIMEZONE, TODAY)
    for source in ("purchases", "mailings", "redemptions", "crm", "campaigns"):
        (folder / source).mkdir(parents=True)
        for file in (year / source).iterdir():
            day = date.fromisoformat(file.name.removesuffix(".jsonl.gz"))
            if day in DAYS or (source in {"crm", "campaigns"} and day < DAYS[0]):
                copyfile(file, folder / source / file.name)
    bought = {record["product_id"] for record in _records(folder / "purchases")}
    (folder / "products").mkdir()
    (folder / "products" / f"{DAYS[0]}.jsonl").write_text(
        "".join(
            json.dumps(product) + "\n"
            for product in _records(year / "products")
            if product["product_id"] in bought
        ),
        "utf-8",
    )
    rmtree(year)


def run_daily_job(
    settings: Settings,
    instance: dg.DagsterInstance,
    days: list[date] = DAYS,
    **overrides: object,
) -> dg.ExecuteInProcessResult:
    """One run of the daily job for all the days."""
    return (
        build_defs(settings, **overrides)
        .resolve_job_def(DAILY_JOB)
        .execute_in_process(
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={
                "dagster/asset_partition_range_start": str(days[0]),
                "dagster/asset_partition_range_end": str(days[-1]),
            },
        )
    )


def _records(folder: Path) -> Iterator[dict[str, object]]:
    for file in sorted(folder.iterdir()):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            yield json.loads(line)
