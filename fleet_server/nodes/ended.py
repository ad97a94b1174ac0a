"""Which machines are no node's any more: what was revoked, and what keys were replaced, does not come back.

A row with a MAC is a row that the server once wrote, not the newest. Whoever has a stolen machine that was revoked, and
writes the database, would put its rows back; so its end is written down a second time (`audit.spent`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fleet.errors import Reason, Refusal
from fleet_server.audit.spent import Spent, SpentRecord, What
from fleet_server.database.engine import Connection
from fleet_server.nodes.record import NodeRecord, NodeState


class EndedMachines:
    """A machine is a node's id and the fingerprint of its keys; the id alone stands for all of a node. Calls may come
    from any thread.

    Args:
        spent: the record.
    """

    def __init__(self, spent: SpentRecord) -> None:
        self._spent = spent

    def note(self, conn: Connection, changed: Iterable[tuple[NodeRecord, NodeRecord]]) -> None:
        """Record in the running transaction which machines end with it.

        Args:
            changed: (as it was, as it shall be) pairs.

        Raises:
            Refusal: UNAVAILABLE: the record was changed around the server, and this process has never seen it whole.
                CONFLICT for a machine in the place of one that ended while its row was changed.
        """
        ending = [
            (before, after.state is NodeState.REVOKED)
            for before, after in changed
            if after.state is NodeState.REVOKED or before.fingerprint != after.fingerprint
        ]
        if not ending:
            return
        try:
            spent = self._spent.known(conn)  # once: whatever is added behind it would be read again each time
        except Refusal:
            if any(revoked for _, revoked in ending):
                raise
            return  # a node that replaces its own keys goes on
        names = [name for before, revoked in ending if (name := _to_note(before, spent, revoked=revoked))]
        if names:
            self._spent.add(conn, What.MACHINE, *names)

    def check_new(self, conn: Connection, node: NodeRecord) -> Refusal | None:
        """Why a machine cannot be the node from now on: CONFLICT for one that was it before, for it would be taken for
        a row that was put back."""
        try:
            spent = self._spent.known(conn)
        except Refusal:
            return None
        if not spent.times(What.MACHINE, _name(node)):
            return None
        return Refusal(
            Reason.CONFLICT,
            f"these keys were {node.name}'s before and were replaced: enroll the machine from an empty state folder",
        )

    def judged(self, conn: Connection, nodes: Sequence[NodeRecord]) -> Sequence[NodeRecord | Refusal]:
        """Each node as it may be believed: QUARANTINED and not intact when its row was put back; UNAVAILABLE when its
        machine was ended at this moment. Where the record was changed around the server, and this process has never
        seen it whole, the rows count: no operator is let in then, and a fleet does not stop for a byte of its audit.

        Args:
            conn: the snapshot that `nodes` were read in.
        """
        if all(_ends_anyway(node) for node in nodes):
            return nodes
        try:
            spent = self._spent.known(conn, keep=True)
        except Refusal:
            return nodes
        return [node if _ends_anyway(node) else _judged(node, spent) for node in nodes]


def _name(node: NodeRecord) -> str:
    return f"{node.node_id}/{node.fingerprint.hex()}"


def _ends_anyway(node: NodeRecord) -> bool:
    return node.state is NodeState.REVOKED or not node.intact


def _judged(node: NodeRecord, spent: Spent) -> NodeRecord | Refusal:
    names = (node.node_id, _name(node))
    if any(spent.is_put_back(What.MACHINE, name, 0) for name in names):
        return replace(node, state=NodeState.QUARANTINED, state_reason="", labels={}, intact=False)
    if any(spent.times(What.MACHINE, name) for name in names):
        return Refusal(Reason.UNAVAILABLE, "the node's record was changed at this moment: connect again")
    return node


def _to_note(before: NodeRecord, spent: Spent, *, revoked: bool) -> str:
    """What is to be recorded of a machine that ends; empty when all of it is."""
    if spent.times(What.MACHINE, before.node_id):
        if not revoked:
            raise _enroll_anew(before)
        return ""
    known = spent.times(What.MACHINE, _name(before)) > 0
    if not before.intact or (known and before.state is not NodeState.REVOKED):
        return before.node_id  # the row names other keys than those of the machine that ends: whichever they were
    return "" if known else _name(before)


def _enroll_anew(node: NodeRecord) -> Refusal:
    return Refusal(
        Reason.CONFLICT,
        f"{node.name} was revoked while its record was changed outside the server, so no machine is this node again:"
        " approve the new one under a name of its own",
    )
