"""fleetctl as a process of its own, on a real terminal: Ctrl-C, broken pipes, progress."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys

from fleet.standard_streams import READER_LEFT
from fleet.v1 import admin_pb2, command_pb2
from tests.fakes.tls import FakeAuthority
from tests.unit.fleet_server.cli.conftest import TOKEN, Fleetctl
from tests.unit.fleet_server.cli.made import changed, command, issued, node

PROGRAM = [sys.executable, "-m", "fleet_server.cli"]
LIMIT_S = 60


def environment(ctl: Fleetctl) -> dict[str, str]:
    return {**os.environ, **ctl.environment, "TERM": "xterm-256color", "COLUMNS": "100"}


def test_ctrl_c_ends_a_watch_with_130_and_no_traceback(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchNodes"] = [admin_pb2.WatchNodesResponse(nodes=[node(1)]), ctl.fake.HOLD]
    with subprocess.Popen(
        [*PROGRAM, "nodes", "watch"],
        env=environment(ctl),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "NAME" in process.stdout.readline()
        assert "press-1" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert stderr.strip() == ""
    assert ctl.fake.left.wait(LIMIT_S), "the server sees the watcher leave"


def test_ctrl_c_ends_the_waiting_and_not_the_commands(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(1)
    ctl.fake.answers["WatchCommands"] = [changed(command(1, command_pb2.COMMAND_STATE_RUNNING)), ctl.fake.HOLD]
    with subprocess.Popen(
        [*PROGRAM, "run", "*", "host.info"],
        env=environment(ctl),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert ctl.fake.held.wait(LIMIT_S)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, stderr
    assert "The commands go on: `fleetctl commands watch is_1`" in stderr
    assert "Traceback" not in stderr


def test_whatever_ctrl_c_comes_out_as_it_is_a_ctrl_c(ctl: Fleetctl) -> None:
    """An interrupt in the middle of a lock of gRPC's was seen to come out as another exception."""
    program = (
        "import os, signal, sys\n"
        "from fleet_server.cli import __main__ as entry\n"
        "def broken(prog_name):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt:\n"
        "        raise RuntimeError('cannot release un-acquired lock')\n"
        "entry.fleetctl = broken\n"
        "entry.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(ctl),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_a_reader_that_leaves_early_gets_no_traceback(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[node(i) for i in range(3000)])
    with subprocess.Popen(
        [*PROGRAM, "nodes", "list"], env=environment(ctl), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        stderr = process.stderr.read().decode()
        process.wait(LIMIT_S)
    assert stderr == ""
    assert process.returncode == READER_LEFT, "1 would mean that an outcome failed"


def test_a_full_disk_is_told_in_a_sentence(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[node(1)])
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "nodes", "list"], env=environment(ctl), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[0] == "error: cannot write the output: No space left on device"


def test_without_standard_output_nothing_is_done(ctl: Fleetctl) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "join-token", "create"],
        env=environment(ctl),
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 1
    assert b"standard output is closed" in done.stderr
    assert ctl.fake.calls == [], "a secret that is shown once would be lost"


def test_a_terminal_that_knows_no_such_character_gets_another(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=[node(1), node(2, name="größe", online=False)])
    done = subprocess.run(
        [*PROGRAM, "nodes", "list"],
        env={**environment(ctl), "PYTHONIOENCODING": "iso-8859-7"},
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode("iso-8859-7").splitlines()
    assert lines[1].startswith("*  press-1")
    assert lines[2].startswith("o  gr??e")


def test_at_a_terminal_a_watch_redraws_one_table(ctl: Fleetctl) -> None:
    ctl.fake.answers["WatchNodes"] = [
        admin_pb2.WatchNodesResponse(nodes=[node(1), node(2)]),
        admin_pb2.WatchNodesResponse(nodes=[node(2, state="SUSPENDED", online=False)]),
        ctl.fake.HOLD,
    ]
    process, screen = at_terminal(ctl, "nodes", "watch")
    shown = _read_until(screen, "SUSPENDED")
    process.send_signal(signal.SIGINT)
    shown += _read_all(screen)
    assert process.wait(LIMIT_S) == 130, shown
    assert "2 nodes. Ctrl-C ends." in shown
    assert "\x1b[1A" in shown, "the cursor goes back up: the table stays in its place"
    assert "Traceback" not in shown


def test_ctrl_c_ends_the_waiting_for_a_drain_and_takes_the_bar_away(ctl: Fleetctl) -> None:
    away = node(1, drain_state="DRAINING", online=False, open_commands=2)
    ctl.fake.answers["DrainNodes"] = [admin_pb2.DrainNodesResponse(nodes=[away], nodes_left=1), ctl.fake.HOLD]
    process, screen = at_terminal(ctl, "drain", "node", "press-1")
    shown = _read_until(screen, "1 node offline")
    process.send_signal(signal.SIGINT)
    shown = _read_all(screen)
    assert process.wait(LIMIT_S) == 130
    assert "The drain goes on: `fleetctl nodes list press-1`." in shown
    assert "\x1b[1A\x1b[2K" in shown, "the bar is taken away"


def test_on_a_terminal_there_is_progress_colour_and_clean_data(ctl: Fleetctl) -> None:
    ctl.fake.answers["IssueCommands"] = issued(2)
    ctl.fake.answers["WatchCommands"] = [changed(command(1)), changed(command(2))]
    screen, terminal = pty.openpty()
    process = subprocess.run(
        [*PROGRAM, "run", "*", "host.info"],
        env=environment(ctl),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
        timeout=LIMIT_S,
        check=True,
    )
    os.close(terminal)
    shown = _read_all(screen)
    assert "host.info" in shown
    assert "2/2" in shown
    assert "All 2 succeeded." in shown
    assert process.stdout.decode().startswith("NODE     SEQ  STATE")
    assert b"\x1b" not in process.stdout, "the table is piped: no colours, no progress in it"


def test_a_wrong_ca_is_told_in_our_words_alone(ctl: Fleetctl) -> None:
    ctl.log_in(ca_pem=FakeAuthority("another").cert_pem.decode())
    done = subprocess.run([*PROGRAM, "whoami"], env=environment(ctl), capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()] == ["error", "next"]


def at_terminal(ctl: Fleetctl, *args: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start fleetctl with a terminal of its own; the descriptor is the person's side of it."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *args],
        env=environment(ctl),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    return process, screen


def test_a_person_logs_in_and_the_token_is_not_echoed(ctl: Fleetctl) -> None:
    ctl.profile.path.unlink()
    process, screen = at_terminal(ctl, "login", ctl.server)
    shown = _read_until(screen, "[y/N]: ")
    os.write(screen, b"y\n")
    shown += _read_until(screen, "Token: ")
    os.write(screen, TOKEN.encode() + b"\n")
    shown += _read_all(screen)
    assert process.wait(LIMIT_S) == 0, shown
    assert "SHA-256" in shown
    assert "Logged in to plant" in shown
    assert TOKEN not in shown
    assert ctl.profile.load().contexts["default"].token == TOKEN


def test_ctrl_c_at_a_question_ends_with_130(ctl: Fleetctl) -> None:
    process, screen = at_terminal(ctl, "operators", "revoke", "ada")
    _read_until(screen, "[y/N]: ")
    while process.poll() is None:
        # A signal just before the terminal is read is only seen with the next one: a person presses again, too.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
    shown = _read_all(screen)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert ctl.fake.requests("RevokeOperator") == []


def _read_until(descriptor: int, mark: str) -> str:
    shown = ""
    while mark not in shown:
        shown += os.read(descriptor, 65_536).decode()
    return shown


def _read_all(descriptor: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65_536)
        except OSError:  # EIO: the other side is closed and everything was read
            break
        if not part:
            break
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts).decode()


def test_what_was_typed_before_the_question_is_no_answer(ctl: Fleetctl) -> None:
    ctl.profile.path.unlink()
    process, screen = at_terminal(ctl, "login", ctl.server)
    os.write(screen, b"y\n")  # long before fleetctl asks
    _read_until(screen, "[y/N]: ")
    os.write(screen, b"n\n")
    shown = _read_all(screen)
    assert process.wait(LIMIT_S) != 0
    assert "nothing was done" in shown
