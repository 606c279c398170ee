"""The torture test: the live process is killed again and again, and must have lost nothing.

Belongs here: the input, what must come of it (naive.py, which knows nothing of the engine), and the
run itself. `python -m tests.torture` is the long one.
"""
