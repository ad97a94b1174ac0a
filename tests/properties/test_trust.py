"""Which bundle a node takes, which command key it believes, and which join token: tables of refusals, each named for
the attack or the fault, and properties over arbitrary offers (docs/protocol.md, "Trust")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import trust
from fleet.envelope import Domain, Signer
from fleet.sequence import StatementReason, StatementRefusal
from fleet.trust import TrustError, TrustReason, TrustState
from fleet.v1 import enrollment_pb2, trust_pb2

CLUSTER = "cluster-1"
NOW_MS = 1_900_000_000_000
DAY_MS = 86_400_000
AUTHORITIES = {generation: Signer.from_private_bytes(bytes([generation]) * 32) for generation in range(1, 6)}
STRANGER = Signer.from_private_bytes(b"\x70" * 32)
COMMAND_KEY = Signer.from_private_bytes(b"\x80" * 32)
OTHER_COMMAND_KEY = Signer.from_private_bytes(b"\x81" * 32)


def certificate(
    by: Signer, key: bytes = COMMAND_KEY.public_key, cluster_id: str = CLUSTER, **fields: object
) -> trust_pb2.Signed:
    said = trust_pb2.KeyCertificateStatement(cluster_id=cluster_id, public_key=key, phase=trust_pb2.KEY_PHASE_ACTIVE)
    for name, value in fields.items():
        setattr(said, name, value)
    return by.sign(Domain.KEY_CERTIFICATE, said.SerializeToString())


@dataclass(frozen=True)
class Offer:
    """A bundle as somebody offers it; by default the good next step of its generation."""

    generation: int = 2
    number: int = 11
    cluster_id: str = CLUSTER
    authority: Signer = AUTHORITIES[2]
    signers: tuple[Signer, ...] = (AUTHORITIES[2],)
    certificates: tuple[trust_pb2.Signed, ...] | None = None
    domain: Domain = Domain.TRUST_BUNDLE
    expires_at_ms: int = NOW_MS + 7 * DAY_MS
    damage: Callable[[trust_pb2.Signed], None] = field(default=lambda signed: None)

    def signed(self) -> trust_pb2.Signed:
        certificates = (certificate(self.authority),) if self.certificates is None else self.certificates
        raw = trust_pb2.TrustBundleStatement(
            cluster_id=self.cluster_id,
            generation=self.generation,
            number=self.number,
            authority_key=self.authority.public_key,
            command_keys=certificates,
            expires_at_ms=self.expires_at_ms,
            grace_s=86_400,
            endpoints=["gateway.example:7443"],
        ).SerializeToString()
        made = trust_pb2.Signed(statement=raw)
        for signer in self.signers:
            signer.add(made, self.domain)
        self.damage(made)
        return made


def step(generation: int, number: int = 1, signers: tuple[Signer, ...] | None = None) -> Offer:
    """The first bundle of a later generation."""
    both = (AUTHORITIES[generation - 1], AUTHORITIES[generation])
    return Offer(generation=generation, number=number, authority=AUTHORITIES[generation], signers=signers or both)


def held(number: int = 10) -> TrustState:
    return trust.first(Offer(number=number).signed(), cluster_id=CLUSTER, authority_key=AUTHORITIES[2].public_key)


def flip_statement(signed: trust_pb2.Signed) -> None:
    signed.statement = signed.statement[:-1] + bytes([signed.statement[-1] ^ 1])


def drop_signatures(signed: trust_pb2.Signed) -> None:
    del signed.signatures[:]


def as_garbage(signed: trust_pb2.Signed) -> None:
    signed.statement = b"\xff\xff\xff"
    drop_signatures(signed)
    AUTHORITIES[2].add(signed, Domain.TRUST_BUNDLE)


def forge_signature(signed: trust_pb2.Signed) -> None:
    signed.signatures.add(key_id=AUTHORITIES[3].key_id, value=bytes(64))


TAKEN = {
    "the next number": Offer(),
    "numbers left out (the node was offline)": Offer(number=500),
    "as far ahead as may be": Offer(number=10 + trust.MAX_NUMBER_STEP),
    "with strangers' signatures beside": Offer(signers=(STRANGER, AUTHORITIES[2])),
    "expired already: it refuses commands, and moves on": Offer(expires_at_ms=NOW_MS - 9 * DAY_MS),
    "the next generation, number restarted": step(3),
    "the next generation, not from its first number": step(3, number=77),
    "no command key (all revoked)": Offer(certificates=()),
}

REFUSED = {
    "rollback: an older number": (Offer(number=9), TrustReason.ROLLBACK),
    "rollback: the same number with other content": (
        Offer(number=10, expires_at_ms=NOW_MS + 99 * DAY_MS),
        TrustReason.ROLLBACK,
    ),
    "rollback: an older generation by the authority in force": (
        Offer(generation=1, number=99),
        TrustReason.ROLLBACK,
    ),
    "rollback: an older generation by its old authority": (
        Offer(generation=1, number=99, authority=AUTHORITIES[1], signers=(AUTHORITIES[1],)),
        TrustReason.WRONG_SIGNER,
    ),
    "fast-forward: too far ahead": (Offer(number=11 + trust.MAX_NUMBER_STEP), TrustReason.FAST_FORWARD),
    "fast-forward: the end of numbers": (Offer(number=2**64 - 1), TrustReason.FAST_FORWARD),
    "fast-forward: a new generation that begins at the end": (step(3, number=2**64 - 1), TrustReason.FAST_FORWARD),
    "skipped generation, signed by old and newest": (
        replace(step(4), signers=(AUTHORITIES[2], AUTHORITIES[4])),
        TrustReason.SKIPPED_GENERATION,
    ),
    "skipped generation, without the authority in force": (step(4), TrustReason.WRONG_SIGNER),
    "generation change by the old authority alone": (step(3, signers=(AUTHORITIES[2],)), TrustReason.WRONG_SIGNER),
    "generation change by the new authority alone": (step(3, signers=(AUTHORITIES[3],)), TrustReason.WRONG_SIGNER),
    "generation change where the new signature is forged": (
        replace(
            step(3, signers=(AUTHORITIES[2],)),
            damage=forge_signature,
        ),
        TrustReason.WRONG_SIGNER,
    ),
    "generation change that keeps the authority": (
        Offer(generation=3, number=1),
        TrustReason.WRONG_SIGNER,
    ),
    "generation change to another cluster": (replace(step(3), cluster_id="cluster-2"), TrustReason.WRONG_CLUSTER),
    "new authority within the generation": (
        Offer(authority=AUTHORITIES[3], signers=(AUTHORITIES[2], AUTHORITIES[3])),
        TrustReason.WRONG_SIGNER,
    ),
    "signed by a stranger": (Offer(signers=(STRANGER,)), TrustReason.WRONG_SIGNER),
    "signed by a command key": (Offer(signers=(COMMAND_KEY,)), TrustReason.WRONG_SIGNER),
    "signed for another purpose": (Offer(domain=Domain.CONFIG), TrustReason.WRONG_SIGNER),
    "not signed": (Offer(damage=drop_signatures), TrustReason.WRONG_SIGNER),
    "changed after signing": (Offer(damage=flip_statement), TrustReason.WRONG_SIGNER),
    "signed garbage": (Offer(damage=as_garbage), TrustReason.MALFORMED),
    "another cluster's": (Offer(cluster_id="cluster-2"), TrustReason.WRONG_CLUSTER),
    "number 0 in a new generation": (step(3, number=0), TrustReason.MALFORMED),
    "a command key certified by a stranger": (
        Offer(certificates=(certificate(STRANGER),)),
        TrustReason.WRONG_SIGNER,
    ),
    "a command key certified by the authority before": (
        Offer(certificates=(certificate(AUTHORITIES[1]),)),
        TrustReason.WRONG_SIGNER,
    ),
    "a command key that certifies itself": (Offer(certificates=(certificate(COMMAND_KEY),)), TrustReason.WRONG_SIGNER),
    "a command key of another cluster": (
        Offer(certificates=(certificate(AUTHORITIES[2], cluster_id="cluster-2"),)),
        TrustReason.WRONG_CLUSTER,
    ),
    "the authority as its own command key": (
        Offer(certificates=(certificate(AUTHORITIES[2], AUTHORITIES[2].public_key),)),
        TrustReason.MALFORMED,
    ),
    "a command key that is none": (Offer(certificates=(certificate(AUTHORITIES[2], b"short"),)), TrustReason.MALFORMED),
    "a revoked command key certified again beside": (
        Offer(
            certificates=(
                certificate(AUTHORITIES[2], phase=trust_pb2.KEY_PHASE_REVOKED),
                certificate(AUTHORITIES[2]),
            )
        ),
        TrustReason.MALFORMED,
    ),
    "more command keys than anybody needs": (
        Offer(
            certificates=tuple(
                certificate(AUTHORITIES[2], bytes([index]) * 32) for index in range(trust.MAX_COMMAND_KEYS + 1)
            )
        ),
        TrustReason.MALFORMED,
    ),
}


@pytest.mark.parametrize("offer", TAKEN.values(), ids=TAKEN.keys())
def test_bundles_that_are_taken(offer: Offer) -> None:
    state = trust.advance(held(), offer.signed())
    assert state.version == (offer.generation, offer.number)
    assert state.authority_key == offer.authority.public_key


@pytest.mark.parametrize(("offer", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_bundles_that_are_refused(offer: Offer, reason: TrustReason) -> None:
    with pytest.raises(TrustError) as caught:
        trust.advance(held(), offer.signed())
    assert caught.value.reason is reason


def test_the_same_bundle_again_changes_nothing() -> None:
    state = held()
    assert trust.advance(state, state.signed) is state


# --- the first bundle ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        (Offer(signers=(STRANGER,)), TrustReason.WRONG_SIGNER),
        (Offer(authority=STRANGER), TrustReason.WRONG_SIGNER),
        (Offer(authority=STRANGER, signers=(STRANGER,)), TrustReason.WRONG_SIGNER),
        (Offer(cluster_id="cluster-2"), TrustReason.WRONG_CLUSTER),
        (Offer(damage=drop_signatures), TrustReason.WRONG_SIGNER),
        (Offer(damage=flip_statement), TrustReason.WRONG_SIGNER),
        (Offer(generation=0), TrustReason.MALFORMED),
        (Offer(number=0), TrustReason.MALFORMED),
    ],
    ids=["stranger", "names another", "stranger for itself", "cluster", "not signed", "changed", "no generation", "0"],
)
def test_first_bundles_that_are_refused(offer: Offer, reason: TrustReason) -> None:
    with pytest.raises(TrustError) as caught:
        trust.first(offer.signed(), cluster_id=CLUSTER, authority_key=AUTHORITIES[2].public_key)
    assert caught.value.reason is reason


# --- chains ----------------------------------------------------------------------------------------------------------


def test_a_node_that_was_away_for_generations_walks_every_link() -> None:
    newest = Offer(generation=4, number=30, authority=AUTHORITIES[4], signers=(AUTHORITIES[4],))
    chain = [step(3).signed(), step(4).signed(), newest.signed()]
    assert trust.walk(held(), chain).version == (4, 30)


def test_links_that_lie_behind_are_passed_over() -> None:
    chain = [step(2).signed(), Offer(number=3).signed(), Offer(number=12).signed()]
    assert trust.walk(held(), chain).version == (2, 12)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_chain_with_a_hole_is_refused(missing: int) -> None:
    chain = [step(3).signed(), step(4).signed(), step(5).signed()]
    del chain[missing]
    with pytest.raises(TrustError):
        trust.walk(held(), chain)


def test_no_chain_is_no_step() -> None:
    state = held()
    assert trust.walk(state, []) is state


offers = st.builds(
    Offer,
    generation=st.integers(0, 5),
    number=st.one_of(st.integers(0, 30), st.sampled_from([2**20, 2**20 + 11, 2**63])),
    cluster_id=st.sampled_from([CLUSTER, "cluster-2"]),
    authority=st.sampled_from(list(AUTHORITIES.values())),
    signers=st.lists(st.sampled_from([*AUTHORITIES.values(), STRANGER]), max_size=3, unique_by=id).map(tuple),
)


@given(tried=st.lists(st.one_of(offers, st.sampled_from([*TAKEN.values(), step(4), step(5)])), max_size=8))
def test_whatever_is_offered_the_version_only_grows(tried: list[Offer]) -> None:
    state = held()
    for offer in tried:
        try:
            after = trust.advance(state, offer.signed())
        except TrustError:
            continue
        assert after.version >= state.version
        assert after.generation - state.generation in (0, 1)
        assert {state.authority_key, after.authority_key} <= {signer.public_key for signer in offer.signers}
        assert (after.generation == state.generation) == (after.authority_key == state.authority_key)
        if after.generation == state.generation:
            assert after.number - state.number <= trust.MAX_NUMBER_STEP
        assert after.cluster_id == CLUSTER
        state = after


# --- command keys ----------------------------------------------------------------------------------------------------

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
    return trust.verify_command_envelope(state, signed, Domain.COMMAND, site="berlin", now_ms=now_ms)


@pytest.mark.parametrize("fields", BELIEVED.values(), ids=BELIEVED.keys())
def test_command_keys_that_are_believed(fields: dict[str, object]) -> None:
    signed = COMMAND_KEY.sign(Domain.COMMAND, b"statement")
    assert open_command(bundle_with(**fields), signed) == b"statement"


@pytest.mark.parametrize(("fields", "reason"), DISBELIEVED.values(), ids=DISBELIEVED.keys())
def test_command_keys_that_are_not_believed(fields: dict[str, object], reason: StatementReason) -> None:
    with pytest.raises(StatementRefusal) as caught:
        open_command(bundle_with(**fields), COMMAND_KEY.sign(Domain.COMMAND, b"statement"))
    assert caught.value.reason is reason


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


@pytest.mark.parametrize("domain", sorted(set(Domain) - {Domain.COMMAND, Domain.CANCEL}))
def test_a_command_key_vouches_for_commands_and_cancels_only(domain: Domain) -> None:
    with pytest.raises(ValueError, match="signs no"):
        trust.verify_command_envelope(
            bundle_with(), signed_by(COMMAND_KEY, domain=domain), domain, site="", now_ms=NOW_MS
        )


# --- join tokens -----------------------------------------------------------------------------------------------------


def token(by: Signer = AUTHORITIES[1], **fields: object) -> enrollment_pb2.JoinToken:
    said = enrollment_pb2.JoinTokenStatement(
        token_id="jt-1",
        cluster_id=CLUSTER,
        endpoints=["gateway.example:7443"],
        tls_ca_der=b"der",
        authority_key=AUTHORITIES[1].public_key,
    )
    for name, value in fields.items():
        if name == "endpoints":
            said.ClearField("endpoints")
        else:
            setattr(said, name, value)
    return enrollment_pb2.JoinToken(signed=by.sign(Domain.JOIN_TOKEN, said.SerializeToString()), secret=bytes(32))


def with_(made: enrollment_pb2.JoinToken, **fields: object) -> enrollment_pb2.JoinToken:
    for name, value in fields.items():
        setattr(made, name, value)
    return made


BAD_TOKENS = {
    "signed by another than it names": token(STRANGER),
    "names no authority": token(authority_key=b""),
    "no endpoint": token(endpoints=()),
    "no id": token(token_id=""),
    "no cluster": token(cluster_id=""),
    "no certificate authority": token(tls_ca_der=b""),
    "no secret": with_(token(), secret=b""),
    "half a secret": with_(token(), secret=bytes(16)),
    "half an owner pin": with_(token(), owner_pin=bytes(16)),
    "empty": enrollment_pb2.JoinToken(),
    "garbage": enrollment_pb2.JoinToken(signed=trust_pb2.Signed(statement=b"\xff\xff")),
}


def test_a_good_token_says_what_it_says() -> None:
    assert trust.verify_join_token(token()).cluster_id == CLUSTER
    assert trust.verify_join_token(with_(token(), owner_pin=bytes(32))).token_id == "jt-1"


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_tokens_that_are_refused(bad: enrollment_pb2.JoinToken) -> None:
    with pytest.raises(TrustError, match="copy it again") as caught:
        trust.verify_join_token(bad)
    assert caught.value.reason is TrustReason.MALFORMED
