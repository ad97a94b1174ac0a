"""Hints between replicas over PostgreSQL's LISTEN and NOTIFY.

Two connections of their own: one listens, the other tells, each message in a statement that is a transaction by
itself. A NOTIFY takes a lock of the whole database server at its commit, and a notification that a session does not
take in keeps the queue of all of them: neither may meet what the server commits for its callers. A pooler that lends
its connections out by the transaction forgets who listens; the relay finds that it is deaf, and replicas poll.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import psycopg

from fleet_server.database import dialects
from fleet_server.database.relay import TransportError

CHANNEL = "fleet_wakeup"
_SESSION = "SET statement_timeout = 10000; SET lock_timeout = 10000; SET idle_in_transaction_session_timeout = 10000"


class NotifyTransport:
    """Opens links over one database.

    Args:
        url: of the database, PostgreSQL.
    """

    name = "notify"

    def __init__(self, url: str) -> None:
        self._parameters = dialects.postgresql_parameters(url) | {"application_name": "fleet-server wakeup"}

    async def open(self) -> NotifyLink:
        """Listen, and be ready to tell.

        Raises:
            TransportError: the database is away, or a standby.
        """
        try:
            listening = await self._connect()
            try:
                await listening.execute(f"LISTEN {CHANNEL}")
                return NotifyLink(listening, await self._connect())
            except BaseException:
                await listening.close()
                raise
        except psycopg.Error as error:
            raise _lost(error) from None

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(autocommit=True, **self._parameters)
        await connection.execute(_SESSION)
        return connection


class NotifyLink:
    """Two connections."""

    def __init__(self, listening: psycopg.AsyncConnection[Any], telling: psycopg.AsyncConnection[Any]) -> None:
        self._listening = listening
        self._telling = telling
        self._notifications: AsyncGenerator[psycopg.Notify, None] = listening.notifies()

    async def say(self, messages: Sequence[str]) -> None:
        """Notify, all in one transaction."""
        try:
            await self._telling.execute(
                "SELECT pg_notify(%s, message) FROM unnest(%s::text[]) AS message", (CHANNEL, list(messages))
            )
        except psycopg.Error as error:
            raise _lost(error) from None

    async def hear(self) -> str:
        """The next notification."""
        try:
            return (await anext(self._notifications)).payload
        except psycopg.Error as error:
            raise _lost(error) from None
        except StopAsyncIteration:
            raise TransportError("the connection that listens was closed") from None

    async def close(self) -> None:
        """Close both."""
        with contextlib.suppress(RuntimeError):  # it is being waited for, and ends with its connection
            await self._notifications.aclose()
        for connection in (self._listening, self._telling):
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()


def _lost(error: psycopg.Error) -> TransportError:
    lines = str(error).splitlines()
    return TransportError(lines[0][:200] if lines else type(error).__name__)
