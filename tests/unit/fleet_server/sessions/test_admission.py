"""Admission under a storm, on a clock that the test moves."""

import heapq
import random

import pytest

from fleet.errors import Reason, Refusal
from fleet.metrics import Registry
from fleet_server.observability.metrics import SessionMetrics
from fleet_server.sessions.admission import Admission, AdmissionPolicy, network_of
from tests.fakes.clock import MockClock


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
    admission = make(clock, cpu, share=0.5, unmeasured_cost_s=0.001)
    assert admission.rate_per_s == pytest.approx(500)
    for _ in range(200):
        for stage in ("complete", "claim"):
            with admission.measured(stage):
                cpu.spent_s += 0.002
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
            admission.admit_handshake(node.to_bytes(4, "big"))
            back.append(now)
        except Refusal as refusal:
            refusals += 1
            assert refusal.reason is Reason.OVERLOADED
            assert refusal.retry_after_s is not None
            # As nodes obey it (fleet.backoff): the delay, plus up to a tenth.
            heapq.heappush(line, (now + refusal.retry_after_s * chance.uniform(1.0, 1.1), node))
    assert back[-1] < 10.0
    assert refusals < 3 * 2000
    for second in range(int(back[-1])):
        admitted = sum(second <= at < second + 1 for at in back)
        assert admitted <= admission.rate_per_s * 1.25 + 1


def test_one_node_in_a_loop_starves_nobody(clock: MockClock) -> None:
    admission = make(clock)
    refused = 0
    for _ in range(100):
        clock.advance_nowait(0.01)
        try:
            admission.admit_handshake(b"looping")
        except Refusal as refusal:
            refused += 1
            assert refusal.retry_after_s
    assert refused == 80
    admission.admit_handshake(b"another")


def test_garbage_uses_up_its_address_alone(clock: MockClock) -> None:
    admission = make(clock, address_burst=3)
    for _ in range(3):
        admission.charge_garbage("BeginHandshake", "192.0.2.1")
    with pytest.raises(Refusal) as caught:
        admission.charge_garbage("BeginHandshake", "192.0.2.1")
    assert caught.value.reason is Reason.OVERLOADED
    admission.charge_garbage("BeginHandshake", "192.0.2.2")
    admission.admit_handshake(b"a node behind the same address")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_what_shares_a_bucket(address: str, network: str) -> None:
    assert network_of(address) == network
