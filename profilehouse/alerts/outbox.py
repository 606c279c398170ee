"""The outbox: incidents, cursors and messages in one SQLite file.

What was read, what it means and what is to be told are stored in one transaction; messages leave
the file only after they were delivered. So a process may die at any point: what was not stored is
read again, what was not delivered is sent again.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from profilehouse.alerts.incidents import Finding, Incident, Message, fold
from profilehouse.alerts.rules import Rules
from profilehouse.errors import ProfilehouseError
from profilehouse.redaction import secrets_of, without_secrets

_TABLES = """
CREATE TABLE IF NOT EXISTS cursor (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS incident (fingerprint TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS trouble (
    channel TEXT PRIMARY KEY, failures INTEGER NOT NULL, since REAL NOT NULL,
    retry_at REAL NOT NULL, error TEXT NOT NULL
) STRICT;
"""
_PRIVATE = 0o600


class Trouble(msgspec.Struct, frozen=True):
    """A channel that takes no messages: how often in a row, since when, when it is tried again."""

    failures: int
    since: float
    retry_at: float
    error: str


class Outbox:
    """One open file; for one process at a time, which `opened` sees to."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        """Open the file, made where it is missing, readable by its owner only.

        Raises:
            ProfilehouseError: if another process has it open, or it cannot be written.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = path.with_name(f"{path.name}.lock").open("w")
        except OSError as error:
            raise _unusable(path, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProfilehouseError(
                    f"{path}: another process sends alerts from it; run one Dagster daemon"
                ) from None
            try:
                path.touch(_PRIVATE)
                path.chmod(_PRIVATE)
                connection = sqlite3.connect(path, isolation_level=None)
            except (OSError, sqlite3.Error) as error:
                raise _unusable(path, error) from error
            try:
                connection.executescript(_TABLES)
                yield cls(connection)
            except sqlite3.Error as error:
                raise _unusable(path, error) from error
            finally:
                connection.close()

    @classmethod
    @contextmanager
    def looked_at(cls, path: Path) -> Iterator[Self]:
        """Open a file that is there, to read only, beside the process that has it open.

        Raises:
            ProfilehouseError: if it cannot be read.
        """
        try:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        try:
            yield cls(connection)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        finally:
            connection.close()

    # What was read

    def cursor(self, name: str) -> str | None:
        """Up to where a reader has read; None where it never has."""
        row = self._sql.execute("SELECT value FROM cursor WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def incidents(self) -> dict[str, Incident]:
        """All that fails, by fingerprint."""
        rows = self._sql.execute("SELECT body FROM incident ORDER BY fingerprint")
        found = [msgspec.json.decode(body, type=Incident) for (body,) in rows]
        return {incident.fingerprint: incident for incident in found}

    def record(
        self, findings: Sequence[Finding], cursors: Mapping[str, str], rules: Rules
    ) -> Sequence[Message]:
        """Store findings, what is to be told of them and how far was read, all or nothing.

        Secrets in their texts are hidden before they are stored.

        Returns:
            The messages.
        """
        known = self.incidents() if findings else {}
        secrets = secrets_of()
        messages: list[Message] = []
        changed: dict[str, Incident | None] = {}
        for raw in findings:
            finding = _hidden(raw, secrets)
            name = finding.fingerprint
            decision = rules.decide(finding.problem) if finding.problem else None
            after, told = fold(known.get(name), finding, decision)
            messages += told
            changed[name] = after
            known.pop(name, None)
            if after is not None:
                known[name] = after
        with self._transaction():
            for name, incident in changed.items():
                if incident is None:
                    self._sql.execute("DELETE FROM incident WHERE fingerprint = ?", (name,))
                else:
                    self._sql.execute(
                        "INSERT OR REPLACE INTO incident VALUES (?, ?)",
                        (name, msgspec.json.encode(incident)),
                    )
            for message in messages:
                self._sql.execute(
                    "INSERT INTO message (body) VALUES (?)", (msgspec.json.encode(message),)
                )
            for name, value in cursors.items():
                self._sql.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?)", (name, value))
        return messages

    # What is to be sent

    def messages(self) -> dict[int, Message]:
        """All that was not delivered yet, oldest first."""
        rows = self._sql.execute("SELECT id, body FROM message ORDER BY id")
        return {number: msgspec.json.decode(body, type=Message) for number, body in rows}

    def delivered(self, channel: str, numbers: Sequence[int]) -> None:
        """Forget messages, now that the channel took them."""
        with self._transaction():
            self._sql.executemany("DELETE FROM message WHERE id = ?", [(n,) for n in numbers])
            self._sql.execute("DELETE FROM trouble WHERE channel = ?", (channel,))

    def redirect(self, number: int, message: Message, channels: Sequence[str]) -> None:
        """Send a message elsewhere, as its channel is no more."""
        with self._transaction():
            self._sql.execute("DELETE FROM message WHERE id = ?", (number,))
            for channel in channels:
                body = msgspec.json.encode(msgspec.structs.replace(message, channel=channel))
                self._sql.execute("INSERT INTO message (body) VALUES (?)", (body,))

    def troubles(self) -> dict[str, Trouble]:
        """The channels that take no messages."""
        rows = self._sql.execute("SELECT channel, failures, since, retry_at, error FROM trouble")
        return {channel: Trouble(*values) for channel, *values in rows}

    def refused(self, channel: str, trouble: Trouble) -> None:
        """Remember that a channel took nothing."""
        values = (channel, trouble.failures, trouble.since, trouble.retry_at, trouble.error)
        self._sql.execute("INSERT OR REPLACE INTO trouble VALUES (?, ?, ?, ?, ?)", values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")


def _hidden(finding: Finding, secrets: Sequence[str]) -> Finding:
    """The finding without secrets in the texts that come from elsewhere."""
    problem = finding.problem
    if problem is None:
        return finding

    def clean(text: str) -> str:
        return without_secrets(text, secrets)

    return msgspec.structs.replace(
        finding,
        problem=msgspec.structs.replace(
            problem,
            title=clean(problem.title),
            expected=clean(problem.expected),
            observed=clean(problem.observed),
            next_step=clean(problem.next_step),
            sample=tuple({n: clean(value) for n, value in row.items()} for row in problem.sample),
        ),
    )


def _unusable(path: Path, error: Exception) -> ProfilehouseError:
    return ProfilehouseError(
        f"{path}: cannot be used as the outbox of alerts ({error}); see that PROFILEHOUSE_OUTBOX"
        " names a file on a local disk that may be written"
    )
