"""Quix Streams: a row a user in its RocksDB state, whose changelog Kafka keeps."""

from __future__ import annotations

from typing import Any

from benchmarks.live.peers import work
from profilehouse.profiles.fold import decode as decode_row
from profilehouse.profiles.fold import encode as encode_row


def main() -> None:
    """Read the topic to its end."""
    from quixstreams import Application, State  # type: ignore[import-not-found]  # noqa: PLC0415

    broker, topic, events, folder = work.arguments()
    progress = work.Progress()
    folded = 0

    def update(value: bytes, state: State) -> Any:
        nonlocal folded
        progress.begin()
        event = work.decode(value)
        if event is not None:
            row = state.get_bytes("row")
            new = work.fold(None if row is None else decode_row(row), event)
            state.set_bytes("row", encode_row(new))
            folded += 1
        return None

    app = Application(
        broker_address=broker,
        consumer_group=f"quix-{topic}-{folder.parent.name}",
        auto_offset_reset="earliest",
        state_dir=folder,
        loglevel="WARNING",
    )
    source = app.topic(topic, key_deserializer="bytes", value_deserializer="bytes")
    app.dataframe(source).apply(update, stateful=True)
    app.run(count=events, collect=False)
    progress.end(folded)


if __name__ == "__main__":
    main()
