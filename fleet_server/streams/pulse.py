"""What liveness knows of one stream: traffic, pings, pongs, the session's end, and the trust bundle that the node
holds."""

from __future__ import annotations

from fleet.v1 import session_pb2
from fleet_server.streams import rules


class Pulse:
    """Counts pings of one stream, and the beats that needed none.

    Args:
        session_expires_at_ms: Unix milliseconds at which the session ends unless it is renewed.
        bundle_version: what the node said in its hello.
    """

    __slots__ = (
        "_pings",
        "_pong",
        "_sent_at",
        "_told_interval_ms",
        "_told_round_trip",
        "_unpinged_beats",
        "bundle_version",
        "heard",
        "last_rtt_us",
        "reauth_asked",
        "session_expires_at_ms",
        "spoke",
    )

    def __init__(self, session_expires_at_ms: int, bundle_version: session_pb2.BundleVersion) -> None:
        self.heard = False
        """Whether a frame came in since the last beat."""
        self.spoke = False
        """Whether a control frame other than a ping was written since the last beat."""
        self.session_expires_at_ms = session_expires_at_ms
        self.reauth_asked = False
        self.last_rtt_us = 0
        self.holds(bundle_version)
        self._pings = 0
        self._pong = 0
        self._sent_at = 0.0
        self._told_interval_ms = 0  # so the first beat pings: round trip and clock offset are known at once
        self._told_round_trip = False
        self._unpinged_beats = 0

    def holds(self, version: session_pb2.BundleVersion) -> None:
        """The node holds that bundle."""
        self.bundle_version = session_pb2.BundleVersion()
        self.bundle_version.CopyFrom(version)  # a part of a message would keep all of it

    @property
    def lost(self) -> bool:
        """Whether too many pings stayed unanswered."""
        return rules.heartbeat_lost(self._pings, self._pong)

    def beat(self, now: float, interval_ms: int) -> int:
        """Number of the ping to send at monotonic time `now`, which tells the interval to the next; 0 for none."""
        due = rules.ping_due(
            unpinged_beats=self._unpinged_beats,
            unanswered=self._pings - self._pong,
            spoke_both_ways=self.heard and self.spoke,
            round_trip_untold=self.last_rtt_us > 0 and not self._told_round_trip,
            told_interval_ms=self._told_interval_ms,
            interval_ms=interval_ms,
        )
        self.heard = self.spoke = False
        if not due:
            self._unpinged_beats += 1
            return 0
        self._unpinged_beats = 0
        self._told_interval_ms = interval_ms
        self._told_round_trip = self.last_rtt_us > 0
        self._pings += 1
        self._sent_at = now
        return self._pings

    def take_pong(self, number: int, now: float) -> int:
        """Note a pong and return the round trip in microseconds. Only the newest ping's time is known; older ones
        keep the last."""
        if self._pong < number <= self._pings:
            self._pong = number
            if number == self._pings:
                self.last_rtt_us = max(1, int((now - self._sent_at) * 1_000_000))
        return self.last_rtt_us

    def forgive(self) -> None:
        """Nothing was read for a while: nobody knows which pings were answered meanwhile."""
        self._pong = self._pings

    def session_renewed(self, expires_at_ms: int) -> None:
        """A fresh proof was accepted."""
        self.session_expires_at_ms = expires_at_ms
        self.reauth_asked = False
