"""Moments as the platform keeps them: UTC, without a zone."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Now."""
    return datetime.now(UTC).replace(tzinfo=None)
