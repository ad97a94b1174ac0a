"""What this person's own machine knows of the people who decide: verified under the owner pin of the profile, never on
the server's word."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli.failures import BadProfile, Refused
from fleet_server.cli.invocation import Invocation

if TYPE_CHECKING:
    from fleet.people import Grant, People
    from fleet.v1 import admin_pb2, trust_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.known_people import Missing
    from fleet_server.cli.profile import Context

_MISSING_SHOWN = 5
ROLES = ("viewer", "operator", "release", "owner")

key_option = click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your key file; the one that you enrolled when left out.",
)
owner_key_option = click.option(
    "--owner-key",
    "owner_key_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The owner's key file; the one of `fleetctl owner init` when left out.",
)


def own_key_file(context: Context, given: Path | None) -> Path:
    """Where the person's own key lies.

    Raises:
        BadProfile: nobody said.
    """
    if given is None and not context.key_file:
        raise BadProfile(
            "no key to sign with is known",
            hint="name it with --key, or make one: `fleetctl operator keygen`, then `fleetctl operator enroll`",
        )
    return given or Path(context.key_file)


def owners_key_file(context: Context, given: Path | None) -> Path:
    """Where the owner's key lies.

    Raises:
        BadProfile: nobody said.
    """
    if given is None and not context.owner_key_file:
        raise BadProfile(
            "no owner's key is known here",
            hint="name it with --owner-key; the first one is named by `fleetctl owner init`",
        )
    return given or Path(context.owner_key_file)


def load_statements(admin: Admin) -> admin_pb2.GetOwnerStatementsResponse:
    """What owners signed, as the server hands it out: nothing in it is verified."""
    from fleet.v1 import admin_pb2

    return admin.call(admin.stub.GetOwnerStatements, admin_pb2.GetOwnerStatementsRequest())


def verify_people(invocation: Invocation, admin: Admin) -> People:
    """Who decides, verified from the profile's pin on: what this machine has seen before, and what the server shows
    beyond it. It is remembered.

    Raises:
        BadProfile: the profile pins no owner, or what was remembered cannot be read.
        Refused: what the server handed out does not begin with the pinned owner.
    """
    found, missing = _verified(invocation, admin)
    if missing:
        invocation.say(
            f"The server does not show what this machine has seen signed: {_named(missing)}. Its "
            "database went back, or somebody withholds it. What was seen counts here."
        )
    return found


def verify_to_sign(invocation: Invocation, admin: Admin) -> tuple[People, list[Grant]]:
    """As `verify_people`, for who signs as the owner next. What the server lost, or hides, is sent again as it was
    signed: without it the server would refuse what follows.

    Returns:
        Who decides, and the roles whose end was sent again.

    Raises:
        BadProfile, Refused: as `verify_people`.
    """
    found, missing = _verified(invocation, admin)
    if missing:
        invocation.say(
            f"The server does not show what this machine has seen signed: {_named(missing)}. Its "
            "database went back, or somebody withholds it. What was seen counts here, and is sent again."
        )
    for each in missing:
        with contextlib.suppress(Refused):  # it has it, and hides it; or it refuses what follows as well
            put_signed(invocation, admin, admin.context, **each.statement)
    return found, [each.ended for each in missing if each.ended is not None]


def _named(missing: Sequence[Missing]) -> str:
    return ", ".join(each.words for each in missing[:_MISSING_SHOWN])


def _verified(invocation: Invocation, admin: Admin) -> tuple[People, list[Missing]]:
    from fleet import people
    from fleet.v1 import trust_pb2
    from fleet_server.cli.known_people import KnownPeople, withheld

    context = admin.context
    if not context.owner_pin:
        raise BadProfile(
            "this profile pins no owner, so nobody's signature can be verified here",
            hint="get the pin from the owner (`fleetctl owner show` on the owner's machine), then "
            f"`fleetctl login {context.server} --owner-pin SHA256`",
        )
    said = load_statements(admin)
    policy = said.policy if said.HasField("policy") else None
    known = KnownPeople(invocation.profile_file())
    found = known.of(context)
    for signed in said.owners:  # a policy outlives its owner until the next one has signed another
        found, _ = people.take(found, owners=[signed], policy=policy)
    found, _ = people.take(found, policy=policy, grants=said.role_grants)
    if found.owner is None:
        raise Refused(
            "the server hands out nothing that the pinned owner signed",
            hint="is the pin right? Compare it with the owner's `fleetctl owner show`; else somebody replaced it",
        )
    kept = trust_pb2.TrustBundleStatement(owners=said.owners, policy=policy, role_grants=said.role_grants)
    known.remember(context, found)
    return found, withheld(found, people.restore(context.cluster_id, context.owner_pin, kept))


def put_signed(
    invocation: Invocation,
    admin: Admin,
    context: Context,
    *,
    owner: trust_pb2.Signed | None = None,
    policy: trust_pb2.Signed | None = None,
    role_grant: trust_pb2.Signed | None = None,
) -> None:
    """Send one statement of an owner, and remember it from then on as seen: a server that took it can hide it from the
    very machine that signed it, which would sign something older again. One that did not arrive can be sent again.

    Args:
        context: with the pin that the statement counts under.
    """
    from fleet import people
    from fleet.v1 import admin_pb2
    from fleet_server.cli.known_people import KnownPeople

    request = admin_pb2.PutOwnerStatementRequest(owner=owner, policy=policy, role_grant=role_grant)
    admin.call(admin.stub.PutOwnerStatement, request)
    if not context.owner_pin:
        return
    known = KnownPeople(invocation.profile_file())
    owners, grants = [owner] if owner else [], [role_grant] if role_grant else []
    known.remember(context, people.take(known.of(context), owners=owners, policy=policy, grants=grants)[0])


def say_policy(invocation: Invocation, said: trust_pb2.PolicyStatement) -> None:
    """A policy for a person who is about to sign it."""
    from fleet_server.cli.views import moment_text

    invocation.say(f"Policy version {said.version}, issued {moment_text(said.issued_at_ms)}:")
    for rule in said.rules:
        invocation.say(f"  {rule.action_glob}: {rule.required} of {', '.join(rule.roles)}")


def shown_key(public_key: bytes) -> str:
    """How people compare a key: the SHA-256 of it."""
    import hashlib

    from fleet_server.cli.views import grouped_hex

    return f"SHA-256 {grouped_hex(hashlib.sha256(public_key).digest())}"
