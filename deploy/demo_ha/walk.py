"""The walk: a cluster, its nodes, a rolling upgrade under load, a replica killed, and the count.

What has to hold stands in checks.py, and how it ends in deploy/demo/life_cycle.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.demo.admin import AdminClient
from deploy.demo.life_cycle import live, stay
from deploy.demo.programs import WAIT_S
from deploy.demo.stage import Stage
from deploy.demo_ha import checks
from deploy.demo_ha.cluster import NODES, REPLICAS, Cluster
from deploy.demo_ha.view import View
from deploy.demo_ha.witness import Load, Standing

_CALM_S = 4.0
_BALANCED_EVERY_S = 0.5


def run(root: Path) -> int:
    """Walk the demo of a repository; its exit code."""
    return live(root / ".demo-ha", lambda state, _: Cluster(root, state), _walk)


def _walk(stage: Stage, here: Cluster) -> None:
    stage.banner(
        "fleet gateway: no gap",
        "Two replicas on one PostgreSQL behind HAProxy, eight nodes, 200 commands a second, all real processes here.\n"
        f"State under {here.shown(here.state)}, made anew. Every mark below is something that was checked.",
    )
    with stage.step("A cluster", "PostgreSQL, two replicas, and a balancer that passes TLS through."):
        _cluster(stage, here)
    with AdminClient(here) as looking, AdminClient(here) as issuing:
        load = Load(issuing, [here.run_log(node) for node in NODES], f"demo-ha-{os.getpid()}")
        view = View(load, REPLICAS, NODES)
        standing = view.standing = Standing(looking, view.tell)
        here.tell_with(view.tell)
        standing.start()
        try:
            with stage.step("Eight nodes", "They know the balancer's address alone, and spread over both replicas."):
                _nodes(stage, here, standing)
            with stage.step("Load", "A command for every node, 25 times a second, through the balancer."):
                _load(stage, here, load, view)
            with stage.step("A rolling upgrade", "One replica after the other drains, ends, and comes back."):
                _upgrade(stage, here, load, standing, view)
            with stage.step("A replica killed", "kill -9: nobody says goodbye, and nodes come back by themselves."):
                _killed(stage, here, load, standing, view)
            with stage.step("The count", "What was issued against what the nodes' own run logs hold."):
                _count(stage, here, load, looking)
            _stay(stage, here)
        finally:
            load.stop()
            load.end()
            standing.end()


def _cluster(stage: Stage, here: Cluster) -> None:
    stage.say(f"PostgreSQL {here.start_postgres()}, every commit waits for the disk")
    stage.command("fleet-server", *here.init_arguments())
    here.init_server()
    for name in REPLICAS:
        stage.command("fleet-server", "run", "--config", here.server_config(name))
        here.start_replica(name)
    stage.command("haproxy", "-f", "deploy/haproxy/haproxy.cfg")
    here.start_balancer()
    here.wait(lambda: set(here.balanced().values()) == {"UP"}, "the balancer to see both")
    login = ["login", here.admin, "--ca-file", here.shown(here.ca_file)]
    login += ["--token-file", here.shown(here.owner_token_file)]
    stage.command("fleetctl", *login)
    here.fleetctl(*login)
    states = {replica["replica_id"]: replica["state"] for replica in here.fleetctl("replicas", "list")}
    stage.check(states == dict.fromkeys(REPLICAS, "READY"), "both replicas are READY, and the balancer says UP of both")


def _nodes(stage: Stage, here: Cluster, standing: Standing) -> None:
    token = here.state / "join.token"
    create = ["join-token", "create", "--uses", str(len(NODES)), "--auto-approve", "--output-file", here.shown(token)]
    stage.command("fleetctl", *create)
    here.fleetctl(*create)
    here.join(token)
    here.wait(lambda: len(standing.online()) == len(NODES), "a stream of every node")
    held = {name: sum(at == name for at in standing.online().values()) for name in REPLICAS}
    stage.check(
        min(held.values()) > 0, f"{len(NODES)} streams: " + ", ".join(f"{n} holds {c}" for n, c in held.items())
    )


def _load(stage: Stage, here: Cluster, load: Load, view: View) -> None:
    load.start()
    with _watched(here, view):
        here.wait(lambda: load.counts.run >= len(NODES) or load.counts.failure, "the first commands to run")
        time.sleep(_CALM_S)
    stage.check(not load.counts.failure, load.counts.failure or f"{load.counts.run} commands ran so far")


def _upgrade(stage: Stage, here: Cluster, load: Load, standing: Standing, view: View) -> None:
    before = {name: process.pid for name, process in here.replicas.items()}
    lines = {node: len(process.lines) for node, process in here.nodes.items()}
    here.keep_replicas()
    wave = ["drain", "wave", "--replicas", "--reason", "upgrade"]
    stage.command("fleetctl", *wave)
    load.counts.longest_gap_s = load.counts.slowest_s = 0.0
    with _watched(here, view):
        here.fleetctl(*wave)
        here.wait(lambda: _back(here, before), "every replica to be a new process, and READY")
        time.sleep(_CALM_S)
    _hold(
        stage,
        checks.of_upgrade(
            exit_codes=[each.exit_code for each in here.processes.started if each.pid in before.values()],
            replaced=_back(here, before),
            log_lines=_since(here, lines),
            online=len(standing.online()),
            nodes=len(NODES),
            failure=load.counts.failure,
        ),
    )
    stage.say(
        f"longest time that a node was given nothing: {load.counts.longest_gap_s:.2f} s; slowest call of an operator:"
        f" {load.counts.slowest_s:.2f} s"
    )


def _killed(stage: Stage, here: Cluster, load: Load, standing: Standing, view: View) -> None:
    held = Counter(standing.online().values())
    victim = max(REPLICAS, key=lambda name: held[name])
    before = {victim: here.replicas[victim].pid}
    lines = {node: len(process.lines) for node, process in here.nodes.items()}
    stage.command("kill", "-9", str(before[victim]))
    with _watched(here, view):
        view.tell(f"kill -9 of {victim}, which holds {held[victim]} streams")
        here.kill_replica(victim)
        here.wait(lambda: _back(here, before), f"{victim} to come back")
        here.wait(lambda: len(standing.online()) == len(NODES), "every node back")
        time.sleep(_CALM_S)
    _hold(
        stage,
        checks.of_kill(
            victim=victim,
            held=held[victim],
            log_lines=_since(here, lines),
            online=len(standing.online()),
            nodes=len(NODES),
            failure=load.counts.failure,
        ),
    )


def _count(stage: Stage, here: Cluster, load: Load, admin: AdminClient) -> None:
    load.stop()
    here.wait(lambda: not load.lost(), "every command to run")
    here.wait(lambda: admin.open_commands() == 0, "every outcome to be known")
    load.end()
    counts, ids = load.counts, load.command_ids
    numbers = ("issued", "run", "lost", "run twice", "calls said again")
    stage.table(numbers, [(counts.issued, counts.run, len(load.lost()), counts.twice, counts.again)], right=numbers)
    _hold(stage, checks.of_count(issued=counts.issued, command_ids=ids, starts=load.starts))
    stage.command("fleetctl", "audit", "verify")
    found = here.fleetctl("audit", "verify")
    stage.check(found["verified"], "the audit of both replicas and of every node verifies")


def _stay(stage: Stage, here: Cluster) -> None:
    stay(
        stage,
        f"Everything stays up behind {here.admin}. In another terminal, try:",
        [
            "alias fleetctl=.venv/bin/fleetctl",
            f"export FLEETCTL_PROFILE={here.shown(here.profile)}",
            "fleetctl replicas list",
            f"fleetctl drain replica {REPLICAS[1]} --reason restart",
            "fleetctl drain wave 'pump-*' --batch 2 --then resume",
        ],
    )


def _hold(stage: Stage, found: Sequence[checks.Check]) -> None:
    for held, text in found:
        stage.check(held, text)


def _since(here: Cluster, before: dict[str, int]) -> list[str]:
    """What nodes logged since they had logged so many lines."""
    return [line for node, process in here.nodes.items() for line in process.lines[before[node] :]]


@contextmanager
def _watched(here: Cluster, view: View) -> Iterator[None]:
    """The live view, for the length of the block."""
    ending = threading.Event()

    def ask() -> None:
        while not ending.wait(_BALANCED_EVERY_S):
            view.balanced(here.balanced())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        with view.shown():
            yield
    finally:
        ending.set()
        asking.join(WAIT_S)


def _back(here: Cluster, before: dict[str, int]) -> bool:
    return all(here.replicas[name].pid != pid for name, pid in before.items())
