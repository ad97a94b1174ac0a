"""`fleetctl keys`: the cluster's public keys, how many nodes hold which trust bundle, and the rotation of command
keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

    from fleet.v1 import admin_pb2, session_pb2

_KEY_COLUMNS = [
    Column("COMMAND KEY"),
    Column("PHASE"),
    Column("SITE", spare=1),
    Column("SINCE", spare=2),
    Column("VERIFIES UNTIL"),
    Column("NODES", right=True),
]
_ROLLOUT_COLUMNS = [
    Column("PREPARED KEY"),
    Column("SITE", spare=1),
    Column("HOLD IT", right=True),
    Column("AWAY", right=True),
    Column("STILL LACK IT", spare=2),
]


@click.group(cls=Noun)
def keys() -> None:
    """See authority, command keys and trust bundles, and rotate command keys.

    A command key is PREPARED (nodes learn it), then ACTIVE (it signs), then RETIRED (what it signed verifies for a
    while); or REVOKED, at once. KEY is its id, or the first 8 digits or more.
    """


@keys.command("list", example="fleetctl keys list")
@click.pass_obj
def list_keys(invocation: Invocation) -> None:
    """Show the cluster's keys and who holds which bundle. Never a private part."""
    from fleet.v1 import admin_pb2
    from fleet_server.cli.authority_chain import followed_if_proven

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ListKeys, admin_pb2.ListKeysRequest())
        pinned = admin.context.authority_key
        keys = followed_if_proven(invocation, admin) if pinned and pinned != answer.authority_key else [pinned]
    invocation.emit_message(answer, _cluster_fields(answer, keys))
    if invocation.wants_json:
        return
    invocation.emit_text("")
    invocation.emit_table(_KEY_COLUMNS, [_key_row(key) for key in answer.command_keys])
    invocation.emit_text("")
    _emit_holders(invocation, answer.holders, answer.bundle_version)


@keys.command("rollout", example="fleetctl keys rollout")
@click.pass_obj
def rollout(invocation: Invocation) -> None:
    """Show how far PREPARED keys have come, and how many nodes hold which bundle.

    A key may be activated once every active node of its scope that is online or was seen within a day holds it. Nodes
    that are away are handed it when they connect.
    """
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.GetKeyRollout, admin_pb2.GetKeyRolloutRequest())
    if invocation.wants_json:
        invocation.emit_message(answer, [])
        return
    invocation.emit_table(_ROLLOUT_COLUMNS, [_rollout_row(key) for key in answer.keys])
    invocation.emit_text("")
    _emit_holders(invocation, answer.holders, answer.bundle_version)
    if not answer.keys:
        invocation.say("No key is PREPARED. To make the next one: `fleetctl keys prepare`")
    for key in answer.keys:
        if key.complete:
            invocation.say(f"Ready: `fleetctl keys activate {key.key_id.hex()[:8]}`")


@keys.command("prepare", example="fleetctl keys prepare --site berlin")
@click.option("--site", default="", help="Site that the key is limited to; every site by default.")
@click.pass_obj
def prepare(invocation: Invocation, site: str) -> None:
    """Make the next command key. Nodes learn it; nothing is signed with it yet."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.PrepareKey, admin_pb2.PrepareKeyRequest(site=site))
    _emit_key(invocation, answer, answer.key)
    activate_it = f"fleetctl keys activate {answer.key.key_id.hex()[:8]}"
    invocation.advise(f"Next: `fleetctl keys rollout`, and `{activate_it}` once every node holds it")


@keys.command("activate", example="fleetctl keys activate 3f9c2a71")
@click.argument("key", shell_complete=complete.command_key)
@click.option("--override", metavar="REASON", help="Activate although nodes lack the key; REASON is audited.")
@click.pass_obj
def activate(invocation: Invocation, key: str, override: str | None) -> None:
    """Sign commands with a PREPARED key from now on.

    The key that was ACTIVE for the same scope is retired: what it signed verifies for a day. Refused until every node
    that is online or was seen within a day holds the key. With --override nodes that lack it are handed it before the
    first command that it signs, or refuse commands until they take it.
    """
    from fleet.v1 import admin_pb2

    if override is not None and not override.strip():
        raise click.BadParameter("say why", param_hint="--override")
    request = admin_pb2.ActivateKeyRequest(key=key, override_reason=override or "")
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ActivateKey, request)
    _emit_key(invocation, answer, answer.key)
    invocation.advise(f"{answer.rollout.holding} of {counted(answer.rollout.asked, 'node')} hold it")


@keys.command("retire", example="fleetctl keys retire 3f9c2a71 --verify-for 1h")
@click.argument("key", shell_complete=complete.command_key)
@click.option("--verify-for", type=Duration(), help="Time that what it signed still verifies; 24h by default.")
@click.pass_obj
def retire(invocation: Invocation, key: str, verify_for: int | None) -> None:
    """Let a site's key give way to the cluster's, or a retired key end sooner.

    The cluster's own ACTIVE key is retired by activating another.
    """
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        request = admin_pb2.RetireKeyRequest(key=key, verify_for_s=verify_for or 0)
        answer = admin.call(admin.stub.RetireKey, request)
    _emit_key(invocation, answer, answer.key)


@keys.command("revoke", example="fleetctl keys revoke 3f9c2a71 --reason 'the host of replica-b was broken into'")
@click.argument("key", shell_complete=complete.command_key)
@click.option("--reason", required=True, help="Reason for the audit.")
@click.option("--stop-commands", is_flag=True, help="Nothing takes its place: commands wait until a key is activated.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke(invocation: Invocation, key: str, reason: str, stop_commands: bool, yes: bool) -> None:
    """Let a key verify nothing any more, at once and for good.

    The PREPARED key of its scope, if there is one, takes its place in the same moment. What the key signed and nodes
    have not accepted yet is signed again.
    """
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        invocation.confirm(f"Revoke command key {key} for good?", assumed=yes)
        request = admin_pb2.RevokeKeyRequest(key=key, reason=reason, stop_commands=stop_commands)
        answer = admin.call(admin.stub.RevokeKey, request)
    _emit_key(invocation, answer, answer.key)
    if stop_commands:
        invocation.advise("Next: `fleetctl keys prepare`, and `fleetctl keys activate`: commands wait until then")
    else:
        invocation.advise("Next: `fleetctl keys list` shows which key signs now, and which bundle nodes hold")


def _emit_holders(
    invocation: Invocation, holders: Iterable[admin_pb2.BundleHolders], in_force: session_pb2.BundleVersion
) -> None:
    newest = _version(in_force)
    invocation.emit_table(
        [Column("BUNDLE"), Column("NODES", right=True)],
        [
            (Styled(_version(held.version), "green" if _version(held.version) == newest else "yellow"), str(held.nodes))
            for held in holders
        ],
    )


def _emit_key(invocation: Invocation, answer: Message, key: admin_pb2.CommandKeyView) -> None:
    labels = ("command key", "phase", "site", "since", "verifies until")
    invocation.emit_message(answer, zip(labels, _key_row(key), strict=False))


def _cluster_fields(answer: admin_pb2.ListKeysResponse, keys: Sequence[bytes]) -> list[tuple[str, Cell]]:
    import hashlib

    from fleet_server.cli.views import grouped_hex, moment_text

    if not keys[0]:
        pinned = Styled("not pinned (log in to pin it)", "yellow")
    elif keys[0] == answer.authority_key:
        pinned = Styled("the one pinned at login", "green")
    elif keys[-1] == answer.authority_key:
        pinned = Styled("follows the one pinned at login", "green")
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
        moment_text(key.since_ms),
        _end(key),
        str(key.nodes),
    ]


def _end(key: admin_pb2.CommandKeyView) -> str:
    from fleet.v1 import trust_pb2
    from fleet_server.cli.views import moment_text

    if key.phase == trust_pb2.KEY_PHASE_REVOKED:
        return "nothing verifies"
    return moment_text(key.verify_until_ms) if key.verify_until_ms else "no end yet"


def _rollout_row(key: admin_pb2.KeyRollout) -> list[Cell]:
    return [
        key.key_id.hex(),
        key.site or "all",
        Styled(f"{key.holding} of {key.asked}", "green" if key.complete else "yellow"),
        str(key.away),
        ", ".join(key.lacking) or "-",
    ]


def _version(version: session_pb2.BundleVersion) -> str:
    return f"{version.generation}.{version.number}"
