"""The job that textbooks write: Spark keeps each user's state, foreachBatch upserts what changed.

It does the work of the platform's first sink: the same contract, the same fold, a table of rows in
Cassandra. It lacks the lake, dead letters, positions and conditions: a repeated batch is harmless
only since an upsert overwrites, and the profiles are lost with the checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pyarrow as pa

from benchmarks.live.peers import work

TABLE = "profiles_of_the_textbook"
_STATE = "user_id string, row binary"


def main() -> None:
    """Follow a topic until killed, or read it to its end."""
    import pandas as pd  # noqa: PLC0415
    from pyspark.sql import DataFrame, SparkSession  # noqa: PLC0415
    from pyspark.sql.streaming.state import GroupStateTimeout  # noqa: PLC0415

    from profilehouse.profiles.fold import decode as decode_row  # noqa: PLC0415
    from profilehouse.profiles.fold import encode as encode_row  # noqa: PLC0415

    broker, topic, node, keyspace, folder, master, follows = sys.argv[1:]
    cores = int(master.removeprefix("local[").removesuffix("]"))
    spark = (
        SparkSession.builder.master(master)
        .config("spark.jars", os.environ["PEER_JARS"])
        .config("spark.driver.memory", "2g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", cores)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    source = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", broker)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", os.environ["PEER_MAX_OFFSETS"])
        .load()
        .selectExpr("cast(key as string) as user_id", "value")
    )

    def fold(key: tuple[str], frames: Iterator[pd.DataFrame], state: Any) -> Iterator[pd.DataFrame]:
        row = decode_row(bytes(state.get[0])) if state.exists else None
        for frame in frames:
            for value in frame["value"]:
                event = work.decode(value)
                if event is not None:
                    row = work.fold(row, event)
        if row is not None:
            encoded = encode_row(row)
            state.update((encoded,))
            yield pd.DataFrame({"user_id": [key[0]], "row": [encoded]})

    profiles = source.groupBy("user_id").applyInPandasWithState(
        fold, _STATE, "row binary", "update", GroupStateTimeout.NoTimeout
    )
    progress = work.Progress()
    written = 0

    def store(changed: DataFrame, _number: int) -> None:
        nonlocal written

        def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            yield pa.RecordBatch.from_pydict({"rows": [upsert(batches, node, keyspace)]})

        written += sum(row.rows for row in changed.mapInArrow(write, "rows long").collect())
        progress.begin()

    writer = (
        profiles.writeStream.outputMode("update")
        .foreachBatch(store)
        .option("checkpointLocation", folder)
    )
    query = (writer if follows == "follow" else writer.trigger(availableNow=True)).start()
    query.awaitTermination()
    progress.end(written)
    spark.stop()


def upsert(batches: Iterable[pa.RecordBatch], node: str, keyspace: str) -> int:
    """Write the rows of a task; how many there were."""
    from cassandra.concurrent import execute_concurrent_with_args  # noqa: PLC0415

    rows = [
        pair
        for batch in batches
        for pair in zip(batch["user_id"].to_pylist(), batch["row"].to_pylist(), strict=True)
    ]
    if rows:
        session, insert = _connected(node, keyspace)
        execute_concurrent_with_args(session, insert, rows)
    return len(rows)


@cache
def _connected(node: str, keyspace: str) -> tuple[Any, Any]:
    """Once for each worker, which Spark keeps from task to task."""
    from cassandra.cluster import Cluster  # noqa: PLC0415

    host, _, port = node.rpartition(":")
    session = Cluster([host], int(port), protocol_version=4).connect(keyspace)
    return session, session.prepare(f"INSERT INTO {TABLE} (user_id, row) VALUES (?, ?)")


if __name__ == "__main__":
    main()
