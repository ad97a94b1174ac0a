"""`fleetctl owner`: the person whose key decides who may sign, and for what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli.failures import Refused
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import make_key, open_key, passphrase_file_option
from fleet_server.cli.people import (
    load_statements,
    owner_key_option,
    owners_key_file,
    put_signed,
    say_policy,
    shown_key,
    verify_people,
    verify_to_sign,
)

if TYPE_CHECKING:
    from fleet.envelope import Signer
    from fleet.people import Owner, People
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.profile import Context


@click.group(cls=Noun)
def owner() -> None:
    """Name the owner's key, and its successor."""


@owner.command("init", example="fleetctl owner init --owner-key ~/safe/owner.key")
@click.option(
    "--owner-key",
    "owner_key_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The owner's key file; it is made when there is none.",
)
@passphrase_file_option
@click.pass_obj
def init(invocation: Invocation, owner_key_file: Path, passphrase_file: Path | None) -> None:
    """Name the first owner of the cluster, once, and pin it in this profile.

    From then on `fleetctl join-token create` puts the pin into every token, and nodes take the word of that owner alone
    about who may sign. Nodes that joined before pin it with `fleet-node owner pin`.
    """
    from fleet.people import owner_pin
    from fleet.people_signing import sign_owner

    path = owner_key_file.expanduser().resolve()
    with invocation.connect() as admin:
        if load_statements(admin).owners:
            raise Refused(
                "this cluster has an owner already",
                hint="see who: `fleetctl owner show`; the owner names a successor with `fleetctl owner rotate`",
            )
        signer = _open_or_make(invocation, path, passphrase_file)
        signed = sign_owner(admin.context.cluster_id, signer, generation=1, issued_at_ms=invocation.now_ms())
        pin = owner_pin(signer.public_key)
        put_signed(invocation, admin, replace(admin.context, owner_pin=pin), owner=signed)
    invocation.profile_file().remember(admin.context.name, owner_pin=pin, owner_key_file=str(path))
    _emit(invocation, 1, signer.public_key)
    invocation.advise(
        "Other operators pin it, from you and not from the server: `fleetctl login SERVER --owner-pin SHA256`"
    )


@owner.command("show", example="fleetctl owner show")
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Show the owner in force, verified from the pin of this profile on."""
    with invocation.connect() as admin:
        people = verify_people(invocation, admin)
    found = _in_force(people)
    _emit(invocation, found.generation, found.public_key)


@owner.command("rotate", example="fleetctl owner rotate --new-key ~/safe/owner-2.key")
@click.option(
    "--new-key",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The successor's key file; it is made when there is none.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--new-passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="As --passphrase-file, for the successor's key.",
)
@owner_key_option
@passphrase_file_option
@click.pass_obj
def rotate(
    invocation: Invocation,
    new_key: Path,
    yes: bool,
    new_passphrase_file: Path | None,
    owner_key_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Name the next owner: signed by the old key and by the new one.

    The new owner then signs anew what the old one had in force: the policy, and every role that has not ended. All of
    it is shown before: a server could hand out an older policy, or a role that was taken away. What this machine has
    seen it remembers, and nothing older is signed. Nodes follow by themselves.
    """
    from fleet.people import owner_pin
    from fleet.people_signing import sign_owner

    path = new_key.expanduser().resolve()
    with invocation.connect() as admin:
        people, _ = verify_to_sign(invocation, admin)
        before = _in_force(people)
        old = open_key(invocation, owners_key_file(admin.context, owner_key_file), passphrase_file)
        if old.public_key != before.public_key:
            raise Refused("that key is not the owner's in force", hint="see whose it is: `fleetctl owner show`")
        _say_standing(invocation, people)
        invocation.confirm(
            f"Name the key in {path} as owner in place of yours, for good, and sign that anew with it?", assumed=yes
        )
        new = _open_or_make(invocation, path, new_passphrase_file)
        generation, now_ms = before.generation + 1, invocation.now_ms()
        signed = sign_owner(admin.context.cluster_id, new, generation=generation, issued_at_ms=now_ms, before=old)
        pin = owner_pin(new.public_key)
        context = replace(admin.context, owner_pin=pin)
        put_signed(invocation, admin, context, owner=signed)
        invocation.profile_file().remember(context.name, owner_pin=pin, owner_key_file=str(path))
        _sign_again(invocation, admin, context, people, new, now_ms)
    _emit(invocation, generation, new.public_key)
    invocation.advise(
        "Operators and join tokens made before hold the old pin, and stay good: the old key vouches for this one."
    )


def _say_standing(invocation: Invocation, people: People) -> None:
    from fleet.v1 import trust_pb2
    from fleet_server.cli.views import moment_text

    if people.policy is not None:
        say_policy(invocation, trust_pb2.PolicyStatement.FromString(people.policy.signed.statement))
    for held in sorted(people.grants.values(), key=lambda grant: (grant.name, grant.role)):
        if held.counts(invocation.now_ms()):
            invocation.say(
                f"{held.name} has the role {held.role} until {moment_text(held.not_after_ms)}, "
                f"key {shown_key(held.operator_key)}"
            )


def _sign_again(
    invocation: Invocation, admin: Admin, context: Context, people: People, new: Signer, now_ms: int
) -> None:
    from fleet.people_signing import sign_grant, sign_policy
    from fleet.v1 import trust_pb2

    if people.policy is not None:
        policy = trust_pb2.PolicyStatement.FromString(people.policy.signed.statement)
        policy.version, policy.issued_at_ms = policy.version + 1, now_ms
        put_signed(invocation, admin, context, policy=sign_policy(new, policy))
    for held in people.grants.values():
        if held.counts(now_ms):
            grant = trust_pb2.RoleGrantStatement.FromString(held.signed.statement)
            grant.issued_at_ms = now_ms
            put_signed(invocation, admin, context, role_grant=sign_grant(new, grant))


def _open_or_make(invocation: Invocation, path: Path, passphrase_file: Path | None) -> Signer:
    return (open_key if path.exists() else make_key)(invocation, path, passphrase_file)


def _in_force(people: People) -> Owner:
    if people.owner is None:
        raise Refused("this cluster has no owner yet", hint="name one: `fleetctl owner init`")
    return people.owner


def _emit(invocation: Invocation, generation: int, public_key: bytes) -> None:
    import hashlib

    from fleet.key_file import show_public_key

    if invocation.wants_json:
        invocation.emit_json(
            {
                "generation": generation,
                "public_key": show_public_key(public_key),
                "owner_pin": hashlib.sha256(public_key).hexdigest(),
            }
        )
        return
    invocation.emit_fields(
        [("owner", show_public_key(public_key)), ("owner pin", shown_key(public_key)), ("generation", str(generation))]
    )
