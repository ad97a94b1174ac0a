"""The database's clock, as this process knows it: the one that all replicas have in common.

Whose word it is matters only for what no signature covers: whoever writes to the database could do the same to the rows
themselves. What is signed, and what lets somebody in, is judged by the machine's own clock (docs/adr/0033).
"""

from __future__ import annotations

from sqlalchemy import Connection

from fleet.clock import Clock

OFF_MS = 5_000
"""So far apart are clocks that somebody has to set one."""
_SLOW_LOOK_S = 1.0
"""An answer that took longer tells less than what is known already: it may be off by half of that."""


class DatabaseClock:
    """Reads as the machine's own clock before the first look, and where the database is a file of this machine.

    Between looks it goes on by monotonic time: a step of the machine's clock does not reach it.
    """

    def __init__(self) -> None:
        self._seen: tuple[int, float] | None = None

    def note(self, database_ms: int | None, asked_s: float, own: Clock) -> None:
        """Take what the database said.

        Args:
            database_ms: Unix milliseconds; None of one that has no clock.
            asked_s: monotonic seconds before it was asked.
            own: the machine's clock, now that the answer is there.
        """
        took_s = own.monotonic() - asked_s
        if database_ms is not None and (self._seen is None or took_s <= _SLOW_LOOK_S):
            self._seen = (database_ms, asked_s + took_s / 2)

    def now_ms(self, own: Clock) -> int:
        """Unix milliseconds that replicas agree on."""
        if self._seen is None:
            return own.now_ms()
        database_ms, at_s = self._seen
        return database_ms + int((own.monotonic() - at_s) * 1000)

    def past_ms(self, own: Clock) -> int:
        """What lies before it is past by the machine's clock and by the database's: nothing ends, and nothing is
        deleted, because one of them is ahead."""
        return min(own.now_ms(), self.now_ms(own))

    def offset_ms(self, own: Clock) -> int:
        """By how much the database's clock is ahead of the machine's."""
        return self.now_ms(own) - own.now_ms()


def read_ms(conn: Connection) -> int | None:
    """What the database's clock says, Unix milliseconds; None of SQLite, which has this machine's."""
    if conn.dialect.name == "sqlite":
        return None
    text = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
    return int(conn.exec_driver_sql(text).scalar_one())
