"""Events: what users did and saw, one canonical stream made from every source.

Belongs here: how a source's records become events (sql/, DuckDB dialect, one file a source).
Does not belong here: what is counted from events (profiles/, warehouse/).
"""

from profilehouse.events.build import Built, build_events

__all__ = ["Built", "build_events"]
