"""A signature serves its own purpose, its own bytes and its own signer, and nothing else."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError, Signer
from fleet.v1 import trust_pb2

ALICE = Signer.from_private_bytes(b"\x01" * 32)
BOB = Signer.from_private_bytes(b"\x02" * 32)
EVERYBODY = {signer.key_id: signer.public_key for signer in (ALICE, BOB)}

domains = st.sampled_from(list(Domain))
statements = st.binary(max_size=300)


@pytest.mark.parametrize("signed_for", list(Domain))
def test_a_signature_of_one_domain_verifies_in_no_other(signed_for: Domain) -> None:
    signed = ALICE.sign(signed_for, b"statement")
    assert envelope.verify(signed, domain=signed_for, keys=EVERYBODY) == b"statement"
    for asked_for in set(Domain) - {signed_for}:
        with pytest.raises(EnvelopeError, match="BAD_SIGNATURE"):
            envelope.verify(signed, domain=asked_for, keys=EVERYBODY)


@given(first=st.tuples(domains, statements), second=st.tuples(domains, statements))
def test_signing_inputs_collide_for_nothing(first: tuple[Domain, bytes], second: tuple[Domain, bytes]) -> None:
    same = envelope.signing_input(*first) == envelope.signing_input(*second)
    assert same == (first == second)


@given(domain=domains, statement=statements)
def test_a_signature_verifies_and_returns_the_bytes(domain: Domain, statement: bytes) -> None:
    signed = trust_pb2.Signed.FromString(ALICE.sign(domain, statement).SerializeToString())
    assert envelope.verify_one(signed, domain=domain, public_key=ALICE.public_key) == statement


@given(data=st.data(), domain=domains, statement=st.binary(min_size=1, max_size=100))
def test_any_flipped_bit_breaks_it(data: st.DataObject, domain: Domain, statement: bytes) -> None:
    signed = ALICE.sign(domain, statement)
    part = data.draw(st.sampled_from(["statement", "value", "key_id"]))
    target = signed if part == "statement" else signed.signatures[0]
    content = bytearray(getattr(target, part))
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    setattr(target, part, bytes(content))
    with pytest.raises(EnvelopeError):
        envelope.verify(signed, domain=domain, keys=EVERYBODY)


@given(domain=domains, statement=statements, value=st.binary(max_size=80))
def test_made_up_signatures_verify_nothing(domain: Domain, statement: bytes, value: bytes) -> None:
    made_up = trust_pb2.Signature(key_id=ALICE.key_id, value=value)
    with pytest.raises(EnvelopeError, match="BAD_SIGNATURE"):
        envelope.verify(trust_pb2.Signed(statement=statement, signatures=[made_up]), domain=domain, keys=EVERYBODY)


@given(domain=domains, statement=statements, order=st.permutations(["alice", "bob", "stranger"]))
def test_all_known_signers_are_named_and_strangers_passed_over(
    domain: Domain, statement: bytes, order: list[str]
) -> None:
    people = {"alice": ALICE, "bob": BOB, "stranger": Signer.from_private_bytes(b"\x09" * 32)}
    signed = trust_pb2.Signed(statement=statement)
    for name in order:
        people[name].add(signed, domain)
    assert envelope.verified_signers(signed, domain=domain, keys=EVERYBODY) == EVERYBODY.keys()


def test_one_bad_signature_by_a_known_key_refuses_all() -> None:
    signed = ALICE.sign(Domain.INTENT, b"statement")
    signed.signatures.add(key_id=BOB.key_id, value=ALICE.sign_value(Domain.INTENT, b"statement"))
    with pytest.raises(EnvelopeError, match="BAD_SIGNATURE"):
        envelope.verified_signers(signed, domain=Domain.INTENT, keys=EVERYBODY)


def test_a_signer_counts_once_however_often_it_signs() -> None:
    signed = ALICE.sign(Domain.INTENT, b"statement")
    for _ in range(3):
        ALICE.add(signed, Domain.INTENT)
    assert envelope.verified_signers(signed, domain=Domain.INTENT, keys=EVERYBODY) == {ALICE.key_id}


def test_nobody_expected_signed() -> None:
    signed = ALICE.sign(Domain.COMMAND, b"statement")
    with pytest.raises(EnvelopeError, match="UNKNOWN_KEY"):
        envelope.verify_one(signed, domain=Domain.COMMAND, public_key=BOB.public_key)
    with pytest.raises(EnvelopeError, match="UNKNOWN_KEY"):
        envelope.verify(trust_pb2.Signed(statement=b"statement"), domain=Domain.COMMAND, keys=EVERYBODY)


def test_more_signatures_than_anybody_needs_are_refused_before_any_work() -> None:
    signed = trust_pb2.Signed(statement=b"statement")
    for _ in range(envelope.MAX_SIGNATURES + 1):
        signed.signatures.add(key_id=ALICE.key_id, value=bytes(64))
    with pytest.raises(EnvelopeError, match="MALFORMED"):
        envelope.verify(signed, domain=Domain.COMMAND, keys=EVERYBODY)


@pytest.mark.parametrize("public_key", [b"", b"\x00" * 31, b"\xff" * 32, b"\x00" * 33])
def test_a_public_key_that_is_none_verifies_nothing(public_key: bytes) -> None:
    signed = ALICE.sign(Domain.ENROLL, b"statement")
    signed.signatures[0].key_id = envelope.key_id(public_key)
    with pytest.raises(EnvelopeError, match="BAD_SIGNATURE"):
        envelope.verify_one(signed, domain=Domain.ENROLL, public_key=public_key)


FIELD = 2**255 - 19
ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
SMALL_ORDER_Y = [0, 1, FIELD - 1, FIELD, FIELD + 1, (y := int.from_bytes(ORDER_8, "little")), FIELD - y]
SMALL_ORDER_KEYS = [(y | sign << 255).to_bytes(32, "little") for y in SMALL_ORDER_Y for sign in (0, 1)]


@pytest.mark.parametrize("public_key", SMALL_ORDER_KEYS, ids=bytes.hex)
def test_keys_under_which_anybody_can_sign_verify_nothing(public_key: bytes) -> None:
    statements = [bytes([number]) for number in range(16)]
    forged = [point + bytes(32) for point in SMALL_ORDER_KEYS]  # S = 0, R of small order: no private key is needed
    assert any(openssl_verifies(public_key, value, one) for value in forged for one in statements)
    for value in forged:
        for statement in statements:
            made_up = trust_pb2.Signature(key_id=envelope.key_id(public_key), value=value)
            signed = trust_pb2.Signed(statement=statement, signatures=[made_up])
            with pytest.raises(EnvelopeError, match="BAD_SIGNATURE"):
                envelope.verify_one(signed, domain=Domain.INTENT, public_key=public_key)


def openssl_verifies(public_key: bytes, value: bytes, statement: bytes) -> bool:
    message = envelope.signing_input(Domain.INTENT, statement)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(value, message)
    except InvalidSignature:
        return False
    return True


def test_a_signer_shows_its_id_and_never_its_key() -> None:
    assert repr(ALICE) == f"Signer({ALICE.key_id.hex()})"
    assert ALICE.private_bytes().hex() not in repr(ALICE)
    assert Signer.from_private_bytes(ALICE.private_bytes()).public_key == ALICE.public_key
    assert Signer.generate().public_key != Signer.generate().public_key
