"""`fleetctl installation`: activate a server in strict mode, and claim its first owner. Works without a token, for
signatures alone count."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fleet_server.cli.failures import Refused
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import open_key, passphrase_file_option
from fleet_server.cli.product_root import installation_id
from fleet_server.cli.secret_output import check_new_file, emit_secret, secret_file_option
from fleet_server.cli.signed_file import GRANT, MANIFEST, read_signed
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from fleet.v1 import installation_pb2
    from fleet.v1.installation_pb2_grpc import InstallationStub
    from fleet_server.cli.connection import Admin

Function = TypeVar("Function", bound=Callable[..., Any])
_GRANT_COLUMNS = [Column("OPERATOR"), Column("ROLE"), Column("GOOD UNTIL"), Column("ID")]


def _reach_options(function: Function) -> Function:
    """How to reach a server that nobody can log in to yet."""
    for option in (
        click.option("--ca-fingerprint", metavar="SHA256", help="SHA-256 of the server's CA; see `fleetctl login`."),
        click.option("--ca-file", type=click.Path(), metavar="FILE", help="PEM file of the server's CA."),
        click.option("--server", metavar="ADDRESS", help="Server to talk to, when you are not logged in to it."),
    ):
        function = option(function)
    return function


@click.group(cls=Noun)
def installation() -> None:
    """Activate an installation in strict mode, and see how it stands."""


@installation.command("status", example="fleetctl installation status --server gateway.example:7444 --ca-file ca.pem")
@_reach_options
@click.pass_obj
def status(invocation: Invocation, server: str | None, ca_file: str | None, ca_fingerprint: str | None) -> None:
    """Show whether the installation serves, what it waits for, and who administers it."""
    with _reach(invocation, server, ca_file, ca_fingerprint) as admin:
        view = _get(admin)
    _emit(invocation, view)


@installation.command("activate", example="fleetctl installation activate plant.activation --server 127.0.0.1:7444")
@click.argument("file", type=click.Path(path_type=Path))
@_reach_options
@click.pass_obj
def activate(
    invocation: Invocation, file: Path, server: str | None, ca_file: str | None, ca_fingerprint: str | None
) -> None:
    """Import the manifest that the product root signed. No token is needed; the signature counts."""
    from fleet.v1 import installation_pb2

    manifest = read_signed(file, MANIFEST)
    with _reach(invocation, server, ca_file, ca_fingerprint) as admin:
        view = admin.call(_stub(admin).Activate, installation_pb2.ActivateRequest(manifest=manifest))
    _emit(invocation, view)
    if not view.owner_claimed:
        invocation.advise("Next, with the first owner's key: `fleetctl installation claim --key FILE --name NAME`")


@installation.command(
    "claim",
    example="fleetctl installation claim --key owner.key --name ada --output-file ada.token --server 127.0.0.1:7444 "
    "--installation i-5d1f0c2e8a4b4d7f9e3a6b2c1d0e9f8a",
)
@click.option("--key", type=click.Path(path_type=Path), required=True, metavar="FILE", help="First owner's key file.")
@click.option("--name", metavar="NAME", help="Operator's name; that of the last claim by default.")
@click.option(
    "--installation",
    "wanted_installation",
    metavar="ID",
    callback=installation_id,
    help="Installation that you own; you are asked otherwise.",
)
@secret_file_option
@passphrase_file_option
@_reach_options
@click.pass_obj
def claim(
    invocation: Invocation,
    key: Path,
    name: str | None,
    wanted_installation: str | None,
    output_file: str | None,
    passphrase_file: Path | None,
    server: str | None,
    ca_file: str | None,
    ca_fingerprint: str | None,
) -> None:
    """Get the first owner's token, once.

    The installation's id is signed along: compare it with the one that `fleet-server init` printed. A server that names
    another wants to be its owner in your name.

    Claiming again ends the token before it: for when that was lost, and nobody else may have it.
    """
    from fleet.envelope import Domain
    from fleet.v1 import installation_pb2, trust_pb2

    check_new_file(output_file)
    signer = open_key(invocation, key, passphrase_file)
    with _reach(invocation, server, ca_file, ca_fingerprint) as admin:
        view = _get(admin)
        wanted = name or view.owner_operator_name
        if not wanted and not view.owner_claimed:
            raise click.UsageError("say who you are: --name NAME")
        _check_installation(invocation, view.installation_id, wanted_installation)

        def ask(operator_id: str, operator_name: str) -> installation_pb2.ClaimOwnerResponse:
            statement = trust_pb2.OwnerClaimStatement(
                installation_id=view.installation_id,
                challenge=view.challenge,
                operator_id=operator_id,
                operator_name=operator_name,
                issued_at_ms=invocation.now_ms(),
            )
            signed = signer.sign(Domain.OWNER_CLAIM, statement.SerializeToString(deterministic=True))
            return admin.call(_stub(admin).ClaimOwner, installation_pb2.ClaimOwnerRequest(claim=signed))

        again = view.owner_operator_id if wanted == view.owner_operator_name else ""
        try:
            made = ask(again or f"op-{secrets.token_hex(8)}", wanted)
        except Refused as failure:
            known = _claimed_before(failure)
            if known is None:
                raise
            made = ask(*known)
    emit_secret(invocation, made, secret_field="token", secret=made.token, output_file=output_file)
    invocation.say(f"{made.operator_name} ({made.operator_id}) is the first owner. The token is not shown again.")


@installation.command("grant", example="fleetctl installation grant ada.grant")
@click.argument("file", type=click.Path(path_type=Path))
@_reach_options
@click.pass_obj
def grant(
    invocation: Invocation, file: Path, server: str | None, ca_file: str | None, ca_fingerprint: str | None
) -> None:
    """Import a platform role grant that the product root signed."""
    from fleet.v1 import installation_pb2

    signed = read_signed(file, GRANT)
    with _reach(invocation, server, ca_file, ca_fingerprint) as admin:
        view = admin.call(_stub(admin).ImportGrant, installation_pb2.ImportGrantRequest(grant=signed))
    labels = ("operator", "role", "good until", "id")
    invocation.emit_message(view, zip(labels, _grant_row(view), strict=True))


def _check_installation(invocation: Invocation, named: str, wanted: str | None) -> None:
    """The owner's word is given for the installation that the person means, not for any that a server names: one may
    have relayed the challenge of another that the same key owns."""
    if wanted is not None and named != wanted:
        raise Refused(
            f"the server says that it is installation {named[:64]!r}, not {wanted}: nothing was signed",
            hint="check --server; if it is right, the server is in the wrong hands",
        )
    invocation.confirm(
        f"Claim installation {named[:64]} as its first owner?", assumed=wanted is not None, option="--installation ID"
    )


def _claimed_before(failure: Refused) -> tuple[str, str] | None:
    """Id and name of the operator as whom the owner is told to claim again: whoever has no token learns it so."""
    import grpc

    from fleet.status import decode

    if not isinstance(failure.__cause__, grpc.RpcError):
        return None
    told = decode(failure.__cause__).metadata
    return (told["operator_id"], told["operator_name"]) if {"operator_id", "operator_name"} <= told.keys() else None


def _reach(invocation: Invocation, server: str | None, ca_file: str | None, ca_fingerprint: str | None) -> Admin:
    """A connection to the named server, without a token; to the one that the person is logged in to otherwise."""
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.login import trusted_root
    from fleet_server.cli.profile import Context, parse_server

    if server is None:
        if ca_file or ca_fingerprint:
            raise click.UsageError("--ca-file and --ca-fingerprint go with --server")
        return invocation.connect()
    address = parse_server(server)
    ca_pem = trusted_root(invocation, address, ca_file, ca_fingerprint)
    return Admin(Context(name="", server=address, ca_pem=ca_pem, token=""), say=invocation.say, sleep=invocation.sleep)


def _stub(admin: Admin) -> InstallationStub:
    from fleet.v1.installation_pb2_grpc import InstallationStub

    return InstallationStub(admin.channel)


def _get(admin: Admin) -> installation_pb2.GetInstallationResponse:
    from fleet.v1 import installation_pb2

    return admin.call(_stub(admin).GetInstallation, installation_pb2.GetInstallationRequest())


def _emit(invocation: Invocation, view: installation_pb2.GetInstallationResponse) -> None:
    invocation.emit_message(view, _fields(view))
    if view.grants and not invocation.wants_json:
        invocation.emit_text("")
        invocation.emit_table(_GRANT_COLUMNS, [_grant_row(each) for each in view.grants])


def _fields(view: installation_pb2.GetInstallationResponse) -> list[tuple[str, Cell]]:
    from fleet.key_file import show_public_key
    from fleet_server.cli.views import moment_text

    state = Styled("active", "green") if view.active else Styled("waits for activation", "yellow")
    owner = "claimed: log in to see who" if view.owner_claimed else "nobody claimed it"
    if view.owner_operator_id:
        owner = f"{view.owner_operator_name} ({view.owner_operator_id})"
    shown: list[tuple[str, Cell]] = [
        ("installation", view.installation_id),
        ("cluster", view.cluster_id),
        ("state", state),
        ("strict", "yes" if view.strict else "no"),
        ("product root", show_public_key(view.root_key) if view.root_key else "none is pinned"),
    ]
    if view.first_owner_key:
        shown += [
            ("activated", moment_text(view.activated_at_ms)),
            ("owner key", show_public_key(view.first_owner_key)),
            ("first owner", owner),
        ]
    if view.waits_for:
        shown.append(("next", view.waits_for))
    return shown


def _grant_row(view: installation_pb2.PlatformGrantView) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    return [view.operator_name, view.role, moment_text(view.not_after_ms), view.operator_id]
