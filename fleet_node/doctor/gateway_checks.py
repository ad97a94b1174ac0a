"""Checks of what only the gateway can tell: credentials, handshake, clock, stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fleet import trust as trust_rules
from fleet.clock import Clock, ServerTime
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.sequence import StreamContext
from fleet.trust import TrustState
from fleet.v1 import command_pb2, gateway_pb2, session_pb2, trust_pb2
from fleet_node.commands.opening import JournalFacts
from fleet_node.doctor.finding import Finding, fail, ok, warn
from fleet_node.enrollment.membership import Membership
from fleet_node.link.caller import GatewayCaller, open_caller
from fleet_node.link.connection import Connection, Ports, SelfDescription
from fleet_node.link.handshake import Session, handshake
from fleet_node.link.ports import HelloCounters, Uplink
from fleet_node.status.view import what_to_do

_CREDENTIAL_REASONS = (
    Reason.UNKNOWN_CREDENTIAL,
    Reason.NOT_APPROVED,
    Reason.REJECTED,
    Reason.REVOKED,
    Reason.SUSPENDED,
    Reason.QUARANTINED,
)
_CLOCK_WARN_MS = 5_000


class LookOnlyTrust:
    """Implements `TrustPort` and keeps what it takes in memory: the file belongs to the daemon."""

    def __init__(self, state: TrustState) -> None:
        self.state = state

    async def offer(self, bundles: Sequence[trust_pb2.Signed]) -> gateway_pb2.BundleApplied:
        """See `TrustPort`."""
        reason = ""
        try:
            self.state = trust_rules.walk(self.state, bundles)
        except trust_rules.TrustError as error:
            reason = f"{error.reason}: {error.detail}"
        generation, number = self.state.version
        version = session_pb2.BundleVersion(generation=generation, number=number)
        return gateway_pb2.BundleApplied(version=version, applied=not reason, reason=reason)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who knocks."""

    membership: Membership
    keys: NodeKeys
    trust: LookOnlyTrust


_WRONG_LISTENER = "is this the server's gateway_listen? Its admin_listen (7444 by default) is for operators"


@dataclass(slots=True)
class Met:
    """A gateway that took the handshake. Close the caller."""

    caller: GatewayCaller
    session: Session
    server_time: ServerTime


async def meet(endpoint: str, who: Identity, clock: Clock) -> tuple[list[Finding], Met | None]:
    """Authenticate to one gateway and let it authenticate itself; opens no stream."""
    server_time = ServerTime(clock)
    caller: GatewayCaller | None = None
    try:
        caller = await open_caller((endpoint,), who.trust.state.tls_ca_der or (who.membership.tls_ca_der,))
        session = await handshake(
            caller, membership=who.membership, keys=who.keys, trust=who.trust, server_time=server_time
        )
    except Refusal as refusal:
        if caller is not None:
            await caller.close()
        check = "credentials" if refusal.reason in _CREDENTIAL_REASONS else "handshake"
        detail = f"{refusal.reason}: {refusal.detail}"
        step = _WRONG_LISTENER if refusal.reason is Reason.UNAVAILABLE else what_to_do(str(refusal.reason))
        return [fail(check, detail, step, endpoint=endpoint)], None
    findings = [
        ok("credentials", "the server knows this node's api_key", endpoint=endpoint),
        ok("handshake", "both sides proved who they are", endpoint=endpoint),
        _check_clock(server_time.offset_ms(), endpoint),
    ]
    return findings, Met(caller, session, server_time)


async def check_stream(
    met: Met, who: Identity, *, about: SelfDescription, journal: JournalFacts, clock: Clock
) -> AsyncIterator[Finding]:
    """Open a stream and close it with a goodbye. Only while no daemon runs: it would take the daemon's place."""
    endpoint = met.caller.endpoint
    connection = Connection(
        caller=met.caller,
        session=met.session,
        membership=who.membership,
        keys=who.keys,
        ports=Ports(commands=_LookOnlyCommands(journal), telemetry=_NoTelemetry(), trust=who.trust),
        about=about,
        clock=clock,
        server_time=met.server_time,
    )
    try:
        await connection.open("")
    except Refusal as refusal:
        detail = f"{refusal.reason}: {refusal.detail}"
        yield fail("stream", detail, what_to_do(str(refusal.reason)), endpoint=endpoint)
        return
    connection.leave("SHUTDOWN")
    await connection.run()
    welcome = connection.welcome
    yield ok("stream", f"welcomed by {welcome.replica_id} (epoch {welcome.stream_epoch}), and left", endpoint=endpoint)
    if welcome.drained:
        yield warn("drained", "the server holds this node drained", "`fleetctl resume node` lets it work again")


def _check_clock(offset_ms: int, endpoint: str) -> Finding:
    shown = f"this machine is {abs(offset_ms)} ms {'ahead of' if offset_ms >= 0 else 'behind'} the server"
    if abs(offset_ms) > _CLOCK_WARN_MS:
        remedy = "set the clock (NTP): expiry follows the server's, but certificates and logs follow this one"
        return warn("clock", shown, remedy, endpoint=endpoint)
    return ok("clock", shown, endpoint=endpoint)


class _LookOnlyCommands:
    """Implements `CommandPort` and `CommandStream`: says what the journal says and takes nothing. What the server sends
    meanwhile it sends again on the next stream, since nobody accepted it."""

    def __init__(self, journal: JournalFacts) -> None:
        self._journal = journal

    def hello(self) -> HelloCounters:
        """See `CommandPort`."""
        return HelloCounters(
            last_accepted_seq=self._journal.last_accepted_seq,
            first_report_no=self._journal.unacknowledged[0] if self._journal.unacknowledged else 0,
            last_report_no=self._journal.last_report_no,
            drained=False,
            max_in_flight=1,
        )

    def opened(self, context: StreamContext, welcome: gateway_pb2.Welcome, uplink: Uplink) -> _LookOnlyCommands:
        """See `CommandPort`."""
        return self

    def acked(self, report_no: int) -> None:
        """See `CommandPort`."""

    def drain(self, order: gateway_pb2.DrainNode) -> None:
        """See `CommandPort`."""

    async def command_frame(self, frame: command_pb2.CommandFrame) -> None:
        """See `CommandStream`."""

    async def cancel_frame(self, frame: command_pb2.CancelFrame) -> None:
        """See `CommandStream`."""

    def next_reports(self, max_count: int = 0, max_bytes: int = 0) -> list[command_pb2.Report]:
        """See `CommandStream`."""
        return []

    def close(self) -> None:
        """See `CommandStream`."""


class _NoTelemetry:
    """Implements `TelemetryPort` and `TelemetryStream`: has none."""

    last_batch_seq = 0

    def opened(self, max_batch_bytes: int, uplink: Uplink) -> _NoTelemetry:
        """See `TelemetryPort`."""
        return self

    def acked(self, batch_seq: int) -> None:
        """See `TelemetryPort`."""

    def next_batch(self) -> bytes | None:
        """See `TelemetryStream`."""
        return None

    def close(self) -> None:
        """See `TelemetryStream`."""
