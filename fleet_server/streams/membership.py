"""What an operator decided about a node takes effect on its live stream: suspend, revoke, drain, resume."""

from __future__ import annotations

from typing import Protocol

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.rules import replaced_by_another
from fleet_server.nodes.service import NodeService
from fleet_server.sessions.claim import StreamClaim
from fleet_server.streams import overtaken
from fleet_server.streams.command_lane import CommandLane

_REMOVED = {
    "SUSPENDED": (Reason.SUSPENDED, gateway_pb2.GOAWAY_REASON_SUSPENDED),
    "REVOKED": (Reason.REVOKED, gateway_pb2.GOAWAY_REASON_REVOKED),
    "QUARANTINED": (Reason.QUARANTINED, gateway_pb2.GOAWAY_REASON_SUSPENDED),
}


class Leaving(Protocol):
    """A stream as far as its membership needs it."""

    stream_id: str
    commands: CommandLane

    def send(self, frame: gateway_pb2.ServerControl) -> None:
        """Queue a control frame."""
        ...

    def fall_silent(self) -> None:
        """Send nothing more of what only the newest stream of a node is sent."""
        ...

    def goaway(self, goaway: gateway_pb2.ControlGoaway) -> None:
        """Ask the node to leave."""
        ...

    def end(self, refusal: Refusal | None) -> None:
        """End the stream."""
        ...

    def refresh_membership(self) -> None:
        """Have the node's row read again."""
        ...


class Membership:
    """Keeps one stream in step with its node's row."""

    __slots__ = (
        "_claimed",
        "_decisions",
        "_doubt",
        "_drain_sent",
        "_enrolled_at_ms",
        "_epoch",
        "_node_id",
        "_nodes",
        "_overtaken",
        "_stream",
    )

    def __init__(self, nodes: NodeService, claim: StreamClaim, stream: Leaving) -> None:
        self._nodes = nodes
        self._node_id = claim.node.node_id
        self._enrolled_at_ms = claim.node.enrolled_at_ms
        self._epoch = claim.epoch
        self._claimed: NodeRecord | None = claim.node  # until `start`
        self._decisions = claim.decisions
        self._stream = stream
        self._drain_sent = False
        self._doubt: Refusal | None = None
        self._overtaken = False

    def doubt(self, refusal: Refusal) -> None:
        """Something that this stream did was refused, for it is not the newest of its node: the row tells whether the
        node itself took over, at whichever replica."""
        self._doubt = refusal
        self._stream.refresh_membership()

    def start(self) -> None:
        """Act on the row that the stream was claimed with."""
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            self.apply(claimed)
        if self._decisions != self._nodes.decisions:  # one was made meanwhile, before this stream could hear of it
            self._stream.refresh_membership()

    async def refresh(self) -> None:
        """Read the node's row again and act on it."""
        self.apply(await self._nodes.get(self._node_id))

    def apply(self, node: NodeRecord) -> None:
        """Act on the node's row."""
        if node.enrolled_at_ms != self._enrolled_at_ms:
            self._remove(Reason.REVOKED, gateway_pb2.GOAWAY_REASON_REVOKED, replaced_by_another(node))
            return
        if node.state in _REMOVED:
            detail = f"an operator set this node to {node.state}: {node.state_reason or 'no reason was given'}"
            self._remove(*_REMOVED[node.state], detail)
            return
        if node.stream_epoch > self._epoch or self._doubt is not None:
            self._leave_behind(node)
            return
        draining = node.drain_state != "NONE"
        self._stream.commands.hold(draining)
        if draining != self._drain_sent:
            self._drain_sent = draining
            # At least 1: 0 would be no limit, for one that comes back after its deadline.
            deadline_ms = max(1, node.drain_deadline_ms - self._nodes.now_ms()) if node.drain_deadline_ms else 0
            self._stream.send(
                gateway_pb2.ServerControl(drain=gateway_pb2.DrainNode(drain=draining, deadline_ms=deadline_ms))
            )

    def _leave_behind(self, node: NodeRecord) -> None:
        if node.stream_epoch > self._epoch and not node.stream_id and not node.takeover_of:
            self._stream.end(Refusal(Reason.SUPERSEDED, "an operator adopted this node: connect again"))
        elif not self._overtaken:
            self._overtaken = True
            overtaken.leave_behind(self._stream, takeover_of=node.takeover_of)

    async def drained(self, drained: gateway_pb2.Drained) -> None:
        """The node says that nothing runs any more; progress reports on the way there change nothing."""
        if drained.drained and drained.running == 0:
            await self._nodes.mark_drained(self._node_id, self._epoch)

    def _remove(self, reason: Reason, goaway_reason: gateway_pb2.GoawayReason.ValueType, detail: str) -> None:
        self._stream.goaway(gateway_pb2.ControlGoaway(reason=goaway_reason, detail=detail, resume=False))
        self._stream.end(Refusal(reason, detail))
