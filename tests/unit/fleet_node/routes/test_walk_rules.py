"""What the testimony of a path shows, and which testimony is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.envelope import Domain, Signer
from fleet.errors import Reason
from fleet.v1 import probe_pb2
from fleet_node.routes import walk_rules
from fleet_node.routes.walk_rules import REASONS, BadRecordError, Failure, Onward, WalkResult, WalkState
from tests.unit.fleet_node.routes.answers import (
    ELAPSED_US,
    ONWARD_US,
    PATH,
    PROBE,
    SIGNERS,
    forged,
    honest_answer,
    key_of,
    record,
    serialized,
)
from tests.vectors.cast import CLUSTER, NODE, NOW_MS, OTHER_NODE
from tests.vectors.routing import END_NODE, NONCE, ROUTE, routes

OLD = replace(PROBE, nonce=b"o" * 16)
PAYLOAD = b"\xfa\x01\x07payload"  # field 31, length-delimited


def judged(raw: bytes) -> WalkResult:
    """As the source does with what r answered."""
    try:
        testimony = walk_rules.read_answer(raw, PROBE, 1, key_of)
    except BadRecordError:
        return walk_rules.judge(PROBE, Onward(walk_rules.BAD_RECORD, failure=Failure.BAD_RECORD))
    return walk_rules.judge(PROBE, Onward(walk_rules.ANSWERED, elapsed_us=ELAPSED_US, testimony=testimony))


def test_a_path_that_answers() -> None:
    assert judged(honest_answer()) == WalkResult(PATH, PATH, ELAPSED_US, ELAPSED_US - ONWARD_US, WalkState.ANSWERED)
    assert judged(serialized(record(2), record(1))).state is WalkState.ANSWERED


def test_a_relay_that_says_that_it_took_longer_than_all_of_the_walk_is_no_hop_of_less_than_nothing() -> None:
    assert judged(serialized(record(2), record(1, onward_us=2**32 - 1))).first_hop_us == 1


def test_a_record_of_the_golden_vectors_is_made_byte_for_byte() -> None:
    statements = {each.name: each.message for each in routes()}
    probe = replace(
        PROBE,
        cluster_id=CLUSTER,
        route_id=ROUTE,
        path=(NODE, OTHER_NODE, END_NODE),
        nonce=NONCE,
        generation=statements["probe"].generation,
        deadline_ms=statements["probe"].deadline_ms,
    )
    assert probe.deadline_ms > NOW_MS
    assert probe.statement(1) == statements["probe"].SerializeToString()
    assert probe.statement(2) == statements["probe-onward"].SerializeToString()
    for name, hop_index in (("probe-hop-end", 2), ("probe-hop-refused", 1)):
        signed = SIGNERS["x"].sign(Domain.PROBE_HOP, statements[name].SerializeToString())
        read = walk_rules.read_answer(serialized(signed), probe, hop_index, lambda _: SIGNERS["x"].public_key)
        assert read.records == (statements[name],)


@pytest.mark.parametrize(
    "raw",
    [
        serialized(record(2, signer=SIGNERS["r"]), record(1)),
        serialized(record(2, OLD), record(1)),
        serialized(record(2, OLD), record(1, OLD)),
        serialized(record(2), record(1, signer=Signer.generate())),
        serialized(record(1)),
        serialized(record(2)),
        serialized(),
        serialized(record(1), record(2)),
        serialized(record(2), record(2), record(1)),
        serialized(record(2), record(1, onward=walk_rules.UNREACHABLE, failure="UNREACHABLE")),
        serialized(record(2), record(1, onward=walk_rules.END)),
        serialized(record(2), record(1, onward=77)),
        serialized(record(2, onward=walk_rules.UNREACHABLE, failure="TIMED_OUT"), record(1)),
        serialized(record(2, node_id="x"), record(1)),
        serialized(record(2, nonce=b"o" * 16), record(1)),
        serialized(record(2, hop_index=1), record(1)),
        serialized(record(2, statement_sha256=bytes(32)), record(1)),
        serialized(record(2, replace(PROBE, route_id="rt_other")), record(1)),
        serialized(record(2, failure="hello"), record(1)),
        serialized(record(1, onward=walk_rules.REFUSED, failure="a payload")),
        serialized(record(1, onward=walk_rules.UNREACHABLE)),
        serialized(record(1, onward=walk_rules.WRONG_NODE, failure="WRONG_NODE")),
        serialized(record(1, onward=walk_rules.WRONG_NODE, failure="WRONG_NODE", onward_node_id="d")),
        serialized(record(1, onward=walk_rules.WRONG_NODE, failure="WRONG_NODE", onward_node_id="x" * 65)),
        serialized(record(1, onward=walk_rules.WRONG_NODE, failure="WRONG_NODE", onward_node_id="x\n")),
        serialized(record(1, onward=walk_rules.WRONG_NODE, failure="UNKNOWN_NODE", onward_node_id="x")),
        serialized(SIGNERS["d"].sign(Domain.PROBE, record(2).statement), record(1)),
        honest_answer() + PAYLOAD,
        forged(lambda answer: SIGNERS["x"].add(answer.hops[0], Domain.PROBE_HOP)),
        forged(lambda answer: answer.hops[0].MergeFromString(PAYLOAD)),
        serialized(SIGNERS["d"].sign(Domain.PROBE_HOP, record(2).statement + PAYLOAD), record(1)),
        b"\xff",
        b"\x00" * 5000,
    ],
)
def test_who_gave_an_answer_that_does_not_verify_is_the_liar(raw: bytes) -> None:
    result = judged(raw)
    assert (result.state, result.observed) == (WalkState.DRIFT, ("s",))
    assert (result.failure, result.failed_hop, result.blamed) == ("BAD_RECORD", 1, "r")


def test_an_answer_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(BadRecordError, match="too large"):
        walk_rules.read_answer(b"\xff" * 4097, PROBE, 1, key_of)


@pytest.mark.parametrize(
    ("testified", "expected"),
    [
        ({"onward": walk_rules.UNREACHABLE, "failure": "TIMED_OUT"}, (WalkState.UNREACHABLE, "sr", "TIMED_OUT", "")),
        ({"onward": walk_rules.REFUSED, "failure": "BAD_PROOF"}, (WalkState.UNREACHABLE, "sr", "BAD_PROOF", "")),
        ({"onward": walk_rules.REFUSED, "failure": "REFUSED"}, (WalkState.UNREACHABLE, "sr", "REFUSED", "")),
        (
            {"onward": walk_rules.REFUSED, "failure": "UNKNOWN_GENERATION"},
            (WalkState.INCONCLUSIVE, "sr", "UNKNOWN_GENERATION", ""),
        ),
        ({"onward": walk_rules.REFUSED, "failure": "FOREIGN"}, (WalkState.INCONCLUSIVE, "sr", "FOREIGN", "")),
        ({"onward": walk_rules.BAD_RECORD, "failure": "BAD_RECORD"}, (WalkState.DRIFT, "sr", "BAD_RECORD", "d")),
        (
            {"onward": walk_rules.WRONG_NODE, "failure": "WRONG_NODE", "onward_node_id": "x"},
            (WalkState.DRIFT, "srx", "WRONG_NODE", "x"),
        ),
        ({"onward": walk_rules.WRONG_NODE, "failure": "UNKNOWN_NODE"}, (WalkState.DRIFT, "sr", "UNKNOWN_NODE", "")),
    ],
)
def test_what_a_relay_testifies_of_the_node_behind_it(
    testified: dict[str, str], expected: tuple[WalkState, str, str, str]
) -> None:
    result = judged(serialized(record(1, **testified)))
    assert (result.state, "".join(result.observed), result.failure, result.blamed) == expected
    assert (result.failed_hop, result.rtt_us, result.first_hop_us) == (2, 0, ELAPSED_US - ONWARD_US)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_by_the_first_hop_says_nothing_only_where_configs_cross(reason: Reason) -> None:
    result = walk_rules.judge(PROBE, walk_rules.refused(reason))
    nothing = reason in (Reason.FOREIGN, Reason.UNKNOWN_ROUTE, Reason.UNKNOWN_GENERATION, Reason.RATE_LIMITED)
    assert result.state is (WalkState.INCONCLUSIVE if nothing else WalkState.UNREACHABLE)
    assert result.failure == (reason if reason in REASONS else "REFUSED")
    assert (result.failed_hop, result.blamed, result.first_hop_us) == (1, "", 0)


def test_who_proved_itself_and_then_said_nothing_is_named() -> None:
    silent = Onward(walk_rules.UNREACHABLE, failure=Failure.TIMED_OUT, silent=True)
    assert walk_rules.judge(PROBE, silent).blamed == "r"
    assert walk_rules.judge(PROBE, replace(silent, silent=False)).blamed == ""


def test_every_result_of_the_wire_has_its_words() -> None:
    made = {walk_rules.END, walk_rules.ANSWERED, *(o for o in probe_pb2.OnwardResult.values() if o > 1)}
    assert made == set(probe_pb2.OnwardResult.values())
