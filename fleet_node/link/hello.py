"""The hello of a stream: what the node says of itself, bound to its session by the node's identity key
(docs/protocol.md, "Session")."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from fleet.clock import Clock
from fleet.envelope import Domain
from fleet.v1 import gateway_pb2, session_pb2
from fleet_node.link.credentials import Shown
from fleet_node.link.handshake import Session
from fleet_node.link.ports import Ports


@dataclass(frozen=True, slots=True)
class SelfDescription:
    """What the hello says of this process."""

    software_version: str
    labels: dict[str, str]
    drivers: list[gateway_pb2.DriverDescriptor]
    boot_id: bytes


def make_hello(
    ports: Ports, about: SelfDescription, *, session: Session, shown: Shown, clock: Clock, takeover_of: str
) -> tuple[gateway_pb2.Hello, bytes]:
    """The first frame of a stream, and the SHA-256 of its statement, which binds commands to the stream.

    Args:
        ports: the rooms, asked for what they have at this moment.
        takeover_of: stream that this one takes over from; empty when there is none.
    """
    body = _body(ports, about, clock).SerializeToString()
    statement = session_pb2.StreamStatement(
        session_token_sha256=session.token_sha256,
        node_id=shown.membership.node_id,
        cluster_id=shown.membership.cluster_id,
        nonce=secrets.token_bytes(32),
        ratchet=ports.ratchet.value,
        takeover_of=takeover_of,
        hello_sha256=hashlib.sha256(body).digest(),
    ).SerializeToString()
    proof = shown.keys.identity.sign(Domain.STREAM, statement)
    return gateway_pb2.Hello(proof=proof, body=body), hashlib.sha256(statement).digest()


def _body(ports: Ports, about: SelfDescription, clock: Clock) -> gateway_pb2.HelloBody:
    counters = ports.commands.hello()
    generation, number = ports.trust.state.version
    body = gateway_pb2.HelloBody(
        software_version=about.software_version,
        protocol_version=1,
        last_accepted_seq=counters.last_accepted_seq,
        first_report_no=counters.first_report_no,
        last_report_no=counters.last_report_no,
        bundle_version=session_pb2.BundleVersion(generation=generation, number=number),
        labels=about.labels,
        drivers=about.drivers,
        max_in_flight=counters.max_in_flight,
        node_time_ms=clock.now_ms(),
        last_batch_seq=ports.telemetry.last_batch_seq,
        drained=counters.drained,
        boot_id=about.boot_id,
        audit_chain=counters.audit_chain,
        audit_number=counters.audit_number,
    )
    if ports.routes is not None:
        body.config_version = ports.routes.config_version
        if (listener := ports.routes.probe_listener) is not None:
            body.probe_listener.CopyFrom(listener)
    return body
