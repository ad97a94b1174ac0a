"""Signed manifests, claims and grants as tables of cases, most of them refusals."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.v1 import trust_pb2
from fleet_server.installation import rules
from fleet_server.installation.rules import Manifest
from tests.unit.fleet_server.installation import signed
from tests.unit.fleet_server.installation.signed import DAY_MS, INSTALLATION, NOW_MS, OWNER, ROOT, STRANGER

KEY = b"k" * 32
NONCE = b"n" * 16


def manifest_of(thing: trust_pb2.Signed) -> Manifest:
    return rules.verify_manifest(thing, root_key=ROOT.public_key, installation_id=INSTALLATION)


def test_a_good_manifest_names_the_first_owner() -> None:
    found = manifest_of(signed.manifest())
    assert found == Manifest(OWNER.public_key, NOW_MS, NOW_MS + DAY_MS)
    rules.check_import(found, None, NOW_MS)
    rules.check_import(found, found, NOW_MS)


@pytest.mark.parametrize(
    ("thing", "reason", "says"),
    [
        (signed.manifest(STRANGER), Reason.BAD_PROOF, "not signed by the product root"),
        (signed.manifest(OWNER), Reason.BAD_PROOF, "not signed"),
        (signed.manifest(domain=Domain.PLATFORM_GRANT), Reason.BAD_PROOF, "not signed"),
        (trust_pb2.Signed(), Reason.BAD_PROOF, "not signed"),
        (signed.manifest(installation_id="i-" + "1" * 32), Reason.INVALID_ARGUMENT, "is for installation"),
        (signed.manifest(first_owner_key=b""), Reason.INVALID_ARGUMENT, "no usable first owner key"),
        (signed.manifest(first_owner_key=bytes(32)), Reason.INVALID_ARGUMENT, "no usable first owner key"),
        (ROOT.sign(Domain.ACTIVATION, b"\xff\xff"), Reason.INVALID_ARGUMENT, "cannot be read"),
        (signed.manifest(installation_id="x" * 20_000), Reason.INVALID_ARGUMENT, "another file"),
    ],
)
def test_a_manifest_that_does_not_count(thing: trust_pb2.Signed, reason: Reason, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        manifest_of(thing)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"not_after_ms": NOW_MS}, "expired"),
        ({"not_after_ms": 0}, "expired"),
        ({"issued_at_ms": NOW_MS + rules.MAX_CLOCK_AHEAD_MS + 1}, "future"),
        ({"issued_at_ms": NOW_MS - 1}, "newer activation manifest"),
        ({"first_owner_key": STRANGER.public_key}, "newer activation manifest"),
    ],
)
def test_a_manifest_that_is_not_imported(fields: dict[str, Any], says: str) -> None:
    held = manifest_of(signed.manifest())
    with pytest.raises(Refusal, match=says):
        rules.check_import(manifest_of(signed.manifest(**fields)), held, NOW_MS)


def test_a_newer_manifest_replaces_the_held_one() -> None:
    newer = manifest_of(signed.manifest(first_owner_key=STRANGER.public_key, issued_at_ms=NOW_MS + 1))
    rules.check_import(newer, manifest_of(signed.manifest()), NOW_MS + 1)


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (signed.grant(STRANGER), "not signed by the product root"),
        (signed.grant(OWNER), "not signed"),
        (signed.grant(domain=Domain.ROLE_GRANT), "not signed"),
        (signed.grant(installation_id="i-" + "1" * 32), "is for installation"),
        (signed.grant(role="owner"), "gives the role 'owner'"),
        (signed.grant(role=""), "gives the role"),
        (signed.grant(operator_id=""), "no operator id"),
        (signed.grant(operator_id="op-" + "a" * 15), "no operator id"),
    ],
)
def test_a_grant_that_does_not_count(thing: trust_pb2.Signed, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        rules.verify_grant(thing, root_key=ROOT.public_key, installation_id=INSTALLATION)


def test_a_grant_counts_until_it_expires() -> None:
    found = rules.verify_grant(signed.grant(), root_key=ROOT.public_key, installation_id=INSTALLATION)
    rules.check_grant_import(found, NOW_MS)
    assert found.in_force(NOW_MS + DAY_MS - 1)
    assert not found.in_force(NOW_MS + DAY_MS)
    with pytest.raises(Refusal, match="expired"):
        rules.check_grant_import(found, NOW_MS + DAY_MS)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"by": ROOT}, "not signed by the first owner"),
        ({"by": STRANGER}, "not signed"),
        ({"domain": Domain.INTENT}, "not signed"),
        ({"installation_id": "i-" + "1" * 32}, "is for installation"),
        ({"operator_id": "ada"}, "no operator id"),
    ],
)
def test_a_claim_that_does_not_count(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        rules.verify_claim(
            signed.claim(b"", **fields), manifest=manifest_of(signed.manifest()), installation_id=INSTALLATION
        )


def claim_of(challenge: bytes, **fields: Any) -> rules.Claim:
    return rules.verify_claim(
        signed.claim(challenge, **fields), manifest=manifest_of(signed.manifest()), installation_id=INSTALLATION
    )


def test_a_claim_is_good_once_and_for_five_minutes() -> None:
    challenge = rules.make_challenge(KEY, NOW_MS, NONCE)
    first = claim_of(challenge)
    rules.check_claim(first, None, challenge_key=KEY, now_ms=NOW_MS + rules.CHALLENGE_MS - 1)
    with pytest.raises(Refusal, match="no challenge of the last 5 minutes"):
        rules.check_claim(first, None, challenge_key=KEY, now_ms=NOW_MS + rules.CHALLENGE_MS)
    with pytest.raises(Refusal, match="made already"):
        rules.check_claim(first, first, challenge_key=KEY, now_ms=NOW_MS)
    with pytest.raises(Refusal, match="made already"):
        rules.check_claim(claim_of(challenge, issued_at_ms=NOW_MS - 1), first, challenge_key=KEY, now_ms=NOW_MS)
    rules.check_claim(claim_of(challenge, issued_at_ms=NOW_MS + 1), first, challenge_key=KEY, now_ms=NOW_MS)


def test_a_clock_that_is_ahead_locks_nobody_out() -> None:
    challenge = rules.make_challenge(KEY, NOW_MS, NONCE)
    ahead = claim_of(challenge, issued_at_ms=NOW_MS + rules.MAX_CLOCK_AHEAD_MS)
    rules.check_claim(ahead, None, challenge_key=KEY, now_ms=NOW_MS)
    far = claim_of(challenge, issued_at_ms=NOW_MS + rules.MAX_CLOCK_AHEAD_MS + 1)
    for held in (None, ahead):
        with pytest.raises(Refusal, match="in the future"):
            rules.check_claim(far, held, challenge_key=KEY, now_ms=NOW_MS)


@pytest.mark.parametrize("name", ["ada", ""])
def test_an_owner_who_does_not_know_who_they_are_is_told(name: str) -> None:
    """`GetInstallation` tells operators alone, and this one has lost the token."""
    challenge = rules.make_challenge(KEY, NOW_MS, NONCE)
    held = claim_of(challenge)
    later = claim_of(challenge, operator_name=name, operator_id="op-" + "1" * 16, issued_at_ms=NOW_MS + 1)
    with pytest.raises(Refusal, match="already") as caught:
        rules.check_claim(later, held, challenge_key=KEY, now_ms=NOW_MS)
    assert caught.value.metadata == {"operator_id": held.operator_id, "operator_name": "ada"}
    other = claim_of(challenge, operator_name="ben", operator_id="op-" + "1" * 16, issued_at_ms=NOW_MS + 1)
    rules.check_claim(other, held, challenge_key=KEY, now_ms=NOW_MS)


@given(challenge=st.binary(max_size=64))
def test_nobody_invents_a_challenge(challenge: bytes) -> None:
    assert not rules.is_fresh_challenge(challenge, KEY, NOW_MS)


@given(position=st.integers(min_value=0, max_value=39), change=st.integers(min_value=1, max_value=255))
def test_no_changed_challenge_is_taken(position: int, change: int) -> None:
    challenge = bytearray(rules.make_challenge(KEY, NOW_MS, NONCE))
    challenge[position] ^= change
    assert not rules.is_fresh_challenge(bytes(challenge), KEY, NOW_MS)
    assert not rules.is_fresh_challenge(rules.make_challenge(KEY, NOW_MS, NONCE), b"other" * 6, NOW_MS)
