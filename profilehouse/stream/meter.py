"""Numbers of a live process: rates and latencies of the recent past, in bounded memory.

Belongs here: counting. Does not belong here: who is told (status.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import monotonic, time

import numpy as np

from profilehouse.stream.status import Latency

RATE_SECONDS, LATENCY_SECONDS = 10, 60
_EDGES = np.geomspace(0.1, 10_000_000, 801)
"""Bounds of the latency's bins in milliseconds: steps of 2.3 %."""

Latencies = np.ndarray[tuple[int], np.dtype[np.int64]]
"""How many events fell into each bin."""


def latencies(received_at: Sequence[int]) -> Latencies:
    """Of events that are durable now, by when the log took them (microseconds)."""
    milliseconds = (time() * 1e6 - np.asarray(received_at, np.float64)) / 1000
    return np.bincount(
        np.clip(np.searchsorted(_EDGES, milliseconds), 0, len(_EDGES) - 1), minlength=len(_EDGES)
    )


class Meter:
    """Counts events by second. One thread counts, any may look."""

    def __init__(self) -> None:
        self._started = monotonic()
        self._rates: deque[tuple[int, int]] = deque()
        self._latencies: deque[tuple[int, Latencies]] = deque()

    def count(self, bins: Latencies) -> None:
        """Count events that have become durable."""
        second, events = int(monotonic()), int(bins.sum())
        if self._rates and self._rates[-1][0] == second:
            self._rates[-1] = (second, self._rates[-1][1] + events)
            self._latencies[-1] = (second, self._latencies[-1][1] + bins)
        else:
            self._rates.append((second, events))
            self._latencies.append((second, bins))
        while self._latencies[0][0] <= second - LATENCY_SECONDS:
            self._latencies.popleft()
        while self._rates[0][0] <= second - RATE_SECONDS:
            self._rates.popleft()

    def rate(self) -> float:
        """Events a second over the last RATE_SECONDS, or since the start."""
        now = monotonic()
        counted = sum(n for second, n in list(self._rates) if second > now - RATE_SECONDS - 1)
        return counted / min(RATE_SECONDS, max(now - self._started, 1))

    def latency(self) -> Latency | None:
        """Percentiles over the last LATENCY_SECONDS."""
        oldest = monotonic() - LATENCY_SECONDS
        recent = [bins for second, bins in list(self._latencies) if second >= oldest]
        if not recent:
            return None
        reached = np.cumsum(np.sum(recent, axis=0))
        p50, p95, p99, maximum = (
            float(_EDGES[np.searchsorted(reached, share * reached[-1])]).__round__(1)
            for share in (0.50, 0.95, 0.99, 1.0)
        )
        return Latency(p50, p95, p99, maximum)
