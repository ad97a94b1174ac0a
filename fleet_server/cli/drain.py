"""`fleetctl drain` and `fleetctl resume`: take work off a node or a server replica in order, and give it back."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.failures import Failed, Unreachable
from fleet_server.cli.grammar import Duration, Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.terminal import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fleet.v1 import admin_pb2

_NAMED_NODES = 5
REASONS = ("drain", "upgrade", "rebalance", "restart", "shutdown")


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


@drain.command("replica", example="fleetctl drain replica replica-a --deadline 2m --reason upgrade")
@click.argument("replica_id", default="", shell_complete=complete.replica)
@click.option("--deadline", type=Duration(), help="Time to move every stream; the server's setting by default.")
@click.option("--reason", type=click.Choice(REASONS), help="What nodes are told; the server chooses by default.")
@click.pass_obj
def drain_replica(invocation: Invocation, replica_id: str, deadline: int | None, reason: str | None) -> None:
    """Move every stream off a server replica; the one that answers, without REPLICA_ID. The replica then ends."""
    from fleet.v1 import admin_pb2, gateway_pb2
    from fleet_server.cli.progress import Bar

    number = gateway_pb2.GoawayReason.Value(f"GOAWAY_REASON_{(reason or 'unspecified').upper()}")
    request = admin_pb2.DrainReplicaRequest(
        replica_id=replica_id, deadline_s=deadline or 0, reason=gateway_pb2.GoawayReason.ValueType(number)
    )
    latest: admin_pb2.DrainReplicaResponse | None = None
    with invocation.connect() as admin, Bar("draining streams", None) as bar:
        for latest in admin.stream(admin.stub.DrainReplica, request):
            total = latest.streams_total
            bar.show(total - latest.streams_left, total=total, note=pace(latest))
            if latest.done:
                break  # the replica ends now, and its listener with it: what the stream says next means nothing
    if latest is None or not latest.done:
        left = latest.streams_left if latest else 0
        raise Failed(f"the drain ended with {left} streams left", hint="see `fleetctl replicas list`")
    invocation.emit_message(
        latest,
        [("replica", latest.replica.replica_id), ("state", "drained"), ("streams moved", str(latest.streams_total))],
    )


def pace(progress: admin_pb2.DrainReplicaResponse) -> str:
    """How fast streams move and how long it takes; "" while nobody knows, or when it is over."""
    from fleet_server.cli.terminal import duration

    if progress.done or progress.rate_per_s <= 0:
        return ""
    return f"{progress.rate_per_s:.1f}/s, {duration(progress.estimate_s)} to go"


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
