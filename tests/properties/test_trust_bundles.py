"""Which bundle a node takes: tables of refusals, each named for the attack or the fault, and properties over arbitrary
offers (docs/protocol.md, "Trust")."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import trust
from fleet.envelope import Domain
from fleet.trust import TrustError, TrustReason
from fleet.v1 import trust_pb2
from tests.properties.offers import (
    AUTHORITIES,
    CLUSTER,
    COMMAND_KEY,
    DAY_MS,
    NOW_MS,
    STRANGER,
    Offer,
    as_garbage,
    certificate,
    drop_signatures,
    flip_statement,
    forge_signature,
    held,
    step,
)

TAKEN = {
    "the next number": Offer(),
    "numbers left out (the node was offline)": Offer(number=500),
    "as far ahead as may be": Offer(number=10 + trust.MAX_NUMBER_STEP),
    "with strangers' signatures beside": Offer(signers=(STRANGER, AUTHORITIES[2])),
    "expired already: it refuses commands, and moves on": Offer(
        issued_at_ms=NOW_MS - 16 * DAY_MS, expires_at_ms=NOW_MS - 9 * DAY_MS
    ),
    "ended as it is issued, without grace": Offer(expires_at_ms=NOW_MS, grace_s=0),
    "of a far time: it refuses commands until then, and moves on": Offer(
        issued_at_ms=NOW_MS + 900 * DAY_MS, expires_at_ms=NOW_MS + 907 * DAY_MS
    ),
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
    "good for a millisecond more than 7 days": (Offer(expires_at_ms=NOW_MS + 7 * DAY_MS + 1), TrustReason.MALFORMED),
    "good for ever": (Offer(expires_at_ms=2**63 - 1), TrustReason.MALFORMED),
    "good for ever, in a new generation": (replace(step(3), expires_at_ms=2**63 - 1), TrustReason.MALFORMED),
    "issued at no time": (Offer(issued_at_ms=0), TrustReason.MALFORMED),
    "issued before all time": (Offer(issued_at_ms=-(2**63)), TrustReason.MALFORMED),
    "a second more than a day of grace": (Offer(grace_s=86_401), TrustReason.MALFORMED),
    "grace for ever": (Offer(grace_s=2**32 - 1), TrustReason.MALFORMED),
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


LISTS = {
    "tls_ca_der": ([b"ca"], trust.MAX_TLS_CAS),
    "endpoints": (["gateway.example:7443"], trust.MAX_ENDPOINTS - 1),
    "owners": ([trust_pb2.Signed()], trust.MAX_OWNERS),
    "role_grants": ([trust_pb2.Signed()], trust.MAX_GRANTS),
}


@pytest.mark.parametrize(("name", "items", "most"), [(name, *of) for name, of in LISTS.items()], ids=LISTS.keys())
def test_no_list_of_a_bundle_is_longer_than_anybody_needs(name: str, items: list[object], most: int) -> None:
    for count, taken in ((most, True), (most + 1, False)):
        offered = _listing(**{name: items * count})
        if taken:
            assert trust.advance(held(), offered).number == 11
            continue
        with pytest.raises(TrustError) as caught:
            trust.advance(held(), offered)
        assert caught.value.reason is TrustReason.MALFORMED


@pytest.mark.parametrize("where", ["statement", "signatures"])
def test_a_bundle_that_is_too_large_is_refused(where: str) -> None:
    padding = bytes(trust.MAX_BUNDLE_BYTES)
    offered = _listing(tls_ca_der=[padding]) if where == "statement" else Offer().signed()
    if where == "signatures":
        offered.signatures.add(key_id=bytes(16), value=padding)
    with pytest.raises(TrustError) as caught:
        trust.advance(held(), offered)
    assert caught.value.reason is TrustReason.MALFORMED


def _listing(**lists: object) -> trust_pb2.Signed:
    statement = trust_pb2.TrustBundleStatement.FromString(Offer().signed().statement)
    statement.MergeFrom(trust_pb2.TrustBundleStatement(**lists))  # type: ignore[arg-type]
    return AUTHORITIES[2].sign(Domain.TRUST_BUNDLE, statement.SerializeToString())


def test_what_is_kept_of_a_chain_is_bounded_and_a_smaller_bundle_fits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [held()]
    first_of_3 = trust.advance(links[-1], step(3).signed())
    links = trust.kept_links(links, first_of_3)
    large, small = (
        trust.advance(first_of_3, replace(step(3, number=number), signers=signers).signed())
        for number, signers in ((2, (AUTHORITIES[3], *[STRANGER] * 9)), (3, (AUTHORITIES[3],)))
    )
    room = sum(link.signed.ByteSize() for link in links) + small.signed.ByteSize()
    for limit, value in (("MAX_KEPT_BYTES", room), ("MAX_KEPT_LINKS", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(trust, limit, value)
            with pytest.raises(TrustError) as caught:
                trust.kept_links(links, large)
            assert caught.value.reason is TrustReason.CHAIN_TOO_LONG
            if limit == "MAX_KEPT_BYTES":
                assert trust.kept_links(links, small) == [*links, small]


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
        (Offer(expires_at_ms=2**63 - 1), TrustReason.MALFORMED),
    ],
    ids=[
        "stranger",
        "names another",
        "stranger for itself",
        "cluster",
        "not signed",
        "changed",
        "no generation",
        "0",
        "for ever",
    ],
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
