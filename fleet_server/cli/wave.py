"""`fleetctl drain wave`: nodes in batches, or replicas one after the other, with a budget of failures.

The wave lives here and not in the server (docs/adr/0027): Ctrl-C ends it, and it goes on where it was when it is run
again, for nodes that are drained are left out, and those that have work again stand before `--after`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from fleet_server.cli import complete, wave_rules
from fleet_server.cli.drain_replica import REASONS
from fleet_server.cli.failures import Failed
from fleet_server.cli.grammar import Duration
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Column
from fleet_server.cli.terminal import counted

if TYPE_CHECKING:
    from fleet_server.cli.wave_nodes import NodeWave
    from fleet_server.cli.wave_replicas import ReplicaWave

_NODE_DEADLINE_S = 600
_RETURN_S = 300
_BATCH_COLUMNS = [Column("BATCH", right=True), Column("NODES", right=True), Column("NAMES", flexible=True)]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What stands on the command line; times in seconds."""

    targets: Sequence[str]
    batch: str
    budget: int
    deadline: int | None
    pause: int | None
    then: str
    after: str
    return_within: int | None
    reason: str
    dry_run: bool


def _checked_batch(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    try:
        wave_rules.batch_size(value, 100)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no batch: write a number of nodes, or a share: 10, 10%") from None
    return value


@click.argument("targets", nargs=-1, shell_complete=complete.node)
@click.option("--replicas", "of_replicas", is_flag=True, help="Replicas instead of nodes; TARGETS are their ids then.")
@click.option(
    "--batch", default="10%", callback=_checked_batch, help="Nodes in a batch, or their share; 10% by default."
)
@click.option("--budget", type=click.IntRange(min=0), default=0, help="Nodes that may fail; one more stops the wave.")
@click.option("--deadline", type=Duration(), help="For each batch; 10m by default, for replicas the server's setting.")
@click.option("--pause", type=Duration(), help="Between the end of a batch and what comes after it.")
@click.option(
    "--then",
    type=click.Choice(["leave", "resume"]),
    default="leave",
    help="Whether a drained batch stays drained (default), or gets work again after the pause.",
)
@click.option("--after", default="", help="Go on behind this node or replica.")
@click.option("--return-within", type=Duration(), help="For a drained replica to be replaced; 5m by default.")
@click.option(
    "--reason", default="", help="Reason for the audit; for replicas what nodes are told, upgrade by default."
)
@click.option("--dry-run", is_flag=True, help="Show the batches, and drain nothing.")
@click.pass_obj
def drain_wave(invocation: Invocation, /, targets: tuple[str, ...], of_replicas: bool, **how: Any) -> None:
    """Drain many nodes, batch after batch by name, or replicas one after the other.

    A batch has failed nodes when they are not drained by the deadline, are lost meanwhile, or when the drain cut a
    running command short. More of them than the budget allows stop the wave, with exit code 1. Nodes that are drained
    already, offline or out of service are left out. Ctrl-C ends the wave, and says which command goes on with it.

    With --replicas the next one waits until there are as many READY as before: a rolling upgrade, where something
    starts each replica again.
    """
    asked = _Asked(targets, **how)
    if of_replicas:
        _drain_replicas(invocation, asked)
    elif not targets:
        raise click.UsageError("name the nodes: names, globs, labels, or '*' for all; or --replicas")
    else:
        _drain_nodes(invocation, asked)


def _drain_nodes(invocation: Invocation, asked: _Asked) -> None:
    from fleet_server.cli.wave_nodes import NodeWave, Plan

    if asked.return_within is not None:
        raise click.UsageError("--return-within is for --replicas")
    deadline_s = asked.deadline or _NODE_DEADLINE_S
    plan = Plan(
        targets=asked.targets,
        batch=asked.batch,
        budget=asked.budget,
        deadline_s=deadline_s,
        pause_s=asked.pause or 0,
        reason=asked.reason,
        resume=asked.then == "resume",
        after=asked.after,
        again=_again(replace(asked, deadline=deadline_s), "--batch", asked.batch),
    )
    with invocation.connect() as admin:
        wave = NodeWave(invocation, admin, plan)
        wave.prepare()
        _tell_left_out(invocation, wave)
        if asked.dry_run:
            _show_batches(invocation, wave)
            return
        try:
            wave.run()
        finally:
            _emit(invocation, wave)
    now = " and given work again" if plan.resume else ". To give them work again: `fleetctl resume node`"
    invocation.advise(f"{counted(len(wave.tally.done), 'node')} drained{now}")


def _drain_replicas(invocation: Invocation, asked: _Asked) -> None:
    from fleet_server.cli.wave_replicas import ReplicaWave

    if asked.budget or asked.then != "leave" or asked.batch != "10%":
        raise click.UsageError("replicas are drained one after the other: --batch, --budget and --then are for nodes")
    if asked.reason and asked.reason not in REASONS:
        raise click.UsageError(f"with --replicas the reason is one of {', '.join(REASONS)}")
    with invocation.connect() as admin:
        wave = ReplicaWave(
            invocation,
            admin,
            asked.targets,
            after=asked.after,
            deadline_s=asked.deadline,
            reason=asked.reason or "upgrade",
            pause_s=asked.pause or 0,
            return_s=asked.return_within or _RETURN_S,
            again=_again(asked, "--replicas"),
        )
        wave.prepare()
        if not asked.dry_run and len(wave.order) > 0:
            try:
                wave.run()
            finally:
                _emit_replicas(invocation, wave)
            return
    _emit_replicas(invocation, wave)


def _again(asked: _Asked, *kind: str) -> str:
    """The command that goes on with a wave: to the same members, and in the same way."""
    given = {
        "--deadline": asked.deadline and f"{asked.deadline}s",
        "--budget": asked.budget,
        "--pause": asked.pause and f"{asked.pause}s",
        "--then": asked.then if asked.then != "leave" else "",
        "--return-within": asked.return_within and f"{asked.return_within}s",
        "--reason": asked.reason,
    }
    options = [word for name, value in given.items() if value for word in (name, str(value))]
    return shlex.join(["fleetctl", "drain", "wave", *asked.targets, *kind, *options])


def _tell_left_out(invocation: Invocation, wave: NodeWave) -> None:
    reasons: dict[str, int] = {}
    for why in wave.left_out.values():
        reasons[why] = reasons.get(why, 0) + 1
    if reasons:
        said = ", ".join(f"{number} {why}" for why, number in sorted(reasons.items()))
        invocation.say(f"{counted(len(wave.left_out), 'node')} left out: {said}")
    if not wave.batches and not wave.left_out:
        raise Failed("no node matches", hint="see which nodes there are: `fleetctl nodes list`")


def _show_batches(invocation: Invocation, wave: NodeWave) -> None:
    if invocation.wants_json:
        invocation.emit_json({"batches": [[node.name for node in batch] for batch in wave.batches]})
        return
    invocation.emit_table(
        _BATCH_COLUMNS,
        [
            [str(number), str(len(batch)), " ".join(node.name for node in batch)]
            for number, batch in enumerate(wave.batches, 1)
        ],
    )


def _emit(invocation: Invocation, wave: NodeWave) -> None:
    tally = wave.tally
    left = sum(map(len, wave.batches)) - len(tally.done) - len(tally.failed)
    if invocation.wants_json:
        invocation.emit_json(
            {
                "drained": tally.done,
                "failed": tally.failed,
                "left": left,
                "left_out": wave.left_out,
                "stopped": left > 0,
            }
        )
        return
    invocation.emit_fields([("drained", str(len(tally.done))), ("failed", str(len(tally.failed))), ("left", str(left))])


def _emit_replicas(invocation: Invocation, wave: ReplicaWave) -> None:
    left = [name for name in wave.order if name not in wave.tally.done and name not in wave.tally.failed]
    if invocation.wants_json:
        invocation.emit_json({"drained": wave.tally.done, "failed": wave.tally.failed, "left": left})
        return
    invocation.emit_fields(
        [
            ("replaced", " ".join(wave.tally.done) or "-"),
            ("failed", " ".join(wave.tally.failed) or "-"),
            ("left", " ".join(left) or "-"),
        ]
    )
