"""Which probes a node takes, before and after it knows who calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fleet.envelope import Domain, Signer
from fleet.errors import Refusal
from fleet.v1 import probe_pb2, route_pb2
from fleet_node.routes.probe_rules import (
    MAX_MESSAGE_BYTES,
    Asked,
    Probe,
    check_proof,
    check_route,
    check_shape,
    read_request,
    request,
)
from tests.unit.fleet_node.routes.mesh import CLUSTER, NONCE, ROUTE, config

NOW_MS = 1_900_000_000_000
CALLER, OTHER = Signer.generate(), Signer.generate()
PEER = route_pb2.Peer(node_id="s", identity_key=CALLER.public_key)
PROBE = Probe(CLUSTER, ROUTE, 7, ("s", "r", "d"), NONCE, NOW_MS + 3000)


def reason(work: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        work()
    return str(caught.value.reason)


def asked(probe: Probe = PROBE, hop_index: int = 1) -> Asked:
    return read_request(request(probe, hop_index, CALLER))


def check(probe: Probe, hop_index: int = 1, me: str = "r") -> str:
    return reason(lambda: check_shape(asked(probe, hop_index), cluster_id=CLUSTER, node_id=me, now_ms=NOW_MS))


def test_what_the_caller_signs_is_what_the_called_node_reads() -> None:
    read = asked()
    check_shape(read, cluster_id=CLUSTER, node_id="r", now_ms=NOW_MS)
    check_proof(read, PEER)
    assert (read.probe, read.hop_index, read.caller, read.is_last) == (PROBE, 1, "s", False)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("srabcd", "TOO_MANY_HOPS"),
        ("srr", "RELAY_IS_END"),
        ("ssrd", "RELAY_IS_END"),
        ("srds", "LOOP"),
        ("rr", "LOOP"),
        ("sraad", "LOOP"),
        ("sar", "NOT_MY_HOP"),
        ("s", "MALFORMED"),
        ("", "MALFORMED"),
        (("s", "r", "x" * 65), "MALFORMED"),
        (("s", "r", ""), "MALFORMED"),
    ],
)
def test_a_path_that_is_none_is_refused(path: str | tuple[str, ...], expected: str) -> None:
    assert check(replace(PROBE, path=tuple(path))) == expected


def test_four_hops_are_walked() -> None:
    read = asked(replace(PROBE, path=tuple("srabd")))
    check_shape(read, cluster_id=CLUSTER, node_id="r", now_ms=NOW_MS)
    assert not read.is_last


@pytest.mark.parametrize("hop_index", [0, 2, 3, 2**32 - 1])
def test_a_node_answers_at_its_own_place_only(hop_index: int) -> None:
    assert check(PROBE, hop_index) == "NOT_MY_HOP"


@pytest.mark.parametrize("deadline_ms", [0, -1, NOW_MS - 1, NOW_MS, NOW_MS + 10_001, 2**63 - 1])
def test_a_deadline_that_is_over_or_far_ahead_is_refused(deadline_ms: int) -> None:
    assert check(replace(PROBE, deadline_ms=deadline_ms)) == "EXPIRED"


def test_another_cluster_and_another_nonce_are_refused() -> None:
    assert check(replace(PROBE, cluster_id="cl_other")) == "FOREIGN"
    assert check(replace(PROBE, nonce=b"short")) == "MALFORMED"
    assert check(replace(PROBE, nonce=bytes(64))) == "MALFORMED"


def test_only_the_node_before_proves_itself() -> None:
    read = asked()
    assert reason(lambda: check_proof(read, route_pb2.Peer(identity_key=OTHER.public_key))) == "BAD_PROOF"
    assert reason(lambda: check_proof(read, route_pb2.Peer())) == "BAD_PROOF"


@pytest.mark.parametrize("domain", [each for each in Domain if each is not Domain.PROBE])
def test_a_signature_for_another_purpose_proves_nothing(domain: Domain) -> None:
    signed = CALLER.sign(domain, PROBE.statement(1))
    read = read_request(probe_pb2.WalkRequest(signed=signed).SerializeToString())
    assert reason(lambda: check_proof(read, PEER)) == "BAD_PROOF"


def test_a_probe_that_is_too_large_is_not_parsed() -> None:
    assert reason(lambda: read_request(b"\xff" * (MAX_MESSAGE_BYTES + 1))) == "OVERSIZE"


PAYLOAD = b"\xfa\x01\x07payload"  # field 31, length-delimited


def signed_again(statement: bytes) -> bytes:
    return probe_pb2.WalkRequest(signed=CALLER.sign(Domain.PROBE, statement)).SerializeToString()


def with_two_signatures() -> bytes:
    signed = CALLER.sign(Domain.PROBE, PROBE.statement(1))
    OTHER.add(signed, Domain.PROBE)
    return probe_pb2.WalkRequest(signed=signed).SerializeToString()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xff",
        request(PROBE, 1, CALLER) + PAYLOAD,
        signed_again(PROBE.statement(1) + PAYLOAD),
        signed_again(PROBE.statement(1) + b"\x30\x01"),  # hop_index once more: the last one counts
        signed_again(b"\xff"),
        with_two_signatures(),
    ],
    ids=["nothing", "noise", "in the request", "in the statement", "a field twice", "no statement", "two signatures"],
)
def test_nothing_travels_along(raw: bytes) -> None:
    assert reason(lambda: read_request(raw)) == "MALFORMED"


def never() -> bool:
    raise AssertionError("no lease is needed")


def test_a_node_takes_part_in_paths_of_its_snapshot_only() -> None:
    relayed, direct = tuple("srd"), tuple("sd")
    assert reason(lambda: check_route(asked(), [], never)) == "UNKNOWN_ROUTE"
    assert reason(lambda: check_route(asked(), [config(direct, "sxd")], never)) == "UNKNOWN_GENERATION"
    check_route(asked(), [config(direct, relayed)], never)  # as a candidate
    check_route(asked(replace(PROBE, path=direct)), [config(direct)], never)  # as an end


def test_the_relay_of_the_effective_path_needs_a_lease() -> None:
    assert reason(lambda: check_route(asked(), [config("srd")], lambda: False)) == "LEASE_EXPIRED"
    check_route(asked(), [config("srd")], lambda: True)
    check_route(asked(replace(PROBE, path=("s", "x", "r")), 2), [config("sxr")], never)  # the end needs none


def test_the_newest_config_that_names_the_path_decides_whether_a_lease_is_needed() -> None:
    chosen, left = config("srd", "sd", generation=8), config("sd", "srd")
    check_route(asked(), [left, chosen], never)
    assert reason(lambda: check_route(asked(), [chosen, left], lambda: False)) == "LEASE_EXPIRED"
    check_route(asked(), [config("sd", generation=9), left], never)  # the config before counts for a while


def test_the_number_of_a_generation_decides_nothing() -> None:
    check_route(asked(replace(PROBE, generation=8)), [config("sd", "srd")], never)
