"""`make demo` as a person runs it: its own process, its own state folder, its exit code, and nothing left behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.fakes.process import Processes, RunningProcess

ROOT = Path(__file__).resolve().parents[2]
WALK_TIMEOUT_S = 240.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def _start(processes: Processes, state: Path, **env: str) -> RunningProcess:
    return processes.start(
        [sys.executable, ROOT / "deploy" / "demo" / "demo.py"],
        "demo",
        env={"DEMO_STATE": str(state), "PYTHONIOENCODING": "utf-8", **env},
        cwd=ROOT,
    )


def _left_behind(state: Path) -> list[int]:
    """Processes that still know the state folder."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and any(str(state) in part for part in process.info["cmdline"] or ())
    ]


def test_every_step_holds(processes: Processes, tmp_path: Path) -> None:
    state = tmp_path / "demo"
    demo = _start(processes, state, DEMO_ONCE="1")
    assert demo.wait_exit(WALK_TIMEOUT_S) == 0
    printed = "\n".join(demo.lines)
    assert "Every step held" in printed
    assert "\x1b[" not in printed, "no terminal, no colours"

    issued = re.search(r"✓ (\d+) commands issued, each once", printed)
    assert issued is not None
    assert int(issued.group(1)) > 0
    assert "✓ lost: 0" in printed
    assert "✓ run twice: 0" in printed
    for reason in (
        "BAD_SIGNATURE",
        "WRONG_NODE",
        "WRONG_STREAM",
        "SEQ_CONFLICT",
        "GAP",
        "QUARANTINED",
        "INTERRUPTED",
        "INTENT_MISSING",
    ):
        assert reason in printed

    secrets = [(state / name).read_text().strip() for name in ("owner.token", "join.token", "server/secret.key")]
    logs = "".join(path.read_text() for path in (state / "logs").iterdir())
    assert not [secret for secret in secrets if secret in printed or secret in logs]
    assert not _left_behind(state)


def test_ctrl_c_ends_all_that_was_started(processes: Processes, tmp_path: Path) -> None:
    state = tmp_path / "demo"
    demo = _start(processes, state)
    demo.wait_line("three live streams", 60)
    assert _left_behind(state)
    demo.signal(signal.SIGINT)
    assert demo.wait_exit(60) == 130
    assert not _left_behind(state)


def test_a_step_that_does_not_hold_is_named_and_its_logs_are_kept(processes: Processes, tmp_path: Path) -> None:
    state = tmp_path / "demo"
    demo = _start(processes, state, DEMO_ONCE="1")
    demo.wait_line(r"^2\. Three nodes join", 60)
    (server,) = (pid for pid in _left_behind(state) if "fleet-server" in " ".join(psutil.Process(pid).cmdline()))
    os.kill(server, signal.SIGKILL)
    assert demo.wait_exit(60) == 1
    printed = "\n".join(demo.lines)
    assert re.search(r"Step [23] did not hold", printed)
    assert (state / "logs" / "server.log").stat().st_size
    assert not _left_behind(state)


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    answer = subprocess.run(
        [sys.executable, ROOT / "deploy" / "demo" / "demo.py"],
        env={**os.environ, "DEMO_STATE": str(tmp_path), "DEMO_ONCE": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 2
    assert precious.read_text() == "mine"
