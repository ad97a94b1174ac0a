"""What this room needs of others, and nothing more. `fleet_server.rooms` hands the real things in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleet.clock import Clock
from fleet_server.audit.service import AuditService
from fleet_server.commands.store import Connection
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.nodes.record import NodeActions, NodeRecord, Taken
from fleet_server.observability.metrics import CommandMetrics


class NodesPort(Protocol):
    """The nodes room, inside a transaction of this one."""

    def resolve(self, conn: Connection, patterns: Sequence[str]) -> Sequence[NodeRecord]:
        """Nodes that the patterns mean; Refusal INVALID_ARGUMENT for a pattern that is none."""
        ...

    def action_schemas(self, conn: Connection, node_ids: Sequence[str]) -> NodeActions:
        """Which of these nodes offer what."""
        ...

    def take_seqs(self, conn: Connection, counts: Mapping[str, int]) -> Mapping[str, Taken]:
        """Raise each node's counter by its count. Nobody opens a stream of theirs until this transaction ends."""
        ...

    def names(self, conn: Connection, node_ids: Sequence[str]) -> Mapping[str, str]:
        """Names by id; a node that is not known is missing."""
        ...

    def current_epoch(self, conn: Connection, node_id: str, *, hold: bool = False) -> int:
        """Epoch of the node's newest stream; 0 when it never had one. With `hold` no other machine becomes the node
        before the transaction ends."""
        ...

    def epochs(self, conn: Connection, node_ids: Sequence[str]) -> Mapping[str, int]:
        """Epoch of each node's newest stream; a node that is not known is missing."""
        ...

    async def get(self, ref: str) -> NodeRecord:
        """One node by id or name; Refusal NOT_FOUND."""
        ...


class RowSeal(Protocol):
    """MACs of this room's rows (fleet_server.trust), over fields framed by `frame_fields`."""

    def compute_framed(self, framed: bytes) -> bytes:
        """MAC over the framed fields."""
        ...

    def verify_framed(self, mac: bytes, framed: bytes) -> bool:
        """Whether the MAC belongs to the framed fields; constant time."""
        ...


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything that the use cases of this room stand on."""

    database: Database
    clock: Clock
    wakeup: Wakeup
    audit: AuditService
    nodes: NodesPort
    metrics: CommandMetrics

    def past_ms(self) -> int:
        """What lies before it is past, whichever replica looks."""
        return self.database.clock.past_ms(self.clock)

    @property
    def shared(self) -> bool:
        """Whether other replicas may write to the database too."""
        return self.database.dialect != "sqlite"
