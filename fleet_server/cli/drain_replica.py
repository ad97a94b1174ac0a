"""`fleetctl drain replica`: move every stream off a server replica, and tell how it goes, whichever replica answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.failures import Failed, Unreachable
from fleet_server.cli.grammar import Duration
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.terminal import counted, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin

REASONS = ("drain", "upgrade", "rebalance", "restart", "shutdown")
_ENDED = ("STOPPED", "LOST")
_LOOK_AGAIN_S = 1.0
_LOOKS = 15
"""Another replica, behind the same address, answers sooner; a single one that is started again may take so long."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a replica's drain ended.

    Args:
        replica: as it was shown last.
        drained: it was, and has stopped.
        streams: that it began with.
    """

    replica: admin_pb2.ReplicaView
    drained: bool
    streams: int


def request(
    replica_id: str, deadline_s: int | None, reason: str | None, *, force: bool
) -> admin_pb2.DrainReplicaRequest:
    """What to ask for."""
    from fleet.v1 import admin_pb2, gateway_pb2

    number = gateway_pb2.GoawayReason.Value(f"GOAWAY_REASON_{(reason or 'unspecified').upper()}")
    return admin_pb2.DrainReplicaRequest(
        replica_id=replica_id,
        deadline_s=deadline_s or 0,
        reason=gateway_pb2.GoawayReason.ValueType(number),
        force=force,
    )


@click.argument("replica_id", default="", shell_complete=complete.replica)
@click.option("--deadline", type=Duration(), help="Time to move every stream; the server's setting by default.")
@click.option("--reason", type=click.Choice(REASONS), help="What nodes are told; the server chooses by default.")
@click.option("--wait/--no-wait", default=True, help="Whether to wait until it is drained; yes by default.")
@click.option("--force", is_flag=True, help="Drain it even when no other replica takes its nodes: a restart.")
@click.pass_obj
def drain_replica(
    invocation: Invocation, replica_id: str, deadline: int | None, reason: str | None, wait: bool, force: bool
) -> None:
    """Move every stream off a server replica; the one that answers, without REPLICA_ID. The replica then ends with exit
    code 0: whatever started it decides whether it comes back.

    Asking again with a nearer deadline shortens a drain. Ctrl-C ends the waiting, not the drain.
    """
    asked = request(replica_id, deadline, reason, force=force)
    with invocation.connect() as admin:
        latest, ended = follow(invocation, admin, asked, wait=wait)
    state = "draining" if ended is None else "drained" if ended.drained else "lost"
    moved = ("streams to move" if ended is None else "streams moved", str(latest.streams_total))
    invocation.emit_message(latest, [("replica", latest.replica.replica_id), ("state", state), moved])
    if ended is None:
        invocation.advise("The drain goes on: `fleetctl replicas list` shows how far it is")
    elif not ended.drained:
        raise Failed(
            f"replica {ended.replica.replica_id} was lost before it was drained: its nodes come back by themselves",
            hint="find out why it ended: its log, and `fleetctl replicas list`",
        )


def follow(
    invocation: Invocation, admin: Admin, asked: admin_pb2.DrainReplicaRequest, *, wait: bool = True
) -> tuple[admin_pb2.DrainReplicaResponse, Ended | None]:
    """Ask for a drain and follow it to its end; its end is None without `wait`.

    Raises:
        Failure: refused, not reached, or nobody is left to tell how it ended.
    """
    from fleet_server.cli.progress import Bar

    latest: admin_pb2.DrainReplicaResponse | None = None
    try:
        with Bar("draining streams", None) as bar:
            for answer in admin.stream(admin.stub.DrainReplica, asked):
                if latest is None:
                    _foretell(invocation, answer, asked.deadline_s)
                latest = answer
                bar.show(latest.streams_total - latest.streams_left, total=latest.streams_total, note=pace(latest))
                if latest.done or not wait:
                    break  # a replica that is done ends now, and its listener with it
    except Unreachable as failure:
        if latest is None:
            raise
        return latest, _look_again(invocation, admin, latest, failure)
    except KeyboardInterrupt:
        if latest is not None:
            invocation.say("The drain goes on: `fleetctl replicas list` shows how far it is")
        raise
    if latest is None:
        raise Failed("the server told nothing about the drain", hint="see `fleetctl replicas list`")
    if latest.done:
        return latest, Ended(latest.replica, latest.replica.state != "LOST", latest.streams_total)
    if wait:
        raise Failed(
            f"the drain ended with {counted(latest.streams_left, 'stream')} left", hint="see `fleetctl replicas list`"
        )
    return latest, None


def _foretell(invocation: Invocation, first: admin_pb2.DrainReplicaResponse, deadline_s: int) -> None:
    """Say once what will not go as one may think."""
    streams = counted(first.streams_left, "stream")
    if first.alone and first.streams_left:
        invocation.say(f"No other replica takes nodes: {streams} end, and come back when a server does.")
    elif deadline_s and first.needed_s > deadline_s:
        invocation.say(
            f"{streams} need about {duration(first.needed_s)} at the pace of the other replicas, more than the deadline"
            " leaves: the rest is cut off then, and comes back one after the other. To give it longer, a larger"
            " --deadline; to take more, another replica."
        )


def _look_again(
    invocation: Invocation, admin: Admin, latest: admin_pb2.DrainReplicaResponse, failure: Unreachable
) -> Ended:
    """The replica that answered has gone; it may be the one that drains. Ask whoever answers now."""
    shown = latest.replica
    for _ in range(_LOOKS):
        invocation.sleep(_LOOK_AGAIN_S)
        try:
            found = [each for each in replicas(admin) if each.replica_id == shown.replica_id]
        except Unreachable:
            continue
        if not found or found[0].started_at_ms != shown.started_at_ms:
            return Ended(found[0] if found else shown, True, latest.streams_total)
        if found[0].state in _ENDED:
            return Ended(found[0], found[0].state == "STOPPED", latest.streams_total)
    failure.hint = (
        f"the drain of {shown.replica_id} goes on without you, or has ended: {counted(latest.streams_left, 'stream')}"
        " were left. Ask another replica: `fleetctl replicas list`"
    )
    raise failure


def replicas(admin: Admin) -> Sequence[admin_pb2.ReplicaView]:
    """All replicas, as whoever answers sees them."""
    from fleet.v1 import admin_pb2

    return admin.call(admin.stub.ListReplicas, admin_pb2.ListReplicasRequest()).replicas


def pace(progress: admin_pb2.DrainReplicaResponse) -> str:
    """How fast streams move and how long it takes; "" while nobody knows, or when it is over."""
    if progress.done or progress.rate_per_s <= 0:
        return ""
    return f"{progress.rate_per_s:.1f}/s, {duration(progress.estimate_s)} to go"
