"""Intents: people's signed wish that certain nodes run one action with certain arguments. Pure.

A verifier judges an intent by what it verified itself (`fleet.people`), by what it was sent to run, and by its own
memory. It trusts nobody in between: whoever carries an intent can withhold it, and can neither change a field of it,
nor use it twice, nor count a person twice (docs/protocol.md, "Intents").
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.message import DecodeError

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError
from fleet.identity import NODE_NAME
from fleet.people import CLOCK_SLACK_MS, People, Policy, Rule
from fleet.v1 import trust_pb2

INTENT_ID_BYTES = 16
MAX_TARGETS = 4096
MAX_LIFETIME_MS = 30 * 24 * 3600 * 1000
"""From issue to end: an intent is remembered for as long as it could be replayed."""


class IntentVerdict(StrEnum):
    """What becomes of a protected action that somebody ordered; each but PASS refuses it."""

    PASS = "PASS"
    NO_OWNER_PIN = "NO_OWNER_PIN"
    NO_POLICY = "NO_POLICY"
    POLICY_NOT_YET_VALID = "POLICY_NOT_YET_VALID"
    POLICY_EXPIRED = "POLICY_EXPIRED"
    NO_RULE = "NO_RULE"
    INTENT_MISSING = "INTENT_MISSING"
    WRONG_SIGNER = "WRONG_SIGNER"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    INTENT_MALFORMED = "INTENT_MALFORMED"
    INTENT_WRONG_CLUSTER = "INTENT_WRONG_CLUSTER"
    INTENT_WRONG_TARGET = "INTENT_WRONG_TARGET"
    INTENT_WRONG_ACTION = "INTENT_WRONG_ACTION"
    INTENT_WRONG_ARGUMENTS = "INTENT_WRONG_ARGUMENTS"
    INTENT_NOT_YET_VALID = "INTENT_NOT_YET_VALID"
    INTENT_EXPIRED = "INTENT_EXPIRED"
    INTENT_BEFORE_RESTORE = "INTENT_BEFORE_RESTORE"
    INTENT_REPLAYED = "INTENT_REPLAYED"
    GRANT_EXPIRED = "GRANT_EXPIRED"
    NOT_ENOUGH_SIGNERS = "NOT_ENOUGH_SIGNERS"


SENTENCES = {
    IntentVerdict.PASS: "enough people signed exactly this",
    IntentVerdict.NO_OWNER_PIN: "this node has no owner pin, so it can verify no person: run `fleet-node owner pin`",
    IntentVerdict.NO_POLICY: "no policy of the owner in force has come here yet: the owner runs `fleetctl policy set`",
    IntentVerdict.POLICY_NOT_YET_VALID: "the policy was issued by a clock that is ahead of all others: sign it again",
    IntentVerdict.POLICY_EXPIRED: "the policy has expired, or a clock is ahead: the owner runs `fleetctl policy sign`",
    IntentVerdict.NO_RULE: "no rule of the policy names this action: the owner adds one, `fleetctl policy set`",
    IntentVerdict.INTENT_MISSING: "it needs people's signed intent, and came without one: order it with `fleetctl run`",
    IntentVerdict.WRONG_SIGNER: "nobody to whom the owner granted a role signed the intent",
    IntentVerdict.BAD_SIGNATURE: "a signature does not verify: the intent was changed after it was signed",
    IntentVerdict.INTENT_MALFORMED: "the signed bytes are no intent that can be judged",
    IntentVerdict.INTENT_WRONG_CLUSTER: "the intent is for another cluster",
    IntentVerdict.INTENT_WRONG_TARGET: "the intent does not name this node by its id, name and fingerprint",
    IntentVerdict.INTENT_WRONG_ACTION: "the intent is for another action",
    IntentVerdict.INTENT_WRONG_ARGUMENTS: "the intent is for other arguments",
    IntentVerdict.INTENT_NOT_YET_VALID: "the intent was issued by a clock that is ahead of all others: set that clock",
    IntentVerdict.INTENT_EXPIRED: "the intent has expired, or a clock is ahead: sign a new one",
    IntentVerdict.INTENT_BEFORE_RESTORE: "the node was restored or adopted since, or up to 10 min before: sign anew",
    IntentVerdict.INTENT_REPLAYED: "the intent was used before, and is good for one command on each node",
    IntentVerdict.GRANT_EXPIRED: "too few signers are left, because roles have expired: `fleetctl operator grant`",
    IntentVerdict.NOT_ENOUGH_SIGNERS: "too few people in the right roles signed the intent: see `fleetctl approve`",
}
"""What each verdict means, and what to do."""

_Verified = tuple[trust_pb2.IntentStatement, frozenset[bytes]]
_ENVELOPE = {"BAD_SIGNATURE": IntentVerdict.BAD_SIGNATURE}


@dataclass(frozen=True, slots=True)
class Order:
    """What a verifier was sent to run, and who it is itself.

    Args:
        node_id: the node that is to run it.
        name: what that node was called at its enrollment: people know it by that, and not by its id.
        fingerprint: 20 bytes, over its keys.
        action: full name.
        arguments: exactly as sent.
    """

    node_id: str
    name: str
    fingerprint: bytes
    action: str
    arguments: bytes


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict on an order.

    Args:
        verdict: PASS or why not.
        detail: a sentence for a person, with the numbers.
        intent: as verified; None when the verdict fell before that.
        people: names of those who signed and count.
        signing: key ids of everybody with a grant who signed, for `judge_again`.
    """

    verdict: IntentVerdict
    detail: str
    intent: trust_pb2.IntentStatement | None = None
    people: frozenset[str] = frozenset()
    signing: frozenset[bytes] = frozenset()

    @property
    def passes(self) -> bool:
        """Whether the action may run, once."""
        return self.verdict is IntentVerdict.PASS


@dataclass(frozen=True, slots=True)
class Signers:
    """People who signed an intent, by name.

    Args:
        counting: in a role that the rule asks for, now.
        lapsed: only their role's end keeps them from counting.
        others: known, and in no such role.
    """

    counting: frozenset[str]
    lapsed: frozenset[str]
    others: frozenset[str]


def judge_intent(
    people: People,
    signed: trust_pb2.Signed | None,
    order: Order,
    *,
    now_ms: int,
    consumed: Container[bytes] = (),
    issued_after_ms: int = 0,
) -> Judgement:
    """Decide whether a protected action may run.

    Args:
        people: what the verifier verified of owner, policy and grants.
        signed: the intent as it came with the command; None or empty when none did.
        order: what the verifier was sent to run.
        now_ms: from `fleet.people.latest_ms`, Unix milliseconds.
        consumed: ids of intents that were used here before.
        issued_after_ms: Unix milliseconds before which `consumed` may have been forgotten, and its intents count for
            nothing.
    """
    policy = _policy_in_force(people, now_ms)
    if isinstance(policy, Judgement):
        return policy
    rule = policy.rule_for(order.action)
    if rule is None:
        return _refused(IntentVerdict.NO_RULE)
    if signed is None or not signed.statement:
        return _refused(IntentVerdict.INTENT_MISSING)
    verified = _verified(people, signed)
    if isinstance(verified, Judgement):
        return verified
    intent, signing = verified
    objection = _objection(intent, people, order, now_ms)
    if objection is None and intent.issued_at_ms <= issued_after_ms:
        objection = IntentVerdict.INTENT_BEFORE_RESTORE
    elif objection is None and intent.intent_id in consumed:
        objection = IntentVerdict.INTENT_REPLAYED
    if objection is not None:
        return Judgement(objection, SENTENCES[objection], intent)
    return _enough(people, signing, intent, rule, now_ms)


def judge_again(people: People, signing: frozenset[bytes], action: str, *, now_ms: int) -> Judgement:
    """Decide whether those who signed an intent that passed before still let its action run.

    Args:
        people: as they are now.
        signing: from the judgement that passed.
        action: full name.
        now_ms: as for `judge_intent`.
    """
    policy = _policy_in_force(people, now_ms)
    if isinstance(policy, Judgement):
        return policy
    rule = policy.rule_for(action)
    if rule is None:
        return _refused(IntentVerdict.NO_RULE)
    return _enough(people, signing & people.keys_by_id.keys(), None, rule, now_ms)


def verified_intent(people: People, signed: trust_pb2.Signed) -> trust_pb2.IntentStatement | Judgement:
    """What an intent says, verified to be signed by somebody with a grant, expired or not, and whole; or why not."""
    verified = _verified(people, signed)
    return verified if isinstance(verified, Judgement) else verified[0]


def read_intent(signed: trust_pb2.Signed) -> trust_pb2.IntentStatement:
    """What an intent says, whoever signed it: to show it to a person, and to sign it.

    Raises:
        ValueError: it says nothing that anybody could judge.
    """
    try:
        intent = trust_pb2.IntentStatement.FromString(signed.statement)
    except DecodeError:
        raise ValueError("it cannot be parsed") from None
    if len(intent.intent_id) != INTENT_ID_BYTES or len(intent.arguments_sha256) != hashlib.sha256().digest_size:
        raise ValueError("its id or its digest has not the right length")
    if not intent.action or not 1 <= len(intent.targets) <= MAX_TARGETS:
        raise ValueError(f"it names no action, or not 1 to {MAX_TARGETS} nodes")
    if not all(NODE_NAME.fullmatch(target.name) for target in intent.targets):
        raise ValueError("it names a node without its name")
    if intent.issued_at_ms <= 0 or not 0 < intent.not_after_ms - intent.issued_at_ms <= MAX_LIFETIME_MS:
        raise ValueError("it ends before it begins, or lives longer than 30 days")
    return intent


def signers(people: People, signing: Iterable[bytes], rule: Rule, now_ms: int) -> Signers:
    """Who of those who signed counts for `rule`. Keys of one name are one person.

    Args:
        signing: key ids of `people` whose signatures verify.
    """
    keys = [people.keys_by_id[one] for one in signing]
    grants = {key: [people.grants.get((key, role)) for role in rule.roles] for key in keys}
    named = {key: people.name_of(key) for key in keys}
    counting = {named[key] for key, held in grants.items() if any(grant and grant.counts(now_ms) for grant in held)}
    lapsed = {named[key] for key, held in grants.items() if any(held)} - counting
    others = set(named.values()) - counting - lapsed
    return Signers(frozenset(counting), frozenset(lapsed), frozenset(others))


def _verified(people: People, signed: trust_pb2.Signed) -> _Verified | Judgement:
    """An intent, and the key ids of those with a grant who signed it; or why it is none."""
    try:
        signing = envelope.verified_signers(signed, domain=Domain.INTENT, keys=people.keys_by_id)
    except EnvelopeError as error:
        return _refused(_ENVELOPE.get(error.reason, IntentVerdict.INTENT_MALFORMED))
    if not signing:
        return _refused(IntentVerdict.WRONG_SIGNER)
    try:
        return read_intent(signed), signing
    except ValueError as error:
        return Judgement(IntentVerdict.INTENT_MALFORMED, f"the signed bytes are no intent: {error}")


def _policy_in_force(people: People, now_ms: int) -> Policy | Judgement:
    if not people.pin:
        return _refused(IntentVerdict.NO_OWNER_PIN)
    policy = people.policy_in_force
    if policy is None:
        return _refused(IntentVerdict.NO_POLICY)
    if policy.issued_at_ms - CLOCK_SLACK_MS > now_ms:
        return _refused(IntentVerdict.POLICY_NOT_YET_VALID)
    if now_ms >= policy.not_after_ms:
        return _refused(IntentVerdict.POLICY_EXPIRED)
    return policy


def _objection(intent: trust_pb2.IntentStatement, people: People, order: Order, now_ms: int) -> IntentVerdict | None:
    if intent.cluster_id != people.cluster_id:
        return IntentVerdict.INTENT_WRONG_CLUSTER
    if (order.node_id, order.name, order.fingerprint) not in {
        (one.node_id, one.name, one.fingerprint) for one in intent.targets
    }:
        return IntentVerdict.INTENT_WRONG_TARGET
    if intent.action != order.action:
        return IntentVerdict.INTENT_WRONG_ACTION
    if intent.arguments_sha256 != hashlib.sha256(order.arguments).digest():
        return IntentVerdict.INTENT_WRONG_ARGUMENTS
    if intent.issued_at_ms - CLOCK_SLACK_MS > now_ms:
        return IntentVerdict.INTENT_NOT_YET_VALID
    if now_ms >= intent.not_after_ms:
        return IntentVerdict.INTENT_EXPIRED
    return None


def _enough(
    people: People, signing: frozenset[bytes], intent: trust_pb2.IntentStatement | None, rule: Rule, now_ms: int
) -> Judgement:
    found = signers(people, signing, rule, now_ms)
    count = len(found.counting)
    if count >= rule.required:
        return Judgement(IntentVerdict.PASS, SENTENCES[IntentVerdict.PASS], intent, found.counting, signing)
    lapsed = count + len(found.lapsed) >= rule.required
    verdict = IntentVerdict.GRANT_EXPIRED if lapsed else IntentVerdict.NOT_ENOUGH_SIGNERS
    roles = ", ".join(sorted(rule.roles))
    detail = f"{SENTENCES[verdict]} ({count} of {rule.required} with a role of {roles})"
    return Judgement(verdict, detail, intent, found.counting)


def _refused(verdict: IntentVerdict) -> Judgement:
    return Judgement(verdict, SENTENCES[verdict])
