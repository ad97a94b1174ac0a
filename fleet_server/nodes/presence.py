"""What streams leave on a node's row: epochs and counters, what the node says of itself, signs of life.

Nothing here needs an operator, and nothing here changes what the row's MAC covers. Epoch and seq counters are raised in
the transaction that needs them; liveness stays in memory between flushes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.nodes import drain_store, liveness_store, rules, stream_store
from fleet_server.nodes.directory import NodeDirectory
from fleet_server.nodes.liveness import SignOfLife
from fleet_server.nodes.ownership import write_as_newest
from fleet_server.nodes.record import NewStream, NodeRecord, Taken
from fleet_server.nodes.store import RowMac

log = get_logger(__name__)

FLUSH_INTERVAL_S = 2.0
_FLUSH_ROWS = 1000


class _Flushed(NamedTuple):
    """Nodes whose signs of life were not written: those that have a newer stream, and those whose rows somebody holds,
    which come with the next flush."""

    overtaken: Sequence[str]
    held: Sequence[str]


class NodePresence(NodeDirectory):
    """The part of the nodes room that streams call.

    Args:
        row_mac: MAC of the table `nodes`.
        replica_id: this replica, whose streams keep nodes online.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        audit: AuditService,
        row_mac: RowMac,
        replica_id: str,
    ) -> None:
        super().__init__(database=database, clock=clock, wakeup=wakeup, audit=audit, row_mac=row_mac)
        self._replica_id = replica_id
        self._unclosed: set[tuple[str, int]] = set()

    def now_ms(self) -> int:
        """Unix milliseconds on the clock that the room's deadlines are set with, by whichever replica."""
        return self._database.clock.now_ms(self._clock)

    def hold_as_read(self, tx: Transaction, nodes: Sequence[NodeRecord], *, wait: bool) -> dict[str, int | None]:
        """Have nobody else change nodes before the transaction ends; the epoch of the newest stream by id, None where
        something that an operator decides has changed since `nodes` were read. A node that is gone is missing.

        Args:
            wait: for who holds a node; else one that is held is missing, too.
        """
        return self._store.hold_as_read(tx.conn, nodes, wait=wait)

    def open_streams(self, tx: Transaction, streams: Sequence[NewStream], held: Mapping[str, int]) -> dict[str, int]:
        """Take each node's next stream epoch, and raise its seq counter to what it accepted (docs/protocol.md,
        "Delivery": after a restore of the database a used seq is never issued again); the new epochs by node id.

        Args:
            streams: of no two the same node.
            held: epoch of the newest stream by node id, as `hold_as_read` answered in this transaction.
        """
        opened = [
            stream._replace(takeover_of=stream.takeover_of if _is_id(stream.takeover_of) else "") for stream in streams
        ]
        epochs = {stream.node_id: held[stream.node_id] + 1 for stream in opened}
        stream_store.open_streams(
            tx.conn, [(stream, epochs[stream.node_id]) for stream in opened], self._clock.now_ms()
        )
        if epochs:
            self._wake(tx, [*(f"node-state:{node_id}" for node_id in epochs), "nodes"])
        return epochs

    async def close_stream(self, node_id: str, epoch: int) -> bool:
        """The stream of `epoch` has ended; False when a newer one lives, whose state stays untouched.

        Raises:
            Refusal: the database is away; the next flush writes it.
        """
        try:
            return await self._database.write(lambda tx: self._close(tx, node_id, epoch))
        except Refusal:
            self._unclosed.add((node_id, epoch))
            raise

    def forget_streams(self, tx: Transaction, replica_id: str) -> int:
        """Show every node of a replica that is gone as offline; how many there were."""
        count = stream_store.forget_streams(tx.conn, replica_id)
        if count:
            self._wake(tx, ["nodes"])
        return count

    def save_profiles(self, tx: Transaction, hellos: Mapping[str, gateway_pb2.HelloBody]) -> None:
        """Store what hellos say of their nodes, by id, when it is news. Changed drivers are audited: they decide which
        arguments pass.
        """
        for node_id, digest in self._profiles.save(tx.conn, hellos).items():
            body = hellos[node_id]
            actions = [action.action for driver in body.drivers for action in driver.actions]
            detail = {"sha256": digest.hex(), "version": body.software_version, "actions": actions}
            kind = AuditKind.NODE_ACTIONS_CHANGED
            self._audit.append(tx, kind, actor=f"node:{node_id}", subject=f"node:{node_id}", detail=detail)
            self._wake(tx, ["nodes"])

    async def note_bundle(self, node_id: str, epoch: int, applied: gateway_pb2.BundleApplied) -> None:
        """The node told, on the stream of `epoch`, which trust bundle it holds now; one that it refused is audited.

        Raises:
            Refusal: SUPERSEDED, MALFORMED, or the database is away.
        """

        def work(tx: Transaction) -> None:
            version = applied.version
            self._profiles.save_bundle(tx.conn, node_id, version.generation, version.number)
            if not applied.applied:
                detail: Mapping[str, JSON] = {
                    "held": [version.generation, version.number],
                    "reason": applied.reason[:200],
                }
                kind = AuditKind.NODE_BUNDLE_REFUSED
                self._audit.append(tx, kind, actor=f"node:{node_id}", subject=f"node:{node_id}", detail=detail)

        if max(applied.version.generation, applied.version.number) > rules.MAX_SEQ:
            raise Refusal(Reason.MALFORMED, "the bundle version is out of range")
        await write_as_newest(self._database, self, node_id, epoch, work)

    def take_seqs(self, conn: Connection, counts: Mapping[str, int]) -> dict[str, Taken]:
        """Raise each node's seq counter by its count. Inside the issuing transaction only."""
        return self._store.take_seqs(conn, counts)

    def hold(self, tx: Transaction, node_ids: Sequence[str]) -> None:
        """Have nobody else decide about these nodes until the transaction ends."""
        self._store.hold(tx.conn, sorted(node_ids))

    async def mark_drained(self, node_id: str, epoch: int) -> bool:
        """The node says, on the stream of `epoch`, that nothing runs on it any more; False when nobody asked it to
        drain.

        Raises:
            Refusal: SUPERSEDED, or the database is away.
        """

        def work(tx: Transaction) -> bool:
            drained = drain_store.mark_drained(tx.conn, node_id)
            if drained:
                subject = f"node:{node_id}"
                self._audit.append(tx, AuditKind.NODE_DRAINED, actor=subject, subject=subject, detail={})
                self._wake(tx, [f"node-state:{node_id}", "nodes"])
            return drained

        return await write_as_newest(self._database, self, node_id, epoch, work)

    def note_alive_nowait(
        self, node_id: str, *, epoch: int, rtt_us: int, clock_offset_ms: int, accepted_seq: int = 0
    ) -> None:
        """A pong came on the stream of `epoch`; written with the next flush, unless a newer stream was opened by then.

        Args:
            accepted_seq: highest seq that the node has answered so far; a lower one than is known changes nothing.
        """
        self._liveness.note(
            node_id,
            epoch=epoch,
            now_ms=self._clock.now_ms(),
            rtt_us=rtt_us,
            clock_offset_ms=clock_offset_ms,
            accepted_seq=min(accepted_seq, rules.MAX_SEQ),
        )

    async def run_liveness(self) -> None:
        """Flush signs of life and quarantines until cancelled; a database that is away costs nothing but time."""
        while True:
            await self._clock.sleep(FLUSH_INTERVAL_S)
            try:
                await self.flush()
            except Refusal as refusal:
                log.warning("liveness_flush_failed", reason=str(refusal.reason))

    async def flush(self) -> None:
        """Write ends of streams that waited, and signs of life; mark and audit rows that were found tampered.

        Raises:
            Refusal: the database is away; nothing is lost, the next flush tries again.
        """
        await self._mark_tampered()
        for node_id, epoch in tuple(self._unclosed):  # before the signs of life: those show nobody online who left
            self._unclosed.discard((node_id, epoch))
            await self.close_stream(node_id, epoch)
        signs = self._liveness.take()
        news = sorted(signs.items())
        try:
            for start in range(0, len(news), _FLUSH_ROWS):
                chunk = news[start : start + _FLUSH_ROWS]
                flushed = await self._database.write(lambda tx, chunk=chunk: self._flush(tx, chunk))  # type: ignore[misc]
                self._liveness.give_back({node_id: signs[node_id] for node_id in flushed.held})
                self._wakeup.wake_nowait([f"node-state:{node_id}" for node_id in flushed.overtaken])
        except Refusal:
            self._liveness.give_back(signs)
            raise
        if news:
            self._wakeup.spread_nowait(["nodes"])

    def _flush(self, tx: Transaction, chunk: Sequence[tuple[str, SignOfLife]]) -> _Flushed:
        """Write signs of life of streams that are their nodes' newest, where nobody holds the row. Which are not, and
        where somebody does, costs a query only when there are any."""
        own = self._replica_id
        free = liveness_store.free_of(tx.conn, [node_id for node_id, _ in chunk])
        rows = [
            (sign.seen_ms, sign.rtt_us, sign.clock_offset_ms, sign.accepted_seq, node_id, sign.epoch, own)
            for node_id, sign in chunk
            if node_id in free
        ]
        if liveness_store.flush_alive(tx.conn, rows) == len(chunk):
            return _Flushed((), ())
        newest = self._store.epochs(tx.conn, [node_id for node_id, _ in chunk])
        return _Flushed(
            [node_id for node_id, sign in chunk if newest.get(node_id, 0) > sign.epoch],
            [node_id for node_id, sign in chunk if node_id not in free and newest.get(node_id) == sign.epoch],
        )

    def _close(self, tx: Transaction, node_id: str, epoch: int) -> bool:
        closed = stream_store.close_stream(tx.conn, node_id, epoch, self._clock.now_ms())
        subject = f"node:{node_id}"
        kind = AuditKind.STREAM_CLOSED
        self._audit.append(tx, kind, actor="server", subject=subject, detail={"epoch": epoch, "newest": closed})
        if closed:
            tx.after_commit(lambda: self._liveness.forget(node_id, epoch))
            self._wake(tx, ["nodes"])
        return closed


def _is_id(text: str) -> bool:
    """Whether it can be the id of a stream: a node wrote it."""
    return text.isascii() and text.isalnum()
