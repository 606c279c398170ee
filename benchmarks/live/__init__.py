"""The live path measured: throughput, latency, reads and memory, beside other stream processors.

Belongs here: load, probes and peers for the live path. docs/benchmarks.md says what the figures
mean.
"""
