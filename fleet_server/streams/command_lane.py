"""The commands of one stream: claim what is pending, sign it for this stream, send it, and never more than the node
takes.

Signing happens at sending, with the active key, bound to this stream: no signed command rests in the database,
rotation strands nothing, and a statement that somebody withheld is worth nothing on the next stream
(docs/protocol.md, "Commands"). The key is the one that the commands were marked with; a bundle that tells of a new one
was queued on the stream before anything that it signs, for trust takes up both at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from fleet.clock import Clock
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.sequence import MAX_COMMANDS_PER_STATEMENT, StatementReason
from fleet.v1 import command_pb2, gateway_pb2
from fleet_server.commands.service import CommandService, PendingCommand
from fleet_server.observability.metrics import CommandMetrics
from fleet_server.sessions.claim import StreamClaim
from fleet_server.streams import rules
from fleet_server.streams.pump import Pump
from fleet_server.trust.service import TrustService

log = get_logger(__name__)

_JOURNAL_PAUSE_S = 5.0


class Send(Protocol):
    """Hands a control frame to the stream's writer."""

    def __call__(self, frame: gateway_pb2.ServerControl, size_bytes: int, /) -> None:
        """Queue `frame`, which has about so many bytes."""
        ...


class JournalCheck:
    """Whether the journal of a node's process was compared with what the node once answered; shared by a stream and
    those that take over from it, for it is one process that opens them."""

    __slots__ = ("done",)

    def __init__(self, *, done: bool) -> None:
        self.done = done


class CommandLane:
    """Sends one node's commands on one stream.

    Args:
        claim: who the stream belongs to, and from which seq on it goes.
        send: queues a frame of about so many bytes.
        failed: told when the lane cannot go on.
    """

    def __init__(
        self,
        *,
        claim: StreamClaim,
        commands: CommandService,
        trust: TrustService,
        clock: Clock,
        metrics: CommandMetrics,
        send: Send,
        failed: Callable[[Exception], None],
    ) -> None:
        self._node_id = claim.node.node_id
        self._site = claim.node.site
        self._epoch = claim.epoch
        self._binding = claim.binding
        self._max_in_flight = max(1, claim.hello_body.max_in_flight)
        self._commands = commands
        self._trust = trust
        self._clock = clock
        self._metrics = metrics
        self._send = send
        # Of a stream that is not here (another replica holds it) nobody can tell: it is taken to have done its part.
        self._journal_check = JournalCheck(done=bool(claim.takeover_of))
        self._hello_seq = claim.hello_body.last_accepted_seq  # what the node says it accepted so far
        self._sent_seq = -1  # unknown until reconciled
        self._unaccepted: dict[int, int] = {}  # seq -> bytes, in seq order
        self._unaccepted_bytes = 0
        self._statements: dict[bytes, int] = {}  # SHA-256 of a statement in flight -> its last seq
        self._cancels_sent: set[bytes] = set()
        self._resends = 0
        self._resume_at = 0.0
        self.held = False
        self._failed = failed
        self._pump = Pump(self._send_pending, clock, failed)
        self._cancel_pump = Pump(self._send_cancels, clock, failed)

    def continue_from(self, older: CommandLane) -> None:
        """The stream takes over from that of `older`: what that one did not come to is this one's to do."""
        self._journal_check = older._journal_check

    @property
    def idle(self) -> bool:
        """Whether nothing is under way to the node, as far as is known without a query."""
        return not self._unaccepted and self._commands.open_count(self._node_id) == 0

    def wake(self) -> None:
        """Commands may be pending."""
        if not self.held and self._has_window():
            self._pump.kick()

    def key_for(self, epoch: int, first_seq: int, count: int) -> bytes | None:
        """See `commands.handover.Lane`: all before `first_seq` went out on this stream, and there is room."""
        waits = (
            not self.held
            and not self._pump.running
            and self._epoch == epoch
            and self._sent_seq == first_seq - 1
            and self._has_window()
            and len(self._unaccepted) + count <= self._max_in_flight
            and count <= MAX_COMMANDS_PER_STATEMENT
            and self._clock.monotonic() >= self._resume_at
        )
        try:
            return self._trust.command_key_id(self._site) if waits else None
        except Refusal:
            return None  # the claim meets it again, and says so

    def take(self, commands: Sequence[PendingCommand], key_id: bytes | None) -> None:
        """See `commands.handover.Lane`."""
        key_now = self.key_for(self._epoch, commands[0].seq, len(commands))
        if key_now is None or key_now != key_id:
            self.wake()
            return
        try:
            for batch in rules.statements(commands):
                self._send_statement(batch)
        except Refusal as refusal:
            self._failed(refusal)

    def wake_cancels(self) -> None:
        """Cancels may be pending."""
        self._cancel_pump.kick()

    def stop(self) -> None:
        """Send nothing more on this stream: a newer one took over, or it ends."""
        self.held = True
        self._pump.stop()
        self._cancel_pump.stop()

    def hold(self, held: bool) -> None:
        """Keep the queue on the server while the node is drained, or let it go again."""
        self.held = held
        self.wake()

    def answered(self, seqs: Sequence[int]) -> None:
        """The node told a state for these seqs, so they are accepted or refused for good."""
        had_window = self._has_window()
        if not self._unaccepted.keys().isdisjoint(seqs):
            self._resends = 0  # it took something: what it refuses next is another matter, such as the next revoked key
        for seq in seqs:
            self._unaccepted_bytes -= self._unaccepted.pop(seq, 0)
        if not self._unaccepted:
            self._statements.clear()
        if not had_window:
            self.wake()

    def statement_refused(self, refused: command_pb2.StatementRefused) -> None:
        """Go back to what the node has and send again, a bounded number of times (docs/protocol.md, "Commands").

        Refusals of statements that are not in flight any more are echoes of one that was handled already.

        Raises:
            Refusal: MALFORMED, when the node claims to have accepted what it was never sent.
        """
        if refused.last_accepted_seq > max(self._hello_seq, self._sent_seq):
            raise Refusal(Reason.MALFORMED, "a refusal names a seq that was never sent to this node")
        if refused.statement_sha256 not in self._statements:
            return
        reason = refused.reason if refused.reason in StatementReason.__members__ else "OTHER"
        self._metrics.statement_refusals.labels(reason).inc()
        log.warning(
            "statement_refused",
            node_id=self._node_id,
            reason=refused.reason,
            detail=refused.detail,
            last_accepted_seq=refused.last_accepted_seq,
        )
        self._sent_seq = refused.last_accepted_seq
        self._unaccepted.clear()
        self._unaccepted_bytes = 0
        self._statements.clear()
        if refused.reason == StatementReason.JOURNAL_UNAVAILABLE:
            self._resume_at = self._clock.monotonic() + _JOURNAL_PAUSE_S
            return  # the commands room's poll wakes the lane again
        self._resends += 1
        if self._resends > rules.MAX_RESENDS:
            log.error("statement_refused_too_often", node_id=self._node_id, reason=refused.reason)
            self.held = True
            return
        self.wake()

    def _has_window(self) -> bool:
        unaccepted = len(self._unaccepted)
        waiting = self._commands.open_count(self._node_id) - unaccepted
        return (
            rules.worth_a_statement(self._max_in_flight - unaccepted, self._max_in_flight, waiting)
            and self._unaccepted_bytes < rules.MAX_UNACCEPTED_BYTES
        )

    async def _send_pending(self) -> None:
        if self._sent_seq < 0:
            resumed = await self._commands.reconcile(
                self._node_id, self._epoch, self._hello_seq, takeover=self._journal_check.done
            )
            self._sent_seq = resumed.after_seq
            self._journal_check.done = True
            if not resumed.may_wait:
                return  # what is issued from then on wakes the lane
        while not self.held and self._has_window() and self._clock.monotonic() >= self._resume_at:
            limit = min(MAX_COMMANDS_PER_STATEMENT, self._max_in_flight - len(self._unaccepted))
            key_id = self._trust.command_key_id(self._site)
            pending = await self._commands.claim_pending(
                self._node_id,
                self._epoch,
                after_seq=self._sent_seq,
                limit=limit,
                key_id=key_id,
                asked_again_through=self._hello_seq,
            )
            if self._trust.command_key_id(self._site) != key_id:
                continue  # keys rotated during the claim: the record has to name the one that signs
            for batch in rules.statements(pending):
                self._send_statement(batch)
            if len(pending) < limit:
                return

    def _send_statement(self, batch: Sequence[PendingCommand]) -> None:
        statement = command_pb2.CommandStatement(
            cluster_id=self._trust.cluster_id,
            node_id=self._node_id,
            stream_binding=self._binding,
            lease_epoch=self._epoch,
            prev_seq=self._sent_seq,
            signed_at_ms=self._clock.now_ms(),
        ).SerializeToString()
        statement += b"".join([command.encoded() for command in batch])
        signed = self._trust.sign_command_statement(Domain.COMMAND, statement, site=self._site)
        self._sent_seq = batch[-1].seq
        share = len(statement) // len(batch)
        for command in batch:
            self._unaccepted[command.seq] = share
        self._unaccepted_bytes += share * len(batch)
        self._statements[hashlib.sha256(statement).digest()] = self._sent_seq
        self._metrics.statements.inc()
        self._metrics.per_statement.observe(len(batch))
        self._send(gateway_pb2.ServerControl(commands=command_pb2.CommandFrame(signed=signed)), len(statement))

    async def _send_cancels(self) -> None:
        for order in await self._commands.pending_cancels(self._node_id, self._epoch):
            if order.command_id in self._cancels_sent:
                continue
            self._cancels_sent.add(order.command_id)
            statement = command_pb2.CancelStatement(
                cluster_id=self._trust.cluster_id,
                node_id=self._node_id,
                stream_binding=self._binding,
                command_id=order.command_id,
                monotonic_seq=order.seq,
                actor=order.actor,
            ).SerializeToString()
            signed = self._trust.sign_command_statement(Domain.CANCEL, statement, site=self._site)
            self._send(gateway_pb2.ServerControl(cancel=command_pb2.CancelFrame(signed=signed)), len(statement))
