"""HTTP: the collector that takes events into the log, the tracker that sends them, the profile API.

Belongs here: requests and answers. Does not belong here: what an event must hold (events/web.py),
or what a profile is (profiles/).
"""
