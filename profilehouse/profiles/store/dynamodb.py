"""Amazon DynamoDB as a server of the profile store.

Belongs here: its tables, requests and limits. Does not belong here: when what is written
(remote.py).

    PREFIX_control          generation -> Meta, topic id and positions; 0 -> the pointer
    PREFIX_profiles_7       user_id -> row, positions, revision and mark of generation 7

Tables are made as they are needed, billed per request. Rows carry the time they may vanish in
`expires`, the table's time-to-live attribute. Rows are written in transactions of up to 100: twice
the write units of single requests, a tenth of the client's work, and a repeated request is
recognised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from profilehouse.aws import ATTEMPTS, CONNECT_SECONDS, CONTROL_SECONDS, explained
from profilehouse.profiles.store import KEPT, Meta, Positions, Stored
from profilehouse.profiles.store.remote import Control, Pointer

if TYPE_CHECKING:
    from boto3.session import Session

T = TypeVar("T")
R = TypeVar("R")

ROW_LIMIT = 390 * 1024
"""Bytes. An item has at most 400 KiB, its key and positions included."""

REQUESTS_AT_ONCE = 32

_POINTER = 0
_READ_AT_ONCE = 100
_FILLED_AT_ONCE = 25
_WRITTEN_AT_ONCE = 100
_BYTES_AT_ONCE = 3 * 1024 * 1024
_LONGEST_PAUSE = 2.0
_LOST = ("ConditionalCheckFailed", "TransactionConflict")
_THROTTLED = ("ProvisionedThroughputExceeded", "ThrottlingError")
_SECONDS_FOR_A_TABLE = 120


class DynamoDB:
    """The Server in one account and region."""

    row_limit = ROW_LIMIT

    def __init__(self, url: str, session: Session | None) -> None:
        """Open nothing yet.

        Args:
            url: `dynamodb://REGION/TABLE_PREFIX`.
            session: credentials and profile; by default boto3's own rules. The endpoint is that of
                the region or of AWS_ENDPOINT_URL_DYNAMODB.
        """
        self.url = url
        self._session = session
        self._region = urlsplit(url).netloc
        self._prefix = urlsplit(url).path.strip("/")

    def close(self) -> None:
        """See Server."""
        if "_client" in self.__dict__:
            del self._client
        if "_threads" in self.__dict__:
            self._threads.shutdown()
            del self._threads

    def pointer(self) -> Pointer:
        """See Server."""
        item = self._control_item(_POINTER)
        return Pointer(_number(item.get("current")), _number(item.get("last")) or 0)

    def move_pointer(self, before: Pointer, after: Pointer) -> bool:
        """See Server."""
        self._make_table(self._control_table, "generation", "N")
        item = {"generation": _n(_POINTER), "last": _n(after.last)}
        if after.current is not None:
            item["current"] = _n(after.current)
        conditions = {"last": before.last or None, "current": before.current}
        expression, names, values = _equal([((name,), old) for name, old in conditions.items()])
        return self._holds(
            "put_item",
            TableName=self._control_table,
            Item=item,
            ConditionExpression=expression,
            ExpressionAttributeNames=names,
            **_if_any(ExpressionAttributeValues=values),
        )

    def control(self, generation: int) -> Control | None:
        """See Server."""
        item = self._control_item(generation)
        if not item:
            return None
        return Control(
            meta=msgspec.json.decode(item["meta"]["S"], type=Meta),
            topic_id=item["topic_id"]["S"] if "topic_id" in item else None,
            positions=_positions(item),
        )

    def claim(self, generation: int, topic_id: str) -> None:
        """See Server."""
        self._holds(
            "update_item",
            TableName=self._control_table,
            Key={"generation": _n(generation)},
            UpdateExpression="SET topic_id = :topic",
            ConditionExpression="attribute_exists(meta) AND attribute_not_exists(topic_id)",
            ExpressionAttributeValues={":topic": {"S": topic_id}},
        )

    def advance(self, generation: int, topic_id: str, before: Positions, after: Positions) -> bool:
        """See Server."""
        expected = [
            (("positions", str(partition)), before.get(partition))
            for partition in sorted({*before, *after})
        ]
        condition, names, values = _equal(expected)
        names |= {"#p": "positions", **{f"#a{p}": str(p) for p in after}}
        values |= {":topic": {"S": topic_id}, **{f":a{p}": _n(o) for p, o in after.items()}}
        moves = ", ".join(f"#p.#a{partition} = :a{partition}" for partition in after)
        return self._holds(
            "update_item",
            TableName=self._control_table,
            Key={"generation": _n(generation)},
            UpdateExpression=f"SET {moves}",
            ConditionExpression=f"topic_id = :topic AND {condition}",
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=values,
        )

    def generations(self) -> list[int]:
        """See Server."""
        start = f"{self._prefix}_profiles_"
        with explained(self.url):
            names = self._client.get_paginator("list_tables").paginate()
            return [
                int(name.removeprefix(start))
                for page in names
                for name in page["TableNames"]
                if name.startswith(start) and name.removeprefix(start).isdigit()
            ]

    def create(self, generation: int, control: Control) -> None:
        """See Server."""
        self._make_table(self._rows_table(generation), "user_id", "S", expires="expires")
        item = {
            "generation": _n(generation),
            "meta": {"S": msgspec.json.encode(control.meta).decode()},
            "positions": _map(control.positions),
        }
        if control.topic_id is not None:
            item["topic_id"] = {"S": control.topic_id}
        with explained(self.url):
            self._client.put_item(TableName=self._control_table, Item=item)

    def drop(self, generation: int) -> None:
        """See Server."""
        table = self._rows_table(generation)
        with explained(self.url):
            key = {"generation": _n(generation)}
            self._client.delete_item(TableName=self._control_table, Key=key)
            try:
                self._client.delete_table(TableName=table)
            except self._client.exceptions.ResourceNotFoundException:
                return
            waiting = {"Delay": 1, "MaxAttempts": _SECONDS_FOR_A_TABLE}
            self._client.get_waiter("table_not_exists").wait(TableName=table, WaiterConfig=waiting)

    def fill(self, generation: int, rows: Iterable[tuple[str, Stored]]) -> None:
        """See Server."""
        table = self._rows_table(generation)

        def write(requests: list[Any]) -> None:
            self._until_done("batch_write_item", {table: requests}, "UnprocessedItems")

        puts = ({"PutRequest": {"Item": _item(user, stored)}} for user, stored in rows)
        while chunks := list(islice(_chunks(puts, _FILLED_AT_ONCE), REQUESTS_AT_ONCE)):
            self._all(write, chunks)

    def load(self, generation: int, user_ids: Sequence[str], *, newest: bool) -> dict[str, Stored]:
        """See Server."""
        table = self._rows_table(generation)

        def read(keys: list[Any]) -> list[Any]:
            asked = {table: {"Keys": keys, "ConsistentRead": newest}}
            answers = self._until_done("batch_get_item", asked, "UnprocessedKeys")
            return [item for answer in answers for item in answer["Responses"].get(table, [])]

        keys = ({"user_id": {"S": user_id}} for user_id in user_ids)
        found = self._all(read, list(_chunks(keys, _READ_AT_ONCE)))
        return {item["user_id"]["S"]: _stored(item) for items in found for item in items}

    def put(self, generation: int, rows: Sequence[tuple[str, int, Stored]]) -> int:
        """See Server. Of a transaction that holds a lost row no row is written."""
        table = self._rows_table(generation)

        def condition(revision: int) -> dict[str, Any]:
            expression, names, values = _equal([(("revision",), revision or None)])
            return {
                "ConditionExpression": expression,
                "ExpressionAttributeNames": names,
                **_if_any(ExpressionAttributeValues=values),
            }

        puts = (
            {"Put": {"TableName": table, "Item": _item(user_id, stored), **condition(revision)}}
            for user_id, revision, stored in rows
        )
        sizes = [len(stored.row or b"") for _, _, stored in rows]
        return sum(self._all(self._transaction, list(_transactions(puts, sizes))))

    def scan(self, generation: int) -> Iterator[tuple[str, Stored]]:
        """See Server."""
        with explained(self.url):
            pages = self._client.get_paginator("scan").paginate(
                TableName=self._rows_table(generation), ConsistentRead=True
            )
            for page in pages:
                for item in page["Items"]:
                    yield item["user_id"]["S"], _stored(item)

    @cached_property
    def _client(self) -> Any:
        from boto3.session import Session  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        with explained(self.url):
            session = self._session or Session()  # type: ignore[no-untyped-call]
            config = Config(  # type: ignore[no-untyped-call]
                connect_timeout=CONNECT_SECONDS,
                read_timeout=CONTROL_SECONDS,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                max_pool_connections=REQUESTS_AT_ONCE,
            )
            return session.client(  # type: ignore[no-untyped-call]
                "dynamodb", region_name=self._region, config=config
            )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS_AT_ONCE, "dynamodb")

    @property
    def _control_table(self) -> str:
        return f"{self._prefix}_control"

    def _rows_table(self, generation: int) -> str:
        return f"{self._prefix}_profiles_{generation}"

    def _control_item(self, generation: int) -> dict[str, Any]:
        with explained(self.url):
            try:
                answer = self._client.get_item(
                    TableName=self._control_table,
                    Key={"generation": _n(generation)},
                    ConsistentRead=True,
                )
            except self._client.exceptions.ResourceNotFoundException:
                return {}
        item: dict[str, Any] = answer.get("Item", {})
        return item

    def _make_table(self, table: str, key: str, kind: str, expires: str | None = None) -> None:
        """Make a table unless it is there, and wait until it can be used."""
        with explained(self.url):
            try:
                self._client.describe_table(TableName=table)
            except self._client.exceptions.ResourceNotFoundException:
                pass
            else:
                return
            with suppress(self._client.exceptions.ResourceInUseException):
                self._client.create_table(
                    TableName=table,
                    KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
                    AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind}],
                    BillingMode="PAY_PER_REQUEST",
                )
            waiting = {"Delay": 1, "MaxAttempts": _SECONDS_FOR_A_TABLE}
            self._client.get_waiter("table_exists").wait(TableName=table, WaiterConfig=waiting)
            if expires:
                self._client.update_time_to_live(
                    TableName=table,
                    TimeToLiveSpecification={"Enabled": True, "AttributeName": expires},
                )

    def _holds(self, operation: str, **request: Any) -> bool:
        """Make a conditional request; whether its condition held."""
        with explained(self.url):
            try:
                getattr(self._client, operation)(**request)
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    def _transaction(self, writes: list[Any]) -> int:
        """Write all or, where conditions do not hold, nothing and tell how many those are.

        A repeated request after a lost answer is recognised by the token that boto3 gives it.
        """
        pause = 0.05
        with explained(self.url):
            while True:
                try:
                    self._client.transact_write_items(TransactItems=writes)
                except self._client.exceptions.TransactionCanceledException as error:
                    codes = [reason["Code"] for reason in error.response["CancellationReasons"]]
                    lost = sum(code in _LOST for code in codes)
                    if lost:
                        return lost
                    if pause > _LONGEST_PAUSE or not set(codes) <= {"None", *_THROTTLED}:
                        raise
                else:
                    return 0
                time.sleep(pause)
                pause *= 2

    def _until_done(self, operation: str, items: dict[str, Any], rest: str) -> list[Any]:
        """Repeat a batch request with what the server left over, ever more slowly."""
        answers, pause = [], 0.05
        with explained(self.url):
            while items:
                answer = getattr(self._client, operation)(RequestItems=items)
                answers.append(answer)
                items = answer.get(rest, {})
                if items:
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        return answers

    def _all(self, call: Callable[[T], R], arguments: Sequence[T]) -> list[R]:
        """Results of calls that run at once; every one has ended, also if one fails."""
        futures = [self._threads.submit(call, argument) for argument in arguments]
        wait(futures)
        return [future.result() for future in futures]


def _item(user_id: str, stored: Stored) -> dict[str, Any]:
    item = {
        "user_id": {"S": user_id},
        "positions": _map(stored.positions),
        "revision": _n(stored.revision),
        "oversized": {"BOOL": stored.oversized},
        "expires": _n(int(time.time() + KEPT.total_seconds())),
    }
    if stored.row:
        item["row"] = {"B": stored.row}
    return item


def _stored(item: dict[str, Any]) -> Stored:
    return Stored(
        row=item["row"]["B"] if "row" in item else None,
        positions=_positions(item),
        revision=int(item["revision"]["N"]),
        oversized=item["oversized"]["BOOL"],
    )


def _equal(
    expected: Iterable[tuple[tuple[str, ...], int | None]],
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Condition, names and values for (path, number it must be, None where it must be missing)."""
    conditions: list[str] = []
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    for number, (path, value) in enumerate(expected):
        steps = {f"#e{number}_{depth}": step for depth, step in enumerate(path)}
        names |= steps
        place = ".".join(steps)
        if value is None:
            conditions.append(f"attribute_not_exists({place})")
        else:
            conditions.append(f"{place} = :e{number}")
            values[f":e{number}"] = _n(value)
    return " AND ".join(conditions), names, values


def _if_any(**arguments: Any) -> dict[str, Any]:
    """Arguments that are not empty: DynamoDB refuses empty maps of values."""
    return {name: value for name, value in arguments.items() if value}


def _positions(item: dict[str, Any]) -> dict[int, int]:
    return {int(p): int(offset["N"]) for p, offset in item["positions"]["M"].items()}


def _map(positions: Positions) -> dict[str, Any]:
    return {"M": {str(partition): _n(offset) for partition, offset in positions.items()}}


def _n(number: int) -> dict[str, str]:
    return {"N": str(number)}


def _number(value: dict[str, str] | None) -> int | None:
    return None if value is None else int(value["N"])


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _transactions(writes: Iterable[T], sizes: Sequence[int]) -> Iterator[list[T]]:
    """Writes in groups that a transaction can take, by number and by bytes of their rows."""
    group: list[T] = []
    held = 0
    for write, size in zip(writes, sizes, strict=True):
        if group and (len(group) == _WRITTEN_AT_ONCE or held + size > _BYTES_AT_ONCE):
            yield group
            group, held = [], 0
        group.append(write)
        held += size
    if group:
        yield group
