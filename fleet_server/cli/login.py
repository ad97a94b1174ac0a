"""`fleetctl login`, `logout` and `whoami`: who this person is to which server."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fleet_server.cli.grammar import Verb
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.profile import Context

_ROLE_COLOURS = {"owner": "magenta", "release": "blue", "operator": "green", "viewer": "cyan"}


@click.command(
    cls=Verb,
    example="fleetctl login gateway.example:7444 --ca-file ca.pem --token-file ~/owner.token\n"
    "fleetctl login 127.0.0.1:7444 --ca-fingerprint 8F:3C:...:A1",
)
@click.argument("server")
@click.option(
    "--ca-file",
    type=click.Path(),
    metavar="FILE",
    help="PEM file of the CA that the server's certificate must come from.",
)
@click.option(
    "--ca-fingerprint",
    metavar="SHA256",
    help="SHA-256 of that CA, as `fleet-server init` and `fleetctl keys list` show it; the CA itself is then fetched.",
)
@click.option("--token-file", type=click.Path(), metavar="FILE", help="File that holds the operator's token.")
@click.option(
    "--owner-pin",
    metavar="SHA256",
    help="SHA-256 of the owner's public key, as `fleetctl owner show` prints it to the owner: never ask the server.",
)
@click.pass_obj
def login(
    invocation: Invocation,
    server: str,
    ca_file: str | None,
    ca_fingerprint: str | None,
    token_file: str | None,
    owner_pin: str | None,
) -> None:
    """Remember a server and who you are to it.

    Without --ca-file or --ca-fingerprint the SHA-256 of the server's CA is shown and you are asked to compare it. The
    token comes from --token-file, FLEETCTL_TOKEN, FLEETCTL_TOKEN_FILE, standard input, or a prompt: never from the
    command line, where other users of this machine would see it.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.authority_chain import first_of, newest_version, proven
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.profile import DEFAULT_CONTEXT, Context, parse_server

    file = invocation.profile_file()
    name = invocation.context_name or os.environ.get("FLEETCTL_CONTEXT") or DEFAULT_CONTEXT
    known = file.load().contexts.get(name)
    address = parse_server(server)
    pin = _parsed_pin(owner_pin)
    ca_pem = trusted_root(invocation, address, ca_file, ca_fingerprint)
    context = Context(name=name, server=address, ca_pem=ca_pem, token=_read_token(invocation, token_file))
    with Admin(context, say=invocation.say, sleep=invocation.sleep) as admin:
        me = admin.call(admin.stub.WhoAmI, admin_pb2.WhoAmIRequest())
        chain = admin.call(admin.stub.ListAuthorities, admin_pb2.ListAuthoritiesRequest()).chain
    keys = proven(chain, first_of(chain), me.cluster_id)  # the first one verifies the oldest checkpoints, too
    context = replace(
        context,
        cluster_id=me.cluster_id,
        authority_key=keys[0],
        newest_authority=keys[-1] if len(keys) > 1 else b"",
        newest_bundle=newest_version(chain),
        owner_pin=pin,
    )
    if known is not None:
        context = _carry_over(invocation, known, context, keys)
    file.update(lambda profile: profile.with_context(context, make_current=True))
    invocation.say(f"Logged in to {me.cluster_name or me.cluster_id} at {address} as {me.operator} ({me.role}).")
    invocation.emit_message(me, _identity_fields(me, context))


@click.command(cls=Verb, example="fleetctl logout --context staging")
@click.pass_obj
def logout(invocation: Invocation) -> None:
    """Forget a context: its token, its pins and its remembered checkpoint.

    The token stays good on the server until an owner revokes it.
    """
    from fleet_server.cli.failures import BadProfile

    file = invocation.profile_file()
    profile = file.load()
    name = invocation.context_name or os.environ.get("FLEETCTL_CONTEXT") or profile.current
    if name not in profile.contexts:
        raise BadProfile(f"the profile has no context {name!r}", hint="see `fleetctl contexts list`")
    file.update(lambda current: current.without_context(name))
    invocation.say(f"Forgot {name}. To end its token on the server too: `fleetctl operators revoke NAME`.")


@click.command(cls=Verb, example="fleetctl whoami")
@click.pass_obj
def whoami(invocation: Invocation) -> None:
    """Show who you are, with which role, on which cluster and server."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        me = admin.call(admin.stub.WhoAmI, admin_pb2.WhoAmIRequest())
        _warn_of_other_authority(invocation, admin, me)
    invocation.emit_message(me, _identity_fields(me, admin.context))


def trusted_root(invocation: Invocation, server: str, ca_file: str | None, pin: str | None) -> str:
    """PEM of the CA that the server's certificate must come from, from a file, a fingerprint, or a person's word.

    Raises:
        Failure: it cannot be had, is another one, or the person said no.
    """
    from fleet_server.cli import server_certificate
    from fleet_server.cli.profile import read_ca_file

    if ca_file:
        pem = read_ca_file(ca_file)
        shown = server_certificate.ca_file_fingerprint(pem, ca_file)
        if pin:
            server_certificate.check_pin(shown, pin)
        return pem
    shown = server_certificate.fetch_root(server)
    if pin:
        server_certificate.check_pin(shown, pin)
        return shown.pem
    what = "CA" if shown.is_ca else "own certificate (it shows no CA)"
    invocation.say(f"The server at {server} shows this {what}:")
    invocation.say(f"  SHA-256  {shown.grouped}")
    invocation.say("Compare it with what the server's owner told you over another way.")
    invocation.confirm("Is it the same?", assumed=False, option="--ca-file or --ca-fingerprint")
    return shown.pem


def _parsed_pin(text: str | None) -> bytes:
    if text is None:
        return b""
    from fleet.people import parse_pin

    try:
        return parse_pin(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--owner-pin") from error


def _read_token(invocation: Invocation, token_file: str | None) -> str:
    from fleet_server.cli.operator_token import MAX_TOKEN_BYTES, clean_token, read_token_file, token_of_environment

    if token_file:
        return read_token_file(token_file)
    if token := token_of_environment(os.environ):
        return token
    if invocation.is_interactive:
        return clean_token(click.prompt("Token", hide_input=True, err=True), "the prompt")
    return clean_token(sys.stdin.read(MAX_TOKEN_BYTES + 1), "standard input")


def _carry_over(invocation: Invocation, known: Context, context: Context, keys: Sequence[bytes]) -> Context:
    """Keep what was remembered of the same cluster; another authority under the same name is asked about first."""
    same = known.cluster_id == context.cluster_id and known.authority_key == context.authority_key
    if same and (not known.newest_authority or known.newest_authority in keys):
        return replace(
            context,
            owner_pin=context.owner_pin or known.owner_pin,
            owner_key_file=known.owner_key_file,
            key_file=known.key_file,
            checkpoint=known.checkpoint,
        )
    invocation.confirm(
        f"Context {known.name!r} was pinned to cluster {known.cluster_id}; "
        f"this server is cluster {context.cluster_id} or has another authority key. Replace the pins?",
        assumed=False,
        option="another --context, or `fleetctl logout` first",
    )
    return context


def _warn_of_other_authority(invocation: Invocation, admin: Admin, me: admin_pb2.WhoAmIResponse) -> None:
    from fleet_server.cli.authority_chain import followed_if_proven

    context = admin.context
    if not context.authority_key or me.authority_key == (context.newest_authority or context.authority_key):
        return
    if me.authority_key not in followed_if_proven(invocation, admin):
        invocation.say(
            "warning: the server names another authority key than the one pinned at login, and does not prove that it"
            " follows that: ask its owner"
        )


def _identity_fields(me: admin_pb2.WhoAmIResponse, context: Context) -> list[tuple[str, Cell]]:
    import hashlib

    from fleet_server.cli.views import grouped_hex

    return [
        ("operator", Styled(me.operator, bold=True)),
        ("role", Styled(me.role, _ROLE_COLOURS.get(me.role))),
        ("cluster", f"{me.cluster_name} ({me.cluster_id})"),
        ("server", f"{context.server}, replica {me.replica_id}, version {me.server_version}"),
        ("authority", f"SHA-256 {grouped_hex(hashlib.sha256(me.authority_key).digest())}"),
        ("context", context.name or "(from the environment)"),
    ]
