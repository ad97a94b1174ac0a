"""The database went back in time: which servers found that out, and whether a person has settled it.

What a server holds in memory, and what nodes were told, is then ahead of what the database remembers. So each server
ends and begins again with what is there, and nodes that are ahead are kept out, not set aside, until a person has said
that the database went back (`fleet-server db restored`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from fleet.clock import Clock
from fleet_server.audit import rewind_store
from fleet_server.audit.heads import Mac
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction

_SAME_MS = 60_000
"""Servers that find it one after the other within so long have found one and the same."""


def newest_rewind(conn: Connection) -> int:
    """Number of the newest; 0 without one."""
    return rewind_store.newest(conn)[0]


def is_unsettled(conn: Connection) -> bool:
    """Whether the database went back, and nobody has settled that yet."""
    return rewind_store.is_open(conn)


def settle(conn: Connection, now_ms: int) -> None:
    """A person has said it: nodes may come as they are."""
    rewind_store.settle(conn, now_ms)


async def note_rewind(
    url: str, row_mac: Callable[[str], Mac], clock: Clock, *, found_by: str, detail: Mapping[str, JSON]
) -> None:
    """Write down that the database went back, in a chain of its own: whoever found it writes no more into the one that
    it remembers.

    Args:
        url: of the database.
        row_mac: the MAC of a table.
        clock: for the time of it.
        found_by: replica id.
        detail: for the audit.

    Raises:
        Refusal: the database is away.
    """
    database = Database(url, readers=1)
    writer = f"rewound-{os.urandom(4).hex()}"
    audit = AuditService(database=database, clock=clock, wakeup=Wakeup(), writer=writer, row_mac=row_mac)

    def work(tx: Transaction) -> None:
        number, at_ms = rewind_store.newest(tx.conn)
        if number == 0 or clock.now_ms() - at_ms > _SAME_MS:
            rewind_store.insert(tx.conn, number + 1, found_by, clock.now_ms())
        audit.append(tx, AuditKind.DATABASE_WENT_BACK, actor="server", subject=f"replica:{found_by}", detail=detail)

    database.start()
    try:
        await database.write(work)
    finally:
        await database.close()
