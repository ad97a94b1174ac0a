"""Which command key a node believes: tables of refusals, each named for the attack or the fault (docs/protocol.md,
"Trust")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import command_trust, trust
from fleet.envelope import Domain, Signer
from fleet.sequence import StatementReason, StatementRefusal
from fleet.trust import TrustError, TrustReason, TrustState
from fleet.v1 import trust_pb2
from tests.properties.offers import (
    AUTHORITIES,
    CLUSTER,
    COMMAND_KEY,
    DAY_MS,
    NOW_MS,
    OTHER_COMMAND_KEY,
    Offer,
    certificate,
)

BERLIN = {"site": "berlin"}
BELIEVED = {
    "active, every site": {},
    "active, this site": BERLIN,
    "prepared: the switch may reach a node before the bundle that tells of it": {"phase": trust_pb2.KEY_PHASE_PREPARED},
    "retired, still verifying": {"phase": trust_pb2.KEY_PHASE_RETIRED, "verify_until_ms": NOW_MS + 1},
    "valid from this millisecond": {"not_before_ms": NOW_MS},
}
DISBELIEVED = {
    "revoked": ({"phase": trust_pb2.KEY_PHASE_REVOKED}, StatementReason.KEY_REVOKED),
    "revoked and ended": (
        {"phase": trust_pb2.KEY_PHASE_REVOKED, "verify_until_ms": NOW_MS - 1},
        StatementReason.KEY_REVOKED,
    ),
    "retired and ended": (
        {"phase": trust_pb2.KEY_PHASE_RETIRED, "verify_until_ms": NOW_MS},
        StatementReason.KEY_EXPIRED,
    ),
    "retired without an end": ({"phase": trust_pb2.KEY_PHASE_RETIRED}, StatementReason.KEY_EXPIRED),
    "active and ended": ({"verify_until_ms": NOW_MS - 1}, StatementReason.KEY_EXPIRED),
    "not valid yet": ({"not_before_ms": NOW_MS + 1}, StatementReason.KEY_NOT_YET_VALID),
    "another site's": ({"site": "paris"}, StatementReason.WRONG_SITE),
    "no phase": ({"phase": trust_pb2.KEY_PHASE_UNSPECIFIED}, StatementReason.UNKNOWN_KEY),
    "a phase of a later version": ({"phase": 9}, StatementReason.UNKNOWN_KEY),
}


def bundle_with(**fields: object) -> TrustState:
    offer = Offer(certificates=(certificate(AUTHORITIES[2], **fields),))
    return trust.first(offer.signed(), cluster_id=CLUSTER, authority_key=AUTHORITIES[2].public_key)


def open_command(state: TrustState, signed: trust_pb2.Signed, now_ms: int = NOW_MS) -> bytes:
    return command_trust.verify_command_envelope(state, signed, Domain.COMMAND, site="berlin", now_ms=now_ms)


@pytest.mark.parametrize("fields", BELIEVED.values(), ids=BELIEVED.keys())
def test_command_keys_that_are_believed(fields: dict[str, object]) -> None:
    signed = COMMAND_KEY.sign(Domain.COMMAND, b"statement")
    assert open_command(bundle_with(**fields), signed) == b"statement"


@pytest.mark.parametrize(("fields", "reason"), DISBELIEVED.values(), ids=DISBELIEVED.keys())
def test_command_keys_that_are_not_believed(fields: dict[str, object], reason: StatementReason) -> None:
    with pytest.raises(StatementRefusal) as caught:
        open_command(bundle_with(**fields), COMMAND_KEY.sign(Domain.COMMAND, b"statement"))
    assert caught.value.reason is reason


def step(state: TrustState, number: int, generation: int = 2, **fields: object) -> TrustState:
    authority = AUTHORITIES[generation]
    signers = (authority,) if generation == state.generation else (AUTHORITIES[generation - 1], authority)
    certificates = (certificate(authority, **fields),) if fields else ()
    offer = Offer(generation=generation, number=number, authority=authority, signers=signers, certificates=certificates)
    return trust.advance(state, offer.signed())


REVOKED = {"phase": trust_pb2.KEY_PHASE_REVOKED}
GOOD = {"phase": trust_pb2.KEY_PHASE_ACTIVE}
AFTER_REVOCATION = {
    "certified again at once": [(12, 2, GOOD)],
    "left out, then certified again": [(12, 2, {}), (13, 2, GOOD)],
    "certified by the next authority": [(1, 3, GOOD)],
    "left out by one authority, certified by the next": [(12, 2, {}), (1, 3, {}), (2, 3, GOOD)],
}


@pytest.mark.parametrize("later", AFTER_REVOCATION.values(), ids=AFTER_REVOCATION.keys())
def test_no_bundle_makes_a_revoked_key_good_again(later: list[tuple[int, int, dict[str, object]]]) -> None:
    state = bundle_with(**REVOKED)
    for number, generation, fields in later:
        state = step(state, number, generation, **fields)
    with pytest.raises(StatementRefusal) as caught:
        open_command(state, signed_by(COMMAND_KEY))
    assert caught.value.reason is StatementReason.KEY_REVOKED


def test_revocations_without_end_push_no_true_one_out() -> None:
    known = [COMMAND_KEY.key_id, *(number.to_bytes(16, "big") for number in range(trust.MAX_REVOKED_KEYS))]
    offer = Offer(certificates=(certificate(AUTHORITIES[2], key=OTHER_COMMAND_KEY.public_key, **REVOKED),))
    state = trust.first(offer.signed(), cluster_id=CLUSTER, authority_key=AUTHORITIES[2].public_key, revoked=known)
    with pytest.raises(StatementRefusal) as caught:
        open_command(state, signed_by(OTHER_COMMAND_KEY))
    assert caught.value.reason is StatementReason.KEY_REVOKED
    assert len(state.revoked) == len(known)
    state = step(state, 12, **GOOD)
    with pytest.raises(StatementRefusal) as caught:
        open_command(state, signed_by(COMMAND_KEY))
    assert caught.value.reason is StatementReason.KEY_REVOKED


def signed_by(*signers: Signer, domain: Domain = Domain.COMMAND) -> trust_pb2.Signed:
    signed = trust_pb2.Signed(statement=b"statement")
    for signer in signers:
        signer.add(signed, domain)
    return signed


def forged() -> trust_pb2.Signed:
    made = trust_pb2.Signature(key_id=COMMAND_KEY.key_id, value=bytes(64))
    return trust_pb2.Signed(statement=b"statement", signatures=[made])


BAD_ENVELOPES = {
    "by the authority itself": (signed_by(AUTHORITIES[2]), StatementReason.UNKNOWN_KEY),
    "by a key of no bundle": (signed_by(OTHER_COMMAND_KEY), StatementReason.UNKNOWN_KEY),
    "by nobody": (signed_by(), StatementReason.MALFORMED),
    "by two": (signed_by(COMMAND_KEY, AUTHORITIES[2]), StatementReason.MALFORMED),
    "forged": (forged(), StatementReason.BAD_SIGNATURE),
    "a cancel as a command": (signed_by(COMMAND_KEY, domain=Domain.CANCEL), StatementReason.BAD_SIGNATURE),
}


@pytest.mark.parametrize(("signed", "reason"), BAD_ENVELOPES.values(), ids=BAD_ENVELOPES.keys())
def test_command_envelopes_that_are_refused(signed: trust_pb2.Signed, reason: StatementReason) -> None:
    with pytest.raises(StatementRefusal) as caught:
        open_command(bundle_with(), signed)
    assert caught.value.reason is reason


def test_a_withheld_bundle_stops_commands_after_its_grace() -> None:
    state = bundle_with()
    signed = signed_by(COMMAND_KEY)
    end_ms = state.expires_at_ms + state.grace_s * 1000
    assert open_command(state, signed, now_ms=end_ms - 1) == b"statement"
    with pytest.raises(StatementRefusal) as caught:
        open_command(state, signed, now_ms=end_ms)
    assert caught.value.reason is StatementReason.BUNDLE_EXPIRED


def test_a_bundle_of_a_far_time_lets_no_command_through_before_it() -> None:
    issued_ms = NOW_MS + 900 * DAY_MS
    offer = Offer(issued_at_ms=issued_ms, expires_at_ms=issued_ms + trust.BUNDLE_LIFETIME_MS)
    state = trust.first(offer.signed(), cluster_id=CLUSTER, authority_key=AUTHORITIES[2].public_key)
    begins_ms = issued_ms - trust.MAX_BUNDLE_AHEAD_MS
    assert open_command(state, signed_by(COMMAND_KEY), now_ms=begins_ms) == b"statement"
    for now_ms in (NOW_MS, begins_ms - 1):
        with pytest.raises(StatementRefusal) as caught:
            open_command(state, signed_by(COMMAND_KEY), now_ms=now_ms)
        assert caught.value.reason is StatementReason.BUNDLE_EXPIRED


@given(
    st.integers(-(2**62), 2**62),
    st.integers(-DAY_MS, 8 * DAY_MS) | st.integers(-(2**62), 2**62),
    st.integers(0, 2 * 86_400) | st.integers(0, 2**32 - 1),
    st.integers(-2 * DAY_MS, 10 * DAY_MS),
)
def test_whatever_a_bundle_says_it_is_good_for_nine_days_at_most(
    issued_ms: int, lifetime_ms: int, grace_s: int, later_ms: int
) -> None:
    offer = Offer(issued_at_ms=issued_ms, expires_at_ms=issued_ms + lifetime_ms, grace_s=grace_s)
    now_ms = issued_ms + later_ms
    try:
        state = trust.first(offer.signed(), cluster_id=CLUSTER, authority_key=AUTHORITIES[2].public_key)
    except TrustError as error:
        assert error.reason is TrustReason.MALFORMED
        return
    assert not (state.fresh(now_ms) and state.fresh(now_ms + 9 * DAY_MS))


@pytest.mark.parametrize("domain", sorted(set(Domain) - {Domain.COMMAND, Domain.CANCEL}))
def test_a_command_key_vouches_for_commands_and_cancels_only(domain: Domain) -> None:
    with pytest.raises(ValueError, match="signs no"):
        command_trust.verify_command_envelope(
            bundle_with(), signed_by(COMMAND_KEY, domain=domain), domain, site="", now_ms=NOW_MS
        )
