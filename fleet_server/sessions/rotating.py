"""Use cases of rotation: an operator orders it, streams carry it, the node follows, the server takes what is new.

Mental model
    What is ordered stands in one row for each node until it is done, so it survives restarts, and a node that is
    offline hears of it when it comes. Whatever was said and lost is said again on the next stream: each step may happen
    twice and counts once. The former api_key ends only after the new one has opened a stream, and the row of the node
    changes its keys in the transaction that takes the node's statement.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fleet import sealing
from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.identity import show_fingerprint
from fleet.logs import get_logger
from fleet.node_keys import KnownKeys, NodeKeyError, judge_rotation
from fleet.v1 import gateway_pb2, trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.writer import Transaction
from fleet_server.nodes.checklist import SERVER, ChecklistItem
from fleet_server.nodes.ownership import write_as_newest
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.rules import refuse_inactive
from fleet_server.nodes.service import NodeService
from fleet_server.sessions import rotations, store
from fleet_server.sessions.credentials import API_KEY_SECRET_BYTES
from fleet_server.sessions.rotations import KEYS, Rotation, Wanted
from fleet_server.sessions.store import ApiKeyStore, RotationStore

log = get_logger(__name__)

_NODES_AT_ONCE = 100  # sealing takes a tenth of a millisecond each, on the writer's thread
_ANSWERS = {
    gateway_pb2.ROTATION_SUBJECT_API_KEY: Wanted.API_KEY,
    gateway_pb2.ROTATION_SUBJECT_NODE_KEYS: KEYS,
}
_FOR_GOOD = frozenset({"PINNED", "CANNOT_OPEN"})
_MAX_REASON_CHARS = 32


@dataclass(frozen=True, slots=True)
class Ordered:
    """What became of an order: nodes that have one now, and those that were refused it."""

    nodes: Sequence[NodeRecord]
    refused: Sequence[tuple[NodeRecord, Refusal]]


class RotationService:
    """See the module's mental model.

    Args:
        api_key_text: text of an api_key with this secret.
        asked_per_day: how often a node may ask in 24 hours for what nobody ordered, or is refused.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        audit: AuditService,
        nodes: NodeService,
        api_keys: ApiKeyStore,
        store: RotationStore,
        api_key_text: Callable[[bytes], str],
        asked_per_day: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit
        self._nodes = nodes
        self._api_keys = api_keys
        self._store = store
        self._api_key_text = api_key_text
        self._asked_per_day = asked_per_day
        self._told_tampered: set[str] = set()

    # -- api_keys -----------------------------------------------------------------------------------------------------
    def issue_api_key(self, tx: Transaction, node_id: str) -> str:
        """A new api_key for a node: its text, of which only a digest is kept."""
        text, _ = self._issue(tx, node_id)
        return text

    def revoke_api_keys(self, tx: Transaction, node_id: str) -> Sequence[ChecklistItem]:
        """End every api_key and session of a node, and whatever was ordered for it; what was done."""
        now_ms = self._clock.now_ms()
        count = self._api_keys.end(tx.conn, self._api_keys.live_of_node(tx.conn, node_id, now_ms), now_ms)
        self._store.delete(tx.conn, node_id)
        if count:
            self._tell(tx, AuditKind.API_KEY_REVOKED, "server", node_id, {"keys": count})
        sessions = store.delete_of_node(tx.conn, node_id)
        return (
            ChecklistItem("api-keys", f"api_keys of the node: {count} ended with the revocation", now_ms, SERVER),
            ChecklistItem("sessions", f"sessions: {sessions} ended, and its stream is closed", now_ms, SERVER),
        )

    def forget_ended(self, tx: Transaction, before_ms: int) -> int:
        """Delete api_keys that ended before a time and that others follow; how many."""
        return self._api_keys.delete_ended(tx.conn, before_ms)

    # -- orders -------------------------------------------------------------------------------------------------------
    async def rotate(self, actor: str, patterns: Sequence[str], wanted: Wanted, overlap_s: int) -> Ordered:
        """Order new credentials. Nodes that are offline hear of it when they come.

        Args:
            overlap_s: seconds for which the former api_key stays good, at least until the new one was used.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS; the only node's refusal, when there is one node.
        """
        overlap_ms = rotations.checked_order(wanted, overlap_s)
        meant = await self._database.read(lambda conn: self._nodes.resolve(conn, patterns))
        ids = [node.node_id for node in meant]
        refused: list[tuple[NodeRecord, Refusal]] = []
        for start in range(0, len(ids), _NODES_AT_ONCE):
            part = ids[start : start + _NODES_AT_ONCE]
            refused += await self._database.write(
                lambda tx, part=part: self._order_all(tx, part, wanted, overlap_ms, actor)  # type: ignore[misc]
            )
        if len(ids) == 1 and refused:
            raise refused[0][1]
        turned_away = {node.node_id for node, _ in refused}
        ordered = [node_id for node_id in ids if node_id not in turned_away]
        return Ordered(await self._nodes.again(ordered), refused)

    def _order_all(
        self, tx: Transaction, node_ids: Sequence[str], wanted: Wanted, overlap_ms: int, actor: str
    ) -> list[tuple[NodeRecord, Refusal]]:
        refused, ordered = [], []
        self._nodes.hold(tx, node_ids)  # a node without an order has no row of orders that could be locked
        for node_id in node_ids:
            node = self._nodes.load(tx.conn, node_id)
            if node is None:
                continue
            refusal = self._order(tx, node, wanted, overlap_ms, actor)
            if refusal is None:
                ordered.append(node_id)
            else:
                refused.append((node, refusal))
        if ordered:
            subject = f"node:{ordered[0]}" if len(ordered) == 1 else f"nodes:{len(ordered)}"
            detail: Mapping[str, JSON] = {
                "rotate": list(rotations.words(wanted)),
                "overlap_ms": overlap_ms,
                "nodes": list(ordered),
            }
            self._audit.append(tx, AuditKind.NODE_ROTATION_ORDERED, actor=actor, subject=subject, detail=detail)
            self._nodes.tell_decided(tx, ordered)
        return refused

    def _order(self, tx: Transaction, node: NodeRecord, wanted: Wanted, overlap_ms: int, actor: str) -> Refusal | None:
        now_ms = self._clock.now_ms()
        held = self._store.of_node(tx.conn, node.node_id, lock=True)
        live = self._api_keys.live_of_node(tx.conn, node.node_id, now_ms)
        decided = rotations.order(held, node, live, wanted=wanted, overlap_ms=overlap_ms, actor=actor, now_ms=now_ms)
        if isinstance(decided, Refusal):
            if not held.intact:
                self._tell_tampered(tx, node.node_id)
            return decided
        if Wanted.API_KEY in wanted and not overlap_ms and not held.new_key_sha256:
            self._api_keys.end(tx.conn, live[:-1], now_ms)  # a former one, for there is never a third
        self._store.save(tx.conn, self._with_api_key(tx, decided, node))
        return None

    # -- streams ------------------------------------------------------------------------------------------------------
    async def orders(self, node_id: str) -> tuple[gateway_pb2.ServerControl, ...]:
        """What to say to a node on its stream."""
        rotation = await self._database.read(lambda conn: self._store.of_node(conn, node_id))
        return rotation.orders()

    def api_key_used(self, tx: Transaction, rotation: Rotation | None, node_id: str, key_sha256: bytes) -> None:
        """A stream is being opened with this api_key: when it is the new one, the former ends at its time.

        Args:
            rotation: as read before; a node without an order costs no query.
        """
        if rotation is not None and not rotation.intact:
            self._tell_tampered(tx, node_id)
        if rotation is None or rotation.new_key_sha256 != key_sha256:
            return
        rotation = self._store.of_node(tx.conn, node_id, lock=True)
        if not rotation.intact or rotation.new_key_sha256 != key_sha256:
            return
        now_ms = self._clock.now_ms()
        ends_at_ms = max(now_ms, rotation.old_until_ms)
        former = [key for key in self._api_keys.live_of_node(tx.conn, node_id, now_ms) if key.key_sha256 != key_sha256]
        self._api_keys.end(tx.conn, former, ends_at_ms)
        done = replace(rotation.without_offer(), wanted=rotation.wanted & ~Wanted.API_KEY)
        self._store.save(tx.conn, done)
        detail: Mapping[str, JSON] = {
            "key_sha256": key_sha256.hex(),
            "former": [key.key_sha256.hex() for key in former],
            "former_until_ms": ends_at_ms,
            "ordered_by": rotation.ordered_by,
        }
        self._tell(tx, AuditKind.API_KEY_REPLACED, f"node:{node_id}", node_id, detail)

    async def take_keys(self, node_id: str, epoch: int, signed: trust_pb2.Signed) -> gateway_pb2.NodeKeysTaken:
        """Know a node by the keys that its statement, on the stream of `epoch`, names, and say so; a statement that was
        taken is answered again.

        Raises:
            Refusal: SUPERSEDED, or the database is away.
        """
        return await write_as_newest(
            self._database, self._nodes, node_id, epoch, lambda tx: self._take_keys(tx, node_id, signed)
        )

    def _take_keys(self, tx: Transaction, node_id: str, signed: trust_pb2.Signed) -> gateway_pb2.NodeKeysTaken:
        rotation = self._store.of_node(tx.conn, node_id, lock=True)
        node = self._nodes.load(tx.conn, node_id)
        if node is None or not rotation.intact:
            self._tell_tampered(tx, node_id)
            return gateway_pb2.NodeKeysTaken(taken=False, reason="QUARANTINED")
        known = KnownKeys(node.cluster_id, node_id, node.identity_key, node.sealing_key, rotation.keys_issued_at_ms)
        judged = self._judge(node, known, signed)
        if judged is known:
            return gateway_pb2.NodeKeysTaken(fingerprint=node.fingerprint, taken=True)
        changed = node
        if isinstance(judged, KnownKeys):
            changed = replace(node, identity_key=judged.identity_key, sealing_key=judged.sealing_key)
        done = _replaced(node, changed)
        if not done or done & ~rotation.wanted:
            rotation = rotation.ask(self._asked_per_day, self._clock.now_ms())
            if rotation.asked > self._asked_per_day:
                return self._over_budget(tx, rotation)
        if isinstance(judged, KnownKeys):
            conflict = self._nodes.replace_keys(tx, node, judged.identity_key, judged.sealing_key)
            if conflict is None:
                rotation = replace(rotation, keys_issued_at_ms=judged.last_issued_at_ms)
                self._keys_replaced(tx, node, changed, done, rotation)
                return gateway_pb2.NodeKeysTaken(fingerprint=changed.fingerprint, taken=True)
            judged = str(conflict.reason)
        self._store.save(tx.conn, rotation)
        self._refused(tx, node_id, {"rotate": "keys", "by": "server", "reason": judged})
        return gateway_pb2.NodeKeysTaken(taken=False, reason=judged)

    def _judge(self, node: NodeRecord, known: KnownKeys, signed: trust_pb2.Signed) -> KnownKeys | str:
        refusal = refuse_inactive(node)
        if refusal is not None:
            return str(refusal.reason)
        try:
            return judge_rotation(signed, known, now_ms=self._clock.now_ms())
        except NodeKeyError as error:
            return error.reason

    def _over_budget(self, tx: Transaction, rotation: Rotation) -> gateway_pb2.NodeKeysTaken:
        """Refused until the 24 hours are over; audited and written once in them."""
        if self._store.of_node(tx.conn, rotation.node_id).asked != rotation.asked:
            self._store.save(tx.conn, rotation)
            detail = {"rotate": "keys", "by": "server", "reason": rotations.OVER_BUDGET}
            self._refused(tx, rotation.node_id, detail)
        wait_ms = rotation.asked_from_ms + rotations.ASKED_WINDOW_MS - self._clock.now_ms()
        return gateway_pb2.NodeKeysTaken(taken=False, reason=rotations.OVER_BUDGET, retry_after_ms=wait_ms)

    def _keys_replaced(
        self, tx: Transaction, node: NodeRecord, changed: NodeRecord, done: Wanted, rotation: Rotation
    ) -> None:
        rotation = self._without_offer(tx, replace(rotation, wanted=rotation.wanted & ~done))
        self._store.save(tx.conn, self._with_api_key(tx, rotation, changed))
        detail: Mapping[str, JSON] = {
            "replaced": list(rotations.words(done)),
            "fingerprint": show_fingerprint(changed.fingerprint),
            "former_fingerprint": show_fingerprint(node.fingerprint),
        }
        self._tell(tx, AuditKind.NODE_KEYS_REPLACED, f"node:{node.node_id}", node.node_id, detail)
        self._nodes.tell_decided(tx, [node.node_id])

    async def answered(self, node_id: str, epoch: int, answer: gateway_pb2.RotationAnswer) -> None:
        """A node stored its new api_key, or does not follow an order. One that it can never follow is off; any other
        is said again on the next stream.

        Raises:
            Refusal: SUPERSEDED, or the database is away.
        """
        subject = _ANSWERS.get(answer.subject)
        if answer.applied or subject is None:
            return
        reason = answer.reason[:_MAX_REASON_CHARS]

        def work(tx: Transaction) -> None:
            rotation = self._store.of_node(tx.conn, node_id, lock=True)
            node = self._nodes.load(tx.conn, node_id)
            if node is None or not rotation.intact or not rotation.wanted & subject:
                return
            if reason in _FOR_GOOD:
                rotation = replace(rotation, wanted=rotation.wanted & ~subject)
                if subject is Wanted.API_KEY:
                    rotation = self._without_offer(tx, rotation)
                self._store.save(tx.conn, self._with_api_key(tx, rotation, node))
                self._nodes.tell_decided(tx, [node_id])
            else:
                rotation = rotation.ask(self._asked_per_day, self._clock.now_ms())
                if rotation.asked > self._asked_per_day:
                    return  # it says this again and again: the audit has it
                self._store.save(tx.conn, rotation)
            rotate = "api_key" if subject is Wanted.API_KEY else "keys"
            self._refused(tx, node_id, {"rotate": rotate, "by": "node", "reason": reason})

        await write_as_newest(self._database, self._nodes, node_id, epoch, work)

    def open(self, conn: Connection, node_ids: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Node id -> credentials that are being replaced, of some nodes. Any thread."""
        return {node_id: rotations.words(wanted) for node_id, wanted in self._store.open(conn, node_ids).items()}

    # -- inside -------------------------------------------------------------------------------------------------------
    def _with_api_key(self, tx: Transaction, rotation: Rotation, node: NodeRecord) -> Rotation:
        """With an api_key on offer, when it is time for one."""
        if not rotation.needs_api_key:
            return rotation
        text, digest = self._issue(tx, node.node_id)
        info = sealing.sealing_info(sealing.Purpose.API_KEY, node.cluster_id, node.node_id, node.fingerprint)
        sealed = sealing.seal(text.encode(), node.sealing_key, info)
        return replace(rotation, new_key_sha256=digest, sealed_api_key=sealed)

    def _without_offer(self, tx: Transaction, rotation: Rotation) -> Rotation:
        """With the offered api_key ended: it is sealed to keys that are gone, or the node cannot open it."""
        now_ms = self._clock.now_ms()
        live = self._api_keys.live_of_node(tx.conn, rotation.node_id, now_ms)
        self._api_keys.end(tx.conn, [key for key in live if key.key_sha256 == rotation.new_key_sha256], now_ms)
        return rotation.without_offer()

    def _issue(self, tx: Transaction, node_id: str) -> tuple[str, bytes]:
        secret = os.urandom(API_KEY_SECRET_BYTES)
        digest = hashlib.sha256(secret).digest()
        self._api_keys.insert(tx.conn, digest, node_id, self._clock.now_ms())
        self._tell(tx, AuditKind.API_KEY_ISSUED, "server", node_id, {"key_sha256": digest.hex()})
        return self._api_key_text(secret), digest

    def _refused(self, tx: Transaction, node_id: str, detail: Mapping[str, JSON]) -> None:
        self._tell(tx, AuditKind.NODE_ROTATION_REFUSED, f"node:{node_id}", node_id, detail)

    def _tell_tampered(self, tx: Transaction, node_id: str) -> None:
        if node_id not in self._told_tampered:
            self._told_tampered.add(node_id)
            log.error("rotation_row_tampered", node_id=node_id)
            detail = {"table": "credential_rotations", "row": node_id}
            self._tell(tx, AuditKind.ROTATION_QUARANTINED, "server", node_id, detail)

    def _tell(self, tx: Transaction, kind: AuditKind, actor: str, node_id: str, detail: Mapping[str, JSON]) -> None:
        self._audit.append(tx, kind, actor=actor, subject=f"node:{node_id}", detail=detail)


def _replaced(before: NodeRecord, after: NodeRecord) -> Wanted:
    identity = Wanted.IDENTITY if after.identity_key != before.identity_key else rotations.NOTHING
    sealing_key = Wanted.SEALING if after.sealing_key != before.sealing_key else rotations.NOTHING
    return identity | sealing_key
