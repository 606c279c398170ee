"""The pace of a live process: how much it reads at once, and how long it waits in between.

Belongs here: the two rules. Does not belong here: reading or waiting (process.py).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

SMALLEST_BATCH, LARGEST_BATCH = 100, 20_000
"""Events that are read at once: bounds of what the latency goal may make of it."""

BEHIND = 10
"""Goals."""

_GROWTH = 1.25


class Pace:
    """Batches as large as the latency goal allows, and no more events than the maximum rate.

    A batch that took longer than the goal halves the next ones; one that was full and quick makes
    them a quarter larger. While events wait for BEHIND goals or more, batches grow whatever they
    take: large ones are the way to catch up.
    """

    def __init__(
        self,
        latency_goal: float,
        max_rate: float | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Begin with a batch of moderate size.

        Args:
            latency_goal: milliseconds from reading a batch to its being durable.
            max_rate: events a second; None for no limit.
            clock: gives seconds.
        """
        self._goal = latency_goal / 1000
        self._max_rate = max_rate
        self.limit = self._within_rate(1_000)
        self._clock = clock
        self._free_at = clock()

    def adapt(self, events: int, seconds: float, age: float) -> None:
        """Choose the next batch's size.

        Args:
            events: of the last batch.
            seconds: that it took.
            age: seconds since the log took its first event.
        """
        full = events >= self.limit
        if full and (seconds <= self._goal or age > BEHIND * self._goal):
            self.limit = min(LARGEST_BATCH, int(self.limit * _GROWTH))
        elif seconds > self._goal:
            self.limit = max(SMALLEST_BATCH, min(self.limit, events) // 2)
        self.limit = self._within_rate(self.limit)

    def wait(self, events: int) -> float:
        """Seconds to wait after these events, so that no second has more than the maximum rate."""
        if self._max_rate is None:
            return 0.0
        now = self._clock()
        self._free_at = max(self._free_at, now) + events / self._max_rate
        return self._free_at - now

    def _within_rate(self, events: int) -> int:
        return events if self._max_rate is None else min(events, max(1, int(self._max_rate)))
