"""Benchmarks: each prints a table and writes JSON, and does a peer's work beside ours."""
