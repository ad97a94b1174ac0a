"""No byte of a probe's answer can be changed, and no byte of a request, without it being refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.errors import Refusal
from fleet.v1 import route_pb2
from fleet_node.routes import walk_rules
from fleet_node.routes.probe_rules import check_proof, read_request, request
from fleet_node.routes.walk_rules import BadRecordError
from tests.unit.fleet_node.routes.answers import PROBE, SIGNERS, honest_answer, key_of

ANSWER = honest_answer()
REQUEST = request(PROBE, 1, SIGNERS["s"])
CALLER = route_pb2.Peer(node_id="s", identity_key=SIGNERS["s"].public_key)


def refuses_answer(raw: bytes) -> None:
    with pytest.raises(BadRecordError):
        walk_rules.read_answer(raw, PROBE, 1, key_of)


def refuses_request(raw: bytes) -> None:
    with pytest.raises(Refusal):
        check_proof(read_request(raw), CALLER)


def changed(whole: bytes, at: int, much: int, put: bytes) -> bytes:
    """`whole` with the bytes from `at` on replaced."""
    return whole[:at] + put + whole[at + much :]


mutations = st.tuples(st.integers(0, 2**16), st.integers(0, 40), st.binary(max_size=40))


def test_every_single_byte_of_an_answer_counts() -> None:
    for at in range(len(ANSWER)):
        for flip in (0x01, 0x80, 0xFF):
            refuses_answer(changed(ANSWER, at, 1, bytes([ANSWER[at] ^ flip])))
        refuses_answer(ANSWER[:at])


def test_every_single_byte_of_a_request_counts() -> None:
    for at in range(len(REQUEST)):
        refuses_request(changed(REQUEST, at, 1, bytes([REQUEST[at] ^ 0x01])))
        refuses_request(REQUEST[:at])


@given(mutations)
@example((len(ANSWER), 0, b"\x0a\x00"))
def test_an_answer_that_was_changed_anywhere_is_refused(mutation: tuple[int, int, bytes]) -> None:
    at, much, put = mutation
    other = changed(ANSWER, at % (len(ANSWER) + 1), much, put)
    if other != ANSWER:
        refuses_answer(other)


@given(mutations)
@example((len(REQUEST), 0, b"\x12\x00"))
def test_a_request_that_was_changed_anywhere_is_refused(mutation: tuple[int, int, bytes]) -> None:
    at, much, put = mutation
    other = changed(REQUEST, at % (len(REQUEST) + 1), much, put)
    if other != REQUEST:
        refuses_request(other)


@given(st.binary(max_size=200))
def test_noise_is_neither_request_nor_answer(raw: bytes) -> None:
    refuses_answer(raw)
    refuses_request(raw)
