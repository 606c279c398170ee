"""Services: launchers for the real engines and tools that tests and benchmarks use.

Belongs here: finding or starting a server or a browser on this machine. Does not belong here:
anything the platform needs when it runs.
"""
