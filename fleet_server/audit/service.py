"""Append to the audit, checkpoint it, export it.

Mental model
    A room appends an entry to its transaction; nothing is hashed yet.
    Before the writer commits a group, the seal numbers and hashes the group's entries after the head of this
    replica's chain and stores them with the deed itself: no deed without its row, and no row without its deed.
    Each replica writes a chain of its own, so that replicas share no lock.
    Each second that has news one signed checkpoint fixes the heads of all chains. Replicas race for its number; one
    wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Protocol

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet.v1 import trust_pb2
from fleet_server.audit import reading, rules, store
from fleet_server.audit.kinds import TABLE_OF_QUARANTINE, AuditKind
from fleet_server.audit.reading import AuditCursor, AuditPage
from fleet_server.audit.rules import JSON
from fleet_server.database.engine import Connection, Database, IntegrityError
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction

__all__ = ["AuditCursor", "AuditPage", "AuditService"]

log = get_logger(__name__)

TOPIC = "audit"
CHECKPOINT_INTERVAL_S = 1.0
PAGE_ROWS = 500

SignCheckpoint = Callable[[Connection, bytes], trust_pb2.Signed | None]
"""`sign(conn, statement)` wraps statement bytes under the domain ``audit-checkpoint`` with the authority's key; None
when `conn` shows a newer authority than this replica knows: no authority signs a checkpoint after its successor did."""


class AuditMetrics(Protocol):
    """What the audit tells about itself, on the event loop."""

    def appended(self, rows: int) -> None:
        """This replica committed `rows` rows."""
        ...

    def row_quarantined(self, table: str) -> None:
        """A row of `table` was found changed around the server."""
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
        metrics: told of what is committed.
    """

    def __init__(
        self, *, database: Database, clock: Clock, wakeup: Wakeup, writer: str, metrics: AuditMetrics | None = None
    ) -> None:
        self._database = database
        self._clock = clock
        self._wakeup = wakeup
        self._writer = writer
        self._metrics = metrics
        self._seen_checkpoint = 0
        database.writer.before_commit(self._seal)

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
        tx.audit.append(
            rules.Entry(
                at_ms=self._clock.now_ms(),
                kind=kind.value,
                actor=rules.fit(actor, rules.MAX_ACTOR_CHARS),
                subject=rules.fit(subject, rules.MAX_SUBJECT_CHARS),
                detail=rules.canonical_json(detail),
            )
        )
        table = TABLE_OF_QUARANTINE.get(kind)
        if self._metrics is not None and table is not None:
            tx.after_commit(partial(self._metrics.row_quarantined, table))

    async def checkpoint(self, sign: SignCheckpoint, cluster_id: str) -> bool:
        """Sign a checkpoint when a chain grew. False when there was nothing new, this replica may not sign now, or
        another one was faster."""

        def work(tx: Transaction) -> bool:
            # The newest checkpoint is read before the heads: so no head goes back behind what it signed.
            _, signed = store.newest_checkpoint(tx.conn)
            previous = trust_pb2.Signed.FromString(signed).statement
            due = rules.next_checkpoint(
                cluster_id=cluster_id,
                previous=previous,
                heads=store.heads(tx.conn),
                signed=store.signed_numbers(tx.conn),
                now_ms=self._clock.now_ms(),
            )
            if due is None:
                return False
            # The signer looks at the authorities after the newest checkpoint was read: see `SignCheckpoint`.
            made = sign(tx.conn, due.SerializeToString(deterministic=True))
            if made is None:
                return False
            raw = made.SerializeToString()
            store.insert_checkpoint(tx.conn, due.number, store.last_position(tx.conn), due.issued_at_ms, raw)
            store.note_signed(tx.conn, [(head.writer, head.number) for head in due.heads])
            tx.after_commit(lambda: self._wakeup.wake_nowait([TOPIC]))
            return True

        if not await self._has_news():
            return False
        try:
            return await self._database.write(work)
        except IntegrityError:
            return False

    def newest_number(self, conn: Connection, writer: str) -> int:
        """Number of the newest row of a chain; 0 without one. Any thread."""
        return store.head(conn, writer).number

    async def run_checkpoints(self, sign: SignCheckpoint, cluster_id: str) -> None:
        """Checkpoint each second that has news, until cancelled. A database that is away is tried again a second
        later.

        Args:
            sign: see `SignCheckpoint`.
            cluster_id: whose audit it is.
        """
        while True:
            try:
                await self.checkpoint(sign, cluster_id)
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

    async def _has_news(self) -> bool:
        def query(conn: Connection) -> tuple[int, bool]:
            return store.newest_checkpoint(conn)[0], store.any_grown(conn)

        newest, news = await self._database.read(query)
        if newest > self._seen_checkpoint:
            # Another replica's rows came with its checkpoint: readers who follow here learn of them this way.
            self._seen_checkpoint = newest
            if self._metrics is not None:
                self._metrics.checkpointed(newest)
            self._wakeup.wake_nowait([TOPIC])
        return news

    def _seal(self, tx: Transaction) -> None:
        if not tx.audit:
            return
        rows, head = rules.chain(store.head(tx.conn, self._writer), tx.audit)
        store.insert(tx.conn, rows, head)
        if self._metrics is not None:
            tx.after_commit(partial(self._metrics.appended, len(rows)))
        tx.after_commit(lambda: self._wakeup.wake_nowait([TOPIC]))
