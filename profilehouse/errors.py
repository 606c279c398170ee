"""The one error class that users see as a single line: what is wrong, where, and what to do."""


class ProfilehouseError(Exception):
    """Something the operator can mend. Its text names the thing and the remedy in one line."""
