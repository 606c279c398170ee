"""Profile stores: rows by user, in generations.

Belongs here: keeping and finding encoded rows. Does not belong here: what a row means (fold.py,
reading.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import msgspec


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation was folded from.

    Attributes:
        version: of the declaration.
        fingerprint: of what the declaration makes a row hold.
        newest_day: UTC day of the newest event; None where there is no profile.
        deliveries: fingerprint of each delivery folded, by a name the caller chooses.
    """

    version: str
    fingerprint: str
    newest_day: date | None
    deliveries: Mapping[str, str]
