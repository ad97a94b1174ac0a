"""Slots, packing, liveness: the pure half of the streams room."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fleet.v1 import gateway_pb2
from fleet_server.streams import rules


@dataclass(frozen=True)
class Sized:
    """A command as far as packing looks at it."""

    size_bytes: int


@given(st.lists(st.integers(0, 65_536), max_size=32))
def test_packing_loses_nothing_keeps_order_and_stays_under_the_frame(sizes: list[int]) -> None:
    commands = [Sized(size) for size in sizes]
    packed = list(rules.statements(commands))
    assert [command for batch in packed for command in batch] == commands
    for batch in packed:
        size = sum(c.size_bytes + rules.COMMAND_OVERHEAD_BYTES for c in batch)
        assert len(batch) == 1 or size <= rules.MAX_STATEMENT_BYTES
        assert batch


@given(st.floats(0, 600))
def test_the_last_slot_leaves_time_to_move_before_the_deadline(deadline_s: float) -> None:
    last_s = rules.last_slot_s(deadline_s)
    assert 0 <= last_s <= deadline_s
    assert deadline_s - last_s >= min(2.0, deadline_s / 3) - 1e-9


@given(st.integers(0, 5_000), st.floats(0, 5_000), st.floats(-10, 600))
def test_a_deadline_that_is_too_near_is_told_by_how_much(streams: int, pace_per_s: float, left_s: float) -> None:
    short_s = rules.short_s(streams, pace_per_s, left_s)
    if not streams:
        assert short_s == 0
    elif pace_per_s <= 0:
        assert short_s == float("inf")
    else:
        assert (short_s == 0) == ((streams - 1) / pace_per_s <= max(0.0, left_s))


def test_there_is_nowhere_to_move_to_from_a_replica_that_is_alone() -> None:
    for wanted in (0, gateway_pb2.GOAWAY_REASON_DRAIN, gateway_pb2.GOAWAY_REASON_UPGRADE):
        reason = gateway_pb2.GoawayReason.ValueType(wanted)
        assert rules.drain_reason(reason, alone=True) == gateway_pb2.GOAWAY_REASON_RESTART
        assert rules.drain_reason(reason, alone=False) == (wanted or gateway_pb2.GOAWAY_REASON_DRAIN)
    shutdown = gateway_pb2.GOAWAY_REASON_SHUTDOWN
    assert rules.drain_reason(shutdown, alone=True) == shutdown


def test_nodes_of_a_lone_replica_come_back_as_fast_as_it_admits() -> None:
    assert rules.restart_window_ms(1_000, 500.0) == 2_000
    assert rules.restart_window_ms(1, 500.0) == 250


@given(st.integers(1_000, 300_000), st.integers(0, 200_000))
def test_pings_never_exceed_their_rate_and_never_come_faster_than_asked(base_ms: int, streams: int) -> None:
    interval_ms = rules.heartbeat_interval_ms(base_ms, streams)
    assert interval_ms >= base_ms
    assert streams * 1000 / interval_ms <= rules.PINGS_PER_SECOND * 1.01


def test_the_fourth_unanswered_ping_is_one_too_many() -> None:
    assert not rules.heartbeat_lost(pings_sent=3, last_pong=0)
    assert rules.heartbeat_lost(pings_sent=4, last_pong=0)
    assert not rules.heartbeat_lost(pings_sent=10, last_pong=7)


QUIET = {"unpinged_beats": 0, "unanswered": 0, "spoke_both_ways": True, "round_trip_untold": False}
QUIET |= {"told_interval_ms": 10, "interval_ms": 10}


def test_traffic_both_ways_serves_as_well_as_a_ping_but_not_for_ever() -> None:
    assert not rules.ping_due(**QUIET)
    assert rules.ping_due(**QUIET | {"spoke_both_ways": False})
    assert rules.ping_due(**QUIET | {"unanswered": 1})
    assert rules.ping_due(**QUIET | {"round_trip_untold": True})
    assert [rules.ping_due(**QUIET | {"unpinged_beats": beats}) for beats in range(3, 7)] == [False, False, True, True]


def test_a_node_is_told_of_a_stretched_interval_before_it_waits_in_vain() -> None:
    assert not rules.ping_due(**QUIET | {"interval_ms": 12})
    assert rules.ping_due(**QUIET | {"interval_ms": 13})
    assert not rules.ping_due(**QUIET | {"interval_ms": 2})


def test_a_session_is_renewed_in_its_last_third() -> None:
    assert not rules.reauth_due(now_ms=0, expires_at_ms=900_000, ttl_ms=900_000, heartbeat_ms=15_000)
    assert rules.reauth_due(now_ms=600_001, expires_at_ms=900_000, ttl_ms=900_000, heartbeat_ms=15_000)
    # A stretched heartbeat must not step over the last third.
    assert rules.reauth_due(now_ms=600_000, expires_at_ms=900_000, ttl_ms=900_000, heartbeat_ms=300_000)


def test_the_estimate_is_nothing_while_nothing_is_known() -> None:
    assert rules.drain_estimate_s(left=10, gone=0, elapsed_s=0.0) == (0.0, 0.0)
    assert rules.drain_estimate_s(left=10, gone=5, elapsed_s=1.0) == (5.0, 2.0)
