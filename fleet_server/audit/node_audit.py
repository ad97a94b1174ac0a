"""Take the chains that nodes write themselves, into the same tables and under the same checkpoints as the replicas'.

Mental model
    A node's rows are stored as they came, under the writer ``node:<id>``, once each hashes behind the last one stored.
    A chain that does not continue, or that says something else about a row than before, is a finding: it is audited by
    this replica, counted, shown with the node, and the stream goes on. Nothing behind it is stored until the node
    sends what does continue. A finding stays with the node.
    A day's rows and bytes of a node are bounded; beyond, it is told so and keeps its rows until the next day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.node_audit import MAX_ROWS_PER_FRAME, writer_of
from fleet.v1 import gateway_pb2
from fleet_server.audit import node_rules, rules, store
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.node_rules import DAY_MS, RETRY_MS, Finding, Judged, NodeStanding, Pause
from fleet_server.audit.service import TOPIC, AuditService
from fleet_server.database.engine import Connection, Database, IntegrityError
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction

log = get_logger(__name__)

_MAX_FINDING_CHARS = 300


class NodeAuditMetrics(Protocol):
    """What this room tells about nodes' chains, on the event loop."""

    def node_rows_stored(self, rows: int) -> None:
        """`rows` rows of a node were committed."""
        ...

    def node_finding(self, finding: Finding) -> None:
        """A node's chain was found broken."""
        ...

    def node_paused(self) -> None:
        """A node was told to wait: it wrote more than a day's rows."""
        ...


class NodeAudit:
    """Nodes' own chains, as this replica hears of them.

    Args:
        database: where they rest.
        clock: for days and times of findings.
        wakeup: wakes ``audit`` after each commit that has rows.
        audit: records findings.
        metrics: told of what is committed.
    """

    def __init__(
        self, database: Database, clock: Clock, wakeup: Wakeup, audit: AuditService, metrics: NodeAuditMetrics
    ) -> None:
        self._database = database
        self._clock = clock
        self._wakeup = wakeup
        self._audit = audit
        self._metrics = metrics

    async def take(
        self, node_id: str, sent: Sequence[gateway_pb2.AuditRow], *, sent_back: bool = False
    ) -> gateway_pb2.AuditAck:
        """Store what continues the node's chain; how far it is stored then.

        Args:
            node_id: as its session says.
            sent: in the order of the chain.
            sent_back: the node was told where the chain ends. Without it a gap is no finding yet: a server whose
                database was restored knows less than it once acknowledged.

        Raises:
            Refusal: UNAVAILABLE when the database is away, or when another replica stores rows of the node right now.
        """
        try:
            return await self._database.write(lambda tx: self._take(tx, node_id, sent, sent_back))
        except IntegrityError as error:
            raise Refusal(Reason.UNAVAILABLE, "another stream of this node stores the same rows") from error

    async def standing(self, node_id: str) -> tuple[int, NodeStanding]:
        """Number of the newest row stored of a node, and what is known of its chain."""

        def query(conn: Connection) -> tuple[int, NodeStanding]:
            return store.head(conn, writer_of(node_id)).number, store.node_standing(conn, node_id)

        return await self._database.read(query)

    def _take(
        self, tx: Transaction, node_id: str, sent: Sequence[gateway_pb2.AuditRow], sent_back: bool
    ) -> gateway_pb2.AuditAck:
        now_ms = self._clock.now_ms()
        writer = writer_of(node_id)
        head = store.head(tx.conn, writer)
        stored = {}
        if sent and sent[0].number <= head.number:
            first = sent[0].number
            stored = store.hashes(tx.conn, writer, first, first + MAX_ROWS_PER_FRAME)
        judged = node_rules.judge(node_id, head, stored, sent)
        standing = store.node_standing(tx.conn, node_id)
        if judged.rows and node_rules.over_quota(standing, judged.rows, now_ms):
            return self._pause(tx, node_id, head.number, standing, now_ms)
        if judged.rows:
            store.insert(tx.conn, judged.rows, judged.head)
            standing = _counted(standing, judged.rows, now_ms)
            tx.after_commit(partial(self._metrics.node_rows_stored, len(judged.rows)))
            tx.after_commit(lambda: self._wakeup.wake_nowait([TOPIC]))
        ack = gateway_pb2.AuditAck(number=judged.head.number)
        if judged.finding is Finding.REMOVED and not sent_back:
            judged = replace(judged, finding=None)
        elif judged.finding is not None:
            ack.paused, ack.retry_after_ms = Pause.CHAIN_BROKEN, RETRY_MS
            standing = self._record(tx, node_id, judged, judged.finding, standing, now_ms)
        if judged.rows or judged.finding is not None:
            store.set_node_standing(tx.conn, node_id, standing)
        return ack

    def _record(
        self, tx: Transaction, node_id: str, judged: Judged, finding: Finding, standing: NodeStanding, now_ms: int
    ) -> NodeStanding:
        text = f"{finding}: {judged.detail}"[:_MAX_FINDING_CHARS]
        if text == standing.finding:
            return standing  # the node says it again each hour
        self._audit.append(
            tx,
            AuditKind.NODE_AUDIT_BROKEN,
            actor=writer_of(node_id),
            subject=writer_of(node_id),
            detail={"finding": finding.value, "detail": judged.detail, "stored": judged.head.number},
        )
        tx.after_commit(partial(self._metrics.node_finding, finding))
        tx.after_commit(partial(log.error, "node_audit_broken", node_id=node_id, finding=finding.value))
        return replace(standing, finding=text, finding_at_ms=now_ms)

    def _pause(
        self, tx: Transaction, node_id: str, number: int, standing: NodeStanding, now_ms: int
    ) -> gateway_pb2.AuditAck:
        day = now_ms // DAY_MS
        if standing.paused_day != day:
            store.set_node_standing(tx.conn, node_id, replace(standing, paused_day=day))
            detail: dict[str, rules.JSON] = {"rows": standing.day_rows, "bytes": standing.day_bytes}
            self._audit.append(
                tx, AuditKind.NODE_AUDIT_PAUSED, actor="server", subject=writer_of(node_id), detail=detail
            )
            tx.after_commit(self._metrics.node_paused)
            tx.after_commit(partial(log.warning, "node_audit_over_quota", node_id=node_id))
        left_ms = min(RETRY_MS, (day + 1) * DAY_MS - now_ms)
        return gateway_pb2.AuditAck(number=number, paused=Pause.OVER_QUOTA, retry_after_ms=left_ms)


def _counted(standing: NodeStanding, rows: Sequence[rules.AuditRow], now_ms: int) -> NodeStanding:
    day, size = now_ms // DAY_MS, node_rules.size_of(rows)
    if standing.day != day:
        return replace(standing, last_at_ms=now_ms, day=day, day_rows=len(rows), day_bytes=size)
    return replace(
        standing, last_at_ms=now_ms, day_rows=standing.day_rows + len(rows), day_bytes=standing.day_bytes + size
    )
