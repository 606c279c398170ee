"""Benchmark of the live path on Spark: what it measures is in docs/benchmarks.md.

Belongs here: runs of Spark beside a job as textbooks write it. Does not belong here: the load and
the readers, which are those of benchmarks/live.
"""
