"""`fleetctl nodes`: which nodes there are, how they are, and who may take part."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Noun, key_value
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.node_credentials import checklist, rotate
from fleet_server.cli.node_replacement import replace
from fleet_server.cli.node_routes import routes_of
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import (
    Styled,
    age,
    clock_text,
    counted,
    duration,
    state_cell,
    terminal_width,
    wants_colour,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet.v1 import admin_pb2

    Changes = Callable[[Callable[[str], None] | None], Iterator[admin_pb2.WatchNodesResponse]]

COLUMNS = [
    Column(""),
    Column("NAME"),
    Column("STATE"),
    Column("SITE", spare=4),
    Column("VERSION", spare=3),
    Column("RTT", right=True, spare=2),
    Column("CLOCK", right=True, spare=1),
    Column("OPEN", right=True),
    Column("SEQ", right=True, spare=5),
    Column("SEEN", right=True),
    Column("LABELS", flexible=True),
]
_CHANGE_COLUMNS = [
    Column("TIME"),
    Column(""),
    Column("NAME"),
    Column("STATE", reserve=9),
    Column("REPLICA", spare=1),
    Column("OPEN", right=True),
    Column("SEQ", right=True),
    Column("LABELS", flexible=True),
]


@click.group(cls=Noun)
def nodes() -> None:
    """List, watch, label, suspend, rotate, adopt, replace and revoke nodes.

    TARGETS are names, ids, globs, labels (`rack=4`, `rack=4,line=2` for both) or `*`; a node is meant if any of them
    matches.
    """


@nodes.command("list", example="fleetctl nodes list 'press-*' rack=4")
@click.argument("targets", nargs=-1, shell_complete=complete.node)
@click.pass_obj
def list_nodes(invocation: Invocation, targets: tuple[str, ...]) -> None:
    """List nodes by name; all of them without TARGETS.

    ● is online and ○ offline. ◐ is out of service (SUSPENDED, REVOKED or QUARANTINED), its stream about to be closed.
    """
    from fleet.v1 import admin_pb2

    selector = admin_pb2.Selector(patterns=targets)
    with invocation.connect() as admin:
        found = admin.pages(
            admin.stub.ListNodes,
            lambda page: admin_pb2.ListNodesRequest(selector=selector, page=page),
            lambda answer: iter(answer.nodes),
        )
    emit_nodes(invocation, found)
    if found:
        invocation.advise(f"{counted(len(found), 'node')}, {sum(map(_takes_part, found))} online")
        remind(invocation, found)
    elif targets:
        invocation.advise("No node matches. All that there are: `fleetctl nodes list`")
    else:
        invocation.advise("No node has joined yet. The first step: `fleetctl join-token create`")


@nodes.command("show", example="fleetctl nodes show press-7")
@click.argument("node", shell_complete=complete.node)
@click.pass_obj
def show(invocation: Invocation, node: str) -> None:
    """Show one node, by name or id, with its actions and the arguments that they take."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.GetNode, admin_pb2.GetNodeRequest(node=node))
        led = [] if invocation.wants_json else routes_of(admin, answer.node)
    fields = [*_details(answer.node, invocation.now_ms()), ("audit", _audit(answer.audit)), *led]
    if answer.any_machine_until_ms:
        fields.append(("any machine", _any_machine(answer.any_machine_until_ms)))
    invocation.emit_message(answer, fields)
    if not invocation.wants_json:
        from fleet_server.cli.actions import describe

        stdout = sys.stdout
        shown = describe(answer.drivers, colour=wants_colour(stdout), width=terminal_width(stdout))
        invocation.emit_text(f"\n{shown}" if shown else "\nno actions: the node has not connected yet")


@nodes.command("watch", example="fleetctl nodes watch 'site=berlin'")
@click.argument("targets", nargs=-1, shell_complete=complete.node)
@click.pass_obj
def watch(invocation: Invocation, targets: tuple[str, ...]) -> None:
    """Follow nodes until Ctrl-C: a table that stays up to date; a line for each change when piped."""
    from fleet.v1 import admin_pb2

    request = admin_pb2.WatchNodesRequest(selector=admin_pb2.Selector(patterns=targets))
    with invocation.connect() as admin:
        _follow(invocation, lambda lost: admin.follow(admin.stub.WatchNodes, lambda: request, lost=lost))


@nodes.command("suspend", example="fleetctl nodes suspend rack=4 --reason 'water in the hall'")
@click.argument("targets", nargs=-1, required=True, shell_complete=complete.node)
@click.option("--reason", required=True, help="Reason for the nodes and the audit.")
@click.pass_obj
def suspend(invocation: Invocation, targets: tuple[str, ...], reason: str) -> None:
    """Close the nodes' streams and keep them out until they are resumed; their queues stay."""
    _set_state(invocation, targets, "SUSPENDED", reason)


@nodes.command("resume", example="fleetctl nodes resume rack=4 --reason 'dry again'")
@click.argument("targets", nargs=-1, required=True, shell_complete=complete.node)
@click.option("--reason", default="", help="Reason for the audit.")
@click.pass_obj
def resume(invocation: Invocation, targets: tuple[str, ...], reason: str) -> None:
    """Let suspended nodes back in. (A drain is ended by `fleetctl resume node`.)"""
    _set_state(invocation, targets, "ACTIVE", reason)


@nodes.command("revoke", example="fleetctl nodes revoke press-7 --reason 'stolen' --yes")
@click.argument("targets", nargs=-1, required=True, shell_complete=complete.node)
@click.option("--reason", required=True, help="Reason for the nodes and the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke(invocation: Invocation, targets: tuple[str, ...], reason: str, yes: bool) -> None:
    """Put nodes out for good: to come back they must enroll again."""
    invocation.confirm(f"Revoke {' '.join(targets)} for good?", assumed=yes)
    remind(invocation, _set_state(invocation, targets, "REVOKED", reason))


nodes.add_command(rotate)
nodes.add_command(checklist)
nodes.add_command(replace)


@nodes.command("adopt", example="fleetctl nodes adopt press-7 --reason 'restored from the image of Monday' --yes")
@click.argument("targets", nargs=-1, required=True, shell_complete=complete.node)
@click.option("--reason", required=True, help="Reason for the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def adopt(invocation: Invocation, targets: tuple[str, ...], reason: str, yes: bool) -> None:
    """Let quarantined nodes back in: the machine that connects next is the node. So does an active one start over whose
    own audit does not go on.

    Two machines showed the node's keys, or one came back from an older copy. Switch off the wrong one first. What was
    sent to the node and has no result is INTERRUPTED from then on, and is never sent again.
    """
    from fleet.v1 import admin_pb2

    invocation.confirm(f"Is the wrong machine of {' '.join(targets)} switched off?", assumed=yes)
    request = admin_pb2.AdoptNodesRequest(selector=admin_pb2.Selector(patterns=targets), reason=reason)
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.AdoptNodes, request)
    emit_nodes(invocation, list(answer.nodes))


@nodes.command("label", example="fleetctl nodes label 'press-*' line=2 old-label-")
@click.argument("target", shell_complete=complete.node)
@click.argument("changes", nargs=-1, required=True)
@click.pass_obj
def label(invocation: Invocation, target: str, changes: tuple[str, ...]) -> None:
    """Set labels (KEY=VALUE) and remove them (KEY-) on the nodes that TARGET means."""
    from fleet.v1 import admin_pb2

    removed = [change[:-1] for change in changes if change.endswith("-") and "=" not in change]
    given = dict(key_value(change, option="CHANGES") for change in changes if change[:-1] not in removed)
    if both := sorted({*removed} & {*given}):
        raise click.UsageError(f"{' '.join(both)}: a label is set or removed, not both")
    request = admin_pb2.LabelNodesRequest(selector=admin_pb2.Selector(patterns=[target]), set=given, remove=removed)
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.LabelNodes, request)
    emit_nodes(invocation, list(answer.nodes))


def emit_nodes(invocation: Invocation, found: list[admin_pb2.NodeView]) -> None:
    """Show nodes as every verb shows them."""
    now_ms = invocation.now_ms()
    invocation.emit_list(found, COLUMNS, lambda node: node_row(node, now_ms))


def remind(invocation: Invocation, found: list[admin_pb2.NodeView]) -> None:
    """Of nodes for which something is left to do since they, or their former machines, were revoked."""
    left = [node.name for node in found if node.checklist_open]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        invocation.advise(
            f"Something is left to do for {', '.join(left[:3])}{more}, revoked:"
            f" `fleetctl nodes checklist {shlex.quote(left[0])}`"
        )


def node_row(node: admin_pb2.NodeView, now_ms: int) -> list[Cell]:
    """A node as a row of `COLUMNS`."""
    from fleet_server.cli.views import labels_text

    return [
        _dot(node),
        Styled(node.name, bold=True),
        _state(node),
        node.site or "-",
        node.version or "-",
        duration(node.rtt_us / 1e6) if node.online and node.rtt_us else "-",
        _clock(node),
        str(node.open_commands),
        _accepted(node),
        "now" if node.online else age(node.last_seen_ms, now_ms),
        labels_text(node.labels.items()),
    ]


def _set_state(invocation: Invocation, targets: tuple[str, ...], state: str, reason: str) -> list[admin_pb2.NodeView]:
    from fleet.v1 import admin_pb2

    request = admin_pb2.SetNodeStateRequest(selector=admin_pb2.Selector(patterns=targets), state=state, reason=reason)
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.SetNodeState, request)
    changed = list(answer.nodes)
    emit_nodes(invocation, changed)
    return changed


def _follow(invocation: Invocation, changes: Changes) -> None:
    from fleet_server.cli import live
    from fleet_server.cli.views import to_json

    if invocation.wants_json:
        for change in changes(None):
            for node in change.nodes:
                invocation.emit_json_line(to_json(node))
    elif live.is_possible():
        _follow_in_place(invocation, changes)
    else:
        _follow_by_lines(invocation, changes)


def _follow_in_place(invocation: Invocation, changes: Changes) -> None:
    from fleet_server.cli.live import LiveTable

    known: dict[str, admin_pb2.NodeView] = {}

    def rows() -> list[list[Cell]]:
        now_ms = invocation.now_ms()
        return [node_row(node, now_ms) for node in sorted(known.copy().values(), key=lambda node: node.name)]

    with LiveTable(COLUMNS, rows, "node") as shown:
        for change in changes(shown.note):
            known.update((node.node_id, node) for node in change.nodes)
            shown.note("")


def _follow_by_lines(invocation: Invocation, changes: Changes) -> None:
    lines = invocation.running_table(_CHANGE_COLUMNS)
    told: dict[str, list[Cell]] = {}
    for change in changes(None):
        clock = clock_text(invocation.now_ms())
        rows: list[list[Cell]] = []
        for node in change.nodes:
            row = _change_row(node)
            if told.get(node.node_id) != row:  # a sign of life alone is no change that a person waits for
                told[node.node_id] = row
                rows.append([clock, *row])
        if rows:
            invocation.emit_text(lines.add(rows))


def _change_row(node: admin_pb2.NodeView) -> list[Cell]:
    from fleet_server.cli.views import labels_text

    return [
        _dot(node),
        Styled(node.name, bold=True),
        _state(node),
        node.replica_id or "-",
        str(node.open_commands),
        _accepted(node),
        labels_text(node.labels.items()),
    ]


def _takes_part(node: admin_pb2.NodeView) -> bool:
    """Online, and not just until the server has closed the stream of a node that it keeps out."""
    return node.online and node.state == "ACTIVE"


def _dot(node: admin_pb2.NodeView) -> Styled:
    if _takes_part(node):
        return Styled("●", "green")
    return Styled("◐", "yellow") if node.online else Styled("○", dim=True)


def _accepted(node: admin_pb2.NodeView) -> str:
    if node.last_seq == node.last_accepted_seq:
        return str(node.last_seq)
    return f"{node.last_accepted_seq}/{node.last_seq}"


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


def _stream(node: admin_pb2.NodeView) -> Styled:
    if not node.online:
        return Styled("offline", dim=True)
    stream = f"replica {node.replica_id}, epoch {node.stream_epoch}"
    return Styled(stream, "green") if _takes_part(node) else Styled(f"{stream}, about to be closed", "yellow")


def _left(node: admin_pb2.NodeView) -> Styled:
    what = f"{counted(node.checklist_open, 'item')}: `fleetctl nodes checklist {shlex.quote(node.name)}`"
    return Styled(what, "yellow")


def _any_machine(until_ms: int) -> Cell:
    from fleet_server.cli.views import moment_text

    return Styled(f"with its keys is taken for it, once, until {moment_text(until_ms)}", "yellow")


def _audit(audit: admin_pb2.NodeAuditView) -> Cell:
    from fleet_server.cli.views import moment_text

    if audit.finding:
        text = f"{audit.finding}, found {moment_text(audit.finding_at_ms)}: trust nothing that this node says"
        return Styled(text, "red")
    where = f" in chain {audit.chain}" if audit.chain else ""
    return f"{audit.rows} rows{where}, the last {moment_text(audit.last_at_ms)}" if audit.rows else "nothing yet"


def _details(node: admin_pb2.NodeView, now_ms: int) -> list[tuple[str, Cell]]:
    from fleet.identity import show_fingerprint
    from fleet_server.cli.views import labels_text, moment_text

    reported = labels_text((f"reported.{key}", value) for key, value in node.reported_labels.items())
    return [
        ("name", Styled(node.name, bold=True)),
        ("id", node.node_id),
        ("state", _state(node)),
        *([("reason", node.state_reason)] if node.state_reason else []),
        *([("left to do", _left(node))] if node.checklist_open else []),
        ("stream", _stream(node)),
        ("last seen", age(node.last_seen_ms, now_ms) + " ago" if node.last_seen_ms else "never"),
        ("site", node.site or "-"),
        ("labels", labels_text(node.labels.items()) or "-"),
        ("reported", reported or "-"),
        ("fingerprint", show_fingerprint(node.fingerprint)),
        *([("rotating", Styled(", ".join(node.rotating), "yellow"))] if node.rotating else []),
        ("version", node.version or "-"),
        ("round trip", duration(node.rtt_us / 1e6) if node.rtt_us else "-"),
        ("clock", _clock(node)),
        ("seq", f"{node.last_accepted_seq} accepted of {node.last_seq} issued, {node.open_commands} open"),
        ("bundle", f"{node.bundle_version.generation}.{node.bundle_version.number}"),
        ("enrolled", moment_text(node.enrolled_at_ms)),
    ]
