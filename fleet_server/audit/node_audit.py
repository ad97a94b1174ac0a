"""Take the chains that nodes write themselves, into the same tables and under the same checkpoints as the replicas'.

Mental model
    A node's rows are stored as they came, under the writer ``node:<id>``, once each hashes behind the last one stored.
    A chain that does not continue, or that says something else about a row than before, is a finding: it is audited by
    this replica, counted, shown with the node, and the stream goes on. Nothing behind it is stored until the node
    sends what does continue. A finding stays with the node.
    Another chain is taken only when this server opened it, because a person said that the machine which came is the
    node (`sessions.ratchet`). The older ones stay as they are: what still continues the one before is stored until the
    next has begun, and where both hold something else, the node is told up to where they agree, and goes on in the
    next one. A finding is told of the chain that is written; what was found before stays in the audit.
    A day's rows and bytes of a node are bounded; beyond, it is told so and keeps its rows until the next day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.node_audit import MAX_ROWS_PER_FRAME, Begun, writer_of
from fleet.v1 import gateway_pb2
from fleet_server.audit import node_rules, rules, store
from fleet_server.audit.heads import TamperedHeadError
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.node_rules import DAY_MS, ENDED_RETRY_MS, RETRY_MS, Finding, Judged, NodeStanding, Pause
from fleet_server.audit.service import TOPIC, AuditService
from fleet_server.database.engine import Connection, Database, IntegrityError
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction

log = get_logger(__name__)

_MAX_FINDING_CHARS = 300
RefuseStale = Callable[[Connection, str, int], Refusal | None]


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
        refuse_stale: why the stream of an epoch speaks for its node no more.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        audit: AuditService,
        metrics: NodeAuditMetrics,
        refuse_stale: RefuseStale,
    ) -> None:
        self._database = database
        self._clock = clock
        self._wakeup = wakeup
        self._audit = audit
        self._metrics = metrics
        self._refuse_stale = refuse_stale
        self._told_to_wait: dict[str, int] = {}  # on which day last: what stands in the database, somebody may have set

    async def take(
        self, node_id: str, epoch: int, frame: gateway_pb2.AuditRows, *, opened_chain: int = 0, sent_back: bool = False
    ) -> gateway_pb2.AuditAck:
        """Store what continues the node's chain; how far it is stored then.

        Args:
            node_id: as its session says.
            epoch: of the stream that brings them.
            frame: rows of one chain, in its order.
            opened_chain: newest chain that was given to the node, as its session says; 0 is the first.
            sent_back: the node was told where the chain ends. Without it a gap is no finding yet: a server whose
                database was restored knows less than it once acknowledged.

        Raises:
            Refusal: UNAVAILABLE when the database is away, or when another replica stores rows of the node right now;
                SUPERSEDED when the node's newest stream is another one.
        """

        def work(tx: Transaction) -> gateway_pb2.AuditAck | Refusal:
            stale = self._refuse_stale(tx.conn, node_id, epoch)
            return stale or self._take(tx, node_id, frame, opened_chain, sent_back)

        try:
            taken = await self._database.write(work)
        except IntegrityError as error:
            planted = await self._database.write(lambda tx: self._planted(tx, writer_of(node_id, frame.chain), frame))
            if planted is not None:
                return planted
            raise Refusal(Reason.UNAVAILABLE, "another stream of this node stores the same rows") from error
        if isinstance(taken, Refusal):
            raise taken
        return taken

    async def standing(self, node_id: str) -> tuple[int, NodeStanding]:
        """Number of the newest row stored of the chain that a node writes, and what is known of that."""

        def query(conn: Connection) -> tuple[int, NodeStanding]:
            standing = store.node_standing(conn, node_id)
            row = store.head(conn, writer_of(node_id, standing.chain))
            return 0 if row is None else row.number, standing

        return await self._database.read(query)

    def _take(
        self, tx: Transaction, node_id: str, frame: gateway_pb2.AuditRows, opened_chain: int, sent_back: bool
    ) -> gateway_pb2.AuditAck:
        now_ms = self._clock.now_ms()
        chain = frame.chain
        standing = store.node_standing(tx.conn, node_id)
        try:
            head = self._audit.heads.read(tx.conn, writer_of(node_id, chain))
        except TamperedHeadError as tampered:
            return self._tampered(tx, writer_of(node_id, chain), chain, str(tampered))
        judged = _judged(tx.conn, node_id, frame, head, begun=standing.chain, opened=opened_chain)
        if judged.finding is Finding.REMOVED and not sent_back:
            judged = replace(judged, finding=None)
        closed = chain < opened_chain and chain != standing.chain
        ack = gateway_pb2.AuditAck(number=judged.head.number, chain=chain)
        if chain < opened_chain and (judged.finding is not None or (closed and judged.rows)):
            ack.number = min(judged.agreed, head.number) if closed else judged.agreed
            ack.paused, ack.retry_after_ms = Pause.CHAIN_ENDED, ENDED_RETRY_MS
            judged = replace(judged, rows=[] if closed else judged.rows, finding=None)
        if judged.rows and node_rules.over_quota(standing, judged.rows, now_ms):
            return self._pause(tx, node_id, chain, head.number, standing, now_ms)
        if judged.rows:
            self._audit.heads.put(tx.conn, judged.rows, judged.head)
            if chain > standing.chain:
                standing = replace(standing, chain=chain, finding="", finding_at_ms=0)
            standing = _counted(standing, judged.rows, now_ms)
            tx.after_commit(partial(self._metrics.node_rows_stored, len(judged.rows)))
            tx.after_commit(lambda: self._wakeup.wake_nowait([TOPIC]))
        if judged.finding is not None:
            ack.number = judged.agreed  # the node keeps what is not stored: a person may let it start over
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
            detail={
                "finding": finding.value,
                "detail": judged.detail,
                "writer": judged.head.writer,
                "stored": judged.head.number,
            },
        )
        tx.after_commit(partial(self._metrics.node_finding, finding))
        tx.after_commit(partial(log.error, "node_audit_broken", node_id=node_id, finding=finding.value))
        return replace(standing, finding=text, finding_at_ms=now_ms)

    def _planted(self, tx: Transaction, writer: str, frame: gateway_pb2.AuditRows) -> gateway_pb2.AuditAck | None:
        """What to answer when rows stand behind the head that this server did not write there; None when there are
        none, because another stream stored the same ones."""
        newest = store.newest_row(tx.conn, writer)  # before the head, which may move on meanwhile
        try:
            head = self._audit.heads.read(tx.conn, writer)
        except TamperedHeadError as tampered:
            return self._tampered(tx, writer, frame.chain, str(tampered))
        if newest is None or newest[0] <= head.number:
            return None
        why = f"row {newest[0]} stands behind its head, which names row {head.number}, and no server wrote it there"
        return self._tampered(tx, writer, frame.chain, why, head.number)

    def _tampered(self, tx: Transaction, writer: str, chain: int, why: str, number: int = 0) -> gateway_pb2.AuditAck:
        """Store nothing behind a head that this server did not write, and let the node forget nothing behind
        `number`."""
        self._audit.checkpoints.tell(tx, "head", writer, why)
        return gateway_pb2.AuditAck(number=number, chain=chain, paused=Pause.CHAIN_BROKEN, retry_after_ms=RETRY_MS)

    def _pause(
        self, tx: Transaction, node_id: str, chain: int, number: int, standing: NodeStanding, now_ms: int
    ) -> gateway_pb2.AuditAck:
        day = now_ms // DAY_MS
        if self._told_to_wait.get(node_id) != day:
            tx.after_commit(lambda: self._told_to_wait.update({node_id: day}))
            detail: dict[str, rules.JSON] = {"rows": standing.day_rows, "bytes": standing.day_bytes}
            self._audit.append(
                tx, AuditKind.NODE_AUDIT_PAUSED, actor="server", subject=writer_of(node_id), detail=detail
            )
            tx.after_commit(self._metrics.node_paused)
            tx.after_commit(partial(log.warning, "node_audit_over_quota", node_id=node_id))
        left_ms = min(RETRY_MS, (day + 1) * DAY_MS - now_ms)
        return gateway_pb2.AuditAck(number=number, chain=chain, paused=Pause.OVER_QUOTA, retry_after_ms=left_ms)


def _judged(
    conn: Connection, node_id: str, frame: gateway_pb2.AuditRows, head: rules.Head, *, begun: int, opened: int
) -> Judged:
    """What a frame comes to behind the chain's head."""
    chain, sent = frame.chain, frame.rows
    if chain > opened:
        return Judged(head, 0, [], Finding.MALFORMED, f"chain {chain} was not opened for this node")
    stored = {}
    if sent and sent[0].number <= head.number:
        first = sent[0].number
        stored = store.hashes(conn, head.writer, first, first + MAX_ROWS_PER_FRAME)
    judged = node_rules.judge(node_id, head, stored, sent, chain=chain)
    if chain > begun and chain == opened and judged.rows:
        said = node_rules.begins(chain, sent[0])
        known = {} if said is None else _row_hash(conn, node_id, said)
        if said is None or said.sha256 != known.get(said.number, said.sha256):
            detail = f"chain {chain} does not begin with the row that it continues"
            return Judged(head, 0, [], Finding.MALFORMED, detail)
    return judged


def _row_hash(conn: Connection, node_id: str, said: Begun) -> dict[int, bytes]:
    if not said.number or not said.sha256:
        return {}
    found = store.hashes(conn, writer_of(node_id, said.chain), said.number, said.number)
    return found or {said.number: b""}  # a row that is not here cannot be continued


def _counted(standing: NodeStanding, rows: Sequence[rules.AuditRow], now_ms: int) -> NodeStanding:
    day, size = now_ms // DAY_MS, node_rules.size_of(rows)
    if standing.day != day:
        return replace(standing, last_at_ms=now_ms, day=day, day_rows=len(rows), day_bytes=size)
    return replace(
        standing, last_at_ms=now_ms, day_rows=standing.day_rows + len(rows), day_bytes=standing.day_bytes + size
    )
