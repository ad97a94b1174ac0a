"""`fleetctl join-token`: what a new node needs to find and trust the cluster."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.secret_output import check_new_file, emit_secret, secret_file_option
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import state_cell

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2, enrollment_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.profile import Context

TEXT_PREFIX = "fjt1."
_COLUMNS = [
    Column("ID"),
    Column("STATE"),
    Column("SITE", spare=2),
    Column("USES", right=True),
    Column("AUTO-APPROVE", spare=3),
    Column("EXPIRES"),
    Column("BY", spare=1),
]


@click.group(cls=Noun)
def join_token() -> None:
    """Make, list and revoke join tokens."""


@join_token.command(
    "create",
    example="fleetctl join-token create --site berlin --ttl 24h --uses 20 --output-file join.token",
)
@click.option("--site", default="", help="Site of the nodes that enroll with it.")
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="How long it is good.")
@click.option("--uses", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Nodes that may use it.")
@click.option("--auto-approve", is_flag=True, help="Approve those nodes without comparing fingerprints.")
@secret_file_option
@click.pass_obj
def create(invocation: Invocation, site: str, ttl: int, uses: int, auto_approve: bool, output_file: str | None) -> None:
    """Make a join token and show its text, once.

    The text carries the server's endpoints and what the node is to trust, signed by the cluster's authority, and the
    pin of the owner key from your own profile when there is one. fleetctl checks the signature against the authority
    that it pinned at login.
    """
    from fleet.v1 import admin_pb2

    check_new_file(output_file)
    request = admin_pb2.CreateJoinTokenRequest(site=site, ttl_s=ttl, max_uses=uses, auto_approve=auto_approve)
    with invocation.connect() as admin:
        made = admin.call(admin.stub.CreateJoinToken, request)
        statement = _open_token(made.token, admin.context, _authority_in_force(invocation, admin, made.token))
    _add_owner_pin(invocation, made.token, admin.context)
    text = token_text(made.token)
    emit_secret(invocation, made.join_token, secret_field="token", secret=text, output_file=output_file)
    _say_what_it_trusts(invocation, statement, made.token.owner_pin)
    _say_what_is_next(invocation, output_file)


@join_token.command("list", example="fleetctl join-token list")
@click.pass_obj
def list_tokens(invocation: Invocation) -> None:
    """List join tokens, newest first; never their secrets."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        tokens = admin.pages(
            admin.stub.ListJoinTokens,
            lambda page: admin_pb2.ListJoinTokensRequest(page=page),
            lambda answer: iter(answer.join_tokens),
        )
    invocation.emit_list(tokens, _COLUMNS, _row)


@join_token.command("revoke", example="fleetctl join-token revoke jt_5fK2")
@click.argument("token_id", shell_complete=complete.join_token)
@click.pass_obj
def revoke(invocation: Invocation, token_id: str) -> None:
    """End a join token at once; nodes that enrolled with it stay."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.RevokeJoinToken, admin_pb2.RevokeJoinTokenRequest(token_id=token_id))
    titles = [column.title.lower() for column in _COLUMNS]
    invocation.emit_message(answer.join_token, zip(titles, _row(answer.join_token), strict=True))


def token_text(token: enrollment_pb2.JoinToken) -> str:
    """The text form: "fjt1." and unpadded base64url of the serialised JoinToken (docs/protocol.md, "Enrollment")."""
    import base64

    return TEXT_PREFIX + base64.urlsafe_b64encode(token.SerializeToString()).decode().rstrip("=")


def _authority_in_force(invocation: Invocation, admin: Admin, token: enrollment_pb2.JoinToken) -> bytes:
    """The authority that must have signed the token, as far as the profile knows one: after a rotation the newest that
    provably followed the pinned one."""
    from fleet.envelope import key_id
    from fleet_server.cli.authority_chain import followed

    known = admin.context.newest_authority or admin.context.authority_key
    if not known or key_id(known) in {signature.key_id for signature in token.signed.signatures}:
        return known
    return followed(invocation, admin)[-1]


def _open_token(
    token: enrollment_pb2.JoinToken, context: Context, authority_key: bytes
) -> enrollment_pb2.JoinTokenStatement:
    """What the token says. A server that was replaced must not send new nodes to trust another authority.

    Raises:
        Refused: not signed by the authority that the profile pinned or one that followed it, or for another cluster.
    """
    from google.protobuf.message import DecodeError

    from fleet.envelope import Domain, EnvelopeError, verify_one
    from fleet.v1 import enrollment_pb2
    from fleet_server.cli.failures import Refused

    try:
        if authority_key:
            verify_one(token.signed, domain=Domain.JOIN_TOKEN, public_key=authority_key)
        statement = enrollment_pb2.JoinTokenStatement.FromString(token.signed.statement)
    except (EnvelopeError, DecodeError):
        statement = None
    if statement is None or (
        authority_key and (statement.authority_key, statement.cluster_id) != (authority_key, context.cluster_id)
    ):
        raise Refused(
            "the join token is not signed by the authority that was pinned at login, or one that followed it",
            hint="do not use it: ask the server's owner whether the authority changed, then `fleetctl login` again",
        )
    return statement


def _add_owner_pin(invocation: Invocation, token: enrollment_pb2.JoinToken, context: Context) -> None:
    # Only the operator's own profile may pin an owner: the server cannot vouch for its own owner (docs/protocol.md,
    # "Enrollment"). Of the owners that follow the pinned one the newest that was seen: whoever has the key of one
    # before could name another successor to nodes that know no better.
    from fleet.people import owner_pin
    from fleet_server.cli.known_people import KnownPeople

    newest = KnownPeople(invocation.profile_file()).of(context).owner
    token.owner_pin = context.owner_pin if newest is None else owner_pin(newest.public_key)


def _say_what_it_trusts(invocation: Invocation, statement: enrollment_pb2.JoinTokenStatement, owner_pin: bytes) -> None:
    import hashlib

    from fleet_server.cli.terminal import counted, duration
    from fleet_server.cli.views import grouped_hex

    good_s = round(max(statement.expires_at_ms - invocation.now_ms(), 0) / 1000)
    approval = "approves by itself" if statement.auto_approve else "you approve"
    invocation.say(
        f"Good for {duration(good_s)} and {counted(statement.max_uses, 'node')}; {approval}. Not shown again."
    )
    pin = f"SHA-256 {grouped_hex(owner_pin)}" if owner_pin else "none: protected actions stay refused"
    invocation.say_fields(
        [
            ("  endpoints", " ".join(statement.endpoints)),
            ("  authority", f"SHA-256 {grouped_hex(hashlib.sha256(statement.authority_key).digest())}"),
            ("  owner pin", pin),
        ]
    )
    if all(_is_own_machine(endpoint) for endpoint in statement.endpoints):
        invocation.say(
            "Only nodes on the server's own machine reach that. For others, set gateway_endpoints there"
            " (`fleet-server config`)."
        )


def _is_own_machine(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def _say_what_is_next(invocation: Invocation, output_file: str | None) -> None:
    # A file: on the node's command line other users of that machine would see the token.
    file = shlex.quote(output_file) if output_file else "FILE"
    invocation.say(f"Next, on the node: `fleet-node enroll --token-file {file}`")


def _row(token: admin_pb2.JoinTokenView) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    return [
        token.token_id,
        state_cell(token.state),
        token.site or "-",
        f"{token.uses}/{token.max_uses}",
        "yes" if token.auto_approve else "no",
        moment_text(token.expires_at_ms),
        token.created_by,
    ]
