"""Spark Structured Streaming: micro-batches, each folded by partition into LMDB.

Spark's own state for Python hands over a user at a time through a socket. A store written in
foreachBatch, with the batch's number against repeats, is what the platform would do on Spark.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks.live.peers import work

EVENTS_PER_BATCH = 200_000


def main() -> None:
    """Read the topic to its end."""
    from pyspark.sql import DataFrame, SparkSession  # noqa: PLC0415

    broker, topic, _, folder = work.arguments()
    progress = work.Progress()
    folded = 0
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.jars", os.environ["PEER_JARS"])
        .config("spark.driver.memory", "2g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", 50_000)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    source = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", broker)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", EVENTS_PER_BATCH)
        .load()
        .select("key", "value", "partition")
    )

    def store(batch: DataFrame, number: int) -> None:
        nonlocal folded
        progress.begin()

        def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            count = fold_partition(batches, number, folder)
            yield pa.RecordBatch.from_pydict({"events": [count]})

        folded += sum(row.events for row in batch.mapInArrow(write, "events long").collect())

    query = (
        source.writeStream.foreachBatch(store)
        .option("checkpointLocation", str(folder / "checkpoint"))
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()
    progress.end(folded)
    spark.stop()


def fold_partition(batches: Iterable[pa.RecordBatch], number: int, folder: Path) -> int:
    """Fold a micro-batch's records of one partition of the topic into its LMDB, once."""
    import lmdb  # noqa: PLC0415

    from profilehouse.profiles.fold import Row  # noqa: PLC0415
    from profilehouse.profiles.fold import decode as decode_row  # noqa: PLC0415
    from profilehouse.profiles.fold import encode as encode_row  # noqa: PLC0415

    events = []
    partition = -1
    for batch in batches:
        if batch.num_rows:
            partition = batch["partition"][0].as_py()
        for key, value in zip(batch["key"].to_pylist(), batch["value"].to_pylist(), strict=True):
            event = work.decode(value)
            if event is not None:
                events.append((key, event))
    if not events:
        return 0
    place = folder / f"profiles-{partition}"
    place.mkdir(parents=True, exist_ok=True)
    rows: dict[bytes, Row | None] = {}
    with lmdb.open(str(place), map_size=2**34) as env, env.begin(write=True) as transaction:
        done = transaction.get(b"\x00batch")
        if done is not None and struct.unpack(">q", done)[0] >= number:
            return 0
        with transaction.cursor() as cursor:
            keys = sorted({key for key, _ in events})
            rows = dict.fromkeys(keys)
            rows |= {key: decode_row(data) for key, data in cursor.getmulti(keys)}
            for key, event in events:
                rows[key] = work.fold(rows[key], event)
            cursor.putmulti([(key, encode_row(row)) for key, row in rows.items() if row])
        transaction.put(b"\x00batch", struct.pack(">q", number))
    return len(events)


if __name__ == "__main__":
    main()
