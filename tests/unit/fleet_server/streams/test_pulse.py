"""The beats of one stream: when a ping is worth its frame."""

from fleet.v1 import session_pb2
from fleet_server.streams.pulse import Pulse

INTERVAL_MS = 1_000


def beat(pulse: Pulse, now: float) -> int:
    """A beat after traffic both ways."""
    pulse.heard = pulse.spoke = True
    return pulse.beat(now, INTERVAL_MS)


def test_the_node_hears_its_first_round_trip_with_the_second_beat() -> None:
    pulse = Pulse(0, session_pb2.BundleVersion())
    first = beat(pulse, 10.0)
    assert first
    assert pulse.take_pong(first, 10.002) == 2_000
    second = beat(pulse, 11.0)
    assert second  # it tells those 2 ms
    pulse.take_pong(second, 11.002)
    assert not beat(pulse, 12.0)
