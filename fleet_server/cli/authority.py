"""`fleetctl authority`: the cluster's authority, those before it, and its rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleet.v1 import admin_pb2

_COLUMNS = [
    Column("GENERATION", right=True),
    Column("SHA-256", flexible=True, least=20),
    Column("SINCE"),
    Column("NODES", right=True),
    Column("TRUST"),
]


@click.group(cls=Noun)
def authority() -> None:
    """See and rotate the cluster's authority, which signs bundles, tokens, handshakes and checkpoints."""


@authority.command("list", example="fleetctl authority list")
@click.pass_obj
def list_authorities(invocation: Invocation) -> None:
    """Show every authority that the cluster had, and how many nodes are at which.

    TRUST is worked out on this machine: the authority that login pinned, and those that provably followed it.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.authority_chain import kept_up

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ListAuthorities, admin_pb2.ListAuthoritiesRequest())
    if invocation.wants_json:
        invocation.emit_message(answer, [])
        return
    context = admin.context
    keys = kept_up(invocation, context, answer.chain) if context.authority_key else []
    before = [each.public_key for each in answer.authorities]
    before = before[: before.index(context.authority_key)] if context.authority_key in before else []
    rows = [_row(each, _standing(each.public_key, context.authority_key, keys, before)) for each in answer.authorities]
    invocation.emit_table(_COLUMNS, rows)


@authority.command("rotate", example="fleetctl authority rotate --reason 'yearly rotation'")
@click.option("--reason", required=True, help="Reason for the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rotate(invocation: Invocation, reason: str, yes: bool) -> None:
    """Let a new authority follow the one in force, at once.

    Old and new authority both sign the step, so every node takes it, those that are away when they come back. No stream
    is cut and no command lost. Join tokens that are out stay good. The private key of the old authority is erased.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.authority_chain import followed
    from fleet_server.cli.views import moment_text

    with invocation.connect() as admin:
        known = admin.call(admin.stub.ListAuthorities, admin_pb2.ListAuthoritiesRequest()).authorities
        generation = known[-1].generation if known else 0
        invocation.confirm(f"Rotate the authority of generation {generation}?", assumed=yes)
        request = admin_pb2.RotateAuthorityRequest(from_generation=generation, reason=reason)
        answer = admin.call(admin.stub.RotateAuthority, request)
        if admin.context.authority_key:
            followed(invocation, admin)
    made = answer.authority
    invocation.emit_message(
        answer,
        [
            ("generation", str(made.generation)),
            ("authority", made.public_key.hex()),
            ("", f"SHA-256 {_sha256(made.public_key)}"),
            ("since", moment_text(made.created_at_ms)),
        ],
    )
    invocation.advise("Next: `fleetctl authority list` shows how many nodes have followed")


def _row(view: admin_pb2.AuthorityView, standing: Cell) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    return [
        str(view.generation),
        _sha256(view.public_key),
        moment_text(view.created_at_ms),
        str(view.nodes),
        standing,
    ]


def _standing(key: bytes, pinned: bytes, proven: Sequence[bytes], before: Sequence[bytes]) -> Cell:
    if not pinned:
        return Styled("not pinned (log in to pin it)", "yellow")
    if key == pinned:
        return Styled("pinned at login", "green")
    if key in proven:
        return Styled("follows", "green")
    return "before the pinned one" if key in before else Styled("NOT proven", "red", bold=True)


def _sha256(key: bytes) -> str:
    import hashlib

    from fleet_server.cli.views import grouped_hex

    return grouped_hex(hashlib.sha256(key).digest())
