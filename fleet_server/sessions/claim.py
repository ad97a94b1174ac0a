"""What a node shows with its hello, what it wins, and what stays of it while the stream lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fleet.channel import FrameKeys
from fleet.v1 import gateway_pb2, session_pb2
from fleet_server.nodes.record import NodeRecord
from fleet_server.sessions.ratchet import Turn
from fleet_server.sessions.rotations import Rotation
from fleet_server.sessions.store import SessionRow


@dataclass(frozen=True, slots=True, repr=False)
class StreamSession:
    """The session under a stream, for as long as that lives: what a renewal needs, and no more.

    Args:
        certificate_ends_ms: Unix milliseconds; 0 without a client certificate.
    """

    node_id: str
    epoch: int
    token_sha256: bytes
    certificate_ends_ms: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class ProvenHello:
    """A hello whose every part held on a snapshot of the database, and what that showed.

    Args:
        api_key_sha256: it came with that one.
        node: whose hello it is.
        session: that it takes.
        rotation: what is ordered for the node.
        said: its statement, whose signature was verified.
        body: checked.
        stream_id: of the stream that it opens, at the replica `replica_id`.
        is_gone: whether who said it has left meanwhile; any thread asks. It may have another stream by then, at another
            replica, which a late one of nobody's would end.
    """

    api_key_sha256: bytes
    node: NodeRecord
    session: SessionRow
    rotation: Rotation | None
    said: session_pb2.StreamStatement
    body: gateway_pb2.HelloBody
    stream_id: str
    replica_id: str
    is_gone: Callable[[], bool]


@dataclass(frozen=True, slots=True, repr=False)
class StreamClaim:
    """What a node won with its hello. Holds frame keys, so it prints nothing.

    Args:
        node: as it stood when the stream was claimed.
        epoch: of this stream; a higher one supersedes it.
        frame_keys: of the handshake.
        binding: SHA-256 of the stream proof's statement; statements name it, so they are worthless on any other stream.
        hello_body: checked.
        session_expires_at_ms: Unix milliseconds.
        token_sha256: of the session's token.
        takeover_of: stream id that this one takes over; empty if none.
        decisions: `NodeService.decisions` as it was before the node's row was read.
        turn: of its ratchet.
        certificate_ends_ms: of the client certificate that the session is bound to; 0 without one.
        orders: what to say about credentials that are to be replaced.
    """

    node: NodeRecord
    epoch: int
    frame_keys: FrameKeys
    binding: bytes
    hello_body: gateway_pb2.HelloBody
    session_expires_at_ms: int
    token_sha256: bytes
    takeover_of: str
    decisions: int
    turn: Turn
    certificate_ends_ms: int = 0
    orders: tuple[gateway_pb2.ServerControl, ...] = ()

    @property
    def session(self) -> StreamSession:
        """What a stream keeps of this; the hello, with all that a node can do, need not stay."""
        return StreamSession(self.node.node_id, self.epoch, self.token_sha256, self.certificate_ends_ms)
