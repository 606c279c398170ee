"""What a live process says of itself, for Prometheus, in its text format or as OpenMetrics.

Belongs here: names and units. Does not belong here: where the numbers come from (status.py), nor
anything that names a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC

from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from profilehouse.errors import ProfilehouseError
from profilehouse.stream.status import Status

_COUNTERS = {
    "events": "Good events that went into profiles.",
    "refused": "Dead letters.",
    "unconsented": "Good events that reach no profile, for want of consent.",
    "late": "Good events that reach no profile, as they came too late.",
    "restarts": "How often positions were resumed after another writer or a new generation.",
    "oversized": "Users whose row outgrew the store's limit.",
}
_GAUGES = {
    "lag": ("lag_records", "Records of the log that are not in the profiles yet."),
    "lake_lag": ("lake_lag_records", "Records of the log that are not in the lake yet."),
    "rate": ("events_per_second", "Events a second, over the last ten seconds."),
    "buffered": ("buffered_records", "Events that wait for the lake."),
    "paused": ("paused", "1 while reading waits for the lake or for the maximum rate."),
    "batch_limit": ("batch_limit_records", "Events that are read at once, at most."),
}
_QUANTILES = {"0.5": "p50", "0.95": "p95", "0.99": "p99"}


class LiveMetrics(Collector):
    """The newest status as metrics; nothing while there is none."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Read by the registry at each request."""
        status = self._status()
        if status is None:
            return
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"profilehouse_live_{name}", text)
            counter.add_metric([], getattr(status, name))
            yield counter
        for name, (metric, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"profilehouse_live_{metric}", text, getattr(status, name))
        yield GaugeMetricFamily(
            "profilehouse_live_status_seconds",
            "When the process last said how it is, seconds since 1970.",
            status.written_at.replace(tzinfo=UTC).timestamp(),
        )
        latency = GaugeMetricFamily(
            "profilehouse_live_latency_seconds",
            "From received_at to a durable profile, of the events of the last minute.",
            labels=["quantile"],
        )
        if status.latency is not None:
            for quantile, name in _QUANTILES.items():
                latency.add_metric([quantile], getattr(status.latency, name) / 1000)
        yield latency


@contextmanager
def metrics_served(host: str, port: int, status: Callable[[], Status | None]) -> Iterator[str]:
    """Answer GET /metrics while the block lasts; the address.

    Args:
        host: to listen on.
        port: 0 for a free one.
        status: gives the newest status.

    Raises:
        ProfilehouseError: if it cannot listen there.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(LiveMetrics(status))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ProfilehouseError(
            f"metrics: cannot listen on {host}:{port} ({error.strerror or error}); say another"
            " --metrics"
        ) from error
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
