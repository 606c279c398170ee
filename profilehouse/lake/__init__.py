"""The lake: Iceberg tables in a local folder or on S3, with the positions of what they hold.

A delivery day is replaced as a whole; what comes from the log is appended, each record once.
Belongs here: creating, writing and reading the tables that contracts/lake declares, and their
upkeep. Does not belong here: what the rows mean (sources/, events/) or running rules over them
(quality/).
"""

from profilehouse.lake.lake import Lake, open_lake

__all__ = ["Lake", "open_lake"]
