"""The same work in other stream processors: Quix Streams, Bytewax and Spark Structured Streaming.

Each runs in an environment of its own (requirements.txt): reads the topic to its end, decodes every
record as the platform does, folds it into a row of the platform's layout and keeps that durable. No
lake, no dead letters and no logins: those are ours alone.
"""
