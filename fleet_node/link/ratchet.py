"""The ratchet: what the last welcome handed on, durable before anything else is sent, shown by the next hello
(docs/protocol.md, "Ratchet")."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fleet.identity import PrivateFileError, read_private, write_private
from fleet.logs import get_logger

log = get_logger(__name__)


class Ratchet:
    """The newest durable value.

    A value that cannot be stored is not shown: the server hands the same one on until it is.

    Args:
        path: file in the state folder; absent before the first welcome.

    Raises:
        PrivateFileError: it is there and cannot be read, or others can read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._value = b""
        if path.exists():
            self._value = read_private(path)

    @property
    def value(self) -> bytes:
        """For the next hello; empty before the first welcome."""
        return self._value

    async def store(self, value: bytes) -> None:
        """Make a handed-on value durable; when the disk refuses, the one before stands."""
        if not value or value == self._value:
            return
        try:
            await asyncio.to_thread(write_private, self._path, value)
        except (OSError, PrivateFileError) as error:
            log.warning("ratchet_not_stored", error=str(error))
            return
        self._value = value
