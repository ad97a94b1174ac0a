"""`fleetctl nodes`: which nodes there are, how they are, and who may take part."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from fleet_server.cli.grammar import Noun, key_value
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.terminal import Cell, Column, Styled, age, counted, duration, state_cell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet.v1 import admin_pb2, gateway_pb2

COLUMNS = [
    Column(""),
    Column("NAME"),
    Column("STATE"),
    Column("SITE"),
    Column("VERSION"),
    Column("RTT", right=True),
    Column("CLOCK", right=True),
    Column("OPEN", right=True),
    Column("SEQ", right=True),
    Column("SEEN", right=True),
    Column("LABELS", flexible=True),
]
_STATE_CELLS = len("QUARANTINED")


@click.group(cls=Noun)
def nodes() -> None:
    """List, watch, label, suspend and revoke nodes.

    TARGETS are names, ids, globs, labels (`rack=4`, `rack=4,line=2` for both) or `*`; a node is meant if any of them
    matches.
    """


@nodes.command("list", example="fleetctl nodes list 'press-*' rack=4")
@click.argument("targets", nargs=-1)
@click.pass_obj
def list_nodes(invocation: Invocation, targets: tuple[str, ...]) -> None:
    """List nodes by name; all of them without TARGETS."""
    from fleet.v1 import admin_pb2

    selector = admin_pb2.Selector(patterns=targets)
    with invocation.connect() as admin:
        found = admin.pages(
            admin.stub.ListNodes,
            lambda page: admin_pb2.ListNodesRequest(selector=selector, page=page),
            lambda answer: iter(answer.nodes),
        )
    emit_nodes(invocation, found)
    if not invocation.wants_json:
        invocation.say(f"{counted(len(found), 'node')}, {sum(node.online for node in found)} online")


@nodes.command("show", example="fleetctl nodes show press-7")
@click.argument("node")
@click.pass_obj
def show(invocation: Invocation, node: str) -> None:
    """Show one node, by name or id, with its drivers and actions."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.GetNode, admin_pb2.GetNodeRequest(node=node))
    invocation.emit_message(answer, _details(answer.node, invocation.now_ms()))
    if not invocation.wants_json:
        actions = [(driver, action) for driver in answer.drivers for action in driver.actions]
        invocation.emit_text("")
        invocation.emit_table(
            [Column("ACTION"), Column("DRIVER"), Column("NOTES"), Column("DESCRIPTION", flexible=True)],
            [
                (action.action, f"{driver.name} {driver.version}", _notes(action), action.description)
                for driver, action in actions
            ],
        )


@nodes.command("watch", example="fleetctl nodes watch 'site=berlin'")
@click.argument("targets", nargs=-1)
@click.pass_obj
def watch(invocation: Invocation, targets: tuple[str, ...]) -> None:
    """Show nodes as they change, until Ctrl-C; first all of them."""
    from fleet.v1 import admin_pb2

    request = admin_pb2.WatchNodesRequest(selector=admin_pb2.Selector(patterns=targets))
    with invocation.connect() as admin:
        _follow(invocation, admin.stream(admin.stub.WatchNodes, request))


@nodes.command("suspend", example="fleetctl nodes suspend rack=4 --reason 'water in the hall'")
@click.argument("targets", nargs=-1, required=True)
@click.option("--reason", required=True, help="Reason for the nodes and the audit.")
@click.pass_obj
def suspend(invocation: Invocation, targets: tuple[str, ...], reason: str) -> None:
    """Close the nodes' streams and keep them out until they are resumed; their queues stay."""
    _set_state(invocation, targets, "SUSPENDED", reason)


@nodes.command("resume", example="fleetctl nodes resume rack=4 --reason 'dry again'")
@click.argument("targets", nargs=-1, required=True)
@click.option("--reason", default="", help="Reason for the audit.")
@click.pass_obj
def resume(invocation: Invocation, targets: tuple[str, ...], reason: str) -> None:
    """Let suspended nodes back in. (A drain is ended by `fleetctl resume node`.)"""
    _set_state(invocation, targets, "ACTIVE", reason)


@nodes.command("revoke", example="fleetctl nodes revoke press-7 --reason 'stolen' --yes")
@click.argument("targets", nargs=-1, required=True)
@click.option("--reason", required=True, help="Reason for the nodes and the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke(invocation: Invocation, targets: tuple[str, ...], reason: str, yes: bool) -> None:
    """Put nodes out for good: to come back they must enroll again."""
    invocation.confirm(f"Revoke {' '.join(targets)} for good?", assumed=yes)
    _set_state(invocation, targets, "REVOKED", reason)


@nodes.command("label", example="fleetctl nodes label 'press-*' line=2 old-label-")
@click.argument("target")
@click.argument("changes", nargs=-1, required=True)
@click.pass_obj
def label(invocation: Invocation, target: str, changes: tuple[str, ...]) -> None:
    """Set labels (KEY=VALUE) and remove them (KEY-) on the nodes that TARGET means."""
    from fleet.v1 import admin_pb2

    removed = [change[:-1] for change in changes if change.endswith("-") and "=" not in change]
    given = dict(key_value(change, option="CHANGES") for change in changes if change[:-1] not in removed)
    request = admin_pb2.LabelNodesRequest(selector=admin_pb2.Selector(patterns=[target]), set=given, remove=removed)
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.LabelNodes, request)
    emit_nodes(invocation, list(answer.nodes))


def emit_nodes(invocation: Invocation, found: list[admin_pb2.NodeView]) -> None:
    """Show nodes as every verb shows them."""
    now_ms = invocation.now_ms()
    invocation.emit_list(found, COLUMNS, lambda node: node_row(node, now_ms))


def node_row(node: admin_pb2.NodeView, now_ms: int) -> list[Cell]:
    """A node as a row of `COLUMNS`."""
    from fleet_server.cli.views import labels_text

    accepted = (
        str(node.last_seq) if node.last_seq == node.last_accepted_seq else f"{node.last_accepted_seq}/{node.last_seq}"
    )
    return [
        Styled("●", "green") if node.online else Styled("○", dim=True),
        Styled(node.name, bold=True),
        _state(node),
        node.site or "-",
        node.version or "-",
        duration(node.rtt_us / 1e6) if node.online and node.rtt_us else "-",
        _clock(node),
        str(node.open_commands),
        accepted,
        "now" if node.online else age(node.last_seen_ms, now_ms),
        labels_text(node.labels.items()),
    ]


def _set_state(invocation: Invocation, targets: tuple[str, ...], state: str, reason: str) -> None:
    from fleet.v1 import admin_pb2

    request = admin_pb2.SetNodeStateRequest(selector=admin_pb2.Selector(patterns=targets), state=state, reason=reason)
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.SetNodeState, request)
    emit_nodes(invocation, list(answer.nodes))


def _follow(invocation: Invocation, changes: Iterator[admin_pb2.WatchNodesResponse]) -> None:
    import time

    from fleet_server.cli.views import to_json

    known_widths = 0
    for change in changes:
        if invocation.wants_json:
            for node in change.nodes:
                invocation.emit_json_line(to_json(node))
            continue
        now_ms = invocation.now_ms()
        clock = time.strftime("%H:%M:%S", time.localtime(now_ms / 1000))
        known_widths = max([known_widths, *(len(node.name) for node in change.nodes)])
        for node in change.nodes:
            _emit_change(invocation, node, clock, known_widths)


def _emit_change(invocation: Invocation, node: admin_pb2.NodeView, clock: str, name_width: int) -> None:
    from fleet_server.cli.terminal import printable, wants_colour
    from fleet_server.cli.terminal import styled as paint

    colour = wants_colour(sys.stdout)
    dot = paint(Styled("●", "green") if node.online else Styled("○", dim=True), colour=colour)
    state_style = _state(node)
    state = paint(replace(state_style, text=state_style.text.ljust(_STATE_CELLS)), colour=colour)
    where = f"on {node.replica_id}" if node.online else "offline"
    invocation.emit_text(
        f"{clock}  {dot} {printable(node.name).ljust(name_width)}  {state}  {where}"
        f"  seq {node.last_accepted_seq}/{node.last_seq}  open {node.open_commands}"
    )


def _state(node: admin_pb2.NodeView) -> Styled:
    if node.state == "ACTIVE" and node.drain_state in ("DRAINING", "DRAINED"):
        return state_cell(node.drain_state)
    return state_cell(node.state)


def _clock(node: admin_pb2.NodeView) -> Cell:
    if not node.online:
        return "-"
    text = f"{node.clock_offset_ms:+d}ms"
    # A second is where expiry of commands starts to feel wrong to a person; the node itself works on server time.
    return Styled(text, "yellow") if abs(node.clock_offset_ms) >= 1000 else text


def _notes(action: gateway_pb2.ActionDescriptor) -> str:
    notes = [word for word, holds in (("protected", action.protected), ("idempotent", action.idempotent)) if holds]
    return " ".join(notes) or "-"


def _details(node: admin_pb2.NodeView, now_ms: int) -> list[tuple[str, Cell]]:
    from fleet.identity import show_fingerprint
    from fleet_server.cli.views import labels_text, moment_text

    stream = f"replica {node.replica_id}, epoch {node.stream_epoch}" if node.online else "offline"
    reported = labels_text((f"reported.{key}", value) for key, value in node.reported_labels.items())
    return [
        ("name", Styled(node.name, bold=True)),
        ("id", node.node_id),
        ("state", _state(node)),
        ("reason", node.state_reason or "-"),
        ("stream", Styled(stream, "green") if node.online else Styled(stream, dim=True)),
        ("last seen", age(node.last_seen_ms, now_ms) + " ago" if node.last_seen_ms else "never"),
        ("site", node.site or "-"),
        ("labels", labels_text(node.labels.items()) or "-"),
        ("reported", reported or "-"),
        ("fingerprint", show_fingerprint(node.fingerprint)),
        ("version", node.version or "-"),
        ("round trip", duration(node.rtt_us / 1e6) if node.rtt_us else "-"),
        ("clock", _clock(node)),
        ("seq", f"{node.last_accepted_seq} accepted of {node.last_seq} issued, {node.open_commands} open"),
        ("bundle", f"{node.bundle_version.generation}.{node.bundle_version.number}"),
        ("enrolled", moment_text(node.enrolled_at_ms)),
    ]
