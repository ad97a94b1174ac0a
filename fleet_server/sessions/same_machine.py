"""Whether the machine that says hello is where its node was left: by its ratchet, and by how far its audit is.

A machine that is not is set aside, with its node, until a person has said which one is the node. A hello may also come
late: it lay in a replica that was frozen, or waited for the database, while its node gave up and opened another stream.
It shows what was true when it was signed, so where a stream was opened by a newer session nobody is accused of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fleet.errors import Reason, Refusal
from fleet.node_audit import writer_of
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rewinds import is_unsettled
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.writer import Transaction
from fleet_server.nodes.service import NodeService
from fleet_server.sessions import store
from fleet_server.sessions.claim import ProvenHello
from fleet_server.sessions.ratchet import Ratchets, Turn, Verdict
from fleet_server.sessions.ratchet_store import RatchetRow, TamperedRatchetError

_FOREIGN_RATCHET = "another machine with its keys has connected since, or this one was restored from an older copy"
_NO_RATCHET = "this machine holds the node's keys and not its ratchet: it is a copy from before its first stream"
_OLDER_AUDIT = "this machine lacks audit rows that it once sent: it was restored from an older copy"
_AHEAD = (
    "the server's database went back in time, and this machine is ahead of it, or a copy: it is not let in until an"
    " operator has run `fleet-server db restored`"
)
_TAMPERED_RATCHET = "the record of its ratchet was changed or removed outside the server"


class SameMachine:
    """Judges hellos, in the transaction that opens their streams."""

    def __init__(self, ratchets: Ratchets, nodes: NodeService, audit: AuditService) -> None:
        self._ratchets = ratchets
        self._nodes = nodes
        self._audit = audit

    def turns(self, tx: Transaction, hellos: Sequence[ProvenHello], *, now_ms: int) -> dict[str, Turn | Refusal]:
        """What to hand on, by node id; for a node that shows what it cannot have QUARANTINED: it is set aside, and that
        stands. While it is known that the database went back, it is kept out only: it may well be ahead of that.
        SUPERSEDED for one that comes late.

        Args:
            hellos: of no two the same node.
            now_ms: Unix milliseconds.
        """
        rows = self._ratchets.held(tx.conn, [hello.node.node_id for hello in hellos])
        writers = [writer_of(node_id, row.audit_chain) for node_id, row in rows.items()]
        newest = self._audit.newest_numbers(tx, writers)
        turned: list[RatchetRow] = []
        turns: dict[str, Turn | Refusal] = {}
        for hello in hellos:
            row = rows.get(hello.node.node_id)
            try:
                judged = self._judged(tx, hello, row, now_ms)
            except TamperedRatchetError:
                turns[hello.node.node_id] = self._set_aside(tx, hello, _TAMPERED_RATCHET)
                continue
            if judged is None:
                turns[hello.node.node_id] = self._foreign(tx, hello)
                continue
            turn, after = judged
            if after != row:
                turned.append(after)
            if turn.starts_over is not None:
                self._note_start(tx, hello, turn, turn.starts_over)
            elif _went_back(hello, turn, newest[writer_of(hello.node.node_id, turn.audit_chain)]):
                turns[hello.node.node_id] = self._unless_late(tx, hello, _OLDER_AUDIT)
                continue
            turns[hello.node.node_id] = turn
        self._ratchets.save(tx.conn, turned)
        return turns

    def _judged(
        self, tx: Transaction, hello: ProvenHello, row: RatchetRow | None, now_ms: int
    ) -> tuple[Turn, RatchetRow] | None:
        if row is None:
            raise TamperedRatchetError

        def newest_chain() -> int:
            return max(hello.body.audit_chain, self._audit.newest_chain(tx.conn, hello.node.node_id))

        shown, boot_id = hello.said.ratchet, hello.body.boot_id
        return self._ratchets.turn(row, shown, newest_chain, boot_id=boot_id, now_ms=now_ms)

    def _note_start(self, tx: Transaction, hello: ProvenHello, turn: Turn, verdict: Verdict) -> None:
        subject = f"node:{hello.node.node_id}"
        judged: Mapping[str, JSON] = {"ratchet": verdict.name}
        self._audit.append(tx, AuditKind.NODE_REBASELINED, actor="server", subject=subject, detail=judged)
        detail: Mapping[str, JSON] = {"chain": turn.audit_chain, "told": hello.body.audit_chain}
        self._audit.append(tx, AuditKind.NODE_AUDIT_CHAIN_OPENED, actor="server", subject=subject, detail=detail)

    def _foreign(self, tx: Transaction, hello: ProvenHello) -> Refusal:
        if not hello.said.ratchet:
            return self._unless_late(tx, hello, _NO_RATCHET)
        if is_unsettled(tx.conn):
            return Refusal(Reason.QUARANTINED, _AHEAD, metadata={"node": hello.node.name})
        return self._unless_late(tx, hello, _FOREIGN_RATCHET)

    def _unless_late(self, tx: Transaction, hello: ProvenHello, why: str) -> Refusal:
        if store.has_opened_later(tx.conn, hello.node.node_id, hello.session.expires_at_ms):
            return Refusal(Reason.SUPERSEDED, "a later session of this node has opened a stream: connect again")
        return self._set_aside(tx, hello, why)

    def _set_aside(self, tx: Transaction, hello: ProvenHello, why: str) -> Refusal:
        try:
            self._nodes.quarantine(tx, hello.node, why)
        except Refusal as refusal:
            return refusal
        return Refusal(
            Reason.QUARANTINED,
            f"{why}: this node is set aside until an operator says which machine it is (`fleetctl nodes adopt`)",
            metadata={"node": hello.node.name},
        )


def _went_back(hello: ProvenHello, turn: Turn, newest: int) -> bool:
    """Whether the machine lacks audit rows that it sent once; no row is sent before it is durable.

    Args:
        newest: number of the newest row of its chain that is here.
    """
    # While one stream takes over from another, rows of the older one may be stored behind the number that the newer
    # one's hello told.
    if hello.said.takeover_of or hello.body.audit_chain != turn.audit_chain:
        return False
    return hello.body.audit_number < newest
