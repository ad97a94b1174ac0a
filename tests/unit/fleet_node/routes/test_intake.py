"""How much of what is sent to a probe listener is looked at."""

from __future__ import annotations

import pytest

from fleet.errors import Refusal
from fleet_node.routes.intake import Buckets, Intake, ProbeLimits, SeenNonces


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    buckets = Buckets(per_s=2.0, burst=3.0, max_keys=8)
    assert [buckets.take(10.0, "a") for _ in range(4)] == [True, True, True, False]
    assert [buckets.take(10.5, "a") for _ in range(2)] == [True, False]
    assert [buckets.take(1000.0, "a") for _ in range(4)] == [True, True, True, False]
    assert buckets.take(10.0, "b")


def test_of_more_keys_than_are_remembered_the_least_lately_used_goes() -> None:
    buckets = Buckets(per_s=0.001, burst=1.0, max_keys=2)
    assert buckets.take(0.0, "a") and buckets.take(0.0, "b")
    assert not buckets.take(0.0, "a")
    assert buckets.take(0.0, "c")  # b is forgotten
    assert not buckets.take(0.0, "a")
    assert buckets.take(0.0, "b")


def admitted(intake: Intake, count: int, address: str) -> int:
    def one() -> bool:
        try:
            intake.admit_call(address, 0.0)
        except Refusal as refusal:
            assert refusal.reason == "RATE_LIMITED"
            return False
        return True

    return sum(one() for _ in range(count))


def test_one_address_takes_only_its_share_and_all_together_no_more_than_all() -> None:
    intake = Intake(ProbeLimits(address_burst=10, all_burst=15))
    assert admitted(intake, 50, "192.0.2.1") == 10
    assert admitted(intake, 50, "192.0.2.2") == 5
    assert admitted(intake, 50, "192.0.2.3") == 0


@pytest.mark.parametrize("other", ["2001:db8::2", "2001:db8:0:0:ffff::1"])
def test_whoever_has_an_ipv6_address_has_many(other: str) -> None:
    intake = Intake(ProbeLimits(address_burst=1))
    assert admitted(intake, 1, "2001:db8::1") == 1
    assert admitted(intake, 1, other) == 0
    assert admitted(intake, 1, "2001:db8:0:1::1") == 1
    assert admitted(intake, 2, "fe80::1%eth0") == 1


def test_who_uses_a_peers_name_from_elsewhere_uses_up_none_of_its_rate() -> None:
    intake = Intake(ProbeLimits(caller_burst=1))
    intake.admit_caller("192.0.2.66", "peer", 0.0)
    with pytest.raises(Refusal, match="RATE_LIMITED"):
        intake.admit_caller("192.0.2.66", "peer", 0.0)
    intake.admit_caller("192.0.2.1", "peer", 0.0)


def test_a_nonce_counts_once_until_its_deadline_is_over() -> None:
    nonces = SeenNonces(per_caller=2)
    nonces.add("a", b"1", 100, 0)
    with pytest.raises(Refusal, match="REPLAYED"):
        nonces.add("a", b"1", 200, 99)
    nonces.add("b", b"1", 100, 0)
    nonces.add("a", b"2", 100, 0)
    with pytest.raises(Refusal, match="RATE_LIMITED"):
        nonces.add("a", b"3", 200, 99)
    nonces.add("a", b"3", 200, 100)
    assert len(nonces) == 1


def test_nonces_of_callers_who_do_not_come_any_more_are_forgotten() -> None:
    nonces = SeenNonces(per_caller=2)
    for n in range(10_000):
        nonces.add(f"peer {n}", b"1", n + 10, n)
    assert len(nonces) < 300
