"""Use cases around nodes.

Mental model
    The part of a node's row that confers anything is covered by a MAC and only changes through an operator's verb here.
    Whoever reads a row whose MAC does not fit sees it QUARANTINED at once; the reader notes it, and the next flush
    marks and audits it,
    because readers cannot write.
    Epoch and seq counters stand on the same row and are raised in the transaction that needs them.
    Liveness stays in memory between flushes.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

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
from fleet_server.nodes import rules, selectors
from fleet_server.nodes.directory import NodeDirectory
from fleet_server.nodes.record import DrainState, NodeRecord, NodeState
from fleet_server.nodes.store import RowMac

log = get_logger(__name__)

FLUSH_INTERVAL_S = 2.0
_FLUSH_ROWS = 1000
_SUBJECTS_PER_ROW = 5000


class NodeService(NodeDirectory):
    """The nodes room.

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
        super().__init__(database=database, wakeup=wakeup, audit=audit, row_mac=row_mac)
        self._clock = clock
        self._replica_id = replica_id
        self._on_revoke: list[Callable[[Transaction, str], None]] = []

    def now_ms(self) -> int:
        """Unix milliseconds on the clock that the room's deadlines are set with."""
        return self._clock.now_ms()

    def on_revoke(self, hook: Callable[[Transaction, str], None]) -> None:
        """Run `hook(tx, node_id)` in the transaction that revokes a node: its credentials end with it."""
        self._on_revoke.append(hook)

    # -- membership -------------------------------------------------------------------------------------------------
    def create(
        self,
        tx: Transaction,
        *,
        cluster_id: str,
        name: str,
        site: str,
        identity_key: bytes,
        sealing_key: bytes,
        labels: Mapping[str, str],
        unique_suffix: bool = False,
    ) -> NodeRecord:
        """Make a member. The caller audits the decision that led here.

        Args:
            unique_suffix: a name that is taken gets a short suffix instead of a refusal: nobody is there to choose
                another.

        Raises:
            Refusal: INVALID_ARGUMENT for name or labels; CONFLICT when the name or the identity key is taken.
        """
        rules.checked_name(name)
        if self._store.name_taken(tx.conn, name):
            if not unique_suffix:
                raise Refusal(
                    Reason.CONFLICT, f"another node is called {name!r} already: approve it under another name (--name)"
                )
            name = rules.suffixed_name(name, secrets.token_hex(3))
        record = NodeRecord(
            node_id=_new_id(),
            cluster_id=cluster_id,
            name=name,
            site=site,
            identity_key=identity_key,
            sealing_key=sealing_key,
            labels=rules.changed_labels({}, labels, ()),
            state=NodeState.ACTIVE,
            state_reason="",
            enrolled_at_ms=self._clock.now_ms(),
            mac=b"",
            intact=True,
        )
        if not self._store.insert(tx.conn, record):
            holder = self._store.holder_of_key(tx.conn, identity_key)
            raise Refusal(
                Reason.CONFLICT,
                f"these keys belong to node {holder!r} already: a copied disk image needs keys of its own"
                if holder
                else f"another node took the name {name!r} at the same moment: try again",
            )
        self._wake(tx, ["nodes"])
        return record

    async def set_state(self, actor: str, patterns: Sequence[str], state: str, reason: str) -> list[NodeRecord]:
        """Suspend, resume or revoke. Nodes that cannot get there keep their state, which the answer shows.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS; CONFLICT when not one of them can get there.
        """
        wanted = rules.settable_state(state)
        rules.checked_reason(reason)
        selector = selectors.parse(patterns)

        def work(tx: Transaction) -> list[NodeRecord]:
            nodes = self._targets(tx.conn, selector)
            able = [node for node in nodes if rules.may_become(node.state, wanted)]
            if not able and not any(node.state is wanted for node in nodes):
                raise rules.refuse_transition(nodes, wanted)
            changed = [(node, replace(node, state=wanted, state_reason=reason, intact=True)) for node in able]
            self._save(tx, changed)
            if wanted is NodeState.REVOKED:
                for node in able:
                    for hook in self._on_revoke:
                        hook(tx, node.node_id)
            self._tell(tx, AuditKind.NODE_STATE_CHANGED, actor, able, {"state": wanted.value, "reason": reason})
            return self._again(tx.conn, nodes)

        return self._views(await self._database.write(work))

    async def label(
        self, actor: str, patterns: Sequence[str], put: Mapping[str, str], remove: Sequence[str]
    ) -> list[NodeRecord]:
        """Set and remove operator labels.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS, or CONFLICT when only quarantined nodes were meant.
        """
        selector = selectors.parse(patterns)

        def work(tx: Transaction) -> list[NodeRecord]:
            nodes = self._targets(tx.conn, selector)
            # A new MAC over a tampered row would bless what somebody else wrote into it.
            sound = [node for node in nodes if node.intact]
            if not sound:
                raise rules.refuse_transition(nodes, NodeState.ACTIVE)
            changed = [
                (node, replace(node, labels=labels))
                for node in sound
                if (labels := rules.changed_labels(node.labels, put, remove)) != node.labels
            ]
            self._save(tx, changed)
            detail: Mapping[str, JSON] = {"set": dict(put), "removed": list(remove)}
            self._tell(tx, AuditKind.NODE_LABELLED, actor, [node for node, _ in changed], detail)
            return self._again(tx.conn, nodes)

        return self._views(await self._database.write(work))

    # -- streams ----------------------------------------------------------------------------------------------------
    def open_stream(
        self, tx: Transaction, node_id: str, *, stream_id: str, replica_id: str, last_accepted_seq: int
    ) -> int:
        """Take the next stream epoch, and raise the seq counter to what the node accepted (docs/protocol.md,
        "Delivery": after a
        restore of the database a used seq is never issued again).

        Raises:
            Refusal: MALFORMED for a seq beyond 2^62, NOT_FOUND when the node is gone.
        """
        if not 0 <= last_accepted_seq <= rules.MAX_SEQ:
            raise Refusal(
                Reason.MALFORMED, "the hello's last accepted seq is out of range: the node's journal is damaged"
            )
        epoch = self._store.open_stream(
            tx.conn,
            node_id,
            stream_id=stream_id,
            replica_id=replica_id,
            accepted=last_accepted_seq,
            now_ms=self._clock.now_ms(),
        )
        if epoch is None:
            raise Refusal(Reason.NOT_FOUND, "this node is not known here any more")
        self._wake(tx, [f"node-state:{node_id}", "nodes"])
        return epoch

    async def close_stream(self, node_id: str, epoch: int) -> bool:
        """The stream of `epoch` has ended; False when a newer one lives, whose state stays untouched.

        Raises:
            Refusal: the database is away; the stream's replica shows the node online until it comes back or the
            replica is lost.
        """

        def work(tx: Transaction) -> bool:
            closed = self._store.close_stream(tx.conn, node_id, epoch, self._clock.now_ms())
            subject = f"node:{node_id}"
            kind = AuditKind.STREAM_CLOSED
            self._audit.append(tx, kind, actor="server", subject=subject, detail={"epoch": epoch, "newest": closed})
            if closed:
                tx.after_commit(lambda: self._liveness.forget(node_id))
                self._wake(tx, ["nodes"])
            return closed

        return await self._database.write(work)

    def forget_streams(self, tx: Transaction, replica_id: str) -> int:
        """Show every node of a replica that is gone as offline; how many there were."""
        count = self._store.forget_streams(tx.conn, replica_id)
        if count:
            self._wake(tx, ["nodes"])
        return count

    def save_profile(self, tx: Transaction, node_id: str, body: gateway_pb2.HelloBody) -> None:
        """Store what a hello says of its node, when it is news. Changed drivers are audited: they decide which
        arguments pass.
        """
        digest = self._profiles.save(tx.conn, node_id, body)
        if digest is not None:
            actions = [action.action for driver in body.drivers for action in driver.actions]
            detail = {"sha256": digest.hex(), "version": body.software_version, "actions": actions}
            kind = AuditKind.NODE_ACTIONS_CHANGED
            self._audit.append(tx, kind, actor=f"node:{node_id}", subject=f"node:{node_id}", detail=detail)
            self._wake(tx, ["nodes"])

    async def note_bundle(self, node_id: str, applied: gateway_pb2.BundleApplied) -> None:
        """The node told which trust bundle it holds now; one that it refused is audited."""

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
        await self._database.write(work)

    def take_seqs(self, conn: Connection, counts: Mapping[str, int]) -> dict[str, int]:
        """Raise each node's seq counter by its count; node id -> first seq taken. Inside the issuing transaction
        only.
        """
        return self._store.take_seqs(conn, counts)

    # -- drain ------------------------------------------------------------------------------------------------------
    async def request_drain(
        self, actor: str, patterns: Sequence[str], deadline_s: int, reason: str
    ) -> list[NodeRecord]:
        """Ask nodes to take no new work; the ones that are offline hear it when they come.

        Args:
            deadline_s: seconds that running commands get; 0 means no limit.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS.
        """
        rules.checked_reason(reason)
        deadline_ms = self._clock.now_ms() + deadline_s * 1000 if deadline_s else 0
        detail: Mapping[str, JSON] = {"deadline_s": deadline_s, "reason": reason}
        return await self._drain(
            actor, patterns, DrainState.DRAINING, deadline_ms, AuditKind.NODE_DRAIN_REQUESTED, detail
        )

    async def resume(self, actor: str, patterns: Sequence[str]) -> list[NodeRecord]:
        """End the drain of nodes.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS.
        """
        return await self._drain(actor, patterns, DrainState.NONE, 0, AuditKind.NODE_RESUMED, {})

    async def mark_drained(self, node_id: str) -> bool:
        """The node says that nothing runs on it any more; False when nobody asked it to drain."""

        def work(tx: Transaction) -> bool:
            drained = self._store.mark_drained(tx.conn, node_id)
            if drained:
                subject = f"node:{node_id}"
                self._audit.append(tx, AuditKind.NODE_DRAINED, actor=subject, subject=subject, detail={})
                self._wake(tx, [f"node-state:{node_id}", "nodes"])
            return drained

        return await self._database.write(work)

    # -- liveness ---------------------------------------------------------------------------------------------------
    def note_alive_nowait(self, node_id: str, rtt_us: int, clock_offset_ms: int, accepted_seq: int = 0) -> None:
        """A pong came; written with the next flush.

        Args:
            accepted_seq: highest seq that the node has answered so far; a lower one than is known changes nothing.
        """
        self._liveness.note(
            node_id,
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
        """Write signs of life, and mark and audit rows that were found tampered.

        Raises:
            Refusal: the database is away; nothing is lost, the next flush tries again.
        """
        await self._mark_tampered()
        signs = self._liveness.take()
        rows = [
            (
                sign.seen_ms,
                sign.rtt_us,
                sign.clock_offset_ms,
                sign.accepted_seq,
                sign.accepted_seq,
                self._replica_id,
                node_id,
            )
            for node_id, sign in sorted(signs.items())
        ]
        try:
            for start in range(0, len(rows), _FLUSH_ROWS):
                chunk = rows[start : start + _FLUSH_ROWS]
                await self._database.write(lambda tx, chunk=chunk: self._store.flush_alive(tx.conn, chunk))  # type: ignore[misc]
        except Refusal:
            self._liveness.give_back(signs)
            raise
        if rows:
            self._wakeup.wake_nowait(["nodes"])

    # -- inside -----------------------------------------------------------------------------------------------------
    async def _drain(
        self,
        actor: str,
        patterns: Sequence[str],
        state: DrainState,
        deadline_ms: int,
        kind: AuditKind,
        detail: Mapping[str, JSON],
    ) -> list[NodeRecord]:
        selector = selectors.parse(patterns)

        def work(tx: Transaction) -> list[NodeRecord]:
            nodes = self._targets(tx.conn, selector)
            changed = [
                node
                for node in nodes
                if node.drain_state is not state
                and not (state is DrainState.DRAINING and node.drain_state is DrainState.DRAINED)
            ]
            self._store.set_drain(tx.conn, [node.node_id for node in changed], state, deadline_ms)
            self._tell(tx, kind, actor, changed, detail)
            return self._again(tx.conn, nodes)

        return self._views(await self._database.write(work))

    def _save(self, tx: Transaction, changed: Sequence[tuple[NodeRecord, NodeRecord]]) -> None:
        if not self._store.update_authority(tx.conn, changed):
            raise Refusal(Reason.CONFLICT, "somebody else changed one of these nodes at the same moment: try again")

    def _tell(
        self,
        tx: Transaction,
        kind: AuditKind,
        actor: str,
        nodes: Sequence[NodeRecord],
        detail: Mapping[str, JSON],
    ) -> None:
        if not nodes:
            return
        subject = f"node:{nodes[0].node_id}" if len(nodes) == 1 else f"nodes:{len(nodes)}"
        ids = [node.node_id for node in nodes]
        for start in range(0, len(ids), _SUBJECTS_PER_ROW):
            part: Mapping[str, JSON] = {**detail, "nodes": ids[start : start + _SUBJECTS_PER_ROW]}
            self._audit.append(tx, kind, actor=actor, subject=subject, detail=part)
        self._wake(tx, [f"node-state:{node_id}" for node_id in ids] + ["nodes"])


def _new_id() -> str:
    # An underscore is in no name, so no node can be named like another's id.
    return "nd_" + base64.b32encode(secrets.token_bytes(15)).decode().lower()
