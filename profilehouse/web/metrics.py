"""What the collector counts, in Prometheus's format.

Belongs here: names and units. Does not belong here: anything that names a person.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from profilehouse.web.writer import Room

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The metrics of one collector."""

    def __init__(self, room: Room) -> None:
        """Begin at zero.

        Args:
            room: whose filling is shown.
        """
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "profilehouse_collector_requests",
            "Requests to POST /events, by the status of the answer.",
            ["status"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "profilehouse_collector_request_seconds",
            "From a request's head to its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._webhooks = Counter(
            "profilehouse_collector_webhooks",
            "Requests to POST /webhooks, by the status of the answer.",
            ["status"],
            registry=registry,
        )
        self._events = Counter(
            "profilehouse_collector_events",
            "Events that are durable in the log.",
            registry=registry,
        )
        self._commits = Histogram(
            "profilehouse_collector_commit_seconds",
            "Making a group of events durable.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._profiles = Histogram(
            "profilehouse_profile_request_seconds",
            "Answering for a profile, by the status of the answer.",
            ["status"],
            buckets=_SECONDS,
            registry=registry,
        )
        for name, text, count in (
            ("records", "Events", lambda: room.records),
            ("bytes", "Bytes of bodies and events", lambda: room.size),
        ):
            gauge = Gauge(
                f"profilehouse_collector_waiting_{name}",
                f"{text} in memory on their way to the log.",
                registry=registry,
            )
            gauge.set_function(count)

    def collected(self, status: int, seconds: float) -> None:
        """Count an answer of POST /events."""
        self._requests.labels(str(status)).inc()
        self._request_seconds.observe(seconds)

    def webhook(self, status: int) -> None:
        """Count an answer of POST /webhooks."""
        self._webhooks.labels(str(status)).inc()

    def committed(self, records: int, seconds: float) -> None:
        """Count records that became durable."""
        self._events.inc(records)
        self._commits.observe(seconds)

    def read(self, status: int, seconds: float) -> None:
        """Count an answer for a profile."""
        self._profiles.labels(str(status)).observe(seconds)

    def text(self, accept: str) -> tuple[bytes, str]:
        """All of them, and their media type: OpenMetrics where `accept` asks for it."""
        write, media_type = choose_encoder(accept)
        return write(self._registry), media_type
