"""A part of a transaction that would rather be undone than wait for a row that somebody holds.

A job of the writer that meets such a row steps aside, whole, until the row is free (`jobs`): for seconds where whoever
holds it is frozen. What many share in one job is theirs alone once it was asked for without that row's owner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from fleet_server.database.dialects import is_contended
from fleet_server.database.writer import Transaction

T = TypeVar("T")


def unless_held(tx: Transaction, work: Callable[[], T]) -> T | None:
    """What `work` answers; None, and nothing of it is done, when it waited for a row in vain, as long as a writer waits
    (`dialects.WRITER_LOCK_TIMEOUT_MS`)."""
    marks = [(kept, len(kept)) for kept in (tx.effects, tx.first_effects, tx.audit)]
    try:
        with tx.conn.begin_nested():
            return work()
    except DBAPIError as error:
        if not is_contended(error):
            raise
    for kept, count in marks:
        del kept[count:]
    return None
