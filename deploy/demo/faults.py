"""Steps 9 to 11: a node killed at work, the server restarted under load, a node drained and resumed."""

import json

from deploy.demo.admin import AdminClient
from deploy.demo.installation import NODES, Installation
from deploy.demo.programs import WAIT_S
from deploy.demo.runlog import read_runs
from deploy.demo.stage import Stage
from deploy.demo.steady import Issued, SteadyStream
from fleet.node_audit import node_of
from fleet.v1 import admin_pb2

_KILLED, _DRAINED = NODES[2], NODES[1]
_LONG_MS, _SHORT_MS = 600_000, 200
_CALLS = 15
"""So many before the server is replaced, and as many once every node is back."""
_QUEUED = 5
_DRAIN_DEADLINE = "5s"


def kill_at_work(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """kill -9 while one command runs and another, accepted, waits for the same device."""
    log = here.run_log(_KILLED)
    running, waiting = (_issue_work(stage, here, latency_ms) for latency_ms in (_LONG_MS, _SHORT_MS))
    here.wait(
        lambda: read_runs(log).starts[running.hex()] and admin.state(running) == "RUNNING", "the first one to run"
    )
    here.wait(lambda: admin.state(waiting) == "ACCEPTED", "the second one to be accepted")
    stage.command("kill", "-9", str(here.nodes[_KILLED].pid))
    here.kill_node(_KILLED)
    here.wait(lambda: _KILLED not in admin.online(), "the server to notice")
    stage.check(admin.state(running) == "RUNNING", "the server says what it last heard (RUNNING) and guesses nothing")
    here.start_node(_KILLED)
    here.wait(lambda: admin.state(running) == "INTERRUPTED", "the outcome of the first")
    here.wait(lambda: admin.state(waiting) == "SUCCEEDED", "the outcome of the second")
    runs = read_runs(log)
    what = {running: "was running when the node was killed", waiting: "was journaled, and had not started"}
    known = {running: "unknown, and said to be", waiting: "known"}
    stage.table(
        ("command", "state", "outcome", "starts", "ends", "reason"),
        [
            (
                what[each],
                admin.state(each),
                known[each],
                runs.starts[each.hex()],
                runs.ends[each.hex()],
                admin.command(each).reason or "-",
            )
            for each in (running, waiting)
        ],
        right=("starts", "ends"),
        whole=("state", "reason"),
    )
    stage.check(
        (runs.starts[running.hex()], runs.ends[running.hex()]) == (1, 0),
        "INTERRUPTED: it started once and is never run again",
    )
    stage.check(
        (runs.starts[waiting.hex()], runs.ends[waiting.hex()]) == (1, 1), "SUCCEEDED: it ran once, after the restart"
    )


def restart_under_load(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """Replace the server by ControlGoaway while commands keep coming, then count."""
    seen = {node: len(process.lines) for node, process in here.nodes.items()}
    with AdminClient(here) as own:
        stream = SteadyStream(own, f"demo-{here.admin_port}")
        stream.start()
        here.wait(lambda: stream.answered(_CALLS), "commands to be under way")
        _replace_server(stage, here)
        here.wait(lambda: admin.online() == set(NODES), "every node back")
        before = stream.issued.calls
        here.wait(lambda: stream.answered(before + _CALLS), "commands to be under way again")
        issued = stream.stop()
    again = f"{issued.said_again} were said again, {issued.answered_twice} of those had been committed before"
    stage.check(not issued.failure, issued.failure or f"no call failed for good: {again}")
    for node, lines in seen.items():
        reason = _goaway(here.nodes[node].lines[lines:])
        stage.check(reason, f"{node} left on ControlGoaway, reason {reason}")
    here.wait(lambda: admin.open_commands() == 0, "every command to be final")
    _count(stage, here, admin, issued)


def drain_and_resume(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """A drained node takes nothing; what is issued meanwhile waits, and runs once it is resumed."""
    stage.command("fleetctl", "drain", "node", _DRAINED)
    here.fleetctl("drain", "node", _DRAINED)
    stage.check(admin.nodes()[_DRAINED].drain_state == "DRAINED", f"{_DRAINED} is drained, its stream still up")
    issued = admin.issue(_DRAINED, *[admin_pb2.CommandSpec(action="simulated.noop")] * _QUEUED).issued
    probe = admin.issue(NODES[0], admin_pb2.CommandSpec(action="simulated.noop")).issued[0]
    here.wait(lambda: admin.state(probe.command_id) == "SUCCEEDED", "another node to work on")
    states = {admin.state(one.command_id) for one in issued}
    starts = read_runs(here.run_log(_DRAINED)).starts
    stage.check(states == {"QUEUED"}, f"{_QUEUED} commands issued to it wait on the server: QUEUED, never signed")
    stage.check(not any(starts[one.command_id.hex()] for one in issued), "none of them ran; another node works on")
    stage.command("fleetctl", "resume", "node", _DRAINED)
    here.fleetctl("resume", "node", _DRAINED)
    here.wait(lambda: {admin.state(one.command_id) for one in issued} == {"SUCCEEDED"}, "the queue to run")
    starts = read_runs(here.run_log(_DRAINED)).starts
    stage.check(
        [starts[one.command_id.hex()] for one in issued] == [1] * _QUEUED, f"resumed: all {_QUEUED} ran, once each"
    )


def audit(stage: Stage, here: Installation, admin: AdminClient) -> None:
    """All of the above is in the audit, and the audit proves itself."""
    # A node's rows gather for some seconds before it sends them, and what follows an adoption comes last.
    here.wait(lambda: len(_of_nodes(admin.audit_writers())) > len(NODES), "the nodes to tell what they did")
    stage.command("fleetctl", "audit", "verify")
    found = here.fleetctl_refused("audit", "verify")
    stage.check(
        "NEVER_ISSUED" in found,
        "it finds what the server in the wrong hands had run: the node chained it, and nobody ever issued it",
    )
    stage.command("fleetctl", "audit", "export")
    rows = here.fleetctl_lines("audit", "export")
    writers = {row["writer"] for row in rows if "writer" in row}
    nodes = _of_nodes(writers)
    stage.check(
        len(set(nodes)) == len(NODES),
        f"{len(rows)} rows and checkpoints in {len(writers)} hash chains, those of the nodes among them",
    )
    stage.check(
        len(nodes) == len(NODES) + 1, "the node that was adopted goes on in a second one, which names the first"
    )


def _of_nodes(writers: set[str]) -> list[str]:
    """Ids of nodes, as often as they have chains."""
    return [node for writer in writers if (node := node_of(writer)) is not None]


def _replace_server(stage: Stage, here: Installation) -> None:
    server = here.server
    if server is None:
        raise AssertionError("there is a server since step 1")
    drain = ["drain", "replica", "--reason", "restart", "--deadline", _DRAIN_DEADLINE, "--force"]  # it is the only one
    stage.command("fleetctl", *drain)
    here.server = None  # it is meant to end
    here.fleetctl(*drain)
    stage.check(server.wait_exit(WAIT_S) == 0, "the server sent every stream away, drained and ended with 0")
    stage.command("fleet-server", "run", "--config", here.shown(here.state / "server.toml"))
    here.start_server()


def _count(stage: Stage, here: Installation, admin: AdminClient, issued: Issued) -> None:
    runs = read_runs(*here.run_logs())
    lost = runs.lost(issued.commands)
    ran = sum(1 for command_id in issued.commands if runs.starts[command_id])
    succeeded = sum(admin.state(bytes.fromhex(command_id)) == "SUCCEEDED" for command_id in issued.commands)
    stage.table(
        ("issued", "run", "lost", "run twice", "known as SUCCEEDED", "calls", "longest gap"),
        [
            (
                len(issued.commands),
                ran,
                len(lost),
                len(runs.twice()),
                succeeded,
                issued.calls,
                f"{issued.longest_gap_s:.1f} s",
            )
        ],
        right=("issued", "run", "lost", "run twice", "known as SUCCEEDED", "calls", "longest gap"),
    )
    stage.check(
        len(set(issued.commands)) == len(issued.commands) > 0, f"{len(issued.commands)} commands issued, each once"
    )
    stage.check(not lost and ran == len(issued.commands), f"lost: {len(lost)} (the nodes' run logs hold every one)")
    stage.check(not runs.twice(), f"run twice: {len(runs.twice())} (of every command since the first step)")
    stage.check(succeeded == len(issued.commands), "the server knows the outcome of every one")


def _goaway(lines: list[str]) -> str:
    """The reason of the newest goaway in a node's log; empty when there is none."""
    reason = ""
    for line in lines:
        if '"goaway_received"' in line:
            reason = str(json.loads(line)["reason"]).removeprefix("GOAWAY_REASON_")
    return reason


def _issue_work(stage: Stage, here: Installation, latency_ms: int) -> bytes:
    """Issue work on the one device; the command's id."""
    run = ["run", _KILLED, "simulated.work", "--arg", "device=spindle", "--arg", f"latency_ms:={latency_ms}"]
    stage.command("fleetctl", *run, "--no-wait")
    (issued,) = here.fleetctl(*run, "--no-wait")["issued"]
    return bytes.fromhex(issued["command_id"])
