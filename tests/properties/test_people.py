"""Which owners, grants and policies a verifier takes: tables of refusals, each named for the attack or the fault, and
properties over arbitrary offers (docs/protocol.md, "People")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import people, people_signing
from fleet.envelope import Domain, Signer
from fleet.globs import glob_matches, is_glob
from fleet.people import CLOCK_SLACK_MS, People, PeopleError, PeopleReason, Role, latest_ms, take
from fleet.v1 import trust_pb2
from tests.properties.persons import (
    ADA,
    BEN,
    CLUSTER,
    DAY_MS,
    GRANTS,
    NEXT_OWNER,
    NOW_MS,
    OWNER,
    PIN,
    STRANGER,
    THIRD_OWNER,
    grant,
    known,
    owner_statement,
    policy,
    rule,
)

FIRST, SECOND = owner_statement(), owner_statement(NEXT_OWNER, 2, OWNER)
THIRD = owner_statement(THIRD_OWNER, 3, NEXT_OWNER)
PINNED = People(CLUSTER, PIN)

OWNERS_REFUSED = {
    "a successor that only names itself": ([FIRST, owner_statement(STRANGER, 2)], PeopleReason.WRONG_SIGNER),
    "a successor by a stranger": ([FIRST, owner_statement(NEXT_OWNER, 2, STRANGER)], PeopleReason.WRONG_SIGNER),
    "a successor that has not signed itself": (
        [FIRST, OWNER.sign(Domain.OWNER, SECOND.statement)],
        PeopleReason.WRONG_SIGNER,
    ),
    "a successor in another domain": (
        [FIRST, OWNER.sign(Domain.POLICY, SECOND.statement)],
        PeopleReason.WRONG_SIGNER,
    ),
    "the owner's successor named by an owner who is out of force": (
        [FIRST, SECOND, owner_statement(THIRD_OWNER, 3, OWNER)],
        PeopleReason.WRONG_SIGNER,
    ),
    "a generation left out": ([FIRST, THIRD], PeopleReason.SKIPPED_GENERATION),
    "the owner again": ([FIRST, owner_statement(OWNER, 2)], PeopleReason.MALFORMED),
    "another cluster": ([owner_statement(cluster_id="cluster-2")], PeopleReason.WRONG_CLUSTER),
    "the pinned owner, signed by somebody else": (
        [STRANGER.sign(Domain.OWNER, FIRST.statement)],
        PeopleReason.WRONG_SIGNER,
    ),
    "not a statement": ([trust_pb2.Signed(statement=b"\xff")], PeopleReason.MALFORMED),
}

POLICIES_REFUSED = {
    "a lower version": (policy(version=4), PeopleReason.ROLLBACK),
    "the same version with other rules": (policy(rule("*", 1), version=5), PeopleReason.ROLLBACK),
    "by a stranger": (policy(version=6, owner=STRANGER), PeopleReason.WRONG_SIGNER),
    "by an operator": (policy(version=6, owner=ADA), PeopleReason.WRONG_SIGNER),
    "by an owner who is not in force yet": (policy(version=6, owner=NEXT_OWNER), PeopleReason.WRONG_SIGNER),
    "for another cluster": (policy(version=6, cluster_id="cluster-2"), PeopleReason.WRONG_CLUSTER),
    "a grant in its place": (grant(ADA, "ada"), PeopleReason.WRONG_SIGNER),
}

GRANTS_REFUSED = {
    "by a stranger": (grant(STRANGER, "eve", owner=STRANGER), PeopleReason.WRONG_SIGNER),
    "by an operator": (grant(STRANGER, "eve", owner=ADA), PeopleReason.WRONG_SIGNER),
    "for another cluster": (grant(STRANGER, "eve", cluster_id="cluster-2"), PeopleReason.WRONG_CLUSTER),
    "a policy in its place": (policy(version=9), PeopleReason.WRONG_SIGNER),
}

MALFORMED_POLICIES = {
    "no version": trust_pb2.PolicyStatement(rules=[rule()], issued_at_ms=1),
    "nobody needed": trust_pb2.PolicyStatement(version=1, rules=[rule(required=0)], issued_at_ms=1),
    "more people than an intent can hold": trust_pb2.PolicyStatement(
        version=1, rules=[rule(required=17)], issued_at_ms=1
    ),
    "no role": trust_pb2.PolicyStatement(version=1, rules=[rule(roles=())], issued_at_ms=1),
    "a role that nobody knows": trust_pb2.PolicyStatement(version=1, rules=[rule(roles=("root",))], issued_at_ms=1),
    "a glob that means something elsewhere": trust_pb2.PolicyStatement(
        version=1, rules=[rule("exec.[a-z]")], issued_at_ms=1
    ),
    "an empty glob": trust_pb2.PolicyStatement(version=1, rules=[rule("")], issued_at_ms=1),
    "no time of issue": trust_pb2.PolicyStatement(version=1, rules=[rule()]),
}

MALFORMED_GRANTS = {
    "no name": {"operator_name": ""},
    "a name that writes on terminals": {"operator_name": "ada\x1b[2J"},
    "a role that nobody knows": {"role": "root"},
    "half a key": {"operator_key": bytes(16)},
    "a key under which anybody can sign": {"operator_key": bytes(32)},
    "no time of issue": {"issued_at_ms": 0},
}


def reasons(refused: list[PeopleError]) -> list[PeopleReason]:
    return [error.reason for error in refused]


def test_the_chain_leads_from_the_pinned_owner_to_the_newest() -> None:
    held, refused = take(PINNED, owners=[FIRST, SECOND, THIRD])
    assert not refused
    assert held.owner is not None
    assert (held.owner.public_key, held.owner.generation) == (THIRD_OWNER.public_key, 3)
    again, refused = take(held, owners=[FIRST, SECOND, THIRD])
    assert again is held
    assert not refused


def test_a_later_owner_may_be_the_pinned_one() -> None:
    pinned = People(CLUSTER, people.owner_pin(NEXT_OWNER.public_key))
    held, refused = take(pinned, owners=[FIRST, SECOND, THIRD])
    assert not refused
    assert [owner.generation for owner in held.owners] == [2, 3]


def test_without_the_pinned_owner_nobody_is_owner() -> None:
    pinned = People(CLUSTER, people.owner_pin(STRANGER.public_key))
    held, refused = take(pinned, owners=[FIRST, SECOND], policy=policy(), grants=GRANTS)
    assert held is pinned
    assert set(reasons(refused)) == {PeopleReason.NO_OWNER}


def test_without_a_pin_nothing_is_taken() -> None:
    nobody = People(CLUSTER, b"")
    held, refused = take(nobody, owners=[FIRST], policy=policy(), grants=GRANTS)
    assert held is nobody
    assert reasons(refused) == [PeopleReason.NO_OWNER]
    assert take(nobody) == (nobody, [])


@pytest.mark.parametrize(("offered", "reason"), OWNERS_REFUSED.values(), ids=OWNERS_REFUSED.keys())
def test_an_owner_is_refused(offered: list[trust_pb2.Signed], reason: PeopleReason) -> None:
    held, _ = take(PINNED, owners=offered[:-1])
    after, refused = take(held, owners=offered[-1:])
    assert after is held
    assert reasons(refused) == [reason]


@pytest.mark.parametrize(("offered", "reason"), POLICIES_REFUSED.values(), ids=POLICIES_REFUSED.keys())
def test_a_policy_is_refused(offered: trust_pb2.Signed, reason: PeopleReason) -> None:
    held = known(ruled=policy(version=5))
    after, refused = take(held, policy=offered)
    assert after is held
    assert reasons(refused) == [reason]


@pytest.mark.parametrize(("offered", "reason"), GRANTS_REFUSED.values(), ids=GRANTS_REFUSED.keys())
def test_a_grant_is_refused(offered: trust_pb2.Signed, reason: PeopleReason) -> None:
    held = known()
    after, refused = take(held, grants=[offered])
    assert after is held
    assert reasons(refused) == [reason]


@pytest.mark.parametrize("statement", MALFORMED_POLICIES.values(), ids=MALFORMED_POLICIES.keys())
def test_a_malformed_policy_is_neither_signed_nor_taken(statement: trust_pb2.PolicyStatement) -> None:
    statement.cluster_id = CLUSTER
    with pytest.raises(PeopleError, match="MALFORMED"):
        people_signing.sign_policy(OWNER, statement)
    held, _ = take(PINNED, owners=[FIRST])
    _, refused = take(held, policy=OWNER.sign(Domain.POLICY, statement.SerializeToString()))
    assert reasons(refused) == [PeopleReason.MALFORMED]


@pytest.mark.parametrize("change", MALFORMED_GRANTS.values(), ids=MALFORMED_GRANTS.keys())
def test_a_malformed_grant_is_neither_signed_nor_taken(change: dict[str, object]) -> None:
    statement = trust_pb2.RoleGrantStatement.FromString(GRANTS[0].statement)
    for name, value in change.items():
        setattr(statement, name, value)
    with pytest.raises(PeopleError, match="MALFORMED"):
        people_signing.sign_grant(OWNER, statement)
    held, _ = take(PINNED, owners=[FIRST])
    _, refused = take(held, grants=[OWNER.sign(Domain.ROLE_GRANT, statement.SerializeToString())])
    assert reasons(refused) == [PeopleReason.MALFORMED]


def test_a_withheld_part_takes_nothing_away() -> None:
    held = known()
    assert take(held) == (held, [])
    assert take(held, owners=[FIRST], policy=trust_pb2.Signed(), grants=GRANTS[:1]) == (held, [])


def test_the_newest_grant_of_a_key_and_role_counts() -> None:
    held = known()
    away = grant(ADA, "ada", issued_at_ms=NOW_MS - 1, not_after_ms=NOW_MS - 1)
    taken, refused = take(held, grants=[away])
    assert not refused
    assert not taken.grants[ADA.public_key, Role.OPERATOR].counts(NOW_MS)
    again, _ = take(taken, grants=[GRANTS[0]])  # the server holds on to the role that was taken away
    assert again is taken


def test_of_two_grants_of_one_moment_the_one_that_ends_first_counts() -> None:
    away = grant(ADA, "ada", not_after_ms=NOW_MS - 1)
    for offered in ([GRANTS[0], away], [away, GRANTS[0]]):
        held, _ = take(PINNED, owners=[FIRST], grants=offered)
        assert not held.grants[ADA.public_key, Role.OPERATOR].counts(NOW_MS)


def test_a_new_owner_has_granted_nothing_and_ruled_nothing_but_what_was_protected_stays_so() -> None:
    held, refused = take(known(), owners=[SECOND])
    assert not refused
    assert held.grants == {}
    assert held.policy_in_force is None
    assert held.protects("exec.run")
    _, refused = take(held, policy=policy(version=2), grants=GRANTS[:1])  # by the owner before
    assert reasons(refused) == [PeopleReason.WRONG_SIGNER] * 2
    taken, refused = take(held, policy=policy(owner=NEXT_OWNER), grants=[grant(ADA, "ada", owner=NEXT_OWNER)])
    assert not refused
    assert taken.policy_in_force is not None  # versions begin again with each owner
    assert list(taken.grants) == [(ADA.public_key, Role.OPERATOR)]


def _ruled_by(owner: Signer, globs: list[str], issued_at_ms: int) -> trust_pb2.Signed:
    return policy(*[rule(glob) for glob in globs], owner=owner, issued_at_ms=issued_at_ms)


GLOBS = st.lists(st.sampled_from(["exec.*", "exec.run", "valve.*", "*"]), min_size=1, max_size=3)


@given(
    before=st.tuples(GLOBS, st.integers(1, 9)),
    after=st.lists(st.tuples(st.booleans(), GLOBS, st.integers(1, 9)), max_size=4),
)
def test_another_pin_frees_no_action_until_the_new_owner_has_ruled_later(
    before: tuple[list[str], int], after: list[tuple[bool, list[str], int]]
) -> None:
    globs, issued_at_ms = before
    held = take(PINNED, owners=[FIRST], policy=_ruled_by(OWNER, globs, issued_at_ms))[0]
    held = people.repin(held, people.owner_pin(NEXT_OWNER.public_key))
    assert (held.owner, held.policy) == (None, None)
    may_end = False
    for is_owner, more, at_ms in after:
        owner = NEXT_OWNER if is_owner else OWNER
        offered = owner_statement(NEXT_OWNER, 1), _ruled_by(owner, more, at_ms)
        newer, _ = take(held, owners=offered[:1], policy=offered[1])
        may_end = may_end or (newer.policy is not held.policy and at_ms >= issued_at_ms)
        held = newer
        again = people.restore(CLUSTER, held.pin, people.kept_form(held), held.former)
        for action in ("exec.run", "exec.list", "valve.open"):
            assert again.protects(action) == held.protects(action)
            if any(glob_matches(glob, action) for glob in globs) and not may_end:
                assert held.protects(action)


def test_what_is_kept_is_verified_again() -> None:
    held, _ = take(known(), owners=[SECOND])
    for state in (PINNED, known(), held):
        kept = trust_pb2.TrustBundleStatement.FromString(people.kept_form(state).SerializeToString())
        assert people.restore(CLUSTER, PIN, kept) == state
        assert people.restore(CLUSTER, people.owner_pin(STRANGER.public_key), kept).owner is None


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32, "00" * 32])
def test_no_pin(text: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        people.parse_pin(text)


def test_a_pin_is_read_as_people_write_it() -> None:
    text = PIN.hex()
    for written in (text, text.upper(), " ".join([text[:32], text[32:]]), text[:4] + ":" + text[4:] + "\n"):
        assert people.parse_pin(written) == PIN


GLOBS = {
    ("exec.run", "exec.run"): True,
    ("exec.run", "exec.runs"): False,
    ("exec.*", "exec.run"): True,
    ("exec.*", "exec."): True,
    ("exec.*", "exec"): False,
    ("exec.*", "xexec.run"): False,
    ("*", "exec.run"): True,
    ("*", ""): True,
    ("*.run", "exec.run"): True,
    ("*.run", "run"): False,
    ("e*c.r*n", "exec.run"): True,
    ("e*c.r*n", "exec.rub"): False,
    ("*e*e*", "exec"): True,
    ("*e*e*e*", "exec"): False,
    ("ab*ba", "aba"): False,
    ("a**b", "ab"): True,
    ("exec.run", "exec.run\n"): False,
    ("execrun", "exec.run"): False,
}


@pytest.mark.parametrize(("case", "matches"), GLOBS.items(), ids=repr)
def test_globs(case: tuple[str, str], matches: bool) -> None:
    assert glob_matches(*case) is matches


@pytest.mark.parametrize("text", ["", "exec run", "exec.[ab]", "exec.?", "Exec.*", "a" * 129, "exec.*\n"])
def test_no_glob(text: str) -> None:
    assert not is_glob(text)


letters = st.text("ab.*", max_size=8)


@given(letters, st.text("ab.", max_size=8))
def test_a_glob_matches_what_its_definition_says(glob: str, action: str) -> None:
    def by_definition(pattern: str, rest: str) -> bool:
        if not pattern:
            return not rest
        if pattern[0] == "*":
            return by_definition(pattern[1:], rest) or (bool(rest) and by_definition(pattern, rest[1:]))
        return bool(rest) and rest[0] == pattern[0] and by_definition(pattern[1:], rest[1:])

    assert glob_matches(glob, action) is by_definition(glob, action)


def test_time_is_the_latest_that_anybody_vouches_for() -> None:
    assert latest_ms([5, 9, 7], []) == 9
    assert latest_ms([NOW_MS], [NOW_MS + CLOCK_SLACK_MS, 1]) == NOW_MS + CLOCK_SLACK_MS
    assert latest_ms([NOW_MS], [NOW_MS + CLOCK_SLACK_MS + 1]) == NOW_MS  # a laptop with a wrong date


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_whatever_order_policies_come_in_the_version_never_goes_back(versions: list[int]) -> None:
    held = take(PINNED, owners=[FIRST])[0]
    highest = 0
    for version in versions:
        held, refused = take(held, policy=policy(version=version))
        assert bool(refused) is (version < highest)
        highest = max(highest, version)
        assert held.policy is not None
        assert held.policy.version == highest


parts = st.lists(
    st.sampled_from([FIRST, SECOND, THIRD, owner_statement(STRANGER, 2), owner_statement(BEN, 2, STRANGER)]), max_size=6
)


@given(st.lists(parts, max_size=4))
def test_only_the_pinned_owner_and_its_signed_successors_ever_are_owners(offers: list[list[trust_pb2.Signed]]) -> None:
    line: list[Signer] = [OWNER, NEXT_OWNER, THIRD_OWNER]
    held, before = PINNED, 0
    for offered in offers:
        held, _ = take(held, owners=offered)
        assert [owner.public_key for owner in held.owners] == [one.public_key for one in line[: len(held.owners)]]
        assert len(held.owners) >= before
        before = len(held.owners)


@given(st.sampled_from([FIRST, SECOND, policy(), *GRANTS]), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_takes_all_weight_from_a_statement(good: trust_pb2.Signed, at: int, flip: int) -> None:
    changed = bytearray(good.statement)
    changed[at % len(changed)] ^= flip
    bad = trust_pb2.Signed(statement=bytes(changed), signatures=good.signatures)
    base = take(PINNED, owners=[FIRST])[0]
    for held in (PINNED, base, known()):
        assert take(held, owners=[bad], policy=bad, grants=[bad])[0] is held


def test_a_grant_counts_from_its_issue_to_its_end() -> None:
    held = known().grants[ADA.public_key, Role.OPERATOR]
    assert held.counts(NOW_MS)
    assert held.counts(held.issued_at_ms - CLOCK_SLACK_MS)
    assert not held.counts(held.issued_at_ms - CLOCK_SLACK_MS - 1)
    assert held.counts(held.not_after_ms - 1)
    assert not held.counts(held.not_after_ms)
    assert held.not_after_ms == NOW_MS + 30 * DAY_MS
