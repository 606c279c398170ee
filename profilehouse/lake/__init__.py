"""The lake: Iceberg tables in a local folder or on S3, replaced a delivery day at a time.

Belongs here: creating, replacing and reading the tables that contracts/lake declares. Does not
belong here: what the rows mean (sources/, events/) or running rules over them (quality/).
"""

from profilehouse.lake.lake import Lake, open_lake

__all__ = ["Lake", "open_lake"]
