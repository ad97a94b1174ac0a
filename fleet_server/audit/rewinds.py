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


def newest_rewind(conn: Connection) -> int:
    """Number of the newest; 0 without one."""
    return rewind_store.newest(conn)


def is_unsettled(conn: Connection) -> bool:
    """Whether the database went back, and nobody has settled that yet."""
    return rewind_store.is_open(conn)


def settle(conn: Connection, now_ms: int) -> None:
    """A person has said it: nodes may come as they are."""
    rewind_store.settle(conn, now_ms)


async def note_rewind(
    url: str,
    row_mac: Callable[[str], Mac],
    clock: Clock,
    *,
    found_by: str,
    detail: Mapping[str, JSON],
    since: int | None = None,
) -> None:
    """Write down that the database went back, in a chain of its own: whoever found it writes no more into the one that
    it remembers. All servers find one and the same, some of them late: it is one, and others that began again since do
    not end once more.

    Args:
        url: of the database.
        row_mac: the MAC of a table.
        clock: for the time of it.
        found_by: replica id.
        detail: for the audit.
        since: number of the newest when that server began, for which any later one is this one; None when it does not
            know, and then one that nobody settled is.

    Raises:
        Refusal: the database is away.
    """
    database = Database(url, readers=1)
    writer = f"rewound-{os.urandom(4).hex()}"
    audit = AuditService(database=database, clock=clock, wakeup=Wakeup(), writer=writer, row_mac=row_mac)

    def work(tx: Transaction) -> None:
        number = rewind_store.newest(tx.conn)
        noted = rewind_store.is_open(tx.conn) if since is None else number > since
        if not noted:
            rewind_store.insert(tx.conn, max(number, since or 0) + 1, found_by, clock.now_ms())
        audit.append(tx, AuditKind.DATABASE_WENT_BACK, actor="server", subject=f"replica:{found_by}", detail=detail)

    database.start()
    try:
        await database.write(work)
    finally:
        await database.close()
