"""The walk: every step in order, what happens when one does not hold, and the end.

The exit code is 0 only if every step held. With DEMO_ONCE set it ends by itself; else it stays up until Ctrl-C, which
ends everything that was started, by its process id. DEMO_STATE names another state folder than .demo.
"""

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from deploy.demo import attacks, faults, joining, people, working
from deploy.demo.admin import AdminClient
from deploy.demo.installation import Installation
from deploy.demo.stage import Stage

INTERRUPTED = 130


class _CannotStart(Exception):
    """The state folder cannot be had; the text says what to do."""


def run(root: Path) -> int:
    """Walk the demo.

    Args:
        root: the repository.

    Returns:
        0 when every step held, 1 when one did not, 2 when the state folder cannot be had, 130 when it was interrupted.
    """
    for name in [name for name in os.environ if name.startswith(("FLEET_", "FLEETCTL_", "FLEET_NODE_"))]:
        del os.environ[name]  # the demo is its own installation, whatever this shell works with
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # ignored when a shell started this in its background
    stage = Stage()
    state = Path(os.environ.get("DEMO_STATE", root / ".demo")).absolute()
    with ExitStack() as cleanup:
        try:
            cleanup.enter_context(_fresh(state))
        except _CannotStart as error:
            stage.say(str(error))
            return 2
        here = Installation(root, state, stage.waiting)
        cleanup.callback(here.end)
        return _walk(stage, here)


def _walk(stage: Stage, here: Installation) -> int:
    try:
        stage.banner(
            "fleet gateway",
            "A server, three nodes and an operator, all real processes on this machine.\n"
            f"State under {here.shown(here.state)}, made anew. Every mark below is something that was checked.",
        )
        _steps(stage, here)
        stage.summary()
        if os.environ.get("DEMO_ONCE"):
            return 0
        _stay(stage, here)
    except KeyboardInterrupt:
        stage.interrupted("interrupted: ending everything that was started")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  whatever it was, the person is told the step, and gets the logs
        stage.failure(f"{type(error).__name__}: {error}", here.tails(), here.shown(here.logs))
        return 1
    return 0


def _steps(stage: Stage, here: Installation) -> None:
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
        with stage.step("The audit", "One hash chain for each writer, under checkpoints that the authority signs."):
            faults.audit(stage, here)


def _stay(stage: Stage, here: Installation) -> None:
    profile = here.shown(here.profile)
    lines = [
        "nodes watch",
        "run 'press-*' host.info",
        "run line=2 host.processes",
        "commands list --limit 10",
        "telemetry history oven-1 --series host.cpu.percent",
        "drain node press-2",
        "resume node press-2",
        "audit tail --follow",
    ]
    stage.next_lines(
        f"Everything stays up: the server at {here.admin}, three nodes. In another terminal, try:",
        [
            "alias fleetctl=.venv/bin/fleetctl",
            f"export FLEETCTL_PROFILE={profile}",
            *(f"fleetctl {line}" for line in lines),
        ],
        "Ctrl-C ends all of it.",
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        stage.interrupted("ending everything that was started")


@contextmanager
def _fresh(state: Path) -> Iterator[None]:
    """Hold the state folder, empty and 0700, for this demo alone.

    Raises:
        _CannotStart: another demo lives in it, or it holds something that no demo made.
    """
    lock = state / "demo.lock"
    if state.exists() and not lock.exists() and any(state.iterdir()):
        raise _CannotStart(f"{state} holds something that no demo made: name another folder in DEMO_STATE")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for entry in state.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != lock:
                entry.unlink()
        yield
    except BlockingIOError:
        raise _CannotStart(f"another demo runs in {state}: end it with Ctrl-C in its terminal first") from None
    finally:
        os.close(descriptor)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
