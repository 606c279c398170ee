from __future__ import annotations

from time import time

from profilehouse.stream.meter import Meter, latencies
from profilehouse.stream.pace import LARGEST_BATCH, SMALLEST_BATCH, Pace


def test_batches_shrink_while_they_take_longer_than_the_goal() -> None:
    pace = Pace(100)
    before = pace.limit
    pace.adapt(before, 0.2, 0.2)

    assert pace.limit == before // 2
    for _ in range(20):
        pace.adapt(pace.limit, 0.2, 0.2)
    assert pace.limit == SMALLEST_BATCH


def test_full_and_quick_batches_grow_and_half_empty_ones_do_not() -> None:
    pace = Pace(100)
    before = pace.limit
    pace.adapt(before // 2, 0.01, 0.01)
    assert pace.limit == before

    pace.adapt(before, 0.01, 0.01)
    assert pace.limit > before


def test_far_behind_batches_grow_whatever_they_take() -> None:
    pace = Pace(100)
    for _ in range(100):
        pace.adapt(pace.limit, 5.0, 60.0)

    assert pace.limit == LARGEST_BATCH


def test_the_maximum_rate_holds_over_any_second() -> None:
    now = [50.0]
    pace = Pace(100, max_rate=200, clock=lambda: now[0])
    waited = 0.0
    for _ in range(10):
        wait = pace.wait(100)
        waited += wait
        now[0] += wait

    assert waited == 5.0
    pace.adapt(10_000, 0.01, 60.0)
    assert pace.limit <= 200


def test_without_a_maximum_rate_nothing_waits() -> None:
    assert Pace(100).wait(1_000_000) == 0


def test_percentiles_are_those_of_the_events_within_a_bin() -> None:
    meter = Meter()
    now = int(time() * 1e6)
    assert meter.latency() is None
    meter.count(latencies([now - 10_000] * 98 + [now - 500_000] * 2))

    latency = meter.latency()
    assert latency is not None
    assert 10 <= latency.p50 <= 20
    assert 500 <= latency.p99 <= 530
    assert latency.maximum == latency.p99
    assert meter.rate() == 100
