"""The CRM's households, fetched from its PostgreSQL: changes by cursor, deletions by their keys.

Belongs here: asking the database and delivering what is new as a file, as any other source does;
from there it is landed like theirs. What was fetched before is read off the delivered files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from profilehouse.contracts import Contract, contract
from profilehouse.errors import ProfilehouseError
from profilehouse.settings import PREFIX, Settings
from profilehouse.sources.fetching import Fetched, deliver
from profilehouse.sources.formats import read_records

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Select, Table
    from sqlalchemy.exc import SQLAlchemyError

    from profilehouse.sources.deliveries import Folder

SOURCE = "crm"
KEY, CURSOR, DELETED = "household_id", "updated_at", "deleted"
OVERLAP = timedelta(hours=1)
"""So far before the newest change that was fetched the next fetch begins: a transaction that takes
as long is not missed, though its rows say when it began."""
_KEYS_A_QUERY = 10_000
_ROWS_AT_ONCE = 10_000
_SECONDS_TO_CONNECT = 10
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class _Known:
    """The newest record that was delivered of a household."""

    changed_at: datetime
    deleted: bool
    record: bytes


def fetch_crm(settings: Settings, folder: Folder, today: date) -> Fetched:
    """Add the households that changed, came or went to today's file.

    A change is a row whose cursor is not before that of the newest change known (less OVERLAP) and
    whose record is another than the one delivered. A deletion is a household that was delivered and
    is no longer there: its last record is delivered again, as deleted now. Both are read in one
    snapshot of the database.

    Args:
        settings: where the table is, and the password.
        folder: where sources deliver.
        today: business day whose file is written.

    Raises:
        ProfilehouseError: where the database cannot be read, or more than half of the households
            are gone at once, which is taken for a mistake.
    """
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    if not settings.crm_url:
        raise ProfilehouseError(f"{PREFIX}CRM_URL is not set: say where the CRM's households are")
    known = _known(contract(SOURCE), folder)
    engine = _engine(settings)
    try:
        with engine.connect().execution_options(postgresql_readonly=True) as connection:
            table = _Table(connection, contract(SOURCE), urlsplit(settings.crm_url).path)
            rows = table.changed_since(_newest(known))
            there = table.keys() if known else {}
            rows |= table.of_keys(
                [
                    key
                    for words, key in there.items()
                    if words not in rows and (words not in known or known[words].deleted)
                ]
            )
    except SQLAlchemyError as error:
        raise ProfilehouseError(_said(settings, error)) from error
    finally:
        engine.dispose()
    now = datetime.now(UTC)
    news = [_news(row, known.get(words), now) for words, row in rows.items()]
    gone = _gone(settings, known, there)
    new = [record for record in news if record is not None] + [_deleted(one, now) for one in gone]
    name = deliver(contract(SOURCE), folder, today, new)
    return Fetched(len(new), table.queries, table.rows_read, name, len(gone))


def _newest(known: Mapping[str, _Known]) -> datetime | None:
    """The newest change that the database told; a deletion was told by nobody."""
    return max((one.changed_at for one in known.values() if not one.deleted), default=None)


def _gone(
    settings: Settings, known: Mapping[str, _Known], there: Mapping[str, object]
) -> list[_Known]:
    """The households that are there no longer.

    Raises:
        ProfilehouseError: where they are more than half.
    """
    alive = [words for words, one in known.items() if not one.deleted]
    gone = [words for words in alive if words not in there]
    if len(gone) > len(alive) / 2:
        raise ProfilehouseError(
            f"{settings.crm_url}: {len(gone):,} of {len(alive):,} households are gone at once; see"
            " that it is the right table and that its user may read all rows; if they were deleted,"
            f' deliver their last records with "{DELETED}": true as a file of {SOURCE}'
        )
    return [known[words] for words in gone]


def _engine(settings: Settings) -> Engine:
    from sqlalchemy import URL, create_engine  # noqa: PLC0415

    url, password = urlsplit(settings.crm_url), settings.crm_password
    try:
        return create_engine(
            URL.create(
                "postgresql+psycopg2",
                url.username,
                password.get_secret_value() if password else None,
                url.hostname,
                url.port,
                url.path.split("/")[1],
            ),
            connect_args={
                "connect_timeout": _SECONDS_TO_CONNECT,
                "application_name": "profilehouse",
            },
            # Rows and keys are of one moment.
            isolation_level="REPEATABLE READ",
        )
    except ModuleNotFoundError as error:
        raise ProfilehouseError(
            f"{error}; install PostgreSQL's client: pip install 'profilehouse[crm]'"
        ) from error


def _said(settings: Settings, error: SQLAlchemyError) -> str:
    from sqlalchemy.exc import NoSuchTableError, OperationalError  # noqa: PLC0415

    if isinstance(error, NoSuchTableError):
        return (
            f"{settings.crm_url}: there is no such table; see {PREFIX}CRM_URL, and that"
            " its user may use the schema"
        )
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    if isinstance(error, OperationalError) and "authentication failed" in reason:
        return f"{settings.crm_url}: the password was refused; set {PREFIX}CRM_PASSWORD to it"
    return (
        f"{settings.crm_url}: cannot be read ({reason[:300]}); nothing was written, the next fetch"
        " begins where this one did"
    )


def _known(source: Contract, folder: Folder) -> dict[str, _Known]:
    """The newest record of each household that the delivered files have."""
    known: dict[str, _Known] = {}
    for _, name in sorted(folder.deliveries(source).files.items()):
        for line in read_records(source, folder.read(source, name), name).lines:
            try:
                record = msgspec.json.decode(line, type=_Delivered)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            key, one = str(record.household_id), _Known(_moment(record), bool(record.deleted), line)
            if key not in known or known[key].changed_at <= one.changed_at:
                known[key] = one
    return known


class _Delivered(msgspec.Struct):
    household_id: Any
    updated_at: Any = None
    deleted: bool | None = None


def _moment(record: _Delivered) -> datetime:
    try:
        moment = msgspec.convert(record.updated_at, datetime, strict=False)
    except msgspec.ValidationError:
        return _LONG_AGO
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class _Table:
    """The households' table in one transaction; counts what is asked."""

    def __init__(self, connection: Connection, source: Contract, path: str) -> None:
        """Look at the table's columns.

        Args:
            connection: in the transaction.
            source: says how the columns are called.
            path: `/DATABASE/[SCHEMA.]TABLE`.

        Raises:
            ProfilehouseError: where it lacks a column that the contract requires.
        """
        from sqlalchemy import MetaData, Table  # noqa: PLC0415

        schema, _, name = path.split("/")[2].rpartition(".")
        there = {c.name: c.delivered_as or c.name for c in source.columns}
        self._connection = connection
        self._table: Table = Table(
            name, MetaData(), schema=schema or None, autoload_with=connection
        )
        self._names = {called: name for name, called in there.items()}
        self._zones = {c.name: ZoneInfo(c.zone or "UTC") for c in source.columns}
        self.queries = self.rows_read = 0
        lacking = [
            there[c.name]
            for c in source.columns
            if c.required and there[c.name] not in self._table.c
        ]
        if lacking:
            raise ProfilehouseError(
                f"the CRM's table {name} has no column {', '.join(lacking)}; it has"
                f" {', '.join(self._table.c.keys())}: say in {source.path.name} by physicalName how"
                " they are called, or read a view that has them"
            )
        self._key, self._cursor = self._table.c[there[KEY]], self._table.c[there[CURSOR]]

    def changed_since(self, newest: datetime | None) -> dict[str, dict[str, Any]]:
        """The rows since the newest change, less OVERLAP, by household; all where none is known."""
        from sqlalchemy import select  # noqa: PLC0415

        if newest is None or newest <= _LONG_AGO:
            return self._rows(select(self._table))
        since = newest - OVERLAP
        if not getattr(self._cursor.type, "timezone", False):
            since = since.astimezone(self._zones[CURSOR]).replace(tzinfo=None)
        return self._rows(select(self._table).where(self._cursor >= since))

    def keys(self) -> dict[str, Any]:
        """Every household that is there, in words and as the database has it."""
        from sqlalchemy import select  # noqa: PLC0415

        found = self._connection.execute(select(self._key)).scalars().all()
        self.queries += 1
        self.rows_read += len(found)
        return {str(key): key for key in found}

    def of_keys(self, keys: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """The rows of some households."""
        from sqlalchemy import select  # noqa: PLC0415

        found: dict[str, dict[str, Any]] = {}
        for first in range(0, len(keys), _KEYS_A_QUERY):
            some = keys[first : first + _KEYS_A_QUERY]
            found |= self._rows(select(self._table).where(self._key.in_(some)))
        return found

    def _rows(self, statement: Select[Any]) -> dict[str, dict[str, Any]]:
        result = self._connection.execute(statement).yield_per(_ROWS_AT_ONCE)
        found = {str(row.get(KEY)): row for row in map(self._record, result.mappings())}
        self.queries += 1
        self.rows_read += len(found)
        return found

    def _record(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        """The row in the contract's names; columns that the contract does not know are drift."""
        named = {self._names.get(str(there), str(there)): value for there, value in row.items()}
        return {
            name: _plain(value, self._zones.get(name, UTC))
            for name, value in named.items()
            if value is not None
        }


def _plain(value: Any, zone: tzinfo) -> Any:
    """What JSON can say of a value of the database."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=zone)).astimezone(UTC)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return bytes(value) if isinstance(value, memoryview) else value


def _news(row: dict[str, Any], known: _Known | None, now: datetime) -> bytes | None:
    """The row's record, None where it says nothing new; one that is back is so from now on."""
    at = row.get(CURSOR)
    if not isinstance(at, datetime):
        at = _LONG_AGO
    if known and known.deleted and not row.get(DELETED) and at <= known.changed_at:
        return _encoded({**row, CURSOR: now})
    record = _encoded(row)
    if known and (at < known.changed_at or record == known.record):
        return None
    return record


def _deleted(known: _Known, now: datetime) -> bytes:
    """The last record of a household, as of when it was found to be gone."""
    at = max(now, known.changed_at + timedelta(microseconds=1))
    return _encoded({**msgspec.json.decode(known.record), DELETED: True, CURSOR: at})


def _encoded(record: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(record, enc_hook=str)
