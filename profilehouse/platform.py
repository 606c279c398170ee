"""The platform in one object: opens each part where the settings say it is.

Belongs here: which class stands behind which URL. Does not belong here: any work on the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from profilehouse.settings import Settings

if TYPE_CHECKING:
    from boto3.session import Session

    from profilehouse.lake import Lake
    from profilehouse.log import Log
    from profilehouse.profiles.features import Declaration
    from profilehouse.profiles.store import Store
    from profilehouse.sources.deliveries import Folder
    from profilehouse.warehouse import Warehouse


@dataclass(frozen=True)
class Platform:
    """Opens the parts. Each call opens anew; close what offers to be closed.

    Args:
        settings: where the parts are.
        aws: the AWS session to use; by default the one the environment describes.
        snowflake: opens a Snowflake connection; by default one from the settings.
        work: what the parts are opened for; see `at_work`.
    """

    settings: Settings
    aws: Session | None = None
    snowflake: Callable[[], AbstractContextManager[Any]] | None = None
    work: Mapping[str, str] = field(default_factory=dict)

    def at_work(self, **work: str) -> Platform:
        """This platform, opened for something such as run_id and asset.

        The warehouse's own history of queries says it.
        """
        return replace(self, work=work)

    def sources(self) -> Folder:
        """Where the sources deliver."""
        from profilehouse.sources.deliveries import Folder  # noqa: PLC0415
        from profilehouse.storage import open_folder  # noqa: PLC0415

        return Folder(*open_folder(self.settings.sources, self.aws))

    def log(self) -> Log:
        """The event log, which a file log's first use makes."""
        from profilehouse.log import open_log  # noqa: PLC0415

        return open_log(self.settings.log)

    def webhooks(self) -> Log:
        """The log of webhooks, which a file log's first use makes."""
        from profilehouse.log import open_log  # noqa: PLC0415

        return open_log(self.settings.webhooks)

    def lake(self) -> Lake:
        """The Iceberg lake."""
        from profilehouse.lake import open_lake  # noqa: PLC0415

        return open_lake(self.settings, self.aws)

    def warehouse(self) -> AbstractContextManager[Warehouse]:
        """A connection to the warehouse for one unit of work; keep it short."""
        from profilehouse.warehouse import open_warehouse  # noqa: PLC0415

        return open_warehouse(self.settings, self.snowflake, self.work, self.aws)

    def profile_store(self, declaration: Declaration) -> Store:
        """The store of live profiles, folded by that declaration."""
        from profilehouse.profiles.store import open_store  # noqa: PLC0415

        return open_store(self.settings.profiles, declaration.fingerprint, self.aws)
