"""How the platform is, as assets: numbers that the UI plots, observed by a sensor.

Belongs here: these assets and their numbers. Does not belong here: when they are looked at
(platform_defs/observe.py) or judged (checks/health.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from profilehouse.contracts import contract
from profilehouse.health import free_percent, sizes
from profilehouse.stream.status import Status

GROUP = "health"
LIVE_PATH = dg.AssetKey(["health", "live_path"])
STORAGE = dg.AssetKey(["health", "storage"])
ALERTS = dg.AssetKey(["health", "alerts"])
_DESCRIPTIONS = {
    LIVE_PATH: "The live path in numbers: lag, latency, events a second, share of dead letters.",
    STORAGE: "What the platform takes on this machine's disks, and how much of them is free.",
    ALERTS: "What is wrong now, and how many messages of it wait for their channel.",
}


def health_assets() -> list[dg.AssetSpec]:
    """One asset a subject; nothing makes them, observe_health looks."""
    return [
        dg.AssetSpec(
            key,
            group_name=GROUP,
            kinds={"metrics"},
            description=description,
            owners=[f"team:{contract('deliveries').owner}"],
        )
        for key, description in _DESCRIPTIONS.items()
    ]


def health_of_live(statuses: Sequence[Status]) -> dg.AssetObservation:
    """The sums of living processes, and the worst of their latencies."""
    latencies = [s.latency for s in statuses if s.latency is not None]
    events, refused = sum(s.events for s in statuses), sum(s.refused for s in statuses)
    metadata: dict[str, Any] = {
        "processes": len(statuses),
        "lag": sum(s.lag for s in statuses),
        "lake_lag": sum(s.lake_lag for s in statuses),
        "events_per_second": float(sum(s.rate for s in statuses)),
    }
    if latencies:
        metadata["latency_p95_ms"] = max(latency.p95 for latency in latencies)
    if events + refused:
        metadata["dead_letter_percent"] = round(100 * refused / (events + refused), 4)
    return dg.AssetObservation(LIVE_PATH, metadata=metadata)


def health_of_storage(places: Mapping[str, Path]) -> dg.AssetObservation:
    """Megabytes of each place, and percent free of its disk."""
    megabytes = {f"{name}_mb": size / 1e6 for name, size in sizes(places).items()}
    free = {f"{name}_free_percent": free_percent(path) for name, path in places.items()}
    return dg.AssetObservation(STORAGE, metadata={**megabytes, **free})


def health_of_alerts(incidents: int, waiting: int) -> dg.AssetObservation:
    """Counts of the outbox."""
    metadata = {"incidents": incidents, "messages_waiting": waiting}
    return dg.AssetObservation(ALERTS, metadata=metadata)
