"""A place to run in, with each of the profile stores."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.cassandra import CassandraNode
from services.dynamodb import REGION, DynamoDbLocal, credentials
from services.kafka import KafkaBroker
from tests.torture.runner import PARTITIONS, Place

STORES = ("lmdb", "cassandra", "dynamodb")


@contextmanager
def place(store: str, folder: Path, broker: KafkaBroker) -> Iterator[Place]:
    """A new topic and an empty store of that kind, whose server runs as long as the block."""
    folder.mkdir(parents=True, exist_ok=True)
    topic = f"{store}-{uuid.uuid4().hex[:8]}"
    broker.create_topic(topic, PARTITIONS)
    if store == "cassandra":
        with CassandraNode(folder / "server") as node:
            node.make_keyspace("torture")
            yield Place(folder, broker, topic, node.url("torture"))
    elif store == "dynamodb":
        with DynamoDbLocal(folder / "server") as server:
            url = f"dynamodb://{REGION}/torture"
            files = folder / "server" / "database"
            yield Place(folder, broker, topic, url, credentials(server.endpoint), files)
    else:
        profiles = folder / "profiles"
        yield Place(folder, broker, topic, f"lmdb:{profiles}", store_files=profiles)
