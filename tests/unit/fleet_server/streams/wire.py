"""A stream with everything around it in memory: its rooms are fakes, its frames and MACs are real."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from fleet.channel import FrameKeys, node_end
from fleet.envelope import Signer
from fleet.errors import Refusal
from fleet.metrics import Registry
from fleet.v1 import command_pb2, gateway_pb2, session_pb2, trust_pb2
from fleet_server.commands.delivery import Resumption
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.sessions.ratchet import Turn
from fleet_server.streams.frames import BadFrame
from fleet_server.streams.report_lane import HeldReports
from fleet_server.streams.rooms import Rooms
from fleet_server.streams.stream import Stream
from tests.fakes.clock import MockClock


class MemoryTransport:
    """The wire: what the node writes, what it reads, and a peer that can stop reading."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[gateway_pb2.NodeFrame | BadFrame | None] = asyncio.Queue()
        self.written: list[gateway_pb2.ServerFrame] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def read(self) -> gateway_pb2.NodeFrame | BadFrame | None:
        return await self.incoming.get()

    async def write(self, frame: gateway_pb2.ServerFrame) -> bool:
        await self.reads.wait()
        self.written.append(frame)
        return True


@dataclass
class FakeCommands:
    """The commands room: keeps what it is told, and may be away."""

    recorded: list[list[command_pb2.Report]] = field(default_factory=list)
    away: list[Refusal] = field(default_factory=list)
    told: list[tuple[str, Any]] = field(default_factory=list)
    unreconciled: list[Refusal] = field(default_factory=list)
    reconciled: list[bool] = field(default_factory=list)
    """For each call that succeeded, whether the journal was taken to be whole."""

    async def reconcile(self, node_id: str, epoch: int, last_accepted_seq: int, *, takeover: bool) -> Resumption:
        if self.unreconciled:
            raise self.unreconciled.pop(0)
        self.reconciled.append(takeover)
        return Resumption(last_accepted_seq, may_wait=True)

    async def claim_pending(self, node_id: str, epoch: int, **_: object) -> list[object]:
        return []

    async def pending_cancels(self, node_id: str, epoch: int) -> list[object]:
        return []

    def open_count(self, node_id: str) -> int:
        return 0

    async def record_reports(self, node_id: str, reports: list[command_pb2.Report]) -> None:
        if self.away:
            raise self.away.pop(0)
        self.recorded.append(list(reports))

    async def record_command_refused(self, node_id: str, epoch: int, refused: Any) -> None:
        if self.away:
            raise self.away.pop(0)
        self.told.append(("command_refused", refused))

    async def record_statement_refused(self, node_id: str, epoch: int, refused: Any) -> None:
        self.told.append(("statement_refused", refused))

    async def record_cancel_result(self, node_id: str, epoch: int, result: Any) -> None:
        self.told.append(("cancel_result", result))


@dataclass
class FakeNodes:
    """The nodes room: one node's row, and what its streams told."""

    row: Any
    alive: list[dict[str, int]] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    decisions: int = 0

    def now_ms(self) -> int:
        return 0

    async def get(self, ref: str) -> Any:
        return self.row

    async def mark_drained(self, node_id: str, epoch: int) -> bool:
        self.drained.append(node_id)
        return True

    async def note_bundle(self, node_id: str, epoch: int, applied: Any) -> None:
        return None

    def note_alive_nowait(self, node_id: str, **said: int) -> None:
        self.alive.append(said)


@dataclass
class FakeRotations:
    """What is ordered, and what the node said of it."""

    ordered: tuple[gateway_pb2.ServerControl, ...] = ()
    told: list[Any] = field(default_factory=list)

    async def orders(self, node_id: str) -> tuple[gateway_pb2.ServerControl, ...]:
        return self.ordered

    async def take_keys(self, node_id: str, epoch: int, statement: trust_pb2.Signed) -> gateway_pb2.NodeKeysTaken:
        self.told.append(statement)
        return gateway_pb2.NodeKeysTaken(taken=True, fingerprint=b"f" * 20)

    async def answered(self, node_id: str, epoch: int, answer: gateway_pb2.RotationAnswer) -> None:
        self.told.append(answer)


@dataclass
class FakeSessions:
    """The sessions room: challenges, and what it answers to proofs."""

    answers: list[Refusal | int] = field(default_factory=list)
    rotations: FakeRotations = field(default_factory=FakeRotations)

    def reauth_challenge(self, node_id: str, stream_id: str) -> bytes:
        return b"challenge"

    async def reauth(self, session: object, stream_id: str, proof: object) -> int:
        answer = self.answers.pop(0)
        if isinstance(answer, Refusal):
            raise answer
        return answer


@dataclass
class FakeTelemetry:
    """The telemetry room: keeps frames."""

    frames: list[bytes] = field(default_factory=list)
    ack: Any = None
    closed: int = 0

    def open_stream(self, node_id: str, epoch: int, ack: Any) -> "FakeTelemetry":
        self.ack = ack
        return self

    def ingest_nowait(self, raw: bytes) -> None:
        self.frames.append(raw)

    def close(self) -> None:
        self.closed += 1


@dataclass
class FakeNodeAudit:
    """Nodes' audits: keeps frames, and answers as told."""

    frames: list[tuple[list[gateway_pb2.AuditRow], bool]] = field(default_factory=list)
    answers: list[gateway_pb2.AuditAck] = field(default_factory=list)

    async def take(
        self, node_id: str, epoch: int, frame: gateway_pb2.AuditRows, *, opened_chain: int, sent_back: bool = False
    ) -> gateway_pb2.AuditAck:
        self.frames.append((list(frame.rows), sent_back))
        return self.answers.pop(0)


@dataclass
class FakeRoutes:
    """The routes room: one node's part, and what its streams told."""

    version: int = 0
    """Of the node's part; 0 while it has none."""
    leases: list[trust_pb2.Signed] = field(default_factory=list)
    concerned: bool = False
    asked: int = 0
    """Calls that a database would have to answer."""
    recorded: list[Any] = field(default_factory=list)
    noted: list[Any] = field(default_factory=list)
    away: list[Refusal] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, a call that records waits for it."""
    config_bytes: int = 10

    def __post_init__(self) -> None:
        self.open.set()

    def concerns(self, node_id: str) -> bool:
        return self.concerned

    async def snapshot(self, node_id: str) -> tuple[int, trust_pb2.Signed] | None:
        self.asked += 1
        statement = str(self.version).encode().rjust(self.config_bytes)
        return (self.version, trust_pb2.Signed(statement=statement)) if self.version else None

    async def leases_of(self, node_id: str) -> list[trust_pb2.Signed]:
        self.asked += 1
        return self.leases

    async def record(self, node_id: str, epoch: int, health: Any) -> None:
        self.asked += 1
        await self.open.wait()
        if self.away:
            raise self.away.pop(0)
        self.recorded.append(health)

    async def note_listener(self, node_id: str, epoch: int, listener: Any) -> None:
        self.asked += 1
        self.noted.append(listener)

    async def note_applied(self, node_id: str, epoch: int, applied: Any) -> None:
        self.asked += 1
        self.noted.append(applied)

    async def note_shown(self, node_id: str, epoch: int, version: int) -> None:
        self.asked += 1
        self.version = max(self.version, version + 1)

    async def note_lease(self, node_id: str, epoch: int, ack: Any) -> None:
        self.asked += 1
        self.noted.append(ack)


class Wire:
    """A running stream, and the node's end of it."""

    def __init__(
        self,
        clock: MockClock,
        *,
        node_id: str = "n",
        epoch: int = 1,
        takeover_of: str = "",
        unreconciled: Sequence[Refusal] = (),
        held_reports: HeldReports | None = None,
        routes: FakeRoutes | None = None,
        hello: gateway_pb2.HelloBody | None = None,
    ) -> None:
        keys = FrameKeys(b"a" * 32, b"b" * 32)
        self.sealer, self.opener = node_end(keys)
        self.clock = clock
        self.transport = MemoryTransport()
        row = SimpleNamespace(
            node_id=node_id,
            site="",
            state="ACTIVE",
            state_reason="",
            drain_state="NONE",
            drain_deadline_ms=0,
            enrolled_at_ms=0,
            stream_epoch=epoch,
            stream_id=f"{node_id}-{epoch}",
            takeover_of=takeover_of,
        )
        self.commands = FakeCommands(unreconciled=list(unreconciled))
        self.nodes, self.telemetry = FakeNodes(row), FakeTelemetry()
        self.sessions = FakeSessions()
        self.node_audit = FakeNodeAudit()
        self.routes = routes or FakeRoutes()
        signer = Signer.generate()
        self.trust = SimpleNamespace(
            cluster_id="c",
            bundle=SimpleNamespace(version=(1, 1)),
            bundle_chain_from=lambda generation, number: [trust_pb2.Signed(statement=b"bundle")],
            command_key_id=lambda site: signer.key_id,
        )
        self.metrics = ServerMetrics(Registry())
        body = gateway_pb2.HelloBody(max_in_flight=8, bundle_version=session_pb2.BundleVersion(generation=1, number=1))
        body.MergeFrom(hello or gateway_pb2.HelloBody())
        claim = SimpleNamespace(
            node=row,
            epoch=epoch,
            frame_keys=keys,
            binding=b"x" * 32,
            takeover_of=takeover_of,
            session=None,
            hello_body=body,
            session_expires_at_ms=clock.now_ms() + 900_000,
            decisions=0,
            turn=Turn(b"r" * 32, 0, 0),
            orders=(),
        )
        rooms = Rooms(
            commands=self.commands,  # type: ignore[arg-type]
            nodes=self.nodes,  # type: ignore[arg-type]
            sessions=self.sessions,  # type: ignore[arg-type]
            telemetry=self.telemetry,  # type: ignore[arg-type]
            trust=self.trust,  # type: ignore[arg-type]
            routes=self.routes,  # type: ignore[arg-type]
            node_audit=self.node_audit,  # type: ignore[arg-type]
            clock=clock,
            metrics=self.metrics,
            held_reports=held_reports or HeldReports(),
        )
        stream_id = f"{node_id}-{epoch}"
        self.stream = Stream(rooms, self.transport, claim, stream_id=stream_id, takeover_of=takeover_of)  # type: ignore[arg-type]
        self.stream.greet(gateway_pb2.Welcome(stream_id=stream_id))
        self.running = asyncio.create_task(self.stream.run())

    async def settle(self) -> None:
        """Let every task that can run do so."""
        for _ in range(40):
            await asyncio.sleep(0)

    async def say(self, **body: Any) -> None:
        """The node sends a control frame."""
        frame = self.sealer.seal(gateway_pb2.NodeControl(**body).SerializeToString())
        self.transport.incoming.put_nowait(gateway_pb2.NodeFrame(control=frame))
        await self.settle()

    async def raw(self, frame: gateway_pb2.NodeFrame | BadFrame | None) -> None:
        """The node sends a frame as it is; None is EOF."""
        self.transport.incoming.put_nowait(frame)
        await self.settle()

    def heard(self) -> list[gateway_pb2.ServerControl]:
        """What the server wrote since the last call, every MAC checked."""
        written, self.transport.written = self.transport.written, []
        return [gateway_pb2.ServerControl.FromString(self.opener.open(frame.control)) for frame in written]

    def kinds(self) -> list[str]:
        """Names of what the server wrote since the last call."""
        return [str(control.WhichOneof("body")) for control in self.heard()]

    async def wait_refusal(self) -> Refusal:
        """How the stream was refused."""
        try:
            await asyncio.wait_for(self.running, 5)
        except Refusal as refusal:
            return refusal
        raise AssertionError("the stream ended in order")
