"""Bytewax: rows in memory, a snapshot of the changed ones in SQLite at the end of each epoch."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from benchmarks.live.peers import work
from profilehouse.profiles.fold import Row
from profilehouse.profiles.fold import decode as decode_row
from profilehouse.profiles.fold import encode as encode_row

EPOCH = timedelta(seconds=5)


def main() -> None:
    """Read the topic to its end."""
    from bytewax import operators as op  # type: ignore[import-not-found]  # noqa: PLC0415
    from bytewax.connectors.kafka import KafkaSource  # type: ignore  # noqa: PLC0415
    from bytewax.connectors.stdio import StdOutSink  # type: ignore  # noqa: PLC0415
    from bytewax.dataflow import Dataflow  # type: ignore  # noqa: PLC0415
    from bytewax.recovery import RecoveryConfig, init_db_dir  # type: ignore  # noqa: PLC0415
    from bytewax.testing import run_main  # type: ignore  # noqa: PLC0415

    broker, topic, _, folder = work.arguments()
    progress = work.Progress()
    count = 0

    class Profile(op.StatefulBatchLogic):  # type: ignore[misc]
        def __init__(self, row: Row | None) -> None:
            self._row = row

        def on_batch(self, batch: list[Any]) -> tuple[Iterable[Any], bool]:
            for event in batch:
                self._row = work.fold(self._row, event)
            return (), False

        def snapshot(self) -> bytes | None:
            return None if self._row is None else encode_row(self._row)

    def decoded(messages: list[Any]) -> list[tuple[str, Any]]:
        nonlocal count
        progress.begin()
        events = ((message.key.decode(), work.decode(message.value)) for message in messages)
        good = [(key, event) for key, event in events if event is not None]
        count += len(good)
        return good

    folder.mkdir()
    init_db_dir(folder, 1)
    flow = Dataflow("profiles")
    read = op.input("read", flow, KafkaSource([broker], [topic], tail=False, batch_size=10_000))
    keyed = op.flat_map_batch("decode", read, decoded)
    folded = op.stateful_batch(
        "fold", keyed, lambda row: Profile(None if row is None else decode_row(row))
    )
    op.output("out", folded, StdOutSink())
    run_main(flow, epoch_interval=EPOCH, recovery_config=RecoveryConfig(folder))
    progress.end(count)


if __name__ == "__main__":
    main()
