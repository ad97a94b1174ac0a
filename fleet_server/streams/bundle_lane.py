"""Trust bundles of one stream: the node is sent what leads from the one that it holds to the newest."""

from __future__ import annotations

from fleet.v1 import gateway_pb2, session_pb2
from fleet_server.streams import rules
from fleet_server.streams.command_lane import Send
from fleet_server.streams.pulse import Pulse
from fleet_server.trust.bundles import part
from fleet_server.trust.service import TrustService


class BundleLane:
    """A chain that one frame does not hold goes on once the node has taken what it was sent.

    Args:
        trust: knows the chain.
        pulse: keeps which bundle the node holds.
        send: queues a frame.
    """

    __slots__ = ("_again", "_more", "_pulse", "_send", "_trust")

    def __init__(self, trust: TrustService, pulse: Pulse, send: Send) -> None:
        self._trust = trust
        self._pulse = pulse
        self._send = send
        self._again = (0, 0), 0  # which bundle was sent for a refused statement, and how often
        self._more = False

    def offer(self) -> None:
        """Send what the node lacks."""
        self._offer(self._pulse.bundle_version)

    def refused(self, held: session_pb2.BundleVersion) -> None:
        """The node refused a statement, and holds that bundle."""
        newest = self._trust.bundle.version
        again = self._again[1] if self._again[0] == newest else 0
        if again < rules.MAX_RESENDS:  # one that refuses on and reads nothing would be queued copies without end
            self._again = newest, again + 1
            self._offer(held)

    def applied(self, applied: gateway_pb2.BundleApplied) -> None:
        """The node told which bundle it holds now."""
        held = self._pulse.bundle_version
        self._pulse.holds(applied.version)
        if self._more and (applied.version.generation, applied.version.number) > (held.generation, held.number):
            self._offer(applied.version)

    def _offer(self, held: session_pb2.BundleVersion) -> None:
        self._pulse.holds(held)
        if (held.generation, held.number) < self._trust.bundle.version:
            chain = self._trust.bundle_chain_from(held.generation, held.number)
            frame = gateway_pb2.ServerControl(trust_bundle=gateway_pb2.TrustBundles(bundles=part(chain)))
            self._more = len(frame.trust_bundle.bundles) < len(chain)
            self._send(frame, frame.ByteSize())
