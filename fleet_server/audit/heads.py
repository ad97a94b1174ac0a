"""Heads of chains as the database holds them, each under a MAC; and this replica's own chain, whose end it remembers.

Mental model
    A row's hash has no key: who writes the database can hash a history anew. So a head carries a MAC, and one that does
    not fit is continued and signed by nobody.
    An old head, put back, has a good MAC. This replica knows where its own chain ends and goes on behind that, whatever
    the database says, so what was cut off or written over there leaves a gap or a broken link for every reader.
    A process that has just started knows nothing. When it does not find its chain whole, or when somebody else's rows
    stand where its own belong, it begins another one, under a name of its own, and leaves the old one as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

from fleet_server.audit import rules, store
from fleet_server.audit.rules import Entry, Head
from fleet_server.audit.store import HeadRow
from fleet_server.database.engine import Connection, IntegrityError
from fleet_server.database.refusals import away
from fleet_server.database.writer import Transaction

_MAX_NAME_CHARS = 48  # of a column of 64, with room for what tells a second chain from the first


class Mac(Protocol):
    """MAC over the fields of a row, under a key of its table."""

    def compute(self, *fields: bytes | str | int) -> bytes:
        """MAC over `fields`, in order."""
        ...

    def verify(self, mac: bytes, *fields: bytes | str | int) -> bool:
        """Whether `mac` is that of `fields`; false, too, for fields of types that the server never writes."""
        ...


class TamperedHeadError(Exception):
    """A head is not what the server wrote. The message says how."""


Vouched = Callable[[Connection, str], Head | None]
"""`vouched(conn, writer)` says where a chain ended by what was signed (`Checkpoints.vouched`); raises
`TamperedHeadError` when that cannot be told."""


Hold = Callable[[Connection], None]
"""`hold(conn)` raises a `Refusal` when another process has this replica's name, and with it its chain."""


def check_not_behind(head: Head, signed: Head | None) -> None:
    """Refuse the end of a chain that lies before what was signed of it.

    Raises:
        TamperedHeadError: it does.
    """
    if signed is not None and (head.number < signed.number or (head.number == signed.number and head != signed)):
        raise TamperedHeadError(f"it went back to row {head.number}; a checkpoint vouches for row {signed.number}")


class Heads:
    """Rows of `audit_heads`.

    Args:
        mac: of the table.
    """

    def __init__(self, mac: Mac) -> None:
        self._mac = mac

    def read(self, conn: Connection, writer: str, *, lock: bool = False) -> Head:
        """Head of one chain; with `lock` nobody else moves it until the transaction ends.

        Raises:
            TamperedHeadError: it was changed around the server, or removed.
        """
        found = store.head(conn, writer, lock=lock)
        if found is None and store.newest_row(conn, writer) is not None:
            found = store.head(conn, writer)  # another replica may have begun it in between
            if found is None:
                raise TamperedHeadError("its head was removed, and rows of it are there")
        return Head.start(writer) if found is None else self.checked(found)

    def read_all(self, conn: Connection, writers: Sequence[str]) -> dict[str, Head | TamperedHeadError]:
        """Heads of chains, by their writers: as `read`."""
        heads: dict[str, Head | TamperedHeadError] = {}
        for row in store.heads_of(conn, writers):
            try:
                heads[row.writer] = self.checked(row)
            except TamperedHeadError as tampered:
                heads[row.writer] = tampered
        for writer in [writer for writer in writers if writer not in heads]:
            heads[writer] = Head.start(writer)
        for writer in store.writers_with_rows(conn, [writer for writer, head in heads.items() if _is_start(head)]):
            try:
                heads[writer] = self.read(conn, writer)
            except TamperedHeadError as tampered:
                heads[writer] = tampered
        return heads

    def checked(self, row: HeadRow) -> Head:
        """The head that a row holds.

        Raises:
            TamperedHeadError: its MAC does not fit.
        """
        fields = (row.writer, row.number, row.hash)
        if not self._mac.verify(row.mac, *fields):
            raise TamperedHeadError("its head does not carry a good MAC")
        return Head(*fields)

    def put(self, conn: Connection, rows: Sequence[rules.AuditRow], head: Head) -> None:
        """Store rows of one chain, and its head behind them."""
        store.insert_rows(conn, rows)
        self.put_head(conn, head)

    def put_head(self, conn: Connection, head: Head) -> None:
        """Store a head, whatever stood there."""
        store.put_head(conn, head, self._mac_of(head))

    def advance(self, conn: Connection, before: Head, after: Head) -> bool:
        """Move a head on; false, and nothing is done, when the database holds another one than `before`."""
        return store.advance_head(conn, before, after, self._mac_of(after))

    def _mac_of(self, head: Head) -> bytes:
        return self._mac.compute(head.writer, head.number, head.hash)


def _is_start(head: Head | TamperedHeadError) -> bool:
    return isinstance(head, Head) and head.number == 0


class OwnChain:
    """This replica's chain. The writer's thread alone calls.

    Args:
        name: of the chain.
        heads: where its head is stored.
        tell: `tell(tx, writer, why)` makes the row that tells that the chain was changed around the server.
        vouched: see `Vouched`.
        hold: see `Hold`.
    """

    def __init__(
        self, name: str, heads: Heads, tell: Callable[[Transaction, str, str], Entry], vouched: Vouched, hold: Hold
    ) -> None:
        self.name = name
        self._heads = heads
        self._tell = tell
        self._vouched = vouched
        self._hold = hold
        self._known: Head | None = None
        self._sealed: tuple[Transaction, Head] | None = None
        self._untold: tuple[str, str] | None = None
        self.suspect = False
        """Somebody found another end of it in the database: the next commit puts that right, and tells of it."""
        self._blocked = False

    def seal(self, tx: Transaction, entries: Sequence[Entry]) -> int:
        """Chain entries behind the end of the chain and store them in `tx`; how many rows that are."""
        tip = self._tip(tx.conn)
        if self._untold is not None:
            entries = [*entries, self._tell(tx, *self._untold)]
        rows, after = rules.chain(tip, entries)
        if not self._heads.advance(tx.conn, tip, after):
            self._hold(tx.conn)  # or what a successor of the same name wrote would be taken for a forgery
            tip, why = self._look(tx.conn, tip)
            if why:
                entries = [*entries, self._tell(tx, self.name, why)]
            rows, after = rules.chain(tip, entries)
            self._heads.put_head(tx.conn, after)
        self.suspect = False
        try:
            store.insert_rows(tx.conn, rows)
        except IntegrityError as error:
            self._blocked = True
            if self._sealed is not None:  # what was committed meanwhile may be this replica's own, interrupted write
                raise away() from error
            raise
        self._known, self._sealed = tip, (tx, after)
        return len(rows)

    def committed(self, tx: Transaction) -> None:
        """`tx` is durable."""
        if self._sealed is not None and self._sealed[0] is tx:
            self._known, self._sealed, self._untold = self._sealed[1], None, None

    def stands(self, row: HeadRow) -> bool | None:
        """Whether the database holds the end of this chain as it is remembered; None when nothing is."""
        known = self._remembered()
        return any(_is(row, head) for head in known) if known else None

    def _remembered(self) -> list[Head]:
        """Where the chain may end, newest first: nobody knows of a commit that was interrupted."""
        sealed = [] if self._sealed is None else [self._sealed[1]]
        return sealed if self._known is None else [*sealed, self._known]

    def _tip(self, conn: Connection) -> Head:
        remembered = self._remembered()
        if not remembered:
            return self._open(conn)
        if self._blocked:
            self._hold(conn)
            self._blocked = False
            if store.newest_row(conn, self.name) not in [(head.number, head.hash) for head in remembered]:
                return self._begin_another("rows stand behind its end that this replica did not write")
        return remembered[0]

    def _open(self, conn: Connection) -> Head:
        """Where a process that has just started goes on."""
        try:
            head = self._heads.read(conn, self.name, lock=True)
            newest = store.newest_row(conn, self.name)
            if newest is not None and newest != (head.number, head.hash):
                raise TamperedHeadError(f"its head names row {head.number}, and its newest row is {newest[0]}")
            if newest is None and head.number:
                raise TamperedHeadError(f"its head names row {head.number}, and it has no rows")
            check_not_behind(head, self._vouched(conn, self.name))
        except TamperedHeadError as tampered:
            return self._begin_another(str(tampered))
        self._known = head
        return head

    def _begin_another(self, why: str) -> Head:
        self._untold = (self.name, f"{why}: this replica goes on in another chain")
        self.name = f"{self.name.partition('+')[0][:_MAX_NAME_CHARS]}+{os.urandom(4).hex()}"
        self._known, self._sealed = Head.start(self.name), None
        return self._known

    def _look(self, conn: Connection, tip: Head) -> tuple[Head, str]:
        """Where the chain ends, when the database does not hold the end that was taken for the likeliest; and what is
        wrong there."""
        row = store.head(conn, self.name)
        for head in self._remembered():
            if (row is None and head.number == 0) or (row is not None and _is(row, head)):
                return head, ""
        if self._known is not None and store.newest_row(conn, self.name) != (tip.number, tip.hash):
            tip = self._known
        stored = "no head" if row is None else f"row {row.number} as its head"
        return tip, f"the database holds {stored}, and this replica wrote up to row {tip.number}"


def _is(row: HeadRow, head: Head) -> bool:
    return (row.number, row.hash) == (head.number, head.hash)
