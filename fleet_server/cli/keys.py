"""`fleetctl keys`: the cluster's public keys, and how many nodes hold which trust bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2, session_pb2
    from fleet_server.cli.profile import Context


@click.group(cls=Noun)
def keys() -> None:
    """See authority, command keys and trust bundles."""


@keys.command("list", example="fleetctl keys list")
@click.pass_obj
def list_keys(invocation: Invocation) -> None:
    """Show the cluster's keys and who holds which bundle. Never a private part."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ListKeys, admin_pb2.ListKeysRequest())
    invocation.emit_message(answer, _cluster_fields(answer, admin.context))
    if invocation.wants_json:
        return
    invocation.emit_text("")
    columns = [
        Column("COMMAND KEY"),
        Column("PHASE"),
        Column("SITE", spare=1),
        Column("FROM", spare=2),
        Column("VERIFIES UNTIL"),
    ]
    invocation.emit_table(columns, [_key_row(key) for key in answer.command_keys])
    invocation.emit_text("")
    newest = _version(answer.bundle_version)
    invocation.emit_table(
        [Column("BUNDLE"), Column("NODES", right=True)],
        [
            (Styled(_version(held.version), "green" if _version(held.version) == newest else "yellow"), str(held.nodes))
            for held in answer.holders
        ],
    )


def _cluster_fields(answer: admin_pb2.ListKeysResponse, context: Context) -> list[tuple[str, Cell]]:
    import hashlib

    from fleet_server.cli.views import grouped_hex, moment_text

    if not context.authority_key:
        pinned = Styled("not pinned (log in to pin it)", "yellow")
    elif context.authority_key == answer.authority_key:
        pinned = Styled("the one pinned at login", "green")
    else:
        pinned = Styled("NOT the one pinned at login", "red", bold=True)
    return [
        ("cluster", answer.cluster_id),
        ("authority", answer.authority_key.hex()),
        ("", f"SHA-256 {grouped_hex(hashlib.sha256(answer.authority_key).digest())}"),
        ("", pinned),
        ("generation", str(answer.authority_generation)),
        ("bundle", f"{_version(answer.bundle_version)}, good until {moment_text(answer.bundle_expires_at_ms)}"),
        ("TLS CA", f"SHA-256 {grouped_hex(answer.tls_ca_sha256)}"),
    ]


def _key_row(key: admin_pb2.CommandKeyView) -> list[Cell]:
    from fleet.v1 import trust_pb2
    from fleet_server.cli.views import enum_cell, moment_text

    return [
        key.key_id.hex(),
        enum_cell(trust_pb2.KeyPhase.DESCRIPTOR, key.phase),
        key.site or "all",
        moment_text(key.not_before_ms),
        moment_text(key.verify_until_ms) if key.verify_until_ms else "no end yet",
    ]


def _version(version: session_pb2.BundleVersion) -> str:
    return f"{version.generation}.{version.number}"
