"""What this person's own machine knows of the people who decide: verified under the owner pin of the profile, never on
the server's word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli.failures import BadProfile, Refused
from fleet_server.cli.invocation import Invocation

if TYPE_CHECKING:
    from fleet.people import People
    from fleet.v1 import admin_pb2, trust_pb2
    from fleet_server.cli.connection import Admin
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
    missing = withheld(found, people.restore(context.cluster_id, context.owner_pin, kept))
    if missing:
        invocation.say(
            f"The server does not show what this machine has seen signed: {', '.join(missing[:_MISSING_SHOWN])}. Its "
            "database went back, or somebody withholds it. What was seen counts here."
        )
    known.remember(context, found)
    return found


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


def say_left_to_do(invocation: Invocation, context: Context) -> None:
    """Say that a pin is missing, where the next step needs one."""
    if not context.owner_pin:
        invocation.say("This profile pins no owner yet: `fleetctl login SERVER --owner-pin SHA256`, from the owner.")
