"""Admission under a storm, on a clock that the test moves."""

import heapq
import random
from contextlib import ExitStack

import pytest

from fleet.errors import Reason, Refusal
from fleet.metrics import Registry
from fleet_server.observability.metrics import SessionMetrics
from fleet_server.sessions.admission import Admission, AdmissionPolicy
from tests.fakes.clock import MockClock

HOME, ELSEWHERE = "192.0.2.7", "198.51.100.66"


class Cpu:
    """CPU time that the test spends."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __call__(self) -> float:
        return self.spent_s


def make(clock: MockClock, cpu: Cpu | None = None, **policy: float) -> Admission:
    return Admission(
        clock=clock,
        metrics=SessionMetrics(Registry()),
        policy=AdmissionPolicy(**policy),
        cpu_s=cpu or Cpu(),
        chance=random.Random(7).random,
    )


def test_the_rate_follows_what_handshakes_cost(clock: MockClock) -> None:
    cpu = Cpu()
    admission = make(clock, cpu, share=0.5, unmeasured_cost_s=0.001, guessed_cost_s=0.002)
    assert admission.rate_per_s == pytest.approx(250), "a guess, until a whole handshake was measured"
    for _ in range(200):
        for stage, cost_s in (("begin", 0.0), ("complete", 0.002), ("claim", 0.002)):
            with admission.measured(stage):
                cpu.spent_s += cost_s
    assert admission.rate_per_s == pytest.approx(100)


def test_what_fails_is_no_measurement(clock: MockClock) -> None:
    cpu = Cpu()
    admission = make(clock, cpu)
    before = admission.rate_per_s
    with pytest.raises(ValueError, match="bad proof"), admission.measured("complete"):
        cpu.spent_s += 10
        raise ValueError("bad proof")
    assert admission.rate_per_s == before


def test_a_storm_of_2000_nodes_is_back_within_10_seconds(clock: MockClock) -> None:
    cpu = Cpu()
    admission = make(clock, cpu)
    chance = random.Random(3)
    for _ in range(500):  # what a handshake measures on an ordinary core
        for stage, cost_s in (("begin", 0.00005), ("complete", 0.0004), ("claim", 0.0003)):
            with admission.measured(stage):
                cpu.spent_s += cost_s
    line = [(0.0, node) for node in range(2000)]
    now, back, refusals = 0.0, [], 0
    while line:
        due, node = heapq.heappop(line)
        clock.advance_nowait(max(0.0, due - now))
        now = max(now, due)
        try:
            admission.admit_handshake(node.to_bytes(4, "big"), HOME)
            back.append(now)
        except Refusal as refusal:
            refusals += 1
            assert refusal.reason is Reason.OVERLOADED
            assert refusal.retry_after_s is not None
            # As nodes obey it (fleet.backoff): the delay, plus up to a tenth.
            heapq.heappush(line, (now + refusal.retry_after_s * chance.uniform(1.0, 1.1), node))
    assert back[-1] < 10.0
    assert refusals < 1.01 * 2000, "each is sent away once"
    for second in range(int(back[-1])):
        admitted = sum(second <= at < second + 1 for at in back)
        assert admitted <= admission.rate_per_s * 1.5 + 1


def test_one_node_in_a_loop_starves_nobody(clock: MockClock) -> None:
    admission = make(clock)
    turns = 0
    for _ in range(100):
        clock.advance_nowait(0.01)
        turns += admission.admit_handshake(b"looping", HOME)
    assert turns == 20
    for _ in range(20):
        admission.admit_owing(b"looping")
    with pytest.raises(Refusal) as caught:
        admission.admit_owing(b"looping")
    assert caught.value.retry_after_s
    assert admission.admit_handshake(b"another", HOME)


def test_a_stolen_api_key_takes_no_turns_from_its_node(clock: MockClock) -> None:
    admission = make(clock, key_burst=3)
    assert [admission.admit_handshake(b"stolen", ELSEWHERE) for _ in range(4)] == [True] * 3 + [False]
    assert admission.admit_handshake(b"stolen", HOME)


def prove(admission: Admission, address: str, refusal: Refusal | None = None) -> Reason | None:
    """Why an attempt with one api_key is refused, whose work comes to `refusal`."""
    try:
        with admission.proving("Connect", b"key", address):
            if refusal is not None:
                raise refusal
    except Refusal as refused:
        return refused.reason
    return None


def test_only_proofs_that_fail_are_counted_and_only_where_they_come_from(clock: MockClock) -> None:
    admission = make(clock, failed_per_s=0.5, failed_burst=3)
    bad, busy = Refusal(Reason.BAD_PROOF, "no"), Refusal(Reason.UNAVAILABLE, "the database is away")
    for _ in range(50):
        assert prove(admission, ELSEWHERE) is None
        assert prove(admission, ELSEWHERE, busy) is Reason.UNAVAILABLE
    assert [prove(admission, ELSEWHERE, bad) for _ in range(4)] == [Reason.BAD_PROOF] * 3 + [Reason.OVERLOADED]
    assert prove(admission, ELSEWHERE) is Reason.OVERLOADED
    assert prove(admission, HOME) is None
    clock.advance_nowait(2)
    assert prove(admission, ELSEWHERE) is None


def test_proofs_that_are_under_way_at_once_are_counted_too(clock: MockClock) -> None:
    admission = make(clock, failed_burst=3)
    with ExitStack() as under_way:
        for _ in range(3):
            under_way.enter_context(admission.proving("Connect", b"key", HOME))
        assert prove(admission, HOME) is Reason.OVERLOADED
    assert prove(admission, HOME) is None


def test_garbage_uses_up_its_address_alone(clock: MockClock) -> None:
    admission = make(clock, address_burst=3)
    for _ in range(3):
        admission.charge_garbage("BeginHandshake", "192.0.2.1")
    with pytest.raises(Refusal) as caught:
        admission.charge_garbage("BeginHandshake", "192.0.2.1")
    assert caught.value.reason is Reason.OVERLOADED
    admission.charge_garbage("BeginHandshake", "192.0.2.2")
    admission.admit_handshake(b"a node behind the same address", "192.0.2.1")


def test_a_fleet_behind_one_address_gets_its_chain_and_one_address_not_for_ever(clock: MockClock) -> None:
    admission = make(clock, chain_burst=500)
    for _ in range(500):
        admission.admit_chain(HOME)
    with pytest.raises(Refusal) as caught:
        admission.admit_chain(HOME)
    assert caught.value.retry_after_s
    admission.admit_chain(ELSEWHERE)
    admission.admit_enroll(HOME)
