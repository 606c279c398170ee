"""Reading profiles for requests: in threads, from a store that follows its generations.

Belongs here: how often the store looks for a new generation. Does not belong here: how a profile
is put together (profiles/serving.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from threading import Lock
from time import monotonic
from typing import Any

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.features import Declaration
from profilehouse.profiles.serving import read_profile, read_visitor
from profilehouse.profiles.store import Store

_THREADS = 4
_SECONDS_BETWEEN_REFRESHES = 1.0

Read = Callable[[Store, Declaration, str, date | None], dict[str, Any] | None]


class TooEarly(ProfilehouseError):  # noqa: N818
    """A profile was asked for as of a day before the newest event; the text says which."""


class ProfileReader:
    """Profiles by user or visitor; the store is opened with the first one."""

    def __init__(self, store: Store, declaration: Declaration) -> None:
        self._store = store
        self._declaration = declaration
        self._threads = ThreadPoolExecutor(_THREADS, "profiles")
        self._refreshing = Lock()
        self._refreshed_at: float | None = None

    async def user(self, user_id: str, as_of: date | None) -> dict[str, Any] | None:
        """The profile of a user, None where there is none.

        Raises:
            TooEarly: if as_of lies before the newest event.
            ProfilehouseError: if the store cannot be read.
        """
        return await self._in_thread(read_profile, user_id, as_of)

    async def visitor(self, anonymous_id: str, as_of: date | None) -> dict[str, Any] | None:
        """The profile of a visitor who did not log in; otherwise as `user`."""
        return await self._in_thread(read_visitor, anonymous_id, as_of)

    async def stop(self) -> None:
        """Let go of the store."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._store.close)
        self._threads.shutdown()

    async def _in_thread(self, read: Read, name: str, as_of: date | None) -> dict[str, Any] | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, read, name, as_of)

    def _read(self, read: Read, name: str, as_of: date | None) -> dict[str, Any] | None:
        self._refresh()
        try:
            return read(self._store, self._declaration, name, as_of)
        except ProfilehouseError as error:
            if as_of is None:
                raise
            read(self._store, self._declaration, name, None)
            raise TooEarly(str(error)) from error

    def _refresh(self) -> None:
        """Look for a new generation if it is time to; only the first one is waited for."""
        now = monotonic()
        if self._refreshed_at is not None and (
            now < self._refreshed_at + _SECONDS_BETWEEN_REFRESHES or self._refreshing.locked()
        ):
            return
        with self._refreshing:
            if self._refreshed_at is None or now >= self._refreshed_at + _SECONDS_BETWEEN_REFRESHES:
                self._store.refresh()
                self._refreshed_at = now
