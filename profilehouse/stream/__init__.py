"""The live path: from the log to profiles and lake, exactly once.

Belongs here: what follows the log as it grows. Does not belong here: the log, what an event means
(events/), the fold (profiles/) or the tables (lake/), which are used from here; nothing uses this.
"""
