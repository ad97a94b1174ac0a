"""What the link and the rooms behind it ask of each other.

The link owns connections, frames and their MACs; a room owns what the frames are about. A room never imports the link's
machinery and the link never imports a room: the program hands each the other through these protocols. Everything here
is called on the event loop, and whatever is not a coroutine returns at once.

One stream, one object: `CommandStream`, `RouteStream` and `TelemetryStream` belong to the stream they were opened for.
Opening the next one takes over at once, while the older stream may still live: its statements are ignored from then on,
its acknowledgements still count (docs/protocol.md, "Commands").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fleet.node_audit import JSON, NodeAuditKind
from fleet.people import People
from fleet.sequence import StreamContext
from fleet.trust import TrustState
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet_node.link.ratchet import Ratchet

if TYPE_CHECKING:
    from fleet_node.link.mutual_tls import MutualTls

MAX_REPORTS_PER_FRAME = 256
MAX_REPORT_FRAME_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class HelloCounters:
    """What `hello` says of commands; read it when the hello is built, right before it is sent.

    Args:
        last_accepted_seq: highest seq in the journal.
        first_report_no: first report that is not acknowledged; 0 when none waits.
        last_report_no: highest report_no given out.
        drained: the node takes no new work.
        max_in_flight: most commands that the server may have sent without an answer.
        audit_chain: that the node writes; 0 is its first.
        audit_number: its newest row.
    """

    last_accepted_seq: int
    first_report_no: int
    last_report_no: int
    drained: bool
    max_in_flight: int
    audit_chain: int = 0
    audit_number: int = 0


class Uplink(Protocol):
    """A welcomed stream as a room sees it. Its calls return at once, and do nothing once the stream has ended."""

    def send_control(self, control: gateway_pb2.NodeControl) -> None:
        """Queue `control` in the lane that goes before everything else."""
        ...

    def wake(self) -> None:
        """Tell that the room's `next_reports` or `next_batch` has more to give."""
        ...

    def renew(self) -> None:
        """Have a new stream take over: what lives as long as this one is full. Later calls change nothing."""
        ...


class CommandStream(Protocol):
    """Commands of one welcomed stream."""

    async def command_frame(self, frame: command_pb2.CommandFrame) -> None:
        """Take a statement: verify, judge, journal, start what may run.

        Returns when it is durable, and waits while the node's queue of commands is full: a reader that awaited it would
        go deaf to pings. Give it a task that takes statements in order. Statements are taken one after the other, in
        the order of the calls. Refusals (`statement_refused`, `command_refused`) go out through the uplink; nothing is
        raised.
        """
        ...

    async def cancel_frame(self, frame: command_pb2.CancelFrame) -> None:
        """Take a cancel. The answer goes out through the uplink; nothing is raised.

        Call it at once, also while `command_frame` waits: a cancel that overtakes its command leaves a tombstone.
        """
        ...

    async def floor_frame(self, signed: trust_pb2.Signed) -> None:
        """Take a floor: every seq up to it lies behind this node. What does not verify is logged; nothing is raised."""
        ...

    def next_reports(
        self, max_count: int = MAX_REPORTS_PER_FRAME, max_bytes: int = MAX_REPORT_FRAME_BYTES
    ) -> list[bytes]:
        """The next reports of this stream, each a serialised `Report`, in report_no order and each once; the first that
        this stream gives out is the first that is not acknowledged.

        Empty when there is nothing now, or when a newer stream took over; the uplink is woken when there is more.
        """
        ...

    def next_audit(self) -> bytes | None:
        """The next rows of the node's audit chain as a serialised `NodeControl`, once the rows given out before are
        acknowledged; None when there is nothing now, or a newer stream took over. The uplink is woken when there is
        more."""
        ...

    def close(self) -> None:
        """The stream has ended. What it gave out and nobody acknowledged goes out again on the next one."""
        ...


class CommandPort(Protocol):
    """The commands room."""

    def hello(self) -> HelloCounters:
        """Counters for the hello of the next stream."""
        ...

    def opened(self, context: StreamContext, welcome: gateway_pb2.Welcome, uplink: Uplink) -> CommandStream:
        """A stream was welcomed: it is the newest now.

        The first one of this process lets what the journal holds run again: nothing from the journal runs before.
        `welcome.drained` counts as a `DrainNode`.
        """
        ...

    def acked(self, report_no: int) -> None:
        """The server committed every report up to `report_no`; from any stream of this node."""
        ...

    def audit_acked(self, ack: gateway_pb2.AuditAck) -> None:
        """How far the server has the audit, and when it takes more; from any stream of this node."""
        ...

    def drain(self, order: gateway_pb2.DrainNode) -> None:
        """Take no new work, or take it again; progress and the end go out as `drained` through the newest uplink."""
        ...


class TelemetryStream(Protocol):
    """Telemetry of one welcomed stream, with its own dictionary of series."""

    def next_batch(self) -> bytes | None:
        """The next serialised `TelemetryBatch`, each once and in batch_seq order, the first one not acknowledged first;
        None when there is nothing now or a newer stream took over. The uplink is woken when there is more."""
        ...

    def close(self) -> None:
        """The stream has ended. What nobody acknowledged goes out again on the next one."""
        ...


class TelemetryPort(Protocol):
    """The telemetry room."""

    @property
    def last_batch_seq(self) -> int:
        """Highest batch_seq given out so far, for the hello."""
        ...

    def opened(self, max_batch_bytes: int, uplink: Uplink) -> TelemetryStream:
        """A stream was welcomed: it is the newest now, and takes batches of at most `max_batch_bytes`."""
        ...

    def acked(self, batch_seq: int) -> None:
        """The server stored, or was told of the loss of, every batch up to `batch_seq`; from any stream."""
        ...


class RouteStream(Protocol):
    """Routes of one welcomed stream."""

    async def config_frame(self, signed: trust_pb2.Signed) -> None:
        """Take a config snapshot: judge, keep, apply. The answer, `config_applied`, goes out through the uplink;
        nothing is raised."""
        ...

    async def lease_frame(self, signed: trust_pb2.Signed) -> None:
        """Take a lease. The answer, `lease_ack`, goes out through the uplink; nothing is raised."""
        ...

    def next_health(self) -> bytes | None:
        """What was found since the last call, as a serialised `NodeControl`; None when that is nothing, or a newer
        stream took over. The uplink is woken when there is more."""
        ...

    def close(self) -> None:
        """The stream has ended. What is found until the next one is kept within bounds, and said there."""
        ...


class RoutePort(Protocol):
    """The routes room."""

    @property
    def config_version(self) -> int:
        """Version of the config snapshot in force, for the hello; 0 when there is none that the authority in force
        signed."""
        ...

    @property
    def probe_listener(self) -> gateway_pb2.ProbeListener | None:
        """Where peers reach this node's Probe service, for the hello; None when it has none."""
        ...

    def opened(self, uplink: Uplink) -> RouteStream:
        """A stream was welcomed: it is the newest now."""
        ...


class TrustPort(Protocol):
    """The node's trust bundle."""

    @property
    def state(self) -> TrustState:
        """The verified bundle in force."""
        ...

    async def offer(self, bundles: Sequence[trust_pb2.Signed]) -> gateway_pb2.BundleApplied:
        """Judge a chain, oldest first; returns what to tell the server once the newest good one is durable."""
        ...


class PeoplePort(Protocol):
    """What the node verified of the people who may decide about protected actions."""

    @property
    def people(self) -> People:
        """Owner, policy and grants; another object whenever something of it is new."""
        ...

    @property
    def latest_signed_ms(self) -> int:
        """The latest time of issue of anything that owners signed and this node took, Unix milliseconds; it never goes
        back."""
        ...


class AuditPort(Protocol):
    """The node's own audit."""

    def audit(self, kind: NodeAuditKind, **detail: JSON) -> None:
        """Append a row; it is durable soon after, and never lost silently."""
        ...


class KeyAuditPort(Protocol):
    """The node's own audit, for key events and for refusals that a server can repeat."""

    def tell(self, kind: NodeAuditKind, **detail: JSON) -> None:
        """Append a row."""
        ...

    def refuse(self, kind: NodeAuditKind, reason: str, **detail: JSON) -> None:
        """Something was refused: a row at once, and of those that are alike at most one in ten minutes, with their
        `count`. Alike are those of one kind, `subject` and reason; the row has the detail of the latest."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """The rooms behind the link."""

    commands: CommandPort
    telemetry: TelemetryPort
    trust: TrustPort
    ratchet: Ratchet
    mutual_tls: MutualTls | None = None
    routes: RoutePort | None = None
