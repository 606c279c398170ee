"""Apache Cassandra as a server of the profile store.

Belongs here: its tables, statements and limits. Does not belong here: when what is written
(remote.py).

    profile_control   generation -> Meta, topic id and positions; 0 -> the pointer
    profiles_7        user_id -> row, positions, revision and mark of generation 7

Conditional writes are lightweight transactions at SERIAL, so writers may be in any datacenter; the
rest is at LOCAL_QUORUM, but for readers, who ask one replica. Rows carry a time to live, the
table's default.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import msgspec

from profilehouse.errors import NoAnswer, ProfilehouseError
from profilehouse.profiles.store import KEPT, Meta, Positions, Stored
from profilehouse.profiles.store.remote import Control, Pointer

ROW_LIMIT = 1024 * 1024
"""Bytes. The server refuses mutations above half a commit log segment, by default 16 MiB."""

REQUESTS_AT_ONCE = 64
CONNECT_SECONDS = 10
REQUEST_SECONDS = 15
RECONNECT_SECONDS = 2
_BEING_MADE = ("does not exist", "Unknown CF")
"""What Cassandra says of a table that it lists already and does not have yet."""

_PORT = 9042
_CONTROL_NAME = "profile_control"
_POINTER = 0
_FILLED_AT_ONCE = 5_000
_BEFORE_ANY_TRANSACTION = 1
"""Timestamp of rows that fill a new table: one that no later write can be older than."""

_CONTROL_TABLE = """
    CREATE TABLE IF NOT EXISTS {} (
        generation int PRIMARY KEY,
        meta text,
        topic_id text,
        positions map<int, bigint>,
        current int,
        last int
    )
"""
_ROWS_TABLE = """
    CREATE TABLE {} (
        user_id text PRIMARY KEY,
        row blob,
        positions frozen<map<int, bigint>>,
        revision bigint,
        oversized boolean
    ) WITH default_time_to_live = {}
"""


_MOVE_POINTER = """
    UPDATE {} SET current = ?, last = ? WHERE generation = ? IF current = ? AND last = ?
"""
_CREATE = """
    INSERT INTO {} (generation, meta, topic_id, positions) VALUES (?, ?, ?, ?) IF NOT EXISTS
"""
_REMOVE = "DELETE FROM {} WHERE generation = ? IF EXISTS"
_CLAIM = "UPDATE {} SET topic_id = ? WHERE generation = ? IF meta != ? AND topic_id = ?"
_CONTROL = "SELECT meta, topic_id, positions, current, last FROM {} WHERE generation = ?"
_ADVANCE = "UPDATE {} SET {} WHERE generation = ? IF topic_id = ? AND {}"
_FILL = """
    INSERT INTO {} (row, positions, revision, oversized, user_id)
    VALUES (?, ?, ?, ?, ?) USING TIMESTAMP {}
"""
_PUT = """
    UPDATE {} SET row = ?, positions = ?, revision = ?, oversized = ?
    WHERE user_id = ? IF revision = ?
"""
_SCAN = "SELECT user_id, row, positions, revision, oversized FROM {}"
_LOAD = f"{_SCAN} WHERE user_id = ?"

_READER = "reader"
"""Execution profile of reads that need not be the newest."""


class Cassandra:
    """The Server in one keyspace, which must exist."""

    row_limit = ROW_LIMIT

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        Args:
            url: `cassandra://HOST[:PORT][,HOST]/KEYSPACE`. The user and the password are
                CASSANDRA_USERNAME and CASSANDRA_PASSWORD, where the cluster wants them.

        Raises:
            ProfilehouseError: where the driver is not installed.
        """
        if find_spec("cassandra") is None:
            raise ProfilehouseError(
                f"{url}: Cassandra's driver is not installed; pip install 'profilehouse[cassandra]'"
            )
        self.url = url
        hosts, _, port = urlsplit(url).netloc.partition(":")
        port, _, more = port.partition(",")
        self._hosts = [host for host in (*hosts.split(","), *more.split(",")) if host]
        self._port = int(port or _PORT)
        self._keyspace = urlsplit(url).path.strip("/")
        self._prepared: dict[str, Any] = {}

    def close(self) -> None:
        """See Server."""
        self._prepared.clear()
        if "_session" in self.__dict__:
            self._session.cluster.shutdown()
            del self._session

    def pointer(self) -> Pointer:
        """See Server."""
        row = self._control_row(_POINTER)
        return Pointer(row.current, row.last) if row else Pointer()

    def move_pointer(self, before: Pointer, after: Pointer) -> bool:
        """See Server."""
        with self._explained():
            self._session.execute(_CONTROL_TABLE.format(self._control_table))
        return self._holds(
            _MOVE_POINTER.format(self._control_table),
            (after.current, after.last, _POINTER, before.current, before.last or None),
        )

    def control(self, generation: int) -> Control | None:
        """See Server."""
        row = self._control_row(generation)
        if row is None or row.meta is None:
            return None
        return Control(
            meta=msgspec.json.decode(row.meta, type=Meta),
            topic_id=row.topic_id,
            positions=dict(row.positions or {}),
        )

    def claim(self, generation: int, topic_id: str) -> None:
        """See Server."""
        self._holds(_CLAIM.format(self._control_table), (topic_id, generation, None, None))

    def advance(self, generation: int, topic_id: str, before: Positions, after: Positions) -> bool:
        """See Server."""
        expected = {partition: before.get(partition) for partition in sorted({*before, *after})}
        moves = ", ".join("positions[?] = ?" for _ in after)
        conditions = " AND ".join("positions[?] = ?" for _ in expected)
        return self._holds(
            _ADVANCE.format(self._control_table, moves, conditions),
            (*_flat(after), generation, topic_id, *_flat(expected)),
        )

    def generations(self) -> list[int]:
        """See Server."""
        with self._explained():
            parts = [name.rpartition("_") for name in self._tables()]
        return [int(number) for name, _, number in parts if name == "profiles" and number.isdigit()]

    def create(self, generation: int, control: Control) -> None:
        """See Server."""
        seconds = int(KEPT.total_seconds())
        with self._explained():
            self._session.execute(_ROWS_TABLE.format(self._rows_table(generation), seconds))
        meta = msgspec.json.encode(control.meta).decode()
        self._holds(
            _CREATE.format(self._control_table),
            (generation, meta, control.topic_id, control.positions),
        )

    def drop(self, generation: int) -> None:
        """See Server."""
        self._holds(_REMOVE.format(self._control_table), (generation,))
        with self._explained():
            self._session.execute(f"DROP TABLE IF EXISTS {self._rows_table(generation)}")

    def fill(self, generation: int, rows: Iterable[tuple[str, Stored]]) -> None:
        """See Server."""
        values = ((*_values(stored), user) for user, stored in rows)
        while some := list(islice(values, _FILLED_AT_ONCE)):
            self._all(_FILL.format(self._rows_table(generation), _BEFORE_ANY_TRANSACTION), some)

    def load(self, generation: int, user_ids: Sequence[str], *, newest: bool) -> dict[str, Stored]:
        """See Server."""
        keys = [(user_id,) for user_id in user_ids]
        found = self._all(
            _LOAD.format(self._rows_table(generation)), keys, None if newest else _READER
        )
        return {row.user_id: _stored(row) for rows in found for row in rows}

    def put(self, generation: int, rows: Sequence[tuple[str, int, Stored]]) -> int:
        """See Server."""
        values = [(*_values(stored), user, revision or None) for user, revision, stored in rows]
        return sum(
            not answer.was_applied
            for answer in self._all(_PUT.format(self._rows_table(generation)), values)
        )

    def scan(self, generation: int) -> Iterator[tuple[str, Stored]]:
        """See Server."""
        with self._explained():
            for row in self._session.execute(_SCAN.format(self._rows_table(generation))):
                yield row.user_id, _stored(row)

    @cached_property
    def _session(self) -> Any:
        from cassandra import ConsistencyLevel, ProtocolVersion  # noqa: PLC0415
        from cassandra.auth import PlainTextAuthProvider  # noqa: PLC0415
        from cassandra.cluster import (  # noqa: PLC0415
            EXEC_PROFILE_DEFAULT,
            Cluster,
            ExecutionProfile,
        )
        from cassandra.policies import (  # noqa: PLC0415
            ConstantReconnectionPolicy,
            DCAwareRoundRobinPolicy,
            TokenAwarePolicy,
        )

        user = os.environ.get("CASSANDRA_USERNAME")
        password = os.environ.get("CASSANDRA_PASSWORD")

        def at(level: int) -> Any:
            return ExecutionProfile(
                TokenAwarePolicy(DCAwareRoundRobinPolicy()),
                consistency_level=level,
                serial_consistency_level=ConsistencyLevel.SERIAL,
                request_timeout=REQUEST_SECONDS,
            )

        cluster = Cluster(
            self._hosts,
            self._port,
            auth_provider=PlainTextAuthProvider(user, password) if user else None,
            connect_timeout=CONNECT_SECONDS,
            protocol_version=ProtocolVersion.V4,
            reconnection_policy=ConstantReconnectionPolicy(RECONNECT_SECONDS, max_attempts=None),
            execution_profiles={
                EXEC_PROFILE_DEFAULT: at(ConsistencyLevel.LOCAL_QUORUM),
                _READER: at(ConsistencyLevel.LOCAL_ONE),
            },
        )
        try:
            session = cluster.connect()
            if self._keyspace not in cluster.metadata.keyspaces:
                raise ProfilehouseError(
                    f"{self.url}: there is no keyspace {self._keyspace}; make it with CREATE"
                    " KEYSPACE and the replication you want"
                )
        except BaseException:
            cluster.shutdown()
            raise
        return session

    def _prepare(self, statement: str) -> Any:
        if statement not in self._prepared:
            self._prepared[statement] = self._session.prepare(statement)
        return self._prepared[statement]

    def _prepare_control(self, statement: str) -> Any:
        """A statement on the control table. While that is made, it is listed before it is there."""
        from cassandra import InvalidRequest  # noqa: PLC0415
        from cassandra.cluster import NoHostAvailable  # noqa: PLC0415

        given_up = monotonic() + CONNECT_SECONDS
        while True:
            try:
                return self._prepare(statement)
            except (InvalidRequest, NoHostAvailable) as error:
                if not any(text in str(error) for text in _BEING_MADE) or monotonic() > given_up:
                    raise
            sleep(0.02)

    @property
    def _control_table(self) -> str:
        return f"{self._keyspace}.{_CONTROL_NAME}"

    def _rows_table(self, generation: int) -> str:
        return f"{self._keyspace}.profiles_{generation:d}"

    def _tables(self) -> list[str]:
        names = self._session.execute(
            "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s",
            (self._keyspace,),
        )
        return [row.table_name for row in names]

    def _control_row(self, generation: int) -> Any:
        statement = _CONTROL.format(self._control_table)
        with self._explained():
            if statement not in self._prepared and _CONTROL_NAME not in self._tables():
                return None
            return self._session.execute(self._prepare_control(statement), (generation,)).one()

    def _holds(self, statement: str, values: tuple[Any, ...]) -> bool:
        """Execute a conditional statement on the control table; whether its condition held."""
        with self._explained():
            answer = self._session.execute(self._prepare_control(statement), values)
            return bool(answer.was_applied)

    def _all(
        self, statement: str, values: Sequence[tuple[Any, ...]], profile: str | None = None
    ) -> list[Any]:
        """Results of a statement with each of the values; all have ended, also if one fails."""
        from cassandra.cluster import EXEC_PROFILE_DEFAULT  # noqa: PLC0415
        from cassandra.concurrent import execute_concurrent_with_args  # noqa: PLC0415

        with self._explained():
            results = execute_concurrent_with_args(
                self._session,
                self._prepare(statement),
                values,
                concurrency=REQUESTS_AT_ONCE,
                raise_on_first_error=False,
                execution_profile=profile or EXEC_PROFILE_DEFAULT,
            )
            for successful, result in results:
                if not successful:
                    raise result
        return [result for _, result in results]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the driver into one line that names the store and the remedy."""
        from cassandra import (  # noqa: PLC0415
            AuthenticationFailed,
            DriverException,
            OperationTimedOut,
            Timeout,
            Unauthorized,
        )
        from cassandra.cluster import NoHostAvailable  # noqa: PLC0415

        try:
            yield
        except (OperationTimedOut, Timeout) as error:
            raise NoAnswer(f"{self.url}: {_reason(error)}; see the load of the hosts") from error
        except (DriverException, NoHostAvailable) as error:
            causes = list(error.errors.values()) if isinstance(error, NoHostAvailable) else [error]
            remedy = "see that the hosts are up and can be reached"
            if any(isinstance(cause, AuthenticationFailed | Unauthorized) for cause in causes):
                remedy = "set CASSANDRA_USERNAME and CASSANDRA_PASSWORD to a user who may use it"
            raise ProfilehouseError(f"{self.url}: {_reason(error)}; {remedy}") from error


def _reason(error: Exception) -> str:
    """What the driver says, on one line."""
    return " ".join(str(error).split()).rstrip(".")


def _values(stored: Stored) -> tuple[Any, ...]:
    return stored.row or None, dict(stored.positions), stored.revision, stored.oversized


def _stored(row: Any) -> Stored:
    return Stored(row.row, dict(row.positions), row.revision, row.oversized)


def _flat(positions: dict[int, int | None] | Positions) -> Iterator[int | None]:
    """Partition and offset in turn."""
    for partition, offset in positions.items():
        yield partition
        yield offset
