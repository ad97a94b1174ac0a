"""Read the audit in pages, in the order of storage.

Mental model
    A page is a range of positions, so its cost does not depend on how many chains there are.
    Replicas commit side by side, and a row can become visible behind a later one, which the reader has passed. Rows of
    one chain never do that among themselves, so their numbers tell: what lies between the last number that was given
    of a chain and the next one is fetched by number. Before a checkpoint every row is given that it names, for who
    verifies takes a row that is missing then for one that was cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from fleet.v1 import trust_pb2
from fleet_server.audit import store
from fleet_server.audit.rules import AuditRow
from fleet_server.database.engine import Connection


@dataclass(frozen=True, slots=True)
class AuditCursor:
    """How far a reader is: the position, the number in each chain, and the newest checkpoint it was given."""

    position: int = 0
    numbers: Mapping[str, int] = field(default_factory=dict)
    checkpoint: int = 0


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows in the order of storage, the checkpoints over them, where to go on, and whether more is stored."""

    rows: list[AuditRow]
    checkpoints: list[trust_pb2.Signed]
    cursor: AuditCursor
    more: bool

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return not self.rows and not self.checkpoints


def cursor_at(conn: Connection, position: int) -> AuditCursor:
    """The cursor of a reader who has everything up to a position."""
    if position == 0:
        return AuditCursor()
    return AuditCursor(position, store.numbers_up_to(conn, position), store.newest_checkpoint_up_to(conn, position))


def read_page(conn: Connection, cursor: AuditCursor, limit: int) -> AuditPage:
    """The next rows and checkpoints after `cursor`: `limit` of each, and a chain's late rows beside them."""
    reading = _Reading(conn, cursor, limit)
    reading.scan()
    reading.take_checkpoints()
    if not reading.more:
        reading.take_grown()
    return reading.page()


class _Reading:
    def __init__(self, conn: Connection, cursor: AuditCursor, limit: int) -> None:
        self._conn = conn
        self._limit = limit
        self._rows: list[AuditRow] = []
        self._checkpoints: list[trust_pb2.Signed] = []
        self._position = cursor.position
        self._numbers = dict(cursor.numbers)
        self._checkpoint = cursor.checkpoint
        self.more = False

    def scan(self) -> None:
        found = store.rows_after(self._conn, self._position, self._limit)
        self.more = len(found) == self._limit
        for row in found:
            if not self._take_chain(row.writer, row.number - 1):
                self.more = True
                return
            if row.number > self._numbers.get(row.writer, 0):
                self._numbers[row.writer] = row.number
                self._rows.append(row)
            self._position = row.position

    def take_checkpoints(self) -> None:
        # At the end every checkpoint comes, also those over rows that are gone: so the reader sees that they are.
        covered = self._position if self.more else store.LAST_POSITION
        found = store.checkpoints_after(self._conn, self._checkpoint, covered, self._limit)
        for number, raw in found:
            signed = _signed(raw)
            if not all(self._take_chain(head.writer, head.number) for head in _heads(signed)):
                self.more = True
                return
            self._checkpoint = number
            self._checkpoints.append(signed)
        self.more = self.more or len(found) == self._limit

    def take_grown(self) -> None:
        grown = store.grown(self._conn)
        self.more = not all(self._take_chain(writer, number) for writer, number in grown)

    def _take_chain(self, writer: str, number: int) -> bool:
        """Give what is stored of a chain up to a number and was not given yet; False when that is too much for one
        page."""
        known = self._numbers.get(writer, 0)
        if number <= known:
            return True
        late = store.rows_between(self._conn, writer, known, min(number, store.LAST_POSITION), self._limit)
        for row in late:
            if row.number > self._numbers.get(writer, 0):
                self._numbers[writer] = row.number
                self._rows.append(row)
        return len(late) < self._limit

    def page(self) -> AuditPage:
        cursor = AuditCursor(self._position, self._numbers, self._checkpoint)
        return AuditPage(sorted(self._rows, key=lambda row: row.position), self._checkpoints, cursor, self.more)


def _signed(raw: bytes) -> trust_pb2.Signed:
    try:
        return trust_pb2.Signed.FromString(raw)
    except DecodeError:
        return trust_pb2.Signed(
            statement=raw
        )  # changed around the server: nobody signed that, and who verifies says so


def _heads(signed: trust_pb2.Signed) -> list[trust_pb2.AuditHead]:
    try:
        return list(trust_pb2.AuditCheckpointStatement.FromString(signed.statement).heads)
    except DecodeError:
        return []  # changed around the server: who verifies says so
