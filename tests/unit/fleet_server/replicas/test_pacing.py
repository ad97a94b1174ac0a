"""What draining replicas may send to the others."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.v1 import gateway_pb2
from fleet_server.replicas import pacing
from fleet_server.replicas.rules import DrainRequest, ReplicaRecord, ReplicaState

ASKED = DrainRequest(1, 0, gateway_pb2.GOAWAY_REASON_DRAIN)


def replica(name: str, state: ReplicaState = ReplicaState.READY, **fields: object) -> ReplicaRecord:
    made = ReplicaRecord(name, "1.0", state, 100, 200.0, 0, 0, None, max_streams=1_000)
    return replace(made, **fields)  # type: ignore[arg-type]


@given(
    takers=st.lists(st.floats(1, 2_000), min_size=1, max_size=5),
    draining=st.lists(st.integers(1, 20_000), min_size=1, max_size=5),
    gone=st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
def test_replicas_that_drain_together_never_send_more_than_is_admitted(
    takers: list[float], draining: list[int], gone: list[float]
) -> None:
    """Each knows its own streams as they are, and those of the others as they were a heartbeat ago."""
    stay = [replica(f"t{number}", admission_per_s=rate) for number, rate in enumerate(takers)]
    rows = [replica(f"d{number}", ReplicaState.DRAINING, streams=held) for number, held in enumerate(draining)]
    left = [held - int(held * part) for held, part in zip(draining, gone, strict=False)]
    paces = [pacing.pace(f"d{number}", streams, stay + rows) for number, streams in enumerate(left)]
    assert sum(pace.per_s for pace in paces) <= sum(takers) * (1 + 1e-9)


@pytest.mark.parametrize(
    "other",
    [
        replica("b", ReplicaState.DRAINING),
        replica("b", ReplicaState.STARTING),
        replica("b", ReplicaState.STOPPED),
        replica("b", ReplicaState.LOST),
        replica("b", drain=ASKED),
        replica("b", streams=950),
        replica("b", streams=1_000),
    ],
    ids=["draining", "starting", "stopped", "lost", "asked to drain", "nearly full", "full"],
)
def test_who_takes_nobody_does_not_count(other: ReplicaRecord) -> None:
    assert pacing.pace("a", 100, [replica("a"), other]).per_s == 0
    assert pacing.last_to_take("a", [replica("a"), other])
    assert pacing.pace("a", 100, [replica("a"), other, replica("c")]).per_s in (200.0, 100.0)
    assert not pacing.last_to_take("a", [replica("a"), other, replica("c")])


def test_one_that_says_not_how_many_it_may_hold_takes_nodes() -> None:
    older = replica("b", max_streams=0)
    pace = pacing.pace("a", 100, [replica("a"), older])
    assert (pace.per_s, pace.room) == (200.0, None)
    assert pacing.pace("a", 100, [replica("a"), replica("b")]).room == 850


def test_a_drain_takes_as_long_as_its_clock_says_and_no_other() -> None:
    """The request was written by a machine whose clock is years off."""
    assert DrainRequest(5, 5 + 30_000, gateway_pb2.GOAWAY_REASON_DRAIN).deadline_s == 30.0
    assert DrainRequest(5, 0, gateway_pb2.GOAWAY_REASON_DRAIN).deadline_s is None
