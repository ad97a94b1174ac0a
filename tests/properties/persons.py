"""People who sign: owners one after the other, operators with their grants, a policy, and an intent of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fleet import people, people_signing
from fleet.envelope import Signer
from fleet.intents import Order
from fleet.people import People, Role
from fleet.v1 import trust_pb2

NOW_MS = 1_790_000_000_000
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
CLUSTER = "cluster-1"
NODE = "node-1"
NAME = "press-1"
FINGERPRINT = bytes(range(20))
ACTION = "exec.run"
ARGUMENTS = b'{"program":"valve","open":true}'


def person(name: str) -> Signer:
    """The same key for the same name, each time."""
    return Signer.from_private_bytes(hashlib.sha256(name.encode()).digest())


OWNER, NEXT_OWNER, THIRD_OWNER = person("owner"), person("next owner"), person("third owner")
ADA, BEN, CLEO, DAN = person("ada"), person("ben"), person("cleo"), person("dan")
STRANGER = person("stranger")
PIN = people.owner_pin(OWNER.public_key)
ORDER = Order(NODE, NAME, FINGERPRINT, ACTION, ARGUMENTS)


def owner_statement(
    owner: Signer = OWNER, generation: int = 1, before: Signer | None = None, *, cluster_id: str = CLUSTER
) -> trust_pb2.Signed:
    """An owner is named."""
    at_ms = NOW_MS - 90 * DAY_MS + generation
    return people_signing.sign_owner(cluster_id, owner, generation=generation, issued_at_ms=at_ms, before=before)


def grant(
    key: Signer,
    name: str,
    role: str = "operator",
    *,
    owner: Signer = OWNER,
    issued_at_ms: int = NOW_MS - 30 * DAY_MS,
    not_after_ms: int = NOW_MS + 30 * DAY_MS,
    cluster_id: str = CLUSTER,
) -> trust_pb2.Signed:
    """A role is granted."""
    statement = trust_pb2.RoleGrantStatement(
        cluster_id=cluster_id,
        operator_key=key.public_key,
        operator_name=name,
        role=role,
        issued_at_ms=issued_at_ms,
        not_after_ms=not_after_ms,
    )
    return people_signing.sign_grant(owner, statement)


def rule(action_glob: str = "exec.*", required: int = 2, roles: Iterable[str] = ("operator",)) -> trust_pb2.PolicyRule:
    """One rule of a policy."""
    return trust_pb2.PolicyRule(action_glob=action_glob, required=required, roles=roles)


def policy(
    *rules: trust_pb2.PolicyRule,
    version: int = 1,
    owner: Signer = OWNER,
    issued_at_ms: int = NOW_MS - 20 * DAY_MS,
    not_after_ms: int = NOW_MS + 20 * DAY_MS,
    cluster_id: str = CLUSTER,
) -> trust_pb2.Signed:
    """A policy; two operators for `exec.*` without rules."""
    statement = trust_pb2.PolicyStatement(
        cluster_id=cluster_id,
        version=version,
        rules=rules or [rule()],
        issued_at_ms=issued_at_ms,
        not_after_ms=not_after_ms,
    )
    return people_signing.sign_policy(owner, statement)


GRANTS = (
    grant(ADA, "ada"),
    grant(BEN, "ben"),
    grant(CLEO, "cleo", "release"),
    grant(DAN, "dan", not_after_ms=NOW_MS - 1),
)


def known(*, granted: Iterable[trust_pb2.Signed] = GRANTS, ruled: trust_pb2.Signed | None = None) -> People:
    """What a verifier holds that has seen everything: Ada and Ben are operators, Cleo is not, Dan was."""
    held, refused = people.take(
        People(CLUSTER, PIN), owners=[owner_statement()], policy=ruled or policy(), grants=granted
    )
    assert not refused
    return held


def target(node_id: str = NODE, fingerprint: bytes = FINGERPRINT, name: str = NAME) -> trust_pb2.IntentTarget:
    """A node of an intent."""
    return trust_pb2.IntentTarget(node_id=node_id, fingerprint=fingerprint, name=name)


def intent(
    *,
    targets: Iterable[trust_pb2.IntentTarget] = (target(), target("node-2", bytes(20), "press-2")),
    action: str = ACTION,
    arguments: bytes = ARGUMENTS,
    issued_at_ms: int = NOW_MS - 60_000,
    not_after_ms: int = NOW_MS + HOUR_MS,
    cluster_id: str = CLUSTER,
) -> trust_pb2.IntentStatement:
    """A wish for node-1 and node-2."""
    return people_signing.make_intent(
        cluster_id,
        targets,
        action=action,
        arguments=arguments,
        issued_at_ms=issued_at_ms,
        not_after_ms=not_after_ms,
    )


def signed_by(*signers: Signer, statement: trust_pb2.IntentStatement | None = None) -> trust_pb2.Signed:
    """`statement`, signed by each."""
    first, *rest = signers
    signed = people_signing.sign_intent(first, statement or intent())
    for signer in rest:
        signed = people_signing.add_signature(signer, signed)
    return signed


ROLES = [role.value for role in Role]
