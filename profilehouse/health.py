"""How much room the platform takes on this machine, and how much is left.

Belongs here: sizes of what lies on local disks. Does not belong here: buckets, servers and
accounts, whose owners count them; how the live process is (stream/status.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from profilehouse.quality.result import CheckResult, percent
from profilehouse.settings import Settings

LEAST_FREE_PERCENT, SCARCE_PERCENT = 5.0, 15.0
"""Less free space of a disk than the first is an error, less than the second a warning."""


def places(settings: Settings) -> dict[str, Path]:
    """The parts of the platform that lie on local disks, by what they are."""
    urls = {
        "sources": settings.sources,
        "log": settings.log,
        "webhooks": settings.webhooks,
        "lake": settings.lake,
        "warehouse": settings.warehouse,
        "profiles": settings.profiles,
        "alerts": settings.outbox,
    }
    local = {"file:", "duckdb:", "lmdb:"}
    found = {}
    for name, url in urls.items():
        scheme = next((s for s in local if url.startswith(s) and "://" not in url), "")
        if scheme or "://" not in url:
            found[name] = Path(url.removeprefix(scheme))
    return found


def sizes(places: Mapping[str, Path]) -> dict[str, int]:
    """Bytes that each place takes on disk; 0 of one that is not there yet."""
    return {name: _size(path) for name, path in places.items()}


def _size(path: Path) -> int:
    """Blocks, not lengths: LMDB's file is as long as it may ever become."""
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        try:
            total += 0 if file.is_dir() else file.stat().st_blocks * 512
        except OSError:
            continue  # removed just now
    return total


def free_percent(path: Path) -> float:
    """Free space of the disk that a path is on, or will be, in percent."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    usage = shutil.disk_usage(there)
    return percent(usage.free, usage.total)


def disks_have_room(name: str, free: Mapping[str, float]) -> CheckResult:
    """Whether every local place has space left.

    Args:
        name: of the check.
        free: percent, by what lies there.
    """
    scarce = {what: share for what, share in free.items() if share < SCARCE_PERCENT}
    least = min(free.values(), default=100.0)
    worst = ", ".join(f"{what} has {share:.1f} % left" for what, share in sorted(scarce.items()))
    return CheckResult(
        name=name,
        state="failed" if scarce else "passed",
        severity="error" if least < LEAST_FREE_PERCENT else "warning",
        description="the disks have room",
        expected=f"at least {SCARCE_PERCENT:.0f} % of each disk is free",
        observed=worst or f"at least {least:.1f} % of each disk is free",
        failing=len(scarce),
        total=len(free),
        remedy="Enlarge the disk, or run the job tidy_lake and move old deliveries away",
        numbers={"free_percent": least},
    )
