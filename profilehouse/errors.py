"""The errors that users see as a single line: what is wrong, where, and what to do."""


class ProfilehouseError(Exception):
    """Something the operator can mend. Its text names the thing and the remedy in one line."""


class StaleWriter(ProfilehouseError):  # noqa: N818
    """Somebody else wrote what this writer started from: resume, and go on from there."""
