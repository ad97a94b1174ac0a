"""The credentials of a stream's node: what is ordered about them, and what the node answers, brings and asks for."""

from __future__ import annotations

from collections.abc import Callable

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_server.sessions.claim import StreamClaim
from fleet_server.sessions.service import SessionService

_CERTIFICATE_EVERY_S = 60.0


class CredentialLane:
    """Tells a node what is ordered, and takes what it answers.

    Args:
        send: queues a control frame.
    """

    __slots__ = ("_certificate_from_s", "_clock", "_epoch", "_node_id", "_orders", "_send", "_sessions")

    def __init__(
        self,
        claim: StreamClaim,
        sessions: SessionService,
        clock: Clock,
        send: Callable[[gateway_pb2.ServerControl], None],
    ) -> None:
        self._node_id = claim.node.node_id
        self._epoch = claim.epoch
        self._orders = claim.orders
        self._sessions = sessions
        self._clock = clock
        self._send = send
        self._certificate_from_s = 0.0  # monotonic: no certificate before

    def start(self) -> None:
        """Say what was ordered when the stream was claimed."""
        for order in self._orders:
            self._send(order)

    async def refresh(self) -> None:
        """Say what is ordered now, when that is news."""
        orders = await self._sessions.rotations.orders(self._node_id)
        if orders != self._orders:
            self._orders = orders
            for order in orders:
                self._send(order)

    async def take(self, control: gateway_pb2.NodeControl) -> None:
        """Act on what the node says of its credentials.

        Raises:
            Refusal: MALFORMED for a second certificate within a minute, or what the sessions room refuses.
        """
        rotations = self._sessions.rotations
        if control.HasField("node_key_rotation"):
            taken = await rotations.take_keys(self._node_id, self._epoch, control.node_key_rotation)
            self._send(gateway_pb2.ServerControl(node_keys=taken))
        elif control.HasField("rotation_answer"):
            await rotations.answered(self._node_id, self._epoch, control.rotation_answer)
        else:
            await self._certify(control.certificate_request)

    async def _certify(self, request: gateway_pb2.CertificateRequest) -> None:
        now_s = self._clock.monotonic()
        if now_s < self._certificate_from_s:
            raise Refusal(Reason.MALFORMED, "a stream asks for a certificate once a minute at most: update the node")
        self._certificate_from_s = now_s + _CERTIFICATE_EVERY_S
        issued = await self._sessions.certificates.issue(self._node_id, self._epoch, request.public_key)
        self._send(gateway_pb2.ServerControl(certificate=issued))
