"""What people sign: two owners, a key of their own, two roles, the policy that asks both people, and their intent."""

from __future__ import annotations

from fleet.envelope import Domain
from fleet.v1 import trust_pb2
from tests.vectors.cast import CLUSTER, NOW_MS, Statement
from tests.vectors.keys import signer
from tests.vectors.ordering import intent

_DAY_MS = 86_400_000


def people() -> list[Statement]:
    """The pinned owner, roles and policy by it, the intent that they let pass, and the owner's successor."""
    policy = trust_pb2.PolicyStatement(
        cluster_id=CLUSTER,
        version=4,
        rules=[trust_pb2.PolicyRule(action_glob="host.*", required=2, roles=["operator", "owner"])],
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + _DAY_MS,
    )
    return [
        _owner("owner-1", 1, "owner"),
        Statement("policy", Domain.POLICY, ("owner",), policy),
        _key("operator-key", "anna"),
        _grant("role-grant", "anna", "operator"),
        _grant("role-grant-ben", "ben", "owner"),
        intent(),
        _owner("owner", 2, "next-owner", "owner"),
    ]


def _owner(name: str, generation: int, *signers: str) -> Statement:
    statement = trust_pb2.OwnerStatement(
        cluster_id=CLUSTER, successor_key=signer(signers[0]).public_key, generation=generation, issued_at_ms=NOW_MS
    )
    return Statement(name, Domain.OWNER, signers, statement)


def _key(name: str, person: str) -> Statement:
    key = f"operator-{person}"
    statement = trust_pb2.OperatorKeyStatement(
        cluster_id=CLUSTER, operator=person, public_key=signer(key).public_key, issued_at_ms=NOW_MS
    )
    return Statement(name, Domain.OPERATOR_KEY, (key,), statement)


def _grant(name: str, person: str, role: str) -> Statement:
    statement = trust_pb2.RoleGrantStatement(
        cluster_id=CLUSTER,
        operator_key=signer(f"operator-{person}").public_key,
        operator_name=person,
        role=role,
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + _DAY_MS,
    )
    return Statement(name, Domain.ROLE_GRANT, ("owner",), statement)
