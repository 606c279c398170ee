"""The errors that users see as a single line: what is wrong, where, and what to do."""


class ProfilehouseError(Exception):
    """Something the operator can mend. Its text names the thing and the remedy in one line."""


class StaleWriter(ProfilehouseError):  # noqa: N818
    """Somebody else wrote what this writer started from: resume, and go on from there."""


class NoAnswer(ProfilehouseError):  # noqa: N818
    """A server was too slow to say whether it did something: resume, and go on from there."""


class ForeignTopic(ProfilehouseError):  # noqa: N818
    """Positions that count another log's records: the log was created anew."""

    def __init__(self, holder: str, stored: str, topic_id: str, instead: str) -> None:
        """Say it.

        Args:
            holder: who holds the positions.
            stored: the topic id they are of.
            topic_id: of the log that is there now.
            instead: what else than the old log would do.
        """
        super().__init__(
            f"{holder}: its positions are of the topic with id {stored}, and the log's topic has id"
            f" {topic_id}: it was created anew; point PROFILEHOUSE_LOG to the old one, or {instead}"
        )
