"""Who decides about protected actions: the chain of owners, the roles that the owner granted, its policy. Pure.

A verifier begins with a pin, the SHA-256 of the first owner's raw public key that it trusts, and with nothing else.
Everything here is signed by people, and arrives by way of a server that nobody has to trust: it can withhold, and it
can do no more. What was verified once is kept; only something newer that the owner in force signed takes its place
(docs/protocol.md, "People").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from google.protobuf.message import DecodeError

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError
from fleet.former_policy import NOTHING_BEFORE, FormerPolicy
from fleet.globs import glob_matches, is_glob
from fleet.trust import MAX_GRANTS, MAX_OWNERS, OWNER_PIN_BYTES
from fleet.v1 import trust_pb2

MAX_RULES = 256
MAX_NAME_CHARS = 256
CLOCK_SLACK_MS = 10 * 60 * 1000
"""How far ahead of every other clock a person's may be: what is signed later than that does not count yet, or one
laptop with a wrong date would make everything else expire."""


class Role(StrEnum):
    """What an owner may grant to a person's key."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    RELEASE = "release"
    OWNER = "owner"


class PeopleReason(StrEnum):
    """Why something that claims to be an owner's word is not taken."""

    NO_OWNER = "NO_OWNER"
    WRONG_SIGNER = "WRONG_SIGNER"
    WRONG_CLUSTER = "WRONG_CLUSTER"
    ROLLBACK = "ROLLBACK"
    SKIPPED_GENERATION = "SKIPPED_GENERATION"
    MALFORMED = "MALFORMED"


class PeopleError(Exception):
    """An owner statement, grant or policy is not taken; what was held before stands."""

    def __init__(self, reason: PeopleReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Owner:
    """One verified owner key. `issued_at_ms` is Unix milliseconds, `signed` the statement that named it."""

    generation: int
    public_key: bytes
    issued_at_ms: int
    signed: trust_pb2.Signed


@dataclass(frozen=True, slots=True)
class Grant:
    """A role of one person's key. Times are Unix milliseconds. A grant whose end lies before its issue takes the role
    away."""

    operator_key: bytes
    name: str
    role: Role
    issued_at_ms: int
    not_after_ms: int
    signed: trust_pb2.Signed

    def counts(self, now_ms: int) -> bool:
        """Whether the person has the role now."""
        return self.issued_at_ms - CLOCK_SLACK_MS <= now_ms < self.not_after_ms


@dataclass(frozen=True, slots=True)
class Rule:
    """`required` distinct people, each in one of `roles`, before an action that matches `action_glob` runs."""

    action_glob: str
    required: int
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Policy:
    """A verified policy. `generation` is that of the owner who signed it; times are Unix milliseconds."""

    generation: int
    version: int
    rules: tuple[Rule, ...]
    issued_at_ms: int
    not_after_ms: int
    signed: trust_pb2.Signed

    def rule_for(self, action: str) -> Rule | None:
        """The first rule whose glob matches."""
        return next((rule for rule in self.rules if glob_matches(rule.action_glob, action)), None)


@dataclass(frozen=True)
class People:
    """What a verifier has verified. Begin with `People(cluster_id, pin)`, go on with `take` and `repin` only.

    Nothing of it changes, so what is derived from it is derived once.

    Args:
        cluster_id: whose people.
        pin: SHA-256 of a raw owner public key; empty when nothing is pinned, and then nothing is ever taken.
        owners: from the pinned one on, each signed by the one before it.
        policy: the newest; of the owner in force, or of one before when the owner in force has signed none yet.
        grants: the newest of each (key, role), all of the owner in force.
        former: what stays protected of policies under earlier pins.
    """

    cluster_id: str
    pin: bytes
    owners: tuple[Owner, ...] = ()
    policy: Policy | None = None
    grants: Mapping[tuple[bytes, Role], Grant] = field(default_factory=dict)
    former: FormerPolicy | None = None

    @property
    def owner(self) -> Owner | None:
        """The owner in force."""
        return self.owners[-1] if self.owners else None

    @property
    def policy_in_force(self) -> Policy | None:
        """The policy, if the owner in force signed it; it may have expired."""
        if self.policy is None or self.owner is None or self.policy.generation != self.owner.generation:
            return None
        return self.policy

    @cached_property
    def keys_by_id(self) -> Mapping[bytes, bytes]:
        """Key id -> raw public key, of every key with a grant of the owner in force, expired or not."""
        return {envelope.key_id(key): key for key, _ in self.grants}

    def protects(self, action: str) -> bool:
        """Whether the newest policy names the action. An expired one and a former owner's count, too, and those under
        earlier pins: whoever withholds the next policy must not make an action free."""
        if self.former is not None and self.former.protects(action):
            return True
        return self.policy is not None and self.policy.rule_for(action) is not None

    def name_of(self, operator_key: bytes) -> str:
        """Who holds a key, by its newest grant; empty for a stranger. Keys of one name are one person."""
        grants = [grant for role in Role if (grant := self.grants.get((operator_key, role))) is not None]
        return max(grants, key=lambda grant: (grant.issued_at_ms, grant.name)).name if grants else ""

    def issued_at_ms(self) -> list[int]:
        """When each of these statements was issued, by the clocks of the people who signed them. Unix milliseconds."""
        owners = [owner.issued_at_ms for owner in self.owners]
        grants = [grant.issued_at_ms for grant in self.grants.values()]
        return [*owners, *grants, *([] if self.policy is None else [self.policy.issued_at_ms])]


def owner_pin(owner_key: bytes) -> bytes:
    """SHA-256 of a raw owner public key: what a node pins."""
    return hashlib.sha256(owner_key).digest()


def parse_pin(text: str) -> bytes:
    """A pin from its 64 hexadecimal digits; case, white space, colons and dashes do not matter.

    Raises:
        ValueError: it is none.
    """
    digits = "".join(text.split()).replace(":", "").replace("-", "")
    try:
        pin = bytes.fromhex(digits)
    except ValueError:
        pin = b""
    if len(pin) != OWNER_PIN_BYTES or not any(pin):
        raise ValueError("an owner pin is the SHA-256 of the owner's public key: 64 hexadecimal digits")
    return pin


def latest_ms(now_ms: Iterable[int], issued_at_ms: Iterable[int]) -> int:
    """The time by which people's statements expire: the latest of all clocks, and of what people signed.

    Args:
        now_ms: server time, local clock, and the latest that was kept. Unix milliseconds.
        issued_at_ms: of verified statements. One further ahead than a person's clock may be counts for nothing yet.
    """
    latest = max(now_ms)
    for issued in sorted(issued_at_ms):
        if issued <= latest + CLOCK_SLACK_MS:
            latest = max(latest, issued)
    return latest


def take(
    held: People,
    *,
    owners: Iterable[trust_pb2.Signed] = (),
    policy: trust_pb2.Signed | None = None,
    grants: Iterable[trust_pb2.Signed] = (),
) -> tuple[People, list[PeopleError]]:
    """Take what is newer and signed by whom it must be; each part is judged by itself.

    Args:
        held: what was verified before.
        owners: a chain, oldest first; links up to the owner in force are passed over.
        policy: as offered; None or without a statement when none is.
        grants: as offered.

    Returns:
        What is held now, `held` itself when nothing is new, and why parts were refused.
    """
    people, refused = held, []
    steps = [(_take_owner, signed) for signed in owners]
    steps += [(_take_policy, policy)] if policy is not None and policy.statement else []
    steps += [(_take_grant, signed) for signed in grants]
    if not held.pin:
        return held, [PeopleError(PeopleReason.NO_OWNER, "no owner key is pinned")] if steps else []
    for step, signed in steps:
        try:
            people = step(people, signed)
        except PeopleError as error:
            refused.append(error)
    return people, refused


def repin(held: People, pin: bytes) -> People:
    """Begin again with another pin. What was protected stays so until the new owner's policy has come, and was issued
    no earlier than the one that stood."""
    former = held.former
    if held.policy is not None:
        globs = [rule.action_glob for rule in held.policy.rules]
        former = (former or NOTHING_BEFORE).with_policy(globs, held.policy.issued_at_ms)
    return People(held.cluster_id, pin, former=former)


def restore(
    cluster_id: str, pin: bytes, kept: trust_pb2.TrustBundleStatement, former: FormerPolicy | None = None
) -> People:
    """What `kept_form` made, verified again from the pin on. What does not verify is left out."""
    people = People(cluster_id, pin, former=former)
    for signed in kept.owners:  # a policy outlives its owner until the next one has signed another
        people, _ = take(people, owners=[signed], policy=kept.policy)
    return take(people, grants=kept.role_grants)[0]


def kept_form(people: People) -> trust_pb2.TrustBundleStatement:
    """`owners`, `policy` and `role_grants` as they stand in a bundle: for a file, or for the next bundle."""
    return trust_pb2.TrustBundleStatement(
        cluster_id=people.cluster_id,
        owners=[owner.signed for owner in people.owners],
        policy=None if people.policy is None else people.policy.signed,
        role_grants=[grant.signed for grant in people.grants.values()],
    )


def read_grant(said: trust_pb2.RoleGrantStatement, signed: trust_pb2.Signed) -> Grant:
    """A grant as it says; whoever calls this has verified who signed it, or is about to sign it.

    Raises:
        PeopleError: MALFORMED.
    """
    usable = len(said.operator_key) == envelope.PUBLIC_KEY_BYTES and not envelope.is_small_order(said.operator_key)
    named = 0 < len(said.operator_name) <= MAX_NAME_CHARS and said.operator_name.isprintable()
    if not usable or not named or said.role not in set(Role) or said.issued_at_ms <= 0:
        raise PeopleError(PeopleReason.MALFORMED, "a role grant names a key, a person, a role and when it was issued")
    return Grant(said.operator_key, said.operator_name, Role(said.role), said.issued_at_ms, said.not_after_ms, signed)


def read_policy(said: trust_pb2.PolicyStatement, generation: int, signed: trust_pb2.Signed) -> Policy:
    """A policy as it says, of the owner of `generation`; as for `read_grant`.

    Raises:
        PeopleError: MALFORMED.
    """
    if not said.version or len(said.rules) > MAX_RULES or said.issued_at_ms <= 0:
        raise PeopleError(
            PeopleReason.MALFORMED, f"a policy has a version, a time of issue and at most {MAX_RULES} rules"
        )
    for rule in said.rules:
        known = rule.roles and set(rule.roles) <= set(Role)
        if not is_glob(rule.action_glob) or not 1 <= rule.required <= envelope.MAX_SIGNATURES or not known:
            raise PeopleError(
                PeopleReason.MALFORMED,
                f"the rule for {rule.action_glob!r} needs a glob, 1 to {envelope.MAX_SIGNATURES} people, and roles",
            )
    rules = tuple(Rule(one.action_glob, one.required, frozenset(map(Role, one.roles))) for one in said.rules)
    return Policy(generation, said.version, rules, said.issued_at_ms, said.not_after_ms, signed)


def _take_owner(held: People, signed: trust_pb2.Signed) -> People:
    said = _parse_owner(signed.statement)  # not verified: good for passing links over, for nothing else
    current = held.owner
    if current is None:
        if owner_pin(said.successor_key) != held.pin:
            return held  # an owner before the pinned one, or a stranger
        keys = [said.successor_key]  # the pin vouches for the key, and the key for its generation
    elif said.generation <= current.generation:
        return held
    elif said.generation > current.generation + 1:
        raise PeopleError(
            PeopleReason.SKIPPED_GENERATION, f"owner {said.generation} does not follow owner {current.generation}"
        )
    else:
        keys = [current.public_key, said.successor_key]
    _verify(signed, Domain.OWNER, keys)
    _check_cluster(said.cluster_id, held)
    usable = len(said.successor_key) == envelope.PUBLIC_KEY_BYTES and said.generation and said.issued_at_ms > 0
    if not usable or len(set(keys)) != len(keys) or len(held.owners) >= MAX_OWNERS:
        raise PeopleError(PeopleReason.MALFORMED, "the owner statement is incomplete, or names the same key again")
    owner = Owner(said.generation, said.successor_key, said.issued_at_ms, signed)
    return replace(held, owners=(*held.owners, owner), grants={})


def _take_policy(held: People, signed: trust_pb2.Signed) -> People:
    owner = _owner_in_force(held)
    _verify(signed, Domain.POLICY, [owner.public_key])
    try:
        said = trust_pb2.PolicyStatement.FromString(signed.statement)
    except DecodeError as error:
        raise PeopleError(PeopleReason.MALFORMED, "not a policy") from error
    _check_cluster(said.cluster_id, held)
    policy, before = read_policy(said, owner.generation, signed), held.policy
    if before is not None:
        step, stood = (policy.generation, policy.version), (before.generation, before.version)
        if step == stood and signed.statement == before.signed.statement:
            return held
        if step <= stood:
            raise PeopleError(PeopleReason.ROLLBACK, f"policy {said.version} does not follow {before.version}")
    former = None if held.former is None else held.former.after(policy.issued_at_ms)
    return replace(held, policy=policy, former=former)


def _take_grant(held: People, signed: trust_pb2.Signed) -> People:
    owner = _owner_in_force(held)
    _verify(signed, Domain.ROLE_GRANT, [owner.public_key])
    try:
        said = trust_pb2.RoleGrantStatement.FromString(signed.statement)
    except DecodeError as error:
        raise PeopleError(PeopleReason.MALFORMED, "not a role grant") from error
    _check_cluster(said.cluster_id, held)
    grant = read_grant(said, signed)
    of = (grant.operator_key, grant.role)
    before = held.grants.get(of)
    # Of two that were issued at the same moment the one that ends first: it may take the role away.
    if before is not None and (grant.issued_at_ms, -grant.not_after_ms) <= (before.issued_at_ms, -before.not_after_ms):
        return held
    if before is None and len(held.grants) >= MAX_GRANTS:
        raise PeopleError(PeopleReason.MALFORMED, f"there are {MAX_GRANTS} grants already")
    return replace(held, grants={**held.grants, of: grant})


def _parse_owner(statement: bytes) -> trust_pb2.OwnerStatement:
    try:
        return trust_pb2.OwnerStatement.FromString(statement)
    except DecodeError as error:
        raise PeopleError(PeopleReason.MALFORMED, "not an owner statement") from error


def _owner_in_force(held: People) -> Owner:
    if held.owner is None:
        raise PeopleError(PeopleReason.NO_OWNER, "no statement names the owner key that is pinned")
    return held.owner


def _verify(signed: trust_pb2.Signed, domain: Domain, public_keys: list[bytes]) -> None:
    keys = {envelope.key_id(key): key for key in public_keys}
    try:
        signers = envelope.verified_signers(signed, domain=domain, keys=keys)
    except EnvelopeError as error:
        raise PeopleError(PeopleReason.WRONG_SIGNER, error.detail) from error
    if signers != keys.keys():
        raise PeopleError(PeopleReason.WRONG_SIGNER, f"not signed by the owner that must sign a {domain}")


def _check_cluster(cluster_id: str, held: People) -> None:
    if cluster_id != held.cluster_id:
        raise PeopleError(PeopleReason.WRONG_CLUSTER, f"is for cluster {cluster_id!r}, this is {held.cluster_id!r}")
