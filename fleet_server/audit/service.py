"""Append to the audit, checkpoint it, export it.

Mental model
    A room appends an entry to its transaction; nothing is hashed yet.
    Before the writer commits a group, the seal numbers and hashes the group's entries after the head of this
    replica's chain and stores them with the deed itself: no deed without its row, and no row without its deed.
    Each replica writes a chain of its own, so that replicas share no lock.
    Each second that has news one signed checkpoint fixes the heads of all chains. One replica makes them, whichever
    did last: the others see that there is a new one and leave it at that, for nine times; then each looks through
    the chains itself, by what it remembers, and goes on as the one that makes them. Where two do at once they race for
    the number, and one wins.
    What was changed around the server is found by MACs and by what this replica remembers (`heads`, `checkpoints`). It
    is audited, logged and counted; deeds go on being recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.audit import reading, rules, spent, store
from fleet_server.audit.checkpoints import Checkpoints, SignCheckpoint
from fleet_server.audit.heads import Heads, Hold, Mac, OwnChain, TamperedHeadError
from fleet_server.audit.kinds import TABLE_OF_QUARANTINE, AuditKind
from fleet_server.audit.reading import AuditCursor, AuditPage
from fleet_server.audit.rules import JSON, Head
from fleet_server.audit.spent import SpentRecord
from fleet_server.database.engine import Connection, Database, IntegrityError
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction

__all__ = ["AuditCursor", "AuditPage", "AuditService"]

log = get_logger(__name__)

TOPIC = "audit"
CHECKPOINT_INTERVAL_S = 1.0
LEFT_TO_OTHERS = 9
"""Rounds in a row: the chains are compared with what each replica remembers every ten seconds at the least."""
PAGE_ROWS = 500


class AuditMetrics(Protocol):
    """What the audit tells about itself, on the event loop."""

    def appended(self, rows: int) -> None:
        """This replica committed `rows` rows."""
        ...

    def row_quarantined(self, table: str) -> None:
        """A row of `table` was found changed around the server."""
        ...

    def audit_tampered(self, what: str) -> None:
        """Something of the audit itself was changed around the server: a head, a checkpoint, or which is the newest."""
        ...

    def checkpointed(self, number: int) -> None:
        """`number` is the newest checkpoint of the cluster."""
        ...


class AuditService:
    """The audit of one replica.

    Args:
        database: where it rests; the seal is hooked into its writer.
        clock: for the time of rows and checkpoints.
        wakeup: wakes ``audit`` after each commit that has rows or a checkpoint.
        writer: name of this replica's chain, its replica id. No other process may use it.
        row_mac: the MAC of a table.
        metrics: told of what is committed.
        hold: see `Hold`; asked where the chain does not stand as this process left it, and before each checkpoint.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        writer: str,
        row_mac: Callable[[str], Mac],
        metrics: AuditMetrics | None = None,
        hold: Hold = lambda conn: None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._wakeup = wakeup
        self.writer = writer
        self._metrics = metrics
        self._seen_checkpoint = 0
        self._left_to_others = 0
        self.heads = Heads(row_mac("audit_heads"))
        self._hold = hold
        self._own = OwnChain(writer, self.heads, self._changed_chain, self._vouched, hold)
        self.spent = SpentRecord(
            self.heads,
            lambda kind, subject: self._entry(kind, "server", subject, {}),
            partial(self._vouched, begun=True),
        )
        self.checkpoints = Checkpoints(self.heads, self._own, row_mac("audit_newest"), self.tampered)
        database.writer.before_commit(self._seal)
        database.writer.when_committed(self._own.committed)

    def append(self, tx: Transaction, kind: AuditKind, *, actor: str, subject: str, detail: Mapping[str, JSON]) -> None:
        """Record a deed in the transaction that does it. One call covers one batch.

        Args:
            tx: the running transaction.
            kind: what was done.
            actor: operator's name, ``node:<id>`` or ``server``.
            subject: what it was done to: an id or a name.
            detail: JSON; no secret belongs in it. Above 256 KiB only its hash is kept: split a larger batch.

        Raises:
            TypeError: `detail` holds bytes, a `Secret`, or another thing that is no JSON.
        """
        tx.audit.append(self._entry(kind, actor, subject, detail))
        table = TABLE_OF_QUARANTINE.get(kind)
        if self._metrics is not None and table is not None:
            tx.after_commit(partial(self._metrics.row_quarantined, table))

    def tampered(self, tx: Transaction, what: str, subject: str, why: str) -> None:
        """Record in `tx` that something of the audit was changed around the server, and raise the alarm.

        Args:
            tx: the running transaction.
            what: "head", "checkpoint", "newest" or "spent".
            subject: whose head, or which checkpoint.
            why: how it was found.
        """
        self._alarm(tx, what, subject, why)
        self.append(tx, AuditKind.AUDIT_TAMPERED, actor="server", subject=subject, detail={"what": what, "why": why})

    async def checkpoint(self, sign: SignCheckpoint, cluster_id: str, *, in_turn: bool = False) -> bool:
        """Sign a checkpoint when a chain grew. False when there was nothing new, this replica may not sign now, another
        one was faster, or something was changed around the server (`Checkpoints`).

        Args:
            in_turn: leave it to another replica that made one since the last call, unless it did nine times.
        """

        def work(tx: Transaction) -> bool:
            self._hold(tx.conn)
            self.checkpoints.tell(tx, "spent", spent.WRITER, self.spent.tampered)
            made = self.checkpoints.make(tx, sign, cluster_id, self._clock.now_ms())
            if made:
                tx.after_commit(lambda: self._wakeup.wake_nowait([TOPIC]))
            return made

        seen = self._seen_checkpoint
        if not await self._has_news():
            return False
        if in_turn and 0 < seen < self._seen_checkpoint and self._left_to_others < LEFT_TO_OTHERS:
            self._left_to_others += 1
            return False
        self._left_to_others = 0
        try:
            made = await self._database.write(work)
        except IntegrityError:
            return False
        self._saw(self.checkpoints.newest_number)
        return made

    def is_broken(self, conn: Connection, node_id: str) -> bool:
        """Whether the chain that a node writes was found broken. Any thread."""
        return bool(store.node_standing(conn, node_id).finding)

    def newest_chain(self, conn: Connection, node_id: str) -> int:
        """The newest chain of a node that has rows; 0 is its first. Any thread."""
        return store.node_standing(conn, node_id).chain

    def newest_numbers(self, tx: Transaction, writers: Sequence[str]) -> dict[str, int]:
        """Number of the newest row of each chain; 0 without one, and where its end was changed around the server, which
        is told."""
        numbers = {}
        for writer, head in self.heads.read_all(tx.conn, writers).items():
            if isinstance(head, TamperedHeadError):
                self.checkpoints.tell(tx, "head", writer, str(head))
            numbers[writer] = 0 if isinstance(head, TamperedHeadError) else head.number
        return numbers

    async def run_checkpoints(self, sign: SignCheckpoint, cluster_id: str) -> None:
        """Checkpoint each second that has news, until cancelled. A database that is away is tried again a second
        later.

        Args:
            sign: see `SignCheckpoint`.
            cluster_id: whose audit it is.
        """
        while True:
            try:
                await self.checkpoint(sign, cluster_id, in_turn=True)
            except Refusal as refusal:
                log.warning("audit_checkpoint_delayed", reason=refusal.reason, detail=refusal.detail)
            await self._clock.sleep(CHECKPOINT_INTERVAL_S)

    async def page(self, cursor: AuditCursor, *, limit: int = PAGE_ROWS) -> AuditPage:
        """The next rows and checkpoints after `cursor`; about `limit` of each."""
        return await self._database.read(lambda conn: reading.read_page(conn, cursor, limit))

    async def export(self, *, after: int = 0, last: int = 0, follow: bool = False) -> AsyncIterator[AuditPage]:
        """Pages from `after` on, or of the `last` rows; with `follow` it goes on with what is written later, until
        cancelled."""
        news = asyncio.Event()
        unsubscribe = self._wakeup.subscribe(TOPIC, news.set)
        try:
            cursor = await self._start(after, last)
            while True:
                news.clear()
                page = await self.page(cursor)
                cursor = page.cursor
                if not page.empty:
                    yield page
                if page.more:
                    continue
                if not follow:
                    return
                await news.wait()
        finally:
            unsubscribe()

    async def _start(self, after: int, last: int) -> AuditCursor:
        def query(conn: Connection) -> AuditCursor:
            position = store.position_before_last(conn, last) if last else min(after, store.LAST_POSITION)
            return reading.cursor_at(conn, position)

        return await self._database.read(query)

    def _saw(self, number: int) -> bool:
        """Whether that is a newer checkpoint than this replica has seen."""
        if number <= self._seen_checkpoint:
            return False
        self._seen_checkpoint = number
        if self._metrics is not None:
            self._metrics.checkpointed(number)
        return True

    async def _has_news(self) -> bool:
        before = self.spent.newest

        def query(conn: Connection) -> tuple[int, bool]:
            self.spent.look(conn, before)
            return store.newest_checkpoint_number(conn), store.any_grown(conn) or bool(self.spent.tampered)

        newest, news = await self._database.read(query)
        if self._saw(newest):
            # Another replica's rows came with its checkpoint: readers who follow here learn of them this way.
            self._wakeup.wake_nowait([TOPIC])
        return news

    def _seal(self, tx: Transaction) -> None:
        if not tx.audit and not self._own.suspect:
            return
        rows = self._own.seal(tx, tx.audit)
        if self._metrics is not None:
            tx.after_commit(partial(self._metrics.appended, rows))
        tx.after_commit(lambda: self._wakeup.wake_nowait([TOPIC]))

    def _vouched(self, conn: Connection, writer: str, *, begun: bool = False) -> Head | None:
        return self.checkpoints.vouched(conn, writer, begun=begun)

    def _changed_chain(self, tx: Transaction, writer: str, why: str) -> rules.Entry:
        self._alarm(tx, "head", writer, why)
        return self._entry(AuditKind.AUDIT_TAMPERED, "server", writer, {"what": "head", "why": why})

    def _alarm(self, tx: Transaction, what: str, subject: str, why: str) -> None:
        tx.after_commit(partial(log.error, "audit_tampered", what=what, subject=subject, why=why))
        if self._metrics is not None:
            tx.after_commit(partial(self._metrics.audit_tampered, what))

    def _entry(self, kind: AuditKind, actor: str, subject: str, detail: Mapping[str, JSON]) -> rules.Entry:
        return rules.Entry(
            at_ms=self._clock.now_ms(),
            kind=kind.value,
            actor=rules.fit(actor, rules.MAX_ACTOR_CHARS),
            subject=rules.fit(subject, rules.MAX_SUBJECT_CHARS),
            detail=rules.canonical_json(detail),
        )
