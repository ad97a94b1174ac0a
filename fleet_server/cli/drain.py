"""`fleetctl drain` and `fleetctl resume`: take work off a node or a server replica in order, and give it back."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.drain_replica import drain_replica
from fleet_server.cli.failures import Failed, Unreachable
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.terminal import counted
from fleet_server.cli.wave import drain_wave

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleet.v1 import admin_pb2

_NAMED_NODES = 5


@click.group(cls=Noun)
def drain() -> None:
    """Take work off nodes or off a server replica, in order and without loss."""


@click.group(cls=Noun)
def resume() -> None:
    """End a drain."""


@drain.command("node", example="fleetctl drain node rack=4 --deadline 10m --reason 'new power supply'")
@click.argument("targets", nargs=-1, required=True, shell_complete=complete.node)
@click.option("--deadline", type=Duration(), help="Time that running commands get; no limit by default.")
@click.option("--reason", default="", help="Reason for the audit.")
@click.pass_obj
def drain_node(invocation: Invocation, targets: tuple[str, ...], deadline: int | None, reason: str) -> None:
    """Let nodes finish what runs and take nothing new; their queues wait until `fleetctl resume node`.

    Waits until all are drained. Ctrl-C ends the waiting, not the drain.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.nodes import emit_nodes
    from fleet_server.cli.progress import Bar

    request = admin_pb2.DrainNodesRequest(
        selector=admin_pb2.Selector(patterns=targets), deadline_s=deadline or 0, reason=reason
    )
    seen: dict[str, admin_pb2.NodeView] = {}
    left, total, done = 0, 0, False
    try:
        with invocation.connect() as admin, Bar("draining nodes", None, estimates=True) as bar:
            for change in admin.stream(admin.stub.DrainNodes, request):
                seen.update((node.node_id, node) for node in change.nodes)
                left, done = change.nodes_left, change.done
                total = max(total, left, len(seen))
                bar.show(total - left, total=total, note=_note(seen.values()))
    except KeyboardInterrupt:
        named = shlex.join(targets)
        invocation.say(f"The drain goes on: `fleetctl nodes list {named}`. To end it: `fleetctl resume node {named}`")
        raise
    except Unreachable as failure:
        if seen:
            failure.hint = f"the drain goes on: `fleetctl nodes list {shlex.join(targets)}` shows how far it is"
        raise
    emit_nodes(invocation, sorted(seen.values(), key=lambda node: node.name))
    if not done:
        raise Failed(
            f"not drained yet: {left} of {counted(total, 'node')}", hint="see how they are: `fleetctl nodes list`"
        )
    drained = counted(total, "node")
    invocation.say(f"{drained} drained. To give them work again: `fleetctl resume node {shlex.join(targets)}`")


def _note(nodes: Iterable[admin_pb2.NodeView]) -> str:
    """What a drain waits for: open commands, and nodes that are away, which drain when they come back."""
    left = [node for node in nodes if node.drain_state == "DRAINING"]
    waiting = counted(sum(node.open_commands for node in left), "open command")
    away = sum(not node.online for node in left)
    return f"{waiting}, {counted(away, 'node')} offline" if away else waiting


drain.command("replica", example="fleetctl drain replica replica-a --deadline 2m --reason upgrade")(drain_replica)
drain.command("wave", example="fleetctl drain wave site=berlin --batch 10% --budget 2 --deadline 10m")(drain_wave)


@resume.command("node", example="fleetctl resume node rack=4")
@click.argument("targets", nargs=-1, required=True, shell_complete=complete.node)
@click.pass_obj
def resume_node(invocation: Invocation, targets: tuple[str, ...]) -> None:
    """Give drained nodes work again. (A suspended node comes back by `fleetctl nodes resume`.)"""
    from fleet.v1 import admin_pb2
    from fleet_server.cli.nodes import emit_nodes

    request = admin_pb2.ResumeNodesRequest(selector=admin_pb2.Selector(patterns=targets))
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ResumeNodes, request)
    emit_nodes(invocation, list(answer.nodes))
    suspended = [node.name for node in answer.nodes if node.state == "SUSPENDED"]
    if suspended:
        names = shlex.join(suspended[:_NAMED_NODES])
        invocation.say(f"{counted(len(suspended), 'node')} still suspended: `fleetctl nodes resume {names}`")
