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

AFTER_A_LOSS = "look at its log, and whether its process stands still: end it, or it drains once it goes on"
REASONS = ("drain", "upgrade", "rebalance", "restart", "shutdown")
_ENDED = ("STOPPED", "LOST")
_LOOK_AGAIN_S = 1.0
_LOOK_TIMEOUT_S = 3.0
_SILENCE_S = 15.0
"""A server tells four times a second how a drain goes; one whose database is slow may take so long."""
_AWAY_S = 15.0
"""Another replica, behind the same address, answers sooner; a single one that is started again may take so long."""
_ENDS_WITHIN_S = 60.0
"""Of an older server, which does not say: from the end of a drain's deadline to the end of its process, and to when a
dead one is known to be."""
_USUAL_DEADLINE_S = 30


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
            f"replica {ended.replica.replica_id} was lost before it was drained: it died, or stands still, or does not"
            " reach its database. Its nodes come back by themselves",
            hint=AFTER_A_LOSS,
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
            for answer in admin.stream(admin.stub.DrainReplica, asked, silence_s=_SILENCE_S):
                if latest is None:
                    _foretell(invocation, answer, asked.deadline_s)
                latest = answer
                bar.show(latest.streams_total - latest.streams_left, total=latest.streams_total, note=pace(latest))
                if latest.done or not wait:
                    break  # a replica that is done ends now, and its listener with it
    except Unreachable as failure:
        if latest is None:
            if failure.waited_s:
                failure.hint = (
                    "it stands still, or a firewall is in between: ask another replica. Whether it heard of the drain:"
                    " `fleetctl replicas list`"
                )
            raise
        invocation.say(f"{failure.message}: looking how the drain of {latest.replica.replica_id} goes on")
        within_s = latest.ends_within_s or (asked.deadline_s or _USUAL_DEADLINE_S) + _ENDS_WITHIN_S
        return latest, _look_again(invocation, admin, latest, failure, within_s)
    except KeyboardInterrupt:
        if latest is not None:
            invocation.say("The drain goes on: `fleetctl replicas list` shows how far it is")
        raise
    if latest is None:
        raise Failed("the server told nothing about the drain", hint="see `fleetctl replicas list`")
    if latest.done:
        return latest, Ended(latest.replica, latest.replica.state != "LOST", latest.streams_total)
    if wait:
        raise _overdue(latest.replica, latest.streams_left)
    return latest, None


def _overdue(replica: admin_pb2.ReplicaView, streams_left: int) -> Failed:
    return Failed(
        f"replica {replica.replica_id} is overdue: it was asked to drain, lives, and should have ended by now, with"
        f" {counted(streams_left, 'stream')} left",
        hint="look at its log; `fleetctl replicas list` shows whether it still drains, for an earlier drain may have"
        " given it longer. Nodes of a process that is killed come back by themselves",
    )


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
    invocation: Invocation, admin: Admin, latest: admin_pb2.DrainReplicaResponse, failure: Unreachable, within_s: float
) -> Ended:
    """The replica that answered has gone, or stands still; it may be the one that drains. Ask whoever answers now, as
    long as the drain may take, and a while when nobody does."""
    from fleet_server.cli.progress import Bar

    shown = latest.replica
    looked_s = away_s = 0.0
    with Bar("draining streams", latest.streams_total) as bar:
        while looked_s < within_s and away_s < _AWAY_S:
            invocation.sleep(_LOOK_AGAIN_S)
            looked_s += _LOOK_AGAIN_S
            try:
                found = [each for each in replicas(admin, _LOOK_TIMEOUT_S) if each.replica_id == shown.replica_id]
            except Unreachable as again:
                away_s += _LOOK_AGAIN_S + again.waited_s
                bar.show(latest.streams_total - latest.streams_left, note="nobody answers")
                continue
            away_s = 0.0
            ended = _how_it_ended(shown, found, latest.streams_total)
            if ended is not None:
                return ended
            shown = found[0]
            bar.show(max(0, latest.streams_total - shown.streams), note=f"{shown.state}, asked again and again")
    if looked_s >= within_s:
        raise _overdue(shown, shown.streams)
    failure.hint = (
        f"the drain of {shown.replica_id} goes on without you, or has ended: {counted(latest.streams_left, 'stream')}"
        " were left. Ask another replica: `fleetctl replicas list`"
    )
    raise failure


def _how_it_ended(asked: admin_pb2.ReplicaView, found: Sequence[admin_pb2.ReplicaView], streams: int) -> Ended | None:
    """None while it has not."""
    if not found or found[0].started_at_ms != asked.started_at_ms:
        return Ended(found[0] if found else asked, True, streams)
    if found[0].state in _ENDED:
        return Ended(found[0], found[0].state == "STOPPED", streams)
    return None


def replicas(admin: Admin, timeout_s: float | None = None) -> Sequence[admin_pb2.ReplicaView]:
    """All replicas, as whoever answers sees them."""
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import CALL_TIMEOUT_S

    request = admin_pb2.ListReplicasRequest()
    return admin.call(admin.stub.ListReplicas, request, timeout_s=timeout_s or CALL_TIMEOUT_S).replicas


def pace(progress: admin_pb2.DrainReplicaResponse) -> str:
    """How fast streams move and how long it takes; "" while nobody knows, or when it is over."""
    if progress.done or progress.rate_per_s <= 0:
        return ""
    return f"{progress.rate_per_s:.1f}/s, {duration(progress.estimate_s)} to go"
