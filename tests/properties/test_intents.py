"""Whether a protected action may run: a table with every verdict, and properties that hold against whoever carries the
intent (docs/protocol.md, "Intents")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import envelope, people_signing
from fleet.envelope import MAX_SIGNATURES, Domain, Signer
from fleet.intents import MAX_LIFETIME_MS, SENTENCES, IntentVerdict, Order, judge_again, judge_intent, read_intent
from fleet.people import CLOCK_SLACK_MS, People, take
from fleet.v1 import trust_pb2
from tests.properties.persons import (
    ADA,
    BEN,
    CLEO,
    CLUSTER,
    DAN,
    DAY_MS,
    FINGERPRINT,
    GRANTS,
    HOUR_MS,
    NAME,
    NEXT_OWNER,
    NODE,
    NOW_MS,
    ORDER,
    OWNER,
    PIN,
    ROLES,
    STRANGER,
    grant,
    intent,
    known,
    owner_statement,
    person,
    policy,
    rule,
    signed_by,
    target,
)

V = IntentVerdict
KNOWN = known()


@dataclass(frozen=True)
class Case:
    """One order, and what a verifier knows."""

    verdict: IntentVerdict
    signed: trust_pb2.Signed | None = None
    people: People = KNOWN
    order: Order = ORDER
    now_ms: int = NOW_MS
    consumed: frozenset[bytes] = frozenset()
    issued_after_ms: int = 0


def both(**changes: Any) -> trust_pb2.Signed:
    return signed_by(ADA, BEN, statement=intent(**changes))


def _damaged() -> trust_pb2.Signed:
    signed = both()
    signed.signatures[1].value = bytes(64)
    return signed


def _crowded() -> trust_pb2.Signed:
    signed = both()
    for number in range(MAX_SIGNATURES):
        person(f"crowd {number}").add(signed, Domain.INTENT)
    return signed


def _raw(statement: bytes) -> trust_pb2.Signed:
    signed = ADA.sign(Domain.INTENT, statement)
    BEN.add(signed, Domain.INTENT)
    return signed


def _odd(**changes: Any) -> trust_pb2.Signed:
    statement = intent()
    for name, value in changes.items():
        setattr(statement, name, value)
    return _raw(statement.SerializeToString())


def _ruled(*rules: trust_pb2.PolicyRule, **changes: Any) -> People:
    return known(ruled=policy(*rules, **changes))


USED = intent()
TWO_KEYS = known(granted=[grant(ADA, "ada"), grant(person("ada's other key"), "ada"), grant(BEN, "ben")])
RENAMED = known(granted=[*GRANTS, grant(BEN, "ada", "viewer", issued_at_ms=NOW_MS - 1)])

CASES = {
    "two of two operators": Case(V.PASS, both()),
    "with a stranger beside": Case(V.PASS, signed_by(STRANGER, ADA, BEN)),
    "with a lapsed role beside": Case(V.PASS, signed_by(DAN, ADA, BEN)),
    "one operator, where one is enough": Case(V.PASS, signed_by(ADA), _ruled(rule(required=1))),
    "any of two roles": Case(V.PASS, signed_by(ADA, CLEO), _ruled(rule(roles=("operator", "release")))),
    "the first rule that matches decides, though a later one asks for less": Case(
        V.NOT_ENOUGH_SIGNERS, signed_by(ADA), _ruled(rule("exec.*", 2), rule("*", 1))
    ),
    "the first rule that matches decides, though a later one asks for more": Case(
        V.PASS, signed_by(ADA), _ruled(rule("exec.run", 1), rule("*", 3))
    ),
    "no pin": Case(V.NO_OWNER_PIN, both(), People(CLUSTER, b"")),
    "a pin, and nothing else heard": Case(V.NO_POLICY, both(), People(CLUSTER, PIN)),
    "an owner without a policy": Case(V.NO_POLICY, both(), take(People(CLUSTER, PIN), owners=[owner_statement()])[0]),
    "the policy of the owner before": Case(
        V.NO_POLICY, both(), take(KNOWN, owners=[owner_statement(NEXT_OWNER, 2, OWNER)])[0]
    ),
    "the policy expires this very moment": Case(V.POLICY_EXPIRED, both(), _ruled(not_after_ms=NOW_MS)),
    "a policy from the future": Case(V.POLICY_NOT_YET_VALID, both(), _ruled(issued_at_ms=NOW_MS + CLOCK_SLACK_MS + 1)),
    "an action that no rule names": Case(V.NO_RULE, both(), _ruled(rule("host.*"))),
    "no intent": Case(V.INTENT_MISSING, None),
    "an empty intent": Case(V.INTENT_MISSING, trust_pb2.Signed()),
    "strangers only": Case(V.WRONG_SIGNER, signed_by(STRANGER, person("other"))),
    "the owner, who granted itself nothing": Case(V.WRONG_SIGNER, signed_by(OWNER)),
    "signed as something else": Case(V.BAD_SIGNATURE, ADA.sign(Domain.POLICY, USED.SerializeToString())),
    "a forged second signature": Case(V.BAD_SIGNATURE, _damaged()),
    "too many signatures": Case(V.INTENT_MALFORMED, _crowded()),
    "not a statement": Case(V.INTENT_MALFORMED, _raw(b"\xff")),
    "a short id": Case(V.INTENT_MALFORMED, _odd(intent_id=bytes(15))),
    "half a digest": Case(V.INTENT_MALFORMED, _odd(arguments_sha256=bytes(16))),
    "a target without its name": Case(V.INTENT_MALFORMED, _raw(intent(targets=[target(name="")]).SerializeToString())),
    "a target by a name that shows as another": Case(
        V.INTENT_MALFORMED, _raw(intent(targets=[target(), target("node-2", name="press-1\n")]).SerializeToString())
    ),
    "no action": Case(V.INTENT_MALFORMED, _odd(action="")),
    "ends before it begins": Case(V.INTENT_MALFORMED, _odd(not_after_ms=1)),
    "lives for ever": Case(V.INTENT_MALFORMED, _odd(not_after_ms=NOW_MS + MAX_LIFETIME_MS + DAY_MS)),
    "another cluster": Case(V.INTENT_WRONG_CLUSTER, both(cluster_id="cluster-2")),
    "another node": Case(V.INTENT_WRONG_TARGET, both(targets=[target("node-2")])),
    "this node by another's name": Case(V.INTENT_WRONG_TARGET, both(targets=[target(name="press-2")])),
    "this node with other keys": Case(V.INTENT_WRONG_TARGET, both(targets=[target(fingerprint=bytes(20))])),
    "id of one target, fingerprint of another": Case(
        V.INTENT_WRONG_TARGET, both(targets=[target(fingerprint=bytes(20)), target("node-2")])
    ),
    "another action": Case(V.INTENT_WRONG_ACTION, both(action="exec.list")),
    "other arguments": Case(V.INTENT_WRONG_ARGUMENTS, both(arguments=b"{}")),
    "the same arguments, written otherwise": Case(
        V.INTENT_WRONG_ARGUMENTS, both(), order=replace(ORDER, arguments=ORDER.arguments + b" ")
    ),
    "from the future": Case(V.INTENT_NOT_YET_VALID, both(issued_at_ms=NOW_MS + CLOCK_SLACK_MS + 1)),
    "from a clock that is a little ahead": Case(V.PASS, both(issued_at_ms=NOW_MS + CLOCK_SLACK_MS)),
    "expires this very moment": Case(V.INTENT_EXPIRED, both(not_after_ms=NOW_MS)),
    "used before": Case(V.INTENT_REPLAYED, signed_by(ADA, BEN, statement=USED), consumed=frozenset({USED.intent_id})),
    "from before the node was restored": Case(V.INTENT_BEFORE_RESTORE, both(), issued_after_ms=NOW_MS - 60_000),
    "from just after the node was restored": Case(V.PASS, both(), issued_after_ms=NOW_MS - 60_001),
    "one of two": Case(V.NOT_ENOUGH_SIGNERS, signed_by(ADA)),
    "one with another role": Case(V.NOT_ENOUGH_SIGNERS, signed_by(ADA, CLEO)),
    "one person with two keys": Case(V.NOT_ENOUGH_SIGNERS, signed_by(ADA, person("ada's other key")), TWO_KEYS),
    "two keys that the owner gave one name, in the newest grant": Case(V.NOT_ENOUGH_SIGNERS, both(), RENAMED),
    "one whose role has expired": Case(V.GRANT_EXPIRED, signed_by(ADA, DAN)),
    "a role that is not granted yet": Case(
        V.GRANT_EXPIRED, both(), known(granted=[grant(ADA, "ada"), grant(BEN, "ben", issued_at_ms=NOW_MS + DAY_MS)])
    ),
    "all roles expire with time": Case(
        V.GRANT_EXPIRED,
        both(issued_at_ms=NOW_MS + 30 * DAY_MS, not_after_ms=NOW_MS + 31 * DAY_MS),
        _ruled(not_after_ms=NOW_MS + 90 * DAY_MS),
        now_ms=NOW_MS + 30 * DAY_MS,
    ),
}


def judged(case: Case) -> IntentVerdict:
    return judge_intent(
        case.people,
        case.signed,
        case.order,
        now_ms=case.now_ms,
        consumed=case.consumed,
        issued_after_ms=case.issued_after_ms,
    ).verdict


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_verdicts(case: Case) -> None:
    assert judged(case) is case.verdict


def test_the_table_shows_every_verdict_and_each_has_a_sentence() -> None:
    assert {case.verdict for case in CASES.values()} == set(IntentVerdict) == set(SENTENCES)


def test_a_judgement_names_who_counted() -> None:
    judgement = judge_intent(KNOWN, signed_by(ADA, BEN, CLEO), ORDER, now_ms=NOW_MS)
    assert judgement.people == {"ada", "ben"}
    refused = judge_intent(KNOWN, signed_by(ADA), ORDER, now_ms=NOW_MS)
    assert "(1 of 2 with a role of operator)" in refused.detail


def test_keys_are_read_once_for_what_people_granted_and_again_for_what_they_grant_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, hashed, real = known(granted=[grant(ADA, "ada")]), [], envelope.key_id
    monkeypatch.setattr(envelope, "key_id", lambda key: hashed.append(key) or real(key))  # type: ignore[func-returns-value]
    wish = signed_by(ADA, BEN)
    for _ in range(3):
        judged = judge_intent(held, wish, ORDER, now_ms=NOW_MS)
        assert judged.verdict is IntentVerdict.NOT_ENOUGH_SIGNERS
    assert hashed == [ADA.public_key]
    later, _ = take(held, grants=[grant(BEN, "ben")])
    assert judge_intent(later, wish, ORDER, now_ms=NOW_MS).passes
    taken_away = grant(BEN, "ben", issued_at_ms=NOW_MS - 1000, not_after_ms=NOW_MS - 1001)
    ended, _ = take(later, grants=[taken_away])
    assert not judge_intent(ended, wish, ORDER, now_ms=NOW_MS).passes
    followed, _ = take(later, owners=[owner_statement(NEXT_OWNER, 2, OWNER)])
    assert not followed.keys_by_id
    assert judge_intent(later, wish, ORDER, now_ms=NOW_MS).passes


def test_a_signature_more_changes_no_byte_of_the_statement() -> None:
    signed = signed_by(ADA)
    further = people_signing.add_signature(BEN, signed)
    assert further.statement == signed.statement
    assert [one.key_id for one in further.signatures] == [ADA.key_id, BEN.key_id]
    assert people_signing.add_signature(BEN, further) == further


def test_nobody_signs_what_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="30 days"):
        people_signing.sign_intent(ADA, intent(not_after_ms=NOW_MS + MAX_LIFETIME_MS + DAY_MS))
    with pytest.raises(ValueError, match="parsed"):
        people_signing.add_signature(ADA, trust_pb2.Signed(statement=b"\xff"))
    with pytest.raises(ValueError, match="nodes"):
        people_signing.sign_intent(ADA, intent(targets=[]))
    full = signed_by(*[person(f"crowd {number}") for number in range(MAX_SIGNATURES)])
    with pytest.raises(ValueError, match="signatures already"):
        people_signing.add_signature(ADA, full)


CROWD = {f"p{number}": person(f"p{number}") for number in range(6)}
crowds = st.lists(st.sampled_from(sorted(CROWD)), max_size=8)


@given(
    granted=st.dictionaries(
        st.sampled_from(sorted(CROWD)), st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(ROLES))
    ),
    signing=crowds,
    required=st.integers(1, 4),
    roles=st.sets(st.sampled_from(ROLES), min_size=1),
)
def test_no_set_of_signers_below_the_number_passes(
    granted: dict[str, tuple[str, str]], signing: list[str], required: int, roles: set[str]
) -> None:
    held = known(
        granted=[grant(CROWD[key], name, role) for key, (name, role) in granted.items()],
        ruled=policy(rule(required=required, roles=sorted(roles))),
    )
    signed = signed_by(STRANGER, *[CROWD[one] for one in signing])
    persons = {granted[one][0] for one in signing if one in granted and granted[one][1] in roles}
    verdict = judge_intent(held, signed, ORDER, now_ms=NOW_MS).verdict
    assert (verdict is V.PASS) is (len(persons) >= required)


@given(
    later=st.dictionaries(
        st.sampled_from(sorted(CROWD)),
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(ROLES), st.booleans()),
    ),
    signing=crowds,
    required=st.integers(1, 3),
    owned=st.booleans(),
    days=st.integers(0, 40),
)
def test_judged_again_nobody_passes_who_would_not_with_the_intent_in_hand(
    later: dict[str, tuple[str, str, bool]], signing: list[str], required: int, owned: bool, days: int
) -> None:
    """What people sign later counts the same for a command that waits as for one that comes."""
    before = known(granted=[grant(signer, name) for name, signer in CROWD.items()], ruled=policy(rule(required=1)))
    wish = intent(not_after_ms=NOW_MS + 29 * DAY_MS)
    signed = signed_by(STRANGER, *[CROWD[one] for one in signing], statement=wish)
    passed = judge_intent(before, signed, ORDER, now_ms=NOW_MS)
    assert passed.passes is bool(signing)
    owner = NEXT_OWNER if owned else OWNER
    after, refused = take(
        before,
        owners=[owner_statement(NEXT_OWNER, 2, OWNER)] if owned else [],
        policy=policy(rule(required=required), version=2, owner=owner, not_after_ms=NOW_MS + 20 * DAY_MS),
        grants=[
            grant(CROWD[key], name, role, owner=owner, issued_at_ms=NOW_MS, not_after_ms=NOW_MS + DAY_MS * holds)
            for key, (name, role, holds) in later.items()
        ],
    )
    assert not refused
    now_ms = NOW_MS + days * DAY_MS
    again = judge_again(after, passed.signing, ORDER.action, now_ms=now_ms)
    if now_ms < wish.not_after_ms:
        assert again.passes is judge_intent(after, signed, ORDER, now_ms=now_ms).passes
    assert not again.passes or days < 20


@given(repeats=st.lists(st.sampled_from([0, 1]), min_size=2, max_size=MAX_SIGNATURES))
def test_a_signature_that_is_repeated_counts_once(repeats: list[int]) -> None:
    good = both()
    signed = trust_pb2.Signed(statement=good.statement, signatures=[good.signatures[one] for one in repeats])
    assert (judge_intent(KNOWN, signed, ORDER, now_ms=NOW_MS).verdict is V.PASS) is (set(repeats) == {0, 1})


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_changed_byte_of_a_signed_intent_passes(at: int, flip: int) -> None:
    good = both()
    changed = bytearray(good.statement)
    changed[at % len(changed)] ^= flip
    bad = trust_pb2.Signed(statement=bytes(changed), signatures=good.signatures)
    assert judge_intent(KNOWN, bad, ORDER, now_ms=NOW_MS).verdict is V.BAD_SIGNATURE


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "intent_id": st.binary(min_size=16, max_size=16),
    "cluster_id": st.text(max_size=8),
    "action": st.text(max_size=8),
    "arguments_sha256": st.binary(min_size=32, max_size=32),
    "issued_at_ms": st.integers(1, 2**62),
    "not_after_ms": st.integers(1, 2**62),
}


@given(st.data(), st.sampled_from(sorted(FIELDS)))
def test_no_changed_field_of_a_signed_intent_passes(data: st.DataObject, name: str) -> None:
    good = both()
    statement = read_intent(good)
    value = data.draw(FIELDS[name])
    if getattr(statement, name) == value:
        return
    setattr(statement, name, value)
    bad = trust_pb2.Signed(statement=statement.SerializeToString(), signatures=good.signatures)
    assert judge_intent(KNOWN, bad, ORDER, now_ms=NOW_MS).verdict is V.BAD_SIGNATURE


@given(
    node_id=st.sampled_from([NODE, "node-2", "node-3"]),
    name=st.sampled_from([NAME, "press-2", "press-3"]),
    fingerprint=st.sampled_from([FINGERPRINT, bytes(20), bytes(reversed(FINGERPRINT))]),
    action=st.sampled_from([ORDER.action, "exec.list"]),
    arguments=st.sampled_from([ORDER.arguments, b"{}"]),
    now_ms=st.integers(NOW_MS - DAY_MS, NOW_MS + 2 * HOUR_MS),
)
def test_an_intent_is_good_for_exactly_what_it_says(
    node_id: str, name: str, fingerprint: bytes, action: str, arguments: bytes, now_ms: int
) -> None:
    order = Order(node_id, name, fingerprint, action, arguments)
    meant = (node_id, name, fingerprint) in {(NODE, NAME, FINGERPRINT), ("node-2", "press-2", bytes(20))}
    meant = meant and (action, arguments) == (ORDER.action, ORDER.arguments)
    timely = NOW_MS - 60_000 - CLOCK_SLACK_MS <= now_ms < NOW_MS + HOUR_MS
    verdict = judge_intent(KNOWN, both(), order, now_ms=now_ms).verdict
    assert (verdict is V.PASS) is (meant and timely)


@given(st.lists(st.integers(0, 3), max_size=12))
def test_no_intent_passes_twice(uses: list[int]) -> None:
    wishes = [both() for _ in range(4)]
    consumed: set[bytes] = set()
    passed: list[int] = []
    for use in uses:
        judgement = judge_intent(KNOWN, wishes[use], ORDER, now_ms=NOW_MS, consumed=consumed)
        if judgement.passes:
            assert judgement.intent is not None
            consumed.add(judgement.intent.intent_id)
            passed.append(use)
        else:
            assert judgement.verdict is V.INTENT_REPLAYED
    assert sorted(passed) == sorted(set(uses))


@given(st.permutations([1, 2, 3, 4]))
def test_no_policy_rollback_lets_fewer_people_pass(order: list[int]) -> None:
    """Each version asks for one person more; whoever replays an older one gains nothing."""
    held, highest = KNOWN, 1
    offers = {version: policy(rule(required=version), version=version) for version in (2, 3, 4)}
    for version in order:
        held = take(held, policy=offers.get(version, policy(version=1)))[0]
        highest = max(highest, version)
        rank = 2 if highest == 1 else highest
        verdict = judge_intent(held, both(), ORDER, now_ms=NOW_MS).verdict
        assert (verdict is V.PASS) is (rank <= 2)


def signers_of(signed: trust_pb2.Signed) -> list[bytes]:
    return [one.key_id for one in signed.signatures]


@given(st.lists(st.sampled_from([ADA, BEN, CLEO]), min_size=1, max_size=5))
def test_signatures_add_up_whoever_comes_first(order: list[Signer]) -> None:
    signed = signed_by(*order)
    assert set(signers_of(signed)) == {one.key_id for one in order}
    assert len(signers_of(signed)) == len(set(signers_of(signed)))
