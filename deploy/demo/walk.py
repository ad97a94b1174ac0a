"""The walk: every step in order; life_cycle.py says how it ends."""

from pathlib import Path

from deploy.demo import attacks, faults, joining, paths, people, working
from deploy.demo.admin import AdminClient
from deploy.demo.installation import Installation
from deploy.demo.life_cycle import live, stay
from deploy.demo.stage import Stage
from tests.fakes.proxy_thread import FaultProxyThread


def run(root: Path) -> int:
    """Walk the demo of a repository; its exit code."""
    return live(root / ".demo", lambda state, stage: Installation(root, state, stage.waiting), _walk)


def _walk(stage: Stage, here: Installation) -> None:
    stage.banner(
        "fleet gateway",
        "A server, three nodes and an operator, all real processes on this machine.\n"
        f"State under {here.shown(here.state)}, made anew. Every mark below is something that was checked.",
    )
    with paths.link_of(here) as link:
        _steps(stage, here, link)
        _stay(stage, here)


def _steps(stage: Stage, here: Installation, link: FaultProxyThread) -> None:
    with stage.step(
        "A server", "SQLite, TLS 1.3 under a CA of its own, keys sealed at rest; the owner's token is shown once."
    ):
        joining.server(stage, here)
    with AdminClient(here) as admin:
        with stage.step(
            "Three nodes join", "A join token pins the cluster; a person compares fingerprints; keys never travel."
        ):
            joining.enrollment(stage, here)
        with stage.step("Streams", "Each node holds one outbound stream: api_key, session token and its identity key."):
            joining.streams(stage, here, admin)
        with stage.step("Telemetry", "What the nodes measure on this very machine, now."):
            working.telemetry(stage, here)
        with stage.step(
            "Signed commands", "Signed for one node, one stream and one seq; verified there before anything runs."
        ):
            working.commands(stage, here, admin)
        with stage.step(
            "People sign",
            "What a policy protects runs only with the signatures of people, which nodes verify without the server.",
        ):
            people.cosign(stage, here, admin)
        with stage.step(
            "A server in the wrong hands",
            "It has every key. What it alters, repeats, withholds, redirects, or has no person's signature for, fails.",
        ):
            attacks.wrong_hands(stage, here, admin)
        with stage.step(
            "A hand in the database",
            "Rows that confer authority carry a MAC: writing to the database commands nothing.",
        ):
            attacks.forged_row(stage, here, admin)
        with stage.step("A node killed at work", "Each command runs once, or is known to be unknown."):
            faults.kill_at_work(stage, here, admin)
        with stage.step(
            "A server restart under load", "ControlGoaway: nodes leave in order and come back; commands keep coming."
        ):
            faults.restart_under_load(stage, here, admin)
        with stage.step(
            "A node drained and resumed", "It finishes what runs and takes nothing new; its queue waits on the server."
        ):
            faults.drain_and_resume(stage, here, admin)
        with stage.step(
            "A link is cut",
            "Nodes probe the paths between them; the server keeps each route on the best that lives, and says why.",
        ):
            paths.cut_and_heal(stage, here, admin, link)
        with stage.step("The audit", "One hash chain for each writer, under checkpoints that the authority signs."):
            faults.audit(stage, here, admin)


def _stay(stage: Stage, here: Installation) -> None:
    profile = here.shown(here.profile)
    lines = [
        "nodes watch",
        "run 'press-*' host.info",
        "run line=2 host.processes",
        "commands list --limit 10",
        "telemetry history oven-1 --series host.cpu.percent",
        "routes explain press-1-to-press-2",
        "routes watch",
        "drain node press-2",
        "resume node press-2",
        "audit tail --follow",
    ]
    stay(
        stage,
        f"Everything stays up: the server at {here.admin}, three nodes. In another terminal, try:",
        [
            "alias fleetctl=.venv/bin/fleetctl",
            f"export FLEETCTL_PROFILE={profile}",
            *(f"fleetctl {line}" for line in lines),
        ],
    )
