"""One stream of a node to a gateway in the wrong hands (`tests.fakes.rogue`), driven by the test."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.channel import ChannelError, FrameKeys, server_end
from fleet.envelope import Domain, Signer
from fleet.tls_certificates import CertifiedKey
from fleet.v1 import command_pb2, gateway_pb2, session_pb2, telemetry_pb2, trust_pb2
from tests.fakes.served import WAIT_TIMEOUT_S, now_ms
from tests.fakes.watch import Watch

COMMAND_TTL_MS = 60_000
FINAL_STATES = frozenset(
    {
        command_pb2.COMMAND_STATE_SUCCEEDED,
        command_pb2.COMMAND_STATE_FAILED,
        command_pb2.COMMAND_STATE_EXPIRED,
        command_pb2.COMMAND_STATE_CANCELLED,
        command_pb2.COMMAND_STATE_REJECTED,
        command_pb2.COMMAND_STATE_INTERRUPTED,
    }
)


def command(action: str, seq: int, arguments: bytes = b"", **changes: Any) -> command_pb2.Command:
    """A command with a fresh id, good for a minute; `changes` replaces any of its fields."""
    issued_ms = now_ms()
    made: dict[str, Any] = {
        "command_id": os.urandom(16),
        "monotonic_seq": seq,
        "actor": "rogue",
        "issued_at_ms": issued_ms,
        "not_after_ms": issued_ms + COMMAND_TTL_MS,
        "action": action,
        "arguments": arguments,
    }
    return command_pb2.Command(**(made | changes))


def tampered(signed: trust_pb2.Signed, change: Callable[[command_pb2.CommandStatement], object]) -> trust_pb2.Signed:
    """`signed` with its statement changed and its signature left as it was."""
    statement = command_pb2.CommandStatement.FromString(signed.statement)
    change(statement)
    return trust_pb2.Signed(statement=statement.SerializeToString(), signatures=signed.signatures)


@dataclass(frozen=True, slots=True, repr=False)
class StolenTrust:
    """What whoever took the server holds.

    Args:
        cluster_id: the cluster.
        authority: signs the server's half of the handshake.
        command_key: signs commands and cancels.
        leaf: TLS certificate and key that nodes accept.
        bundles: handed out by BeginHandshake and GetTrustChain, oldest first.
    """

    cluster_id: str
    authority: Signer
    command_key: Signer
    leaf: CertifiedKey
    bundles: tuple[trust_pb2.Signed, ...] = ()


@dataclass(eq=False)
class RogueStream:
    """One welcomed stream of a node, driven by the test."""

    trust: StolenTrust
    node_id: str
    binding: bytes
    """SHA-256 of the node's stream proof: what statements for this stream name."""
    hello: gateway_pb2.HelloBody
    welcome: gateway_pb2.Welcome
    proof: session_pb2.StreamStatement
    keys: FrameKeys
    acknowledges: bool = True
    sent_seq: int = 0
    """Highest seq sent on this stream; the next statement's `prev_seq`."""
    received: list[gateway_pb2.NodeControl] = field(default_factory=list)
    """Every control of the node so far, taken or not."""
    batches: list[telemetry_pb2.TelemetryBatch] = field(default_factory=list)
    ended: bool = False
    fault: ChannelError | None = None
    """Why a frame of the node was not taken; nothing after it is read."""
    _untaken: list[gateway_pb2.NodeControl] = field(default_factory=list)
    _outgoing: asyncio.Queue[gateway_pb2.ServerFrame | None] = field(default_factory=asyncio.Queue)
    _watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self._sealer, self._opener = server_end(self.keys)
        self.sent_seq = self.hello.last_accepted_seq

    # -- what the server says ---------------------------------------------------------------------------------------
    def send(self, **body: Any) -> None:
        """Send a `ServerControl` with that body, such as `ping=Ping(number=1)`, under a good MAC."""
        self.send_frame(self.sealed(**body))

    def sealed(self, **body: Any) -> gateway_pb2.ServerFrame:
        """The next control frame, not sent: to withhold, repeat or spoil."""
        control = gateway_pb2.ServerControl(**body)
        return gateway_pb2.ServerFrame(control=self._sealer.seal(control.SerializeToString()))

    def send_frame(self, frame: gateway_pb2.ServerFrame) -> None:
        """Send a frame as it is."""
        self._outgoing.put_nowait(frame)

    def statement(self, commands: Sequence[command_pb2.Command], **changes: Any) -> command_pb2.CommandStatement:
        """A true statement for this stream; `changes` replaces any of its fields."""
        made: dict[str, Any] = {
            "cluster_id": self.trust.cluster_id,
            "node_id": self.node_id,
            "stream_binding": self.binding,
            "lease_epoch": self.welcome.stream_epoch,
            "prev_seq": self.sent_seq,
            "signed_at_ms": now_ms(),
            "commands": commands,
        }
        return command_pb2.CommandStatement(**(made | changes))

    def send_statement(
        self,
        commands: Sequence[command_pb2.Command],
        *,
        signer: Signer | None = None,
        domain: Domain = Domain.COMMAND,
        **changes: Any,
    ) -> trust_pb2.Signed:
        """Sign and send commands; what was sent, so that it can be sent again.

        Args:
            commands: in the order in which they shall stand.
            signer: the stolen command key unless given.
            domain: what the signature is for.
            changes: fields of the statement to get wrong.
        """
        statement = self.statement(commands, **changes).SerializeToString()
        signed = (signer or self.trust.command_key).sign(domain, statement)
        self.send_signed(signed)
        if commands:
            self.sent_seq = max(self.sent_seq, commands[-1].monotonic_seq)
        return signed

    def send_signed(self, signed: trust_pb2.Signed) -> None:
        """Send a signed statement as it is: captured, tampered with, or foreign."""
        self.send(commands=command_pb2.CommandFrame(signed=signed))

    def send_cancel(
        self,
        order: command_pb2.Command,
        *,
        signer: Signer | None = None,
        domain: Domain = Domain.CANCEL,
        **changes: Any,
    ) -> trust_pb2.Signed:
        """Sign and send a cancel of `order`."""
        made: dict[str, Any] = {
            "cluster_id": self.trust.cluster_id,
            "node_id": self.node_id,
            "stream_binding": self.binding,
            "command_id": order.command_id,
            "monotonic_seq": order.monotonic_seq,
            "actor": "rogue",
        }
        statement = command_pb2.CancelStatement(**(made | changes)).SerializeToString()
        signed = (signer or self.trust.command_key).sign(domain, statement)
        self.send(cancel=command_pb2.CancelFrame(signed=signed))
        return signed

    def end(self) -> None:
        """End the stream in order, after what was sent so far."""
        self._outgoing.put_nowait(None)

    # -- what the node says -----------------------------------------------------------------------------------------
    async def wait_control(
        self,
        kind: str,
        where: Callable[[Any], bool] = lambda _: True,
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> Any:
        """Take the first control of that kind, past or coming, that nobody took yet; its body.

        Args:
            kind: a field of `NodeControl`, such as "statement_refused".
            where: which body, when not the first.

        Raises:
            TimeoutError: none came; the text lists what did.
        """

        def found() -> gateway_pb2.NodeControl | None:
            for control in self._untaken:
                if control.WhichOneof("body") == kind and where(getattr(control, kind)):
                    return control
            return None

        await self._watch.wait_until(
            lambda: found() is not None, lambda: f"no {kind} from the node; it said {self.said()}", timeout_s
        )
        control = found()
        assert control is not None
        self._untaken.remove(control)
        return getattr(control, kind)

    async def wait_report(
        self,
        order: command_pb2.Command,
        states: frozenset[command_pb2.CommandState.ValueType] = FINAL_STATES,
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> command_pb2.Report:
        """The first report about `order` in one of `states` on this stream, past or coming; nothing is taken."""

        def reported() -> list[command_pb2.Report]:
            return [report for report in self.reports(order) if report.state in states]

        await self._watch.wait_until(
            lambda: bool(reported()), lambda: f"no such report from the node; it said {self.said()}", timeout_s
        )
        return reported()[0]

    def reports(self, order: command_pb2.Command) -> list[command_pb2.Report]:
        """Every report about `order` on this stream, in order, repeats among them."""
        return [
            report
            for control in self.received
            for report in control.reports.reports
            if report.command_id == order.command_id
        ]

    def said(self) -> list[str]:
        """Kinds of the controls so far, for messages."""
        return [str(control.WhichOneof("body")) for control in self.received]

    async def wait_ended(self, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once the node or the network ended the stream."""
        await self._watch.wait_until(lambda: self.ended, lambda: "the stream is still open", timeout_s)

    # -- for the gateway --------------------------------------------------------------------------------------------
    async def frames(self) -> AsyncIterator[gateway_pb2.ServerFrame]:
        """What is to be written, until the stream ends."""
        while (frame := await self._outgoing.get()) is not None:
            yield frame

    def take(self, frame: gateway_pb2.NodeFrame) -> None:
        """A frame of the node arrived.

        Raises:
            ChannelError: its MAC or counter is wrong.
        """
        if frame.WhichOneof("frame") == "telemetry":
            batch = telemetry_pb2.TelemetryBatch.FromString(frame.telemetry)
            self.batches.append(batch)
            if self.acknowledges:
                self.send(telemetry_ack=telemetry_pb2.TelemetryAck(batch_seq=batch.batch_seq))
        else:
            control = gateway_pb2.NodeControl.FromString(self._opener.open(frame.control))
            self.received.append(control)
            self._untaken.append(control)
            if self.acknowledges and control.reports.reports:
                ack = command_pb2.ResultAck(report_no=control.reports.reports[-1].report_no)
                self.send(result_ack=ack)
            if self.acknowledges and control.audit.rows:
                ack_of = gateway_pb2.AuditAck(number=control.audit.rows[-1].number, chain=control.audit.chain)
                self.send(audit_ack=ack_of)
        self._watch.changed()

    def note_ended(self, fault: ChannelError | None = None) -> None:
        """The call is over."""
        self.ended = True
        self.fault = self.fault or fault
        self._outgoing.put_nowait(None)
        self._watch.changed()
