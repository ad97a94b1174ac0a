"""What people sign: owners, roles, policy, and intents. Each call refuses to sign what nobody would take."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

from fleet import envelope
from fleet.envelope import Domain, Signer
from fleet.intents import INTENT_ID_BYTES, read_intent
from fleet.people import read_grant, read_policy
from fleet.v1 import trust_pb2


def sign_owner(
    cluster_id: str, owner: Signer, *, generation: int, issued_at_ms: int, before: Signer | None = None
) -> trust_pb2.Signed:
    """Name an owner.

    Args:
        cluster_id: whose owner.
        owner: the key that is named; it signs for itself.
        generation: 1 for the first owner, one more than that of `before` afterwards.
        issued_at_ms: Unix milliseconds.
        before: the owner in force, who signs as well; None for the first.
    """
    statement = trust_pb2.OwnerStatement(
        cluster_id=cluster_id, successor_key=owner.public_key, generation=generation, issued_at_ms=issued_at_ms
    )
    signed = owner.sign(Domain.OWNER, statement.SerializeToString())
    if before is not None:
        before.add(signed, Domain.OWNER)
    return signed


def sign_grant(owner: Signer, statement: trust_pb2.RoleGrantStatement) -> trust_pb2.Signed:
    """Grant a role; take it away with a `not_after_ms` that is not after `issued_at_ms`.

    Raises:
        PeopleError: MALFORMED.
    """
    signed = owner.sign(Domain.ROLE_GRANT, statement.SerializeToString(deterministic=True))
    read_grant(statement, signed)
    return signed


def sign_policy(owner: Signer, statement: trust_pb2.PolicyStatement) -> trust_pb2.Signed:
    """Put a policy in force; its version is one more than that of the policy before.

    Raises:
        PeopleError: MALFORMED.
    """
    signed = owner.sign(Domain.POLICY, statement.SerializeToString(deterministic=True))
    read_policy(statement, 1, signed)
    return signed


def make_intent(
    cluster_id: str,
    targets: Iterable[trust_pb2.IntentTarget],
    *,
    action: str,
    arguments: bytes,
    issued_at_ms: int,
    not_after_ms: int,
) -> trust_pb2.IntentStatement:
    """An intent with a random id, to be shown and signed.

    Args:
        cluster_id: where.
        targets: node id, name and fingerprint of each node, as the person saw them.
        action: full name.
        arguments: the bytes that will be sent: JSON that is written anew is another.
        issued_at_ms: Unix milliseconds, by the person's clock.
        not_after_ms: Unix milliseconds; at most 30 days later.
    """
    return trust_pb2.IntentStatement(
        intent_id=secrets.token_bytes(INTENT_ID_BYTES),
        cluster_id=cluster_id,
        targets=targets,
        action=action,
        arguments_sha256=hashlib.sha256(arguments).digest(),
        issued_at_ms=issued_at_ms,
        not_after_ms=not_after_ms,
    )


def sign_intent(person: Signer, statement: trust_pb2.IntentStatement) -> trust_pb2.Signed:
    """The first signature.

    Raises:
        ValueError: nobody could judge it.
    """
    signed = person.sign(Domain.INTENT, statement.SerializeToString(deterministic=True))
    read_intent(signed)
    return signed


def add_signature(person: Signer, signed: trust_pb2.Signed) -> trust_pb2.Signed:
    """`signed` with one more signature, over the very bytes that the others signed; unchanged if this person's key
    signed already.

    Raises:
        ValueError: nobody could judge it, or it holds as many signatures as it can.
    """
    read_intent(signed)
    further = trust_pb2.Signed()
    further.CopyFrom(signed)
    if any(one.key_id == person.key_id for one in signed.signatures):
        return further
    if len(signed.signatures) >= envelope.MAX_SIGNATURES:
        raise ValueError(f"it has {envelope.MAX_SIGNATURES} signatures already")
    person.add(further, Domain.INTENT)
    return further
