"""`fleetctl operator`: one's own signing key, and the roles that the owner grants to such keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.failures import BadProfile, Refused
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import make_key, open_key, passphrase_file_option
from fleet_server.cli.people import (
    ROLES,
    key_option,
    own_key_file,
    owner_key_option,
    owners_key_file,
    put_signed,
    shown_key,
    verify_people,
    verify_to_sign,
)
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from fleet.people import People
    from fleet.v1 import admin_pb2, trust_pb2
    from fleet_server.cli.connection import Admin

DEFAULT_KEY = "operator.key"
_COLUMNS = [
    Column("OPERATOR"),
    Column("ROLE"),
    Column("UNTIL"),
    Column("KEY", flexible=True, least=20),
    Column("ENROLLED", spare=1),
]


@click.group(cls=Noun)
def operator() -> None:
    """Make and enroll your signing key; grant roles to people's keys."""


@operator.command("keygen", example="fleetctl operator keygen --out ~/.config/fleetctl/operator.key")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="New key file; beside the profile by default."
)
@passphrase_file_option
@click.pass_obj
def keygen(invocation: Invocation, out: Path | None, passphrase_file: Path | None) -> None:
    """Make a key pair on this machine, in a file under a passphrase.

    The private key never leaves the file. Nobody is asked and nothing is sent: `fleetctl operator enroll` does that.
    """
    from fleet.identity import PrivateFileError, private_folder

    profile = invocation.profile_file().path
    path = (out or profile.with_name(DEFAULT_KEY)).expanduser().resolve()
    if out is None:
        try:
            private_folder(path.parent)
        except PrivateFileError as error:
            raise BadProfile(str(error)) from error
    signer = make_key(invocation, path, passphrase_file)
    _emit_key(invocation, path, signer.public_key)
    invocation.advise(f"Next: `fleetctl operator enroll --key {path}`")


@operator.command("enroll", example="fleetctl operator enroll --key ~/.config/fleetctl/operator.key")
@key_option
@passphrase_file_option
@click.pass_obj
def enroll(invocation: Invocation, key_file: Path | None, passphrase_file: Path | None) -> None:
    """Give your public key to the server, under your own name, and remember where the key file lies.

    The key signs that you hold it, so its passphrase is asked for. What else you may sign is for the owner to grant:
    tell the owner the SHA-256 that is shown.
    """
    from fleet.key_file import KeyFileError, read_public_key
    from fleet.key_possession import sign_possession
    from fleet.v1 import admin_pb2

    path = key_file or invocation.profile_file().path.with_name(DEFAULT_KEY)
    path = path.expanduser().resolve()
    try:
        public_key = read_public_key(path)
    except KeyFileError as error:
        raise BadProfile(str(error), hint="make one: `fleetctl operator keygen`") from error
    with invocation.connect() as admin:
        me = admin.call(admin.stub.WhoAmI, admin_pb2.WhoAmIRequest())
        signed = sign_possession(
            open_key(invocation, path, passphrase_file),
            cluster_id=admin.context.cluster_id or me.cluster_id,
            operator=me.operator,
            now_ms=invocation.now_ms(),
        )
        answer = admin.call(admin.stub.EnrollOperatorKey, admin_pb2.EnrollOperatorKeyRequest(signed=signed))
    invocation.profile_file().remember(admin.context.name, key_file=str(path))
    invocation.emit_message(
        answer.key, [("operator", Styled(answer.key.operator, bold=True)), ("key", shown_key(public_key))]
    )
    invocation.advise(f"Tell the owner that SHA-256. The owner runs: `fleetctl operator grant {answer.key.operator}`")


@operator.command("list", example="fleetctl operator list")
@click.pass_obj
def list_keys(invocation: Invocation) -> None:
    """List people's keys, and the roles that the pinned owner granted to them."""
    with invocation.connect() as admin:
        keys, people = _keys(admin), verify_people(invocation, admin)
    if invocation.wants_json:
        invocation.emit_json([_json_of(key, people) for key in keys])
        return
    now_ms = invocation.now_ms()
    invocation.emit_table(_COLUMNS, [row for key in keys for row in _rows(key, people, now_ms)])


@operator.command("show", example="fleetctl operator show")
@key_option
@click.pass_obj
def show(invocation: Invocation, key_file: Path | None) -> None:
    """Show your own key file's public half. No passphrase is asked for."""
    from fleet.key_file import KeyFileError, read_public_key

    path = own_key_file(invocation.context(), key_file)
    try:
        public_key = read_public_key(path)
    except KeyFileError as error:
        raise BadProfile(str(error)) from error
    _emit_key(invocation, path, public_key)


@operator.command("grant", example="fleetctl operator grant ada --role operator --for 90d")
@click.argument("name", shell_complete=complete.operator)
@click.option("--role", type=click.Choice(ROLES), default="operator", show_default=True, help="What the policy counts.")
@click.option("--for", "lifetime_s", type=Duration(), default="90d", show_default=True, help="How long.")
@click.option("--fingerprint", metavar="SHA256", help="SHA-256 of the key that NAME told you; must match.")
@owner_key_option
@passphrase_file_option
@click.pass_obj
def grant(
    invocation: Invocation,
    name: str,
    role: str,
    lifetime_s: int,
    fingerprint: str | None,
    owner_key_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Grant a role to the key that NAME enrolled, signed with the owner's key.

    Without --fingerprint the key's SHA-256 is shown and you are asked to compare it with what NAME tells you: the
    server could show you another key.
    """
    from fleet.v1 import trust_pb2

    with invocation.connect() as admin:
        path = owners_key_file(admin.context, owner_key_file)
        public_key = _compared_key(invocation, admin, name, fingerprint)
        if admin.context.owner_pin:
            verify_to_sign(invocation, admin)  # and what is signed now is remembered behind it
        now_ms = invocation.now_ms()
        statement = trust_pb2.RoleGrantStatement(
            cluster_id=admin.context.cluster_id,
            operator_key=public_key,
            operator_name=name,
            role=role,
            issued_at_ms=now_ms,
            not_after_ms=now_ms + lifetime_s * 1000,
        )
        _sign_and_put(invocation, admin, [statement], path, passphrase_file)


@operator.command("revoke-grant", example="fleetctl operator revoke-grant ada --yes")
@click.argument("name", shell_complete=complete.operator)
@click.option("--role", type=click.Choice(ROLES), help="Only this role; all of them when left out.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@owner_key_option
@passphrase_file_option
@click.pass_obj
def revoke_grant(
    invocation: Invocation,
    name: str,
    role: str | None,
    yes: bool,
    owner_key_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Take roles away from NAME, signed with the owner's key. Nodes that are offline hear of it when they return.

    An end that this machine has seen signed, and the server does not show, is sent again.
    """
    from fleet.v1 import trust_pb2

    now_ms = invocation.now_ms()
    with invocation.connect() as admin:
        path = owners_key_file(admin.context, owner_key_file)
        people, again = verify_to_sign(invocation, admin)
        ending = [
            trust_pb2.RoleGrantStatement(
                cluster_id=admin.context.cluster_id,
                operator_key=held.operator_key,
                operator_name=held.name,
                role=held.role,
                issued_at_ms=max(now_ms, held.issued_at_ms + 1),
                not_after_ms=now_ms,
            )
            for held in people.grants.values()
            if held.name == name and held.counts(now_ms) and role in (None, held.role)
        ]
        sent = [held for held in again if held.name == name and role in (None, held.role)]
        if not ending and sent:
            said = [trust_pb2.RoleGrantStatement.FromString(held.signed.statement) for held in sent]
            _emit_grants(invocation, said)
            return
        if not ending:
            raise Refused(f"{name} has no such role", hint="see who has: `fleetctl operator list`")
        roles = ", ".join(sorted(each.role for each in ending))
        invocation.confirm(f"Take {roles} away from {name}?", assumed=yes)
        _sign_and_put(invocation, admin, ending, path, passphrase_file)


def _sign_and_put(
    invocation: Invocation,
    admin: Admin,
    statements: list[trust_pb2.RoleGrantStatement],
    path: Path,
    passphrase_file: Path | None,
) -> None:
    from fleet.people_signing import sign_grant

    owner = open_key(invocation, path, passphrase_file)
    for statement in statements:
        put_signed(invocation, admin, admin.context, role_grant=sign_grant(owner, statement))
    _emit_grants(invocation, statements)


def _emit_grants(invocation: Invocation, statements: list[trust_pb2.RoleGrantStatement]) -> None:
    from fleet_server.cli.views import moment, moment_text

    shown = [
        {
            "operator": each.operator_name,
            "role": each.role,
            "public_key": each.operator_key.hex(),
            "not_after": moment(each.not_after_ms) if each.not_after_ms > each.issued_at_ms else None,
        }
        for each in statements
    ]
    if invocation.wants_json:
        invocation.emit_json(shown)
        return
    rows: list[list[Cell]] = [
        [
            Styled(each.operator_name, bold=True),
            each.role,
            moment_text(each.not_after_ms) if each.not_after_ms > each.issued_at_ms else Styled("taken away", "yellow"),
            shown_key(each.operator_key),
        ]
        for each in statements
    ]
    invocation.emit_table(_COLUMNS[:4], rows)


def _compared_key(invocation: Invocation, admin: Admin, name: str, fingerprint: str | None) -> bytes:
    """The key of NAME that a person has compared.

    Raises:
        Refused: NAME enrolled none, or not the one with that fingerprint.
    """
    import hashlib

    keys = [key.public_key for key in _keys(admin) if key.operator == name]
    if not keys:
        raise Refused(
            f"{name} has enrolled no key", hint=f"{name} runs `fleetctl operator keygen` and `operator enroll`"
        )
    if fingerprint is not None:
        wanted = "".join(fingerprint.split()).removeprefix("SHA-256").replace(":", "").lower()
        for key in keys:
            if hashlib.sha256(key).hexdigest() == wanted:
                return key
        raise Refused(
            f"no key of {name} at this server has that SHA-256",
            hint="do not grant anything: compare again, and find out who enrolled the other key",
        )
    if len(keys) > 1:
        raise Refused(f"{name} has enrolled {len(keys)} keys", hint="say which one with --fingerprint")
    invocation.say_fields([("  key", shown_key(keys[0]))])
    invocation.confirm(f"Did {name} tell you the same SHA-256?", assumed=False, option="--fingerprint")
    return keys[0]


def _keys(admin: Admin) -> list[admin_pb2.OperatorKeyView]:
    from fleet.v1 import admin_pb2

    return list(admin.call(admin.stub.ListOperatorKeys, admin_pb2.ListOperatorKeysRequest()).keys)


def _emit_key(invocation: Invocation, path: Path, public_key: bytes) -> None:
    import hashlib

    from fleet.key_file import show_public_key

    if invocation.wants_json:
        sha256 = hashlib.sha256(public_key).hexdigest()
        invocation.emit_json({"file": str(path), "public_key": show_public_key(public_key), "sha256": sha256})
        return
    invocation.emit_fields(
        [("file", str(path)), ("public key", show_public_key(public_key)), ("", shown_key(public_key))]
    )


def _json_of(key: admin_pb2.OperatorKeyView, people: People) -> dict[str, object]:
    from fleet_server.cli.views import moment, to_json

    grants = [
        {"name": held.name, "role": str(held.role), "not_after": moment(held.not_after_ms)}
        for held in people.grants.values()
        if held.operator_key == key.public_key
    ]
    return {**to_json(key), "grants": grants}


def _rows(key: admin_pb2.OperatorKeyView, people: People, now_ms: int) -> list[list[Cell]]:
    from fleet_server.cli.views import moment_text

    name, shown = Styled(key.operator, bold=True), shown_key(key.public_key)
    held = [
        grant
        for grant in people.grants.values()
        if grant.operator_key == key.public_key and grant.not_after_ms > grant.issued_at_ms
    ]
    enrolled = moment_text(key.enrolled_at_ms)
    if not held:
        return [[name, Styled("none yet", "yellow"), "-", shown, enrolled]]
    return [
        [
            name,
            str(grant.role),
            Styled(moment_text(grant.not_after_ms), None if grant.counts(now_ms) else "red"),
            shown,
            enrolled,
        ]
        for grant in held
    ]
