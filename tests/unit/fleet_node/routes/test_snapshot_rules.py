"""What is taken for a node's part of the configuration, and what is refused."""

from typing import Any

import pytest

from fleet.envelope import Domain, Signer
from fleet.v1 import route_pb2, trust_pb2
from fleet_node.routes.snapshot_rules import (
    MAX_NUMBER,
    MAX_SNAPSHOT_BYTES,
    NEVER,
    Floor,
    SnapshotError,
    claimed_lease,
    judge_lease,
    judge_snapshot,
)
from tests.unit.fleet_node.routes.snapshots import (
    AUTHORITY,
    NODE,
    authority,
    lease,
    peer,
    route,
    signed,
    statement,
)

RELAYED = (NODE, "nd_r", "nd_b")


def refused(offered: trust_pb2.Signed, floor: Floor = NEVER, **known: Any) -> str:
    with pytest.raises(SnapshotError) as caught:
        judge_snapshot(offered, authority(**known), floor)
    return str(caught.value.reason)


def test_a_snapshot_is_taken_whole() -> None:
    said = statement(route(RELAYED, (NODE, "nd_b"), (NODE, "nd_q", "nd_b")), version=7, leases=[lease()])
    said.peers.add(node_id=NODE, identity_key=AUTHORITY.public_key)
    snapshot = judge_snapshot(signed(said), authority(), Floor(1, 7))
    assert (snapshot.version, snapshot.floor) == (7, Floor(1, 7))
    assert snapshot.routes["rt_1"].path == list(RELAYED)
    assert NODE not in snapshot.peers
    assert snapshot.peers["nd_b"].probe_endpoints == ["127.0.0.1:9470"]
    assert snapshot.leases == (lease(),)


def test_the_slowest_route_that_a_server_makes_is_taken() -> None:
    slow = route((NODE, "nd_b"), RELAYED, probe_interval_ms=3_600_000, candidate_interval_ms=6 * 3_600_000)
    assert judge_snapshot(signed(statement(slow)), authority(), NEVER).routes


@pytest.mark.parametrize(
    "way",
    [("nd_b", NODE), ("nd_b", NODE, "nd_c"), ("nd_b", "nd_r", NODE)],
    ids=["destination", "relay", "destination behind a relay"],
)
def test_a_node_takes_routes_wherever_it_stands_in_them(way: tuple[str, ...]) -> None:
    assert judge_snapshot(signed(statement(route(way))), authority(), NEVER).routes
    other = ("nd_b", "nd_c")
    candidate = route(other, ("nd_b", NODE, "nd_c"))
    assert judge_snapshot(signed(statement(candidate)), authority(), NEVER).routes
    assert refused(signed(statement(route(other)))) == "WRONG_NODE"


CANDIDATES = [(NODE, relay, "nd_b") for relay in ("nd_r", "nd_q", "nd_c")]
TWICE = [peer("nd_b"), peer("nd_b")]
SMALL_ORDER = route_pb2.Peer(node_id="nd_b", identity_key=bytes(32))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (statement(cluster_id="c-other"), "WRONG_CLUSTER"),
        (statement(node_id="nd_b"), "WRONG_NODE"),
        (statement(version=0), "MALFORMED"),
        (statement(version=MAX_NUMBER + 1), "MALFORMED"),
        (statement(version=4), "OLDER"),
        (statement(route(), route()), "MALFORMED"),
        (statement(peers=TWICE), "MALFORMED"),
        (statement(peers=[SMALL_ORDER]), "MALFORMED"),
        (statement(peers=[route_pb2.Peer(node_id="nd_b", identity_key=b"short")]), "MALFORMED"),
        (statement(peers=[route_pb2.Peer(node_id="nd_b" * 20, identity_key=AUTHORITY.public_key)]), "MALFORMED"),
        (statement(route(route_id="")), "MALFORMED"),
        (statement(route(generation=0)), "MALFORMED"),
        (statement(route(service_class="payload")), "MALFORMED"),
        (statement(route(probe_interval_ms=1)), "MALFORMED"),
        (statement(route(RELAYED, (NODE, "nd_b"), candidate_interval_ms=0)), "MALFORMED"),
        (statement(route((NODE,))), "MALFORMED"),
        (statement(route(())), "MALFORMED"),
        (statement(route((NODE, ""))), "MALFORMED"),
        (statement(route(RELAYED, RELAYED)), "MALFORMED"),
        (statement(route(RELAYED, (NODE, "nd_c"))), "MALFORMED"),
        (statement(route((NODE, "nd_b"), *(CANDIDATES * 3))), "OVERSIZE"),
        (statement(route((NODE, "nd_r", "nd_q", "nd_c", "nd_b", "nd_e"))), "TOO_MANY_HOPS"),
        (statement(route((NODE, "nd_r", "nd_q", "nd_r", "nd_b"))), "LOOP"),
        (statement(route((NODE, NODE))), "LOOP"),
        (statement(route((NODE, "nd_b", "nd_b"))), "RELAY_IS_END"),
        (statement(route(RELAYED, (NODE, NODE, "nd_b"))), "RELAY_IS_END"),
        (statement(route((NODE, "nd_stranger"))), "UNKNOWN_PEER"),
        (statement(*(route(route_id=f"rt_{number}") for number in range(2049))), "OVERSIZE"),
        (statement(route(reason="x" * 2000)), "MALFORMED"),
    ],
)
def test_a_snapshot_is_refused(said: route_pb2.ConfigSnapshotStatement, reason: str) -> None:
    assert refused(signed(said), Floor(1, 5) if reason == "OLDER" else NEVER) == reason
    assert refused(signed(said), Floor(1, 5) if reason == "OLDER" else NEVER, required=False) == reason


@pytest.mark.parametrize("endpoint", ["127.0.0.1", "unix:/tmp/x", "h:0", "h" * 300 + ":1", ""])
def test_a_peer_is_at_host_and_port(endpoint: str) -> None:
    there = peer("nd_b")
    there.probe_endpoints[:] = [endpoint]
    assert refused(signed(statement(peers=[there]))) == "MALFORMED"


def test_only_the_authority_in_force_may_sign() -> None:
    said = statement(route())
    assert refused(trust_pb2.Signed(statement=said.SerializeToString())) == "WRONG_SIGNER"
    assert refused(signed(said, Signer.generate())) == "WRONG_SIGNER"
    elsewhere = AUTHORITY.sign(Domain.LEASE, said.SerializeToString())
    assert refused(elsewhere) == "WRONG_SIGNER"
    assert refused(AUTHORITY.sign(Domain.CONFIG, b"\xff\xff")) == "MALFORMED"
    large = signed(said)
    large.signatures.add(value=b"x" * MAX_SNAPSHOT_BYTES)
    assert refused(large) == "OVERSIZE"


def test_without_a_required_authority_a_signature_is_not_asked_for() -> None:
    unsigned = trust_pb2.Signed(statement=statement(route()).SerializeToString())
    assert judge_snapshot(unsigned, authority(required=False), NEVER).routes


def test_versions_begin_again_under_another_authority() -> None:
    successor, far_ahead = Signer.generate(), Floor(1, MAX_NUMBER)
    taken = judge_snapshot(signed(statement(route()), successor), authority(successor, 2), far_ahead)
    assert taken.floor == Floor(2, 1)
    assert refused(signed(statement(route(), version=MAX_NUMBER)), far_ahead, signer=successor) == "WRONG_SIGNER"


ROUTES = {"rt_1": route(RELAYED)}


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (lease(Signer.generate()), "WRONG_SIGNER"),
        (lease(cluster_id="c-other"), "WRONG_CLUSTER"),
        (lease(route_id="rt_2"), "UNKNOWN_ROUTE"),
        (lease(relay_node_id="nd_b"), "RELAY_IS_END"),
        (lease(relay_node_id=NODE), "RELAY_IS_END"),
        (lease(lease_id=""), "MALFORMED"),
        (lease(generation=0), "MALFORMED"),
        (lease(issued_at_ms=120_001), "MALFORMED"),
        (lease(expires_at_ms=48 * 3_600_000), "MALFORMED"),
        (lease(expires_at_ms=2**62), "MALFORMED"),
        (lease(lease_id="x" * 5000), "OVERSIZE"),
        (AUTHORITY.sign(Domain.LEASE, b"\xff\xff"), "MALFORMED"),
    ],
)
def test_a_lease_is_refused(offered: trust_pb2.Signed, reason: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        judge_lease(offered, authority(), ROUTES)
    assert str(caught.value.reason) == reason


def test_a_lease_reaches_the_source_and_the_relay_of_its_route_and_nobody_else() -> None:
    assert judge_lease(lease(), authority(), ROUTES).relay_node_id == "nd_r"
    as_relay = {"rt_1": route(("nd_b", NODE, "nd_c"))}
    assert judge_lease(lease(relay_node_id=NODE), authority(), as_relay).lease_id == "ls_1"
    as_destination = {"rt_1": route(("nd_b", "nd_r", NODE))}
    with pytest.raises(SnapshotError, match="WRONG_NODE"):
        judge_lease(lease(), authority(), as_destination)


def test_a_refused_lease_can_be_named() -> None:
    assert claimed_lease(lease(Signer.generate())) == ("ls_1", 1)
    assert claimed_lease(trust_pb2.Signed(statement=b"\xff")) == ("", 0)
