"""`fleetctl root`: the product root's key and what it signs. Works offline and never talks to a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import make_key, open_key, passphrase_file_option
from fleet_server.cli.signed_file import GRANT, MANIFEST, text_of, write_signed

if TYPE_CHECKING:
    from fleet.v1 import trust_pb2
    from fleet_server.cli.tables import Cell

PLATFORM_ADMIN = "platform-admin"
_DAY_MS = 24 * 3600 * 1000
_INSTALLATION = re.compile(r"i-[0-9a-f]{32}\Z")
_OPERATOR = re.compile(r"op-[0-9a-f]{16}\Z")

_key_option = click.option(
    "--key", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Key file of the product root."
)
_output_option = click.option(
    "--output-file", type=click.Path(path_type=Path), metavar="FILE", help="New file for what was signed."
)


def installation_id(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Check the id of an installation that a person typed."""
    if value is not None and not _INSTALLATION.match(value):
        raise click.BadParameter('"i-" and 32 hexadecimal digits, as `fleetctl installation status` shows it')
    return value


_installation_option = click.option(
    "--installation", required=True, metavar="ID", callback=installation_id, help="Installation that it is for."
)


@click.group(cls=Noun)
def root() -> None:
    """Make the product root's key, and sign with it; offline.

    Do this on a machine that is on no network, and keep the key file in a safe.
    """


@root.command("keygen", example="fleetctl root keygen product-root.key")
@click.argument("file", type=click.Path(path_type=Path))
@passphrase_file_option
@click.pass_obj
def keygen(invocation: Invocation, file: Path, passphrase_file: Path | None) -> None:
    """Make a key pair in a new file under a passphrase, and show the public key.

    The public key goes into the server's setting product_root_key, or into --first-owner-key.
    """
    from fleet.key_file import show_public_key

    signer = make_key(invocation, file, passphrase_file)
    public_key = show_public_key(signer.public_key)
    invocation.say(f"Made {file} (0600). Without its passphrase it opens nothing: keep both, and apart.")
    if invocation.wants_json:
        invocation.emit_json({"file": str(file), "public_key": public_key})
    else:
        invocation.emit_text(public_key)


@root.command(
    "sign-activation",
    example="fleetctl root sign-activation --key product-root.key --installation i-0123456789abcdef0123456789abcdef"
    " --first-owner-key ed25519:bm9...= --output-file plant.activation",
)
@_key_option
@_installation_option
@click.option("--first-owner-key", required=True, metavar="KEY", help="Public key of the first owner: `ed25519:...`.")
@click.option(
    "--valid-days",
    type=click.IntRange(1, 366),
    default=30,
    show_default=True,
    help="Days in which it may be imported; what was imported stays.",
)
@_output_option
@passphrase_file_option
@click.pass_obj
def sign_activation(
    invocation: Invocation,
    key: Path,
    installation: str,
    first_owner_key: str,
    valid_days: int,
    output_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Sign the manifest that lets an installation start, and names its first owner."""
    from fleet.envelope import Domain
    from fleet.key_file import parse_public_key
    from fleet.v1 import trust_pb2
    from fleet_server.cli.views import moment_text

    try:
        owner_key = parse_public_key(first_owner_key)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--first-owner-key") from error
    now_ms = invocation.now_ms()
    statement = trust_pb2.ActivationStatement(
        installation_id=installation,
        first_owner_key=owner_key,
        issued_at_ms=now_ms,
        not_after_ms=now_ms + valid_days * _DAY_MS,
    )
    signer = open_key(invocation, key, passphrase_file)
    signed = signer.sign(Domain.ACTIVATION, statement.SerializeToString(deterministic=True))
    shown: list[tuple[str, Cell]] = [
        ("installation", installation),
        ("first owner", first_owner_key.strip()),
        ("import until", moment_text(statement.not_after_ms)),
    ]
    _hand_over(invocation, MANIFEST, signed, output_file, shown, "fleetctl installation activate")


@root.command(
    "sign-grant",
    example="fleetctl root sign-grant --key product-root.key --installation i-0123456789abcdef0123456789abcdef"
    " --operator op-0123456789abcdef --name ada --output-file ada.grant",
)
@_key_option
@_installation_option
@click.option("--operator", required=True, metavar="ID", help="Operator's id: `fleetctl operators list` shows it.")
@click.option("--name", required=True, metavar="TEXT", help="Name to show.")
@click.option(
    "--valid-days", type=click.IntRange(1, 3660), default=366, show_default=True, help="Days that it is good."
)
@_output_option
@passphrase_file_option
@click.pass_obj
def sign_grant(
    invocation: Invocation,
    key: Path,
    installation: str,
    operator: str,
    name: str,
    valid_days: int,
    output_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Sign that an operator is a platform admin, who may make and end owners.

    A grant cannot be taken back but with the operator: `fleetctl operators revoke`.
    """
    from fleet.envelope import Domain
    from fleet.v1 import trust_pb2
    from fleet_server.cli.views import moment_text

    if not _OPERATOR.match(operator):
        raise click.BadParameter('"op-" and 16 hexadecimal digits', param_hint="--operator")
    now_ms = invocation.now_ms()
    statement = trust_pb2.PlatformRoleGrantStatement(
        installation_id=installation,
        operator_id=operator,
        operator_name=name,
        role=PLATFORM_ADMIN,
        issued_at_ms=now_ms,
        not_after_ms=now_ms + valid_days * _DAY_MS,
    )
    signer = open_key(invocation, key, passphrase_file)
    signed = signer.sign(Domain.PLATFORM_GRANT, statement.SerializeToString(deterministic=True))
    shown: list[tuple[str, Cell]] = [
        ("installation", installation),
        ("operator", f"{name} ({operator})"),
        ("role", PLATFORM_ADMIN),
        ("good until", moment_text(statement.not_after_ms)),
    ]
    _hand_over(invocation, GRANT, signed, output_file, shown, "fleetctl installation grant")


def _hand_over(
    invocation: Invocation,
    kind: str,
    signed: trust_pb2.Signed,
    output_file: Path | None,
    shown: list[tuple[str, Cell]],
    then: str,
) -> None:
    invocation.say_fields(shown)
    if output_file is not None:
        write_signed(output_file, kind, signed)
        invocation.say(f"Wrote it to {output_file}. Then, with the server: `{then} {output_file}`")
        if invocation.wants_json:
            invocation.emit_json({"file": str(output_file)})
    elif invocation.wants_json:
        invocation.emit_json({"signed": text_of(kind, signed)})
    else:
        invocation.emit_text(text_of(kind, signed))
