"""Programs are real; nothing that an action starts outlives it, whatever the program, the guard or the node does."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fleet_node.drivers.api import OutcomeState
from fleet_node.drivers.json_text import encode_output
from tests.unit.fleet_node.drivers.programs import Watched, driver, invocation, run, script, wait_line


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def test_reports_exit_code_and_both_outputs(tmp_path: Path) -> None:
    outcome = await run(driver(script(tmp_path, "echo out; echo err >&2; exit 3")))
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "EXIT_STATUS")
    assert outcome.output == {
        "program": "it",
        "exit_code": 3,
        "signal": None,
        "stdout": "out\n",
        "stderr": "err\n",
        "stdout_bytes": 4,
        "stderr_bytes": 4,
        "stdout_truncated": False,
        "stderr_truncated": False,
    }


async def test_reports_the_signal_that_ended_a_program(tmp_path: Path) -> None:
    outcome = await run(driver(script(tmp_path, "kill -SEGV $$")))
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "SIGNAL")
    assert (outcome.output["exit_code"], outcome.output["signal"]) == (None, "SIGSEGV")


async def test_no_shell_sees_the_arguments(tmp_path: Path) -> None:
    made = driver("/bin/echo", args=["first"], max_args=3)
    planted = tmp_path / "planted"
    outcome = await run(made, args=[f"$(touch {planted})", f"; touch {planted}", "a  b\n*"])
    assert outcome.output["stdout"] == f"first $(touch {planted}) ; touch {planted} a  b\n*\n"
    assert not planted.exists()


async def test_a_program_gets_the_configured_environment_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_SECRET_ENCRYPTION_KEY", "hunter2")
    outcome = await run(driver("/usr/bin/env", env={"MODE": "fast"}))
    assert sorted(outcome.output["stdout"].splitlines()) == [
        "LANG=C.UTF-8",
        "MODE=fast",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    ]


async def test_a_program_gets_no_descriptor_of_the_node(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        outcome = await run(driver(script(tmp_path, "ls /proc/$$/fd")))
    # 10 is where the shell keeps the script it reads.
    assert set(outcome.output["stdout"].split()) <= {"0", "1", "2", "10"}


async def test_working_directory_and_standard_input(tmp_path: Path) -> None:
    made = driver(script(tmp_path, "pwd; cat"), cwd=str(tmp_path), max_stdin_bytes=100)
    outcome = await run(made, stdin="grüße")
    assert outcome.output["stdout"] == f"{tmp_path}\ngrüße"
    assert (await run(made)).output["stdout"] == f"{tmp_path}\n"


async def test_signals_have_their_usual_meaning_in_the_program(tmp_path: Path) -> None:
    """The guard ignores SIGTERM and Python ignores SIGPIPE; a program that inherited that would never end."""
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as when a shell starts a node in the background
    try:
        outcome = await run(driver(script(tmp_path, "grep -e SigIgn -e SigBlk /proc/self/status")))
    finally:
        signal.signal(signal.SIGQUIT, before)
    threading_signals = 0b11 << 31  # 32 and 33 belong to the C library; what a node inherits of them stays
    masks = [int(line.split()[1], 16) & ~threading_signals for line in outcome.output["stdout"].splitlines()]
    assert masks == [0, 0]


async def test_output_over_the_limit_is_counted_and_does_not_block_the_program(tmp_path: Path) -> None:
    made = driver(
        script(tmp_path, "head -c 3000000 /dev/zero | tr '\\0' a; head -c 1000000 /dev/zero >&2; exit 0"),
        settings={"max_stdout_bytes": 1000, "max_stderr_bytes": 600},
    )
    outcome = await run(made)
    assert outcome.state is OutcomeState.SUCCEEDED
    assert outcome.truncated
    assert outcome.output["stdout"] == "a" * 998  # and two quotes
    assert outcome.output["stderr"] == "\0" * 99  # six bytes each in JSON
    assert (outcome.output["stdout_bytes"], outcome.output["stderr_bytes"]) == (3_000_000, 1_000_000)
    (action,) = made.actions()
    assert len(encode_output(outcome.output)) <= action.max_output_bytes


async def test_bytes_that_are_not_utf_8_are_replaced(tmp_path: Path) -> None:
    outcome = await run(driver(script(tmp_path, r"printf 'a\377b'")))
    assert outcome.output["stdout"] == "a\N{REPLACEMENT CHARACTER}b"


async def test_a_program_over_its_time_is_ended_even_when_it_ignores_sigterm(tmp_path: Path) -> None:
    made = driver(script(tmp_path, "trap '' TERM; echo started; while :; do sleep 1; done"))
    outcome = await run(made, timeout_s=0.3)
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "TIMEOUT")
    assert (outcome.output["signal"], outcome.output["stdout"]) == ("SIGKILL", "started\n")


async def test_the_runs_own_limit_counts_when_it_is_shorter() -> None:
    outcome = await driver("/bin/sleep", args=["3600"]).run(invocation(limit_s=0.05))
    assert outcome.reason == "TIMEOUT"


async def test_a_stopped_program_may_tidy_up(tmp_path: Path, fifo: Path) -> None:
    text = f"trap 'echo tidied; exit 0' TERM; echo ready > {fifo}; while :; do sleep 0.01; done"
    stop = asyncio.Event()
    running = asyncio.create_task(driver(script(tmp_path, text), grace_s=20).run(invocation(stop)))
    assert await wait_line(fifo) == "ready"
    stop.set()
    outcome = await running
    assert (outcome.state, outcome.reason) == (OutcomeState.CANCELLED, "STOPPED")
    assert (outcome.output["exit_code"], outcome.output["stdout"]) == (0, "tidied\n")


async def test_nothing_starts_when_stop_came_first(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    planted = tmp_path / "planted"
    outcome = await driver(script(tmp_path, f"touch {planted}")).run(invocation(stop))
    assert outcome.state is OutcomeState.CANCELLED
    assert not planted.exists()


LEFT_BEHIND = {
    "in the background, holding the pipe": "sleep 3600 & echo $! > {fifo}",
    "deaf to SIGTERM": "(trap '' TERM; sleep 3600) & echo $! > {fifo}",
    "in a session of its own": "setsid sleep 3600 & echo $! > {fifo}",
    "two generations down, in a session of its own": (
        "(setsid sh -c 'sleep 3600 & echo $! > {fifo}; wait' & wait) & wait_for_it=$!; sleep 0.05"
    ),
}


@pytest.mark.parametrize("text", LEFT_BEHIND.values(), ids=LEFT_BEHIND.keys())
async def test_what_a_program_leaves_behind_is_ended(tmp_path: Path, fifo: Path, text: str) -> None:
    # The end of the second fifo's writer releases the program, once the one left behind is being watched.
    release = tmp_path / "release"
    os.mkfifo(release)
    body = text.format(fifo=fifo) + f"\ncat {release} > /dev/null\necho done"
    running = asyncio.create_task(run(driver(script(tmp_path, body))))
    left_behind = Watched(int(await wait_line(fifo)))
    await asyncio.to_thread(release.write_text, "go")
    outcome = await running
    assert outcome.state is OutcomeState.SUCCEEDED
    assert outcome.output["stdout"] == "done\n"
    assert left_behind.wait_gone()


async def test_cancelling_the_run_kills_the_program(tmp_path: Path, fifo: Path) -> None:
    text = f"trap '' TERM; echo $$ > {fifo}; while :; do sleep 1; done"
    running = asyncio.create_task(run(driver(script(tmp_path, text), grace_s=60)))
    program = Watched(int(await wait_line(fifo)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert program.wait_gone()


NODE = """
import asyncio, sys
from tests.unit.fleet_node.drivers.programs import driver, run
asyncio.run(run(driver(sys.argv[1], grace_s=60)))
"""


async def test_kill_9_of_the_node_ends_its_programs_and_their_guards(tmp_path: Path, fifo: Path) -> None:
    text = f"trap '' TERM HUP; setsid sleep 3600 & echo $$ $! > {fifo}; while :; do sleep 1; done"
    node = subprocess.Popen([sys.executable, "-c", NODE, script(tmp_path, text)], cwd=Path.cwd())
    program, descendant = (Watched(int(word)) for word in (await wait_line(fifo)).split())
    (guard,) = (Watched(child.pid) for child in psutil.Process(node.pid).children())
    node.kill()
    node.wait()
    assert program.wait_gone()
    assert descendant.wait_gone()
    assert guard.wait_gone()


async def test_a_guard_that_is_killed_takes_the_program_with_it(tmp_path: Path, fifo: Path) -> None:
    text = f"sleep 3600 & echo $$ $! > {fifo}; wait"
    running = asyncio.create_task(run(driver(script(tmp_path, text))))
    pid, child_pid = (int(word) for word in (await wait_line(fifo)).split())
    program, child = Watched(pid), Watched(child_pid)
    guard_pid = psutil.Process(pid).ppid()
    assert psutil.Process(guard_pid).ppid() == os.getpid()
    os.kill(guard_pid, signal.SIGKILL)
    outcome = await running
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "GUARD_LOST")
    assert program.wait_gone()
    assert child.wait_gone()


async def test_a_program_that_is_gone_since_the_start_is_told(tmp_path: Path) -> None:
    path = script(tmp_path, "echo hi")
    made = driver(path)
    os.unlink(path)
    outcome = await run(made)
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "SPAWN_FAILED")
    assert "No such file or directory" in outcome.error


async def test_a_script_without_interpreter_is_told(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fnot a program")
    path.chmod(0o755)
    assert (await run(driver(str(path)))).reason == "SPAWN_FAILED"


async def test_runs_leave_no_descriptor_and_no_process_behind(tmp_path: Path) -> None:
    made = driver(script(tmp_path, "sleep 3600 & echo hi"), max_stdin_bytes=10)
    await run(made, stdin="x")  # what is opened once and for all is open now
    before = open_files()  # by what they are: tests before this one may have left some that close meanwhile
    children = set(psutil.Process().children(recursive=True))  # what forks programs for the tests
    await asyncio.gather(*(run(made, stdin="x") for _ in range(5)))
    assert open_files() <= before
    assert set(psutil.Process().children(recursive=True)) <= children


def open_files() -> set[tuple[str, str]]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ({}, {"args": ["x"]}),
        ({"max_args": 1}, {"args": ["x", "y"]}),
        ({"max_args": 1}, {"args": ["--checkpoint-action=exec=sh"]}),
        ({"max_args": 1}, {"args": ["-"]}),
        ({"max_args": 1}, {"args": ["a\0b"]}),
        ({"max_args": 1, "max_arg_bytes": 3}, {"args": ["üü"]}),
        ({"max_args": 1, "allowed_args": ["nginx"]}, {"args": ["sshd"]}),
        ({}, {"stdin": "x"}),
        ({"max_stdin_bytes": 3}, {"stdin": "üü"}),
        ({"max_timeout_s": 5}, {"timeout_s": 6}),
    ],
)
async def test_what_the_config_does_not_allow_does_not_run(
    tmp_path: Path, program: dict[str, object], arguments: dict[str, object]
) -> None:
    planted = tmp_path / "planted"
    outcome = await run(driver(script(tmp_path, f"touch {planted}"), **program), **arguments)
    assert (outcome.state, outcome.reason) == (OutcomeState.FAILED, "NOT_ALLOWED")
    assert outcome.error
    assert not planted.exists()


@pytest.mark.parametrize("program", [{"max_args": 1, "allow_options": True}, {"max_args": 1, "allowed_args": ["-n"]}])
async def test_options_run_when_the_config_allows_them(program: dict[str, object]) -> None:
    outcome = await run(driver("/bin/echo", **program), args=["-n"])
    assert outcome.output["stdout"] == ""
