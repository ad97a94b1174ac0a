"""Whether the machine that says hello is where its node was left: by its ratchet, and by how far its audit is.

A machine that is not is set aside, with its node, until a person has said which one is the node. A hello may also come
late: it lay in a replica that was frozen, or waited for the database, while its node gave up and opened another stream.
It shows what was true when it was signed, so where a stream was opened by a newer session nobody is accused of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fleet.errors import Reason, Refusal
from fleet.node_audit import writer_of
from fleet.v1 import gateway_pb2, session_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rewinds import is_unsettled
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.sessions import store
from fleet_server.sessions.ratchet import Ratchets, Turn
from fleet_server.sessions.ratchet_store import TamperedRatchetError

_FOREIGN_RATCHET = "another machine with its keys has connected since, or this one was restored from an older copy"
_NO_RATCHET = "this machine holds the node's keys and not its ratchet: it is a copy from before its first stream"
_OLDER_AUDIT = "this machine lacks audit rows that it once sent: it was restored from an older copy"
_AHEAD = (
    "the server's database went back in time, and this machine is ahead of it, or a copy: it is not let in until an"
    " operator has run `fleet-server db restored`"
)
_TAMPERED_RATCHET = "the record of its ratchet was changed or removed outside the server"


class SameMachine:
    """Judges hellos, in the transaction that opens their stream."""

    def __init__(self, ratchets: Ratchets, nodes: NodeService, audit: AuditService) -> None:
        self._ratchets = ratchets
        self._nodes = nodes
        self._audit = audit

    def turn(
        self,
        tx: Transaction,
        node: NodeRecord,
        session: store.SessionRow,
        said: session_pb2.StreamStatement,
        body: gateway_pb2.HelloBody,
        *,
        now_ms: int,
    ) -> Turn:
        """What to hand on; a node that shows what it cannot have is set aside, and that stands. While it is known that
        the database went back, it is kept out only: it may well be ahead of that.

        Raises:
            Refusal: QUARANTINED; SUPERSEDED when it comes late.
        """
        try:
            turn = self._ratchets.turn(
                tx.conn,
                node.node_id,
                said.ratchet,
                lambda: max(body.audit_chain, self._audit.newest_chain(tx.conn, node.node_id)),
                boot_id=body.boot_id,
                now_ms=now_ms,
            )
            why = _FOREIGN_RATCHET if said.ratchet else _NO_RATCHET
        except TamperedRatchetError:
            turn, why = None, _TAMPERED_RATCHET
        if turn is not None and turn.starts_over is not None:
            subject = f"node:{node.node_id}"
            judged: Mapping[str, JSON] = {"ratchet": turn.starts_over.name}
            self._audit.append(tx, AuditKind.NODE_REBASELINED, actor="server", subject=subject, detail=judged)
            detail: Mapping[str, JSON] = {"chain": turn.audit_chain, "told": body.audit_chain}
            self._audit.append(tx, AuditKind.NODE_AUDIT_CHAIN_OPENED, actor="server", subject=subject, detail=detail)
        elif turn is not None and self._went_back(tx, node, said, body, turn):
            turn, why = None, _OLDER_AUDIT
        if turn is not None:
            return turn
        if why == _FOREIGN_RATCHET and is_unsettled(tx.conn):
            raise Refusal(Reason.QUARANTINED, _AHEAD, metadata={"node": node.name})
        if why != _TAMPERED_RATCHET and store.has_opened_later(tx.conn, node.node_id, session.expires_at_ms):
            raise Refusal(Reason.SUPERSEDED, "a later session of this node has opened a stream: connect again")
        self._nodes.quarantine(tx, node, why)
        raise Refusal(
            Reason.QUARANTINED,
            f"{why}: this node is set aside until an operator says which machine it is (`fleetctl nodes adopt`)",
            metadata={"node": node.name},
        )

    def _went_back(
        self,
        tx: Transaction,
        node: NodeRecord,
        said: session_pb2.StreamStatement,
        body: gateway_pb2.HelloBody,
        turn: Turn,
    ) -> bool:
        # No row is sent before it is durable. While one stream takes over from another, rows of the older one may be
        # stored behind the number that the newer one's hello told.
        if said.takeover_of or body.audit_chain != turn.audit_chain:
            return False
        return body.audit_number < self._audit.newest_number(tx, writer_of(node.node_id, turn.audit_chain))
