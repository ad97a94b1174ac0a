"""Rotation of a node's own keys: which statements are taken, as a table that is mostly refusals, and as properties."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fleet.envelope import Domain, Signer
from fleet.identity import NodeKeys
from fleet.node_keys import MAX_AHEAD_MS, KnownKeys, NodeKeyError, judge_rotation, sign_rotation
from fleet.v1 import trust_pb2

NOW_MS = 1_900_000_000_000
OLD, NEW, STRANGER = (
    NodeKeys(Signer.from_private_bytes(bytes([n]) * 32), X25519PrivateKey.from_private_bytes(bytes([n + 100]) * 32))
    for n in (1, 2, 3)
)
KNOWN = KnownKeys("cl", "nd", OLD.identity.public_key, OLD.sealing_public, NOW_MS - 60_000)


def statement(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "cluster_id": "cl",
        "node_id": "nd",
        "identity_key": NEW.identity.public_key,
        "sealing_key": NEW.sealing_public,
        "issued_at_ms": NOW_MS,
    }
    return trust_pb2.NodeKeyRotationStatement(**(fields | changes)).SerializeToString()  # type: ignore[arg-type]


def signed(raw: bytes, *signers: NodeKeys, domain: Domain = Domain.NODE_KEY) -> trust_pb2.Signed:
    made = trust_pb2.Signed(statement=raw)
    for keys in signers:
        keys.identity.add(made, domain)
    return made


def broken(made: trust_pb2.Signed, which: int) -> trust_pb2.Signed:
    value = made.signatures[which].value
    made.signatures[which].value = value[:-1] + bytes([value[-1] ^ 1])
    return made


GOOD = statement()
REFUSED = {
    "signed by nobody": (signed(GOOD), "MALFORMED"),
    "signed by the old identity alone": (signed(GOOD, OLD), "WRONG_SIGNER"),
    "signed by the new identity alone": (signed(GOOD, NEW), "WRONG_SIGNER"),
    "signed by a stranger and the new identity": (signed(GOOD, STRANGER, NEW), "WRONG_SIGNER"),
    "signed by the old identity twice": (signed(GOOD, OLD, OLD), "WRONG_SIGNER"),
    "signed three times": (signed(GOOD, OLD, NEW, STRANGER), "MALFORMED"),
    "the old identity's signature changed": (broken(signed(GOOD, OLD, NEW), 0), "WRONG_SIGNER"),
    "the new identity's signature changed": (broken(signed(GOOD, OLD, NEW), 1), "WRONG_SIGNER"),
    "signed for another purpose": (signed(GOOD, OLD, NEW, domain=Domain.HANDSHAKE), "WRONG_SIGNER"),
    "sealing key alone, signed by the new identity": (signed(statement(identity_key=b""), NEW), "WRONG_SIGNER"),
    "another cluster": (signed(statement(cluster_id="other"), OLD, NEW), "WRONG_CLUSTER"),
    "another node": (signed(statement(node_id="other"), OLD, NEW), "WRONG_NODE"),
    "older than the last": (signed(statement(issued_at_ms=NOW_MS - 60_001), OLD, NEW), "STALE"),
    "as old as the last": (signed(statement(issued_at_ms=NOW_MS - 60_000), OLD, NEW), "STALE"),
    "dated far ahead": (signed(statement(issued_at_ms=NOW_MS + MAX_AHEAD_MS + 1), OLD, NEW), "TOO_EARLY"),
    "no new key": (signed(statement(identity_key=b"", sealing_key=b""), OLD), "MALFORMED"),
    "the keys in force": (
        signed(statement(identity_key=OLD.identity.public_key, sealing_key=OLD.sealing_public), OLD),
        "MALFORMED",
    ),
    "an identity key that is too short": (signed(statement(identity_key=b"x" * 31), OLD), "MALFORMED"),
    "a sealing key that is too long": (signed(statement(sealing_key=b"x" * 33), OLD, NEW), "MALFORMED"),
    "a sealing key of small order": (signed(statement(sealing_key=bytes(32)), OLD, NEW), "MALFORMED"),
    "an identity key of small order": (signed(statement(identity_key=bytes(32)), OLD), "WRONG_SIGNER"),
    "no statement": (signed(b"\xff\xff", OLD, NEW), "MALFORMED"),
    "a statement that is too long": (signed(b"x" * 5000, OLD, NEW), "MALFORMED"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    offered, reason = REFUSED[case]
    with pytest.raises(NodeKeyError) as refused:
        judge_rotation(offered, KNOWN, now_ms=NOW_MS)
    assert refused.value.reason == reason
    assert refused.value.detail


@pytest.mark.parametrize(
    ("identity", "sealing"), [(NEW, NEW), (NEW, OLD), (OLD, NEW)], ids=["both", "identity alone", "sealing alone"]
)
def test_what_a_node_signs_is_taken_once_and_answered_again(identity: NodeKeys, sealing: NodeKeys) -> None:
    new = NodeKeys(identity.identity, sealing.sealing)
    offered = sign_rotation(cluster_id="cl", node_id="nd", old=OLD, new=new, issued_at_ms=NOW_MS)
    taken = judge_rotation(offered, KNOWN, now_ms=NOW_MS)
    assert taken == KnownKeys("cl", "nd", identity.identity.public_key, sealing.sealing_public, NOW_MS)
    assert judge_rotation(offered, taken, now_ms=NOW_MS + 999_999) is taken


def test_a_replayed_rotation_does_not_bring_a_former_key_back() -> None:
    first = sign_rotation(
        cluster_id="cl", node_id="nd", old=OLD, new=NodeKeys(OLD.identity, NEW.sealing), issued_at_ms=NOW_MS
    )
    held = NodeKeys(OLD.identity, NEW.sealing)
    second = sign_rotation(
        cluster_id="cl", node_id="nd", old=held, new=NodeKeys(OLD.identity, STRANGER.sealing), issued_at_ms=NOW_MS + 1
    )
    known = judge_rotation(second, judge_rotation(first, KNOWN, now_ms=NOW_MS), now_ms=NOW_MS)
    with pytest.raises(NodeKeyError, match="STALE"):
        judge_rotation(first, known, now_ms=NOW_MS)


def test_a_former_identity_rotates_nothing_any_more() -> None:
    known = judge_rotation(signed(GOOD, OLD, NEW), KNOWN, now_ms=NOW_MS)
    thief = sign_rotation(cluster_id="cl", node_id="nd", old=OLD, new=STRANGER, issued_at_ms=NOW_MS + 1)
    with pytest.raises(NodeKeyError, match="WRONG_SIGNER"):
        judge_rotation(thief, known, now_ms=NOW_MS)


@given(raw=st.binary(max_size=200), values=st.lists(st.binary(min_size=64, max_size=64), max_size=3))
def test_no_random_bytes_change_anything(raw: bytes, values: list[bytes]) -> None:
    offered = trust_pb2.Signed(
        statement=raw, signatures=[trust_pb2.Signature(key_id=OLD.identity.key_id, value=value) for value in values]
    )
    with pytest.raises(NodeKeyError):
        judge_rotation(offered, KNOWN, now_ms=NOW_MS)


@given(st.lists(st.integers(-100, 400_000), min_size=1, max_size=8))
def test_times_only_grow(offsets: list[int]) -> None:
    known, keys = KNOWN, OLD
    for number, offset in enumerate(offsets):
        new = NodeKeys(Signer.from_private_bytes(bytes([number + 10]) * 32), keys.sealing)
        issued = NOW_MS - 60_000 + offset
        offered = sign_rotation(cluster_id="cl", node_id="nd", old=keys, new=new, issued_at_ms=issued)
        before = known
        try:
            known = judge_rotation(offered, known, now_ms=NOW_MS)
        except NodeKeyError:
            assert issued <= before.last_issued_at_ms or issued > NOW_MS + MAX_AHEAD_MS
        else:
            keys = new
            assert known == replace(before, identity_key=new.identity.public_key, last_issued_at_ms=issued)
            assert known.last_issued_at_ms > before.last_issued_at_ms
