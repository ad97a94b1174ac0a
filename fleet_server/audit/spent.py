"""What was used up or ended, and does not come back: tokens of operators, join tokens, machines of nodes, command keys,
TLS CAs, activation manifests.

Mental model
    A row with a MAC is a row that the server once wrote, not the newest: who writes the database puts back the row of
    an operator who was revoked. So what ends is written down a second time, in an audit chain of its own that all
    replicas share. Its head is under a MAC, signed checkpoints vouch for it, and each replica remembers what it read:
    a record that was taken out, or a chain that was put back, is found, and what is remembered counts.
    A process that has just started remembers nothing. A chain that is not whole then tells nobody what ended, so
    nothing is believed until a person says how it goes on (`fleet-server db restored`). One that was put back whole,
    with its head, looks as it did before: what finds that is the newest checkpoint that people's fleetctl remembers.
    Where a replica that remembers finds the chain changed, it writes it all again, from a row that begins it anew.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from fleet.audit_chain import hash_of
from fleet.errors import Reason, Refusal
from fleet_server.audit import rules, store
from fleet_server.audit.heads import Heads, TamperedHeadError, Vouched, check_not_behind
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import AuditRow, Entry, Head
from fleet_server.database.engine import Connection

WRITER = "server:spent"
_PAGE = 1000


class What(StrEnum):
    """What may be spent, and what names it."""

    OPERATOR_TOKEN = "operator-token"  # SHA-256, hexadecimal
    JOIN_TOKEN = "join-token"  # id
    JOIN_TOKEN_USE = "join-token-use"  # id
    MANIFEST = "manifest"  # SHA-256 of the statement, hexadecimal: another took its place
    COMMAND_KEY = "command-key"  # id, hexadecimal: it was revoked
    TLS_CA = "tls-ca"  # SHA-256, hexadecimal: it was revoked
    MACHINE = "machine"  # id of the node, fingerprint in hexadecimal


class _Note(NamedTuple):
    times: int
    number: int


class Spent(NamedTuple):
    """What is known: of a snapshot of the database, and of what this replica remembers beside.

    Args:
        number: newest row of the chain in that snapshot.
        notes: how often, and in which row last, by what was spent.
    """

    number: int
    notes: Mapping[str, _Note]

    def times(self, what: What, name: str) -> int:
        """How often it was spent."""
        return self._note(what, name).times

    def is_put_back(self, what: What, name: str, times: int) -> bool:
        """Whether a row of that snapshot that says `times` is older than what the snapshot's record says."""
        note = self._note(what, name)
        return note.times > times and note.number <= self.number

    def _note(self, what: What, name: str) -> _Note:
        return self.notes.get(f"{what}:{name}", _Note(0, 0))


class SpentRecord:
    """The chain, and what this replica remembers of it. Any thread may read.

    Args:
        heads: of chains.
        entry: `entry(kind, subject)` makes a row of now.
        vouched: see `Vouched`; asked by a process that remembers nothing.
    """

    def __init__(self, heads: Heads, entry: Callable[[AuditKind, str], Entry], vouched: Vouched) -> None:
        self._heads = heads
        self._entry = entry
        self._vouched = vouched
        self._lock = threading.Lock()
        self._required = False
        self._head: Head | None = None
        self._refused: tuple[store.HeadRow | None] | None = None  # the end of a chain that did not stand
        self._notes: dict[str, _Note] = {}
        self.tampered = ""
        """What is wrong with the chain as it stands; empty when nothing is."""

    def require(self) -> None:
        """There is a cluster, and the chain was begun with it: without it what was spent is unknown."""
        self._required = True

    def begin(self, conn: Connection) -> None:
        """Begin the chain, with a new cluster."""
        self._put(conn, Head.start(WRITER), [self._entry(AuditKind.SPENT_BEGUN, WRITER)])

    def look(self, conn: Connection, before: Head | None) -> None:
        """Read what is new, and find what is wrong.

        Args:
            before: `newest` from before `conn` began its snapshot.
        """
        try:
            self.known(conn, keep=True, again=True)
        except Refusal:
            return
        row = store.head(conn, WRITER)
        if before is not None and before.number > (0 if row is None else row.number):
            self.tampered = f"it went back behind row {before.number}, which this replica saw"

    @property
    def newest(self) -> Head | None:
        """Where this replica saw the chain end."""
        return self._head

    def known(self, conn: Connection, *, keep: bool = False, again: bool = False) -> Spent:
        """What was spent.

        Args:
            conn: its snapshot.
            keep: remember it. Never of a transaction that may yet be undone.
            again: read a chain that did not stand once more, though it ends as it did. Each caller would read it all.

        Raises:
            Refusal: UNAVAILABLE: the chain was changed around the server, and this process has never seen it whole.
        """
        if not again and self._head is None and self._refused and self._refused == (store.head(conn, WRITER),):
            raise _unknown(self.tampered)
        try:
            signed = self._signed(conn)  # before the head: another replica may move that on, and have it signed
        except TamperedHeadError as tampered:
            self._refused, self.tampered = (store.head(conn, WRITER),), str(tampered)
            raise _unknown(self.tampered) from tampered
        row = store.head(conn, WRITER)
        with self._lock:
            if self._head is not None and row is not None and row[1:3] == (self._head.number, self._head.hash):
                if keep:
                    self.tampered = ""
                return Spent(self._head.number, self._notes)
            try:
                head, notes = self._read(conn, row)
                if self._head is None:
                    check_not_behind(head, signed)
            except TamperedHeadError as tampered:
                self.tampered = str(tampered)
                if self._head is None:
                    self._refused = (row,)
                    raise _unknown(self.tampered) from tampered
                return Spent(self._head.number, self._notes)
            if self._head is not None and head.number < self._head.number:  # an older snapshot than another thread's
                return Spent(head.number, self._notes)
            notes = {key: _larger(note, self._notes.get(key)) for key, note in notes.items()}
            if not keep:
                return Spent(head.number, {**self._notes, **notes})
            self._notes.update(notes)
            self._head, self.tampered = head, ""
            return Spent(head.number, self._notes)

    def add(self, conn: Connection, what: What, *names: str) -> None:
        """Record in the running transaction that things were spent, each once more.

        Raises:
            Refusal: UNAVAILABLE, as `known`.
        """
        made = [self._entry(AuditKind.CREDENTIAL_SPENT, f"{what}:{name}") for name in names]
        row = store.head(conn, WRITER, lock=True)
        try:
            if row is None and not self._required:
                head = Head.start(WRITER)
            elif row is None:
                raise TamperedHeadError("its head was removed")
            else:
                head = self._heads.checked(row)
            if self._head is not None and not _follows(head, self._head):
                raise TamperedHeadError(f"it went back to row {head.number}; this replica saw row {self._head.number}")
        except TamperedHeadError as tampered:
            self.tampered = str(tampered)
            if self._head is None:
                raise _unknown(self.tampered) from tampered
            with self._lock:
                notes = dict(self._notes)
            self._write_again(conn, notes, made)
            return
        self._put(conn, head, made)

    def accept(self, conn: Connection) -> bool:
        """Take what the chain says for what was recorded: a person said so. False when it is whole."""
        try:
            self.known(conn)
        except Refusal:
            notes: dict[str, _Note] = {}
            times: Counter[str] = Counter()
            for number, kind, subject in store.kinds_and_subjects(conn, WRITER):
                if kind == AuditKind.SPENT_BEGUN:
                    times.clear()  # all of it is written again behind this
                elif kind == AuditKind.CREDENTIAL_SPENT and isinstance(subject, str):
                    times[subject] += 1
                    notes[subject] = _larger(_Note(times[subject], number), notes.get(subject))
            self._write_again(conn, notes, [])
            return True
        return False

    def _signed(self, conn: Connection) -> Head | None:
        """What was signed of the chain, for who remembers nothing of it.

        Raises:
            TamperedHeadError: it cannot be told.
        """
        return self._vouched(conn, WRITER) if self._head is None and self._required else None

    def _read(self, conn: Connection, row: store.HeadRow | None) -> tuple[Head, dict[str, _Note]]:
        """Head of the chain, and what it says that is not remembered.

        Raises:
            TamperedHeadError: it is not what the server wrote.
        """
        if row is None:
            seen = self._head is not None and self._head.number > 0
            if self._required or seen or store.newest_row(conn, WRITER) is not None:
                raise TamperedHeadError("its head was removed")
            return Head.start(WRITER), {}
        head = self._heads.checked(row)
        if self._head is not None:
            if head.number < self._head.number:
                return head, {}
            try:
                return head, _verified(conn, self._head, head, self._notes)
            except TamperedHeadError:
                pass  # another replica wrote all of it again
        begun = store.newest_of_kind(conn, WRITER, AuditKind.SPENT_BEGUN, head.number)
        if begun is None or (self._head is not None and begun[0] <= self._head.number):
            if begun is None and not self._required:
                begun = (1, Head.start(WRITER).hash)
            else:
                raise TamperedHeadError("rows of it were changed or removed")
        return head, _verified(conn, Head(WRITER, begun[0] - 1, begun[1]), head, {})

    def _write_again(self, conn: Connection, notes: Mapping[str, _Note], more: Iterable[Entry]) -> None:
        newest = store.newest_row(conn, WRITER)
        behind = Head.start(WRITER) if newest is None else Head(WRITER, *newest)
        if self._head is not None and self._head.number > behind.number:
            behind = self._head
        again = [
            self._entry(AuditKind.CREDENTIAL_SPENT, subject)
            for subject, note in notes.items()
            for _ in range(note.times)
        ]
        self._put(conn, behind, [self._entry(AuditKind.SPENT_BEGUN, WRITER), *again, *more])

    def _put(self, conn: Connection, head: Head, entries: list[Entry]) -> None:
        rows, after = rules.chain(head, entries)
        self._heads.put(conn, rows, after)


def _follows(head: Head, seen: Head) -> bool:
    return head.number > seen.number or head == seen


def _verified(conn: Connection, start: Head, end: Head, known: Mapping[str, _Note]) -> dict[str, _Note]:
    """What the rows between two heads say, beside what was known of the same things.

    Raises:
        TamperedHeadError: they do not lead from one to the other.
    """
    notes: dict[str, _Note] = {}
    number, previous = start.number, start.hash
    try:
        for row in _rows(conn, start.number, end.number):
            said = (row.number, row.previous_hash, row.hash)
            if said != (number + 1, previous, hash_of(row, row.previous_hash)):
                break
            number, previous = row.number, row.hash
            if row.kind == AuditKind.SPENT_BEGUN:
                notes, known = {}, {}
            if row.kind == AuditKind.CREDENTIAL_SPENT:
                before = notes.get(row.subject) or known.get(row.subject) or _Note(0, 0)
                notes[row.subject] = _Note(before.times + 1, row.number)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:  # SQLite keeps any type in any column
        raise TamperedHeadError(f"row {number + 1} of it cannot be read") from error
    if (number, previous) != (end.number, end.hash):
        raise TamperedHeadError(f"row {number + 1} of it was changed or removed")
    return notes


def _larger(note: _Note, other: _Note | None) -> _Note:
    return note if other is None or note.times >= other.times else other


def _rows(conn: Connection, after: int, last: int) -> Iterable[AuditRow]:
    while page := store.rows_between(conn, WRITER, after, last, _PAGE):
        yield from page
        after = page[-1].number


def _unknown(why: str) -> Refusal:
    return Refusal(
        Reason.UNAVAILABLE,
        f"what was revoked cannot be told: the record of it was changed around the server ({why}). Run `fleet-server db"
        " restored` on the server, then revoke again what the audit says was revoked",
    )
