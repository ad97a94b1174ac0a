"""Checks of what only the gateway can tell: credentials, handshake, clock, stream. None of them claims anything: they
may run beside the daemon, and on a copy of its state folder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from fleet import trust as trust_rules
from fleet.clock import Clock, ServerTime
from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet.trust import TrustState
from fleet.v1 import gateway_pb2, session_pb2, trust_pb2
from fleet_node.doctor.finding import Finding, fail, ok, warn
from fleet_node.link.caller import GatewayCaller, open_caller
from fleet_node.link.credentials import Credentials, Shown
from fleet_node.link.handshake import Session, handshake
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
_STREAM_TIMEOUT_S = 10.0
REMEDIES = {  # of what the node's own messages send to the doctor for
    Reason.BAD_PROOF: "if it is this node's proof, put its own state folder back, or enroll again with an empty one; if"
    " it is the server's, this is another installation, or something in between poses as it",
    Reason.WRONG_CERTIFICATE: "something in between ends TLS under a certificate of the pinned CA: let traffic to the"
    " gateway pass untouched, or name that certificate in the server's `tls_terminator_leaf_sha256`",
    Reason.UNAVAILABLE: "the way there is open, and the gateway does not answer: look at its log, or whether a proxy in"
    " between lets gRPC through",
    Reason.INTERNAL: "whoever runs the server finds the incident in its log; the node comes back by itself",
}


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

    credentials: Credentials
    trust: LookOnlyTrust


_WRONG_LISTENER = "is this the server's gateway_listen? Its admin_listen (7444 by default) is for operators"


@dataclass(slots=True)
class Met:
    """A gateway that took the handshake. Close the caller."""

    caller: GatewayCaller
    session: Session
    api_key: Secret[str]


async def meet(endpoint: str, who: Identity, clock: Clock) -> tuple[list[Finding], Met | None]:
    """Authenticate to one gateway and let it authenticate itself; opens no stream."""
    server_time = ServerTime(clock)
    shown = who.credentials.first()
    try:
        caller = await open_caller((endpoint,), who.trust.state.tls_ca_der or (shown.membership.tls_ca_der,))
    except Refusal as refusal:
        return [_refused("handshake", refusal, endpoint)], None
    try:
        shown, session = await _shake_hands(caller, who, shown, server_time)
    except BaseException as error:
        await caller.close()
        if not isinstance(error, Refusal):
            raise
        check = "credentials" if error.reason in _CREDENTIAL_REASONS else "handshake"
        return [_refused(check, error, endpoint)], None
    findings = [
        ok("credentials", "the server knows this node's api_key", endpoint=endpoint),
        ok("handshake", "both sides proved who they are", endpoint=endpoint),
        _check_clock(server_time.offset_ms(), endpoint),
    ]
    return findings, Met(caller, session, shown.membership.api_key)


async def _shake_hands(
    caller: GatewayCaller, who: Identity, shown: Shown, server_time: ServerTime
) -> tuple[Shown, Session]:
    """With whichever credentials the server knows: a rotation may be under way."""
    while True:
        try:
            return shown, await handshake(
                caller, membership=shown.membership, keys=shown.keys, trust=who.trust, server_time=server_time
            )
        except Refusal as refusal:
            another = who.credentials.after_refusal(shown, refusal.reason)
            if another is None:
                raise
            shown = another


async def check_stream(met: Met) -> Finding:
    """Whether streams pass both ways: open one, send a frame that is no hello, and hear that said.

    A hello would take the node's place: its stream would get the newest epoch, and end the one of a daemon that runs on
    another machine with the same keys. Before it nothing is claimed (docs/protocol.md, "Session").
    """
    endpoint = met.caller.endpoint
    call = met.caller.connect(met.session.metadata(met.api_key))
    try:
        async with asyncio.timeout(_STREAM_TIMEOUT_S):
            await call.write(gateway_pb2.NodeFrame())
            refusal = await met.caller.stream_failure(call)
    except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        refusal = await met.caller.stream_failure(call) if call.done() else None
        if refusal is None:
            remedy = "a proxy or load balancer in between holds streams back: it must pass gRPC streams on as they come"
            return fail("stream", f"no answer on a stream within {_STREAM_TIMEOUT_S:g} s", remedy, endpoint=endpoint)
    finally:
        call.cancel()
    if refusal is None:
        detail = "the other end closed the stream without a word"
        return fail("stream", detail, "is this a gateway, and of what version?", endpoint=endpoint)
    if refusal.reason is not Reason.MALFORMED:
        return _refused("stream", refusal, endpoint)
    return ok("stream", "streams pass both ways; it was left before its hello and claimed nothing", endpoint=endpoint)


def _refused(check: str, refusal: Refusal, endpoint: str) -> Finding:
    remedy = REMEDIES.get(refusal.reason) or what_to_do(str(refusal.reason))
    return fail(check, f"{refusal.reason}: {refusal.detail}", remedy, endpoint=endpoint)


def _check_clock(offset_ms: int, endpoint: str) -> Finding:
    shown = f"this machine is {abs(offset_ms)} ms {'ahead of' if offset_ms >= 0 else 'behind'} the server"
    if abs(offset_ms) > _CLOCK_WARN_MS:
        remedy = "set the clock (NTP): expiry follows the server's, but certificates and logs follow this one"
        return warn("clock", shown, remedy, endpoint=endpoint)
    return ok("clock", shown, endpoint=endpoint)
