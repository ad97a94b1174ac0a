"""The transaction that opens streams: those of all whose hellos are there at one moment.

Everything was checked on a snapshot; what may have changed since is checked again on locked rows before anything is
written: what operators decide, the stream's epoch, the session, and the turn of the ratchet. Rows are locked table by
table, each in one order: a node's, its session, its ratchet.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.held import unless_held
from fleet_server.database.writer import Transaction
from fleet_server.nodes.record import NewStream
from fleet_server.nodes.service import NodeService
from fleet_server.sessions import store
from fleet_server.sessions.claim import ProvenHello
from fleet_server.sessions.hello import MAX_ID_CHARS
from fleet_server.sessions.ratchet import Turn
from fleet_server.sessions.rotating import RotationService
from fleet_server.sessions.same_machine import SameMachine
from fleet_server.sessions.standing import Standings, open_session


class Opened(NamedTuple):
    """A stream that was opened: its epoch, and the turn of its node's ratchet."""

    epoch: int
    turn: Turn


class StreamOpening:
    """Opens streams."""

    def __init__(
        self,
        *,
        clock: Clock,
        audit: AuditService,
        nodes: NodeService,
        standings: Standings,
        rotations: RotationService,
        same_machine: SameMachine,
    ) -> None:
        self._clock = clock
        self._audit = audit
        self._nodes = nodes
        self._standings = standings
        self._rotations = rotations
        self._same_machine = same_machine

    def open_free(self, tx: Transaction, hellos: Sequence[ProvenHello]) -> Sequence[Opened | Refusal | None]:
        """What each hello, of no two the same node, has won; None where somebody else holds the node's row: who waits
        for that, waits alone. All of them do where it is another row that is held (a frozen replica's note of what a
        node told may hold its profile): nobody can tell whose."""
        answers = unless_held(tx, partial(self._open_free, tx, hellos)) or {}
        return [answers.get(_id(hello)) for hello in hellos]

    def open(self, tx: Transaction, hello: ProvenHello) -> Opened | Refusal:
        """What a hello has won."""
        held = self._nodes.hold_as_read(tx, [hello.node], wait=True)
        return self._open(tx, [hello], held)[_id(hello)]

    def _open_free(self, tx: Transaction, hellos: Sequence[ProvenHello]) -> dict[str, Opened | Refusal]:
        held = self._nodes.hold_as_read(tx, [hello.node for hello in hellos], wait=False)
        return self._open(tx, [hello for hello in hellos if _id(hello) in held], held)

    def _open(
        self, tx: Transaction, hellos: Sequence[ProvenHello], held: Mapping[str, int | None]
    ) -> dict[str, Opened | Refusal]:
        """By node id. Answered, not raised: that would undo what others won."""
        unchanged = {node_id: epoch for node_id, epoch in held.items() if epoch is not None}
        answers: dict[str, Opened | Refusal] = dict(self._overtaken(tx, hellos, unchanged))
        waiting = [hello for hello in hellos if _id(hello) not in answers]
        turns = self._same_machine.turns(tx, waiting, now_ms=self._clock.now_ms())
        answers |= {node_id: turn for node_id, turn in turns.items() if isinstance(turn, Refusal)}
        won = {node_id: turn for node_id, turn in turns.items() if isinstance(turn, Turn)}
        winners = [hello for hello in waiting if _id(hello) in won]
        epochs = self._nodes.open_streams(tx, [_stream(hello) for hello in winners], unchanged)
        store.claim(tx.conn, [(hello.session.token_sha256, epochs[_id(hello)]) for hello in winners])
        self._nodes.save_profiles(tx, {_id(hello): hello.body for hello in winners})
        for hello in winners:
            self._rotations.api_key_used(tx, hello.rotation, _id(hello), hello.api_key_sha256)
            self._tell(tx, hello, epochs[_id(hello)])
            answers[_id(hello)] = Opened(epochs[_id(hello)], won[_id(hello)])
        return answers

    def _overtaken(
        self, tx: Transaction, hellos: Sequence[ProvenHello], unchanged: Container[str]
    ) -> dict[str, Refusal]:
        """Why hellos, by node id, win nothing that did on their snapshots.

        Args:
            unchanged: ids of the nodes about which nothing was decided since.
        """
        stand = self._standings.still_stand(tx.conn, [hello.api_key_sha256 for hello in hellos])
        sessions = store.sessions(tx.conn, [hello.session.token_sha256 for hello in hellos], lock=True)
        refusals: dict[str, Refusal] = {}
        for hello in hellos:
            if hello.is_gone():
                refusals[_id(hello)] = Refusal(Reason.UNAVAILABLE, "whoever said hello has gone: nothing was opened")
                continue
            if _id(hello) not in unchanged or hello.api_key_sha256 not in stand:
                refusals[_id(hello)] = Refusal(
                    Reason.UNAVAILABLE, "the node's record was changed at this moment: connect again"
                )
                continue
            try:
                open_session(sessions.get(hello.session.token_sha256), hello.node, self._clock.now_ms())
            except Refusal as refusal:
                refusals[_id(hello)] = refusal
        return refusals

    def _tell(self, tx: Transaction, hello: ProvenHello, epoch: int) -> None:
        detail: Mapping[str, JSON] = {
            "stream": hello.stream_id,
            "epoch": epoch,
            "replica": hello.replica_id,
            "last_accepted": hello.body.last_accepted_seq,
            "boot": hello.body.boot_id.hex(),
        }
        subject = f"node:{_id(hello)}"
        self._audit.append(tx, AuditKind.STREAM_OPENED, actor=subject, subject=subject, detail=detail)


def _id(hello: ProvenHello) -> str:
    return hello.node.node_id


def _stream(hello: ProvenHello) -> NewStream:
    return NewStream(
        node_id=_id(hello),
        stream_id=hello.stream_id,
        takeover_of=hello.said.takeover_of[:MAX_ID_CHARS],
        replica_id=hello.replica_id,
        accepted=hello.body.last_accepted_seq,
    )
