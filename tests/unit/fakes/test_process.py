"""Processes that tests start are heard, stopped, killed and never left behind."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.fakes.process import Processes, RunningProcess

_READY = "print('ready 7', flush=True)"
_FOREVER = "import threading\nprint('up', flush=True)\nthreading.Event().wait()"


def _run(processes: Processes, program: str, name: str = "program") -> RunningProcess:
    return processes.start([sys.executable, "-c", program], name)


def test_waits_for_a_line_and_gives_its_groups(processes: Processes) -> None:
    process = _run(processes, _READY)
    assert process.wait_line(r"ready (\d+)").group(1) == "7"
    assert process.wait_exit() == 0


def test_a_process_that_ends_without_the_line_fails_at_once_with_its_output(processes: Processes) -> None:
    process = _run(processes, "raise SystemExit('no such setting')")
    with pytest.raises(ChildProcessError, match="no such setting"):
        process.wait_line("ready")
    assert process.wait_exit() == 1


def test_waiting_too_long_tells_what_was_printed(processes: Processes) -> None:
    process = _run(processes, _FOREVER)
    process.wait_line("up")
    with pytest.raises(TimeoutError, match="up"):
        process.wait_line("never", timeout_s=0.05)
    with pytest.raises(TimeoutError, match="still runs"):
        process.wait_exit(timeout_s=0.05)


def test_kill_returns_when_it_is_gone(processes: Processes) -> None:
    process = _run(processes, _FOREVER)
    process.wait_line("up")
    process.kill()
    assert process.exit_code == -9
    assert not psutil.pid_exists(process.pid)


def test_terminate_freeze_and_thaw(processes: Processes) -> None:
    process = _run(processes, _FOREVER)
    process.wait_line("up")
    process.freeze()
    status = psutil.Process(process.pid).status
    processes.wait_until(lambda: status() == psutil.STATUS_STOPPED, "frozen")
    process.terminate()  # stays pending while frozen
    process.thaw()
    assert process.wait_exit() == -15


def test_end_all_takes_grandchildren_along(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    spawn = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {_FOREVER!r}])"
    process = _run(processes, f"{spawn}\n{_FOREVER}")
    process.wait_line("up")
    (child,) = psutil.Process(process.pid).children()
    processes.end_all()
    child.wait(10)  # raises when it lives on


def test_output_goes_to_a_log_file_and_to_the_tails(processes: Processes) -> None:
    process = _run(processes, "print('one')\nprint('two')", name="writer")
    process.wait_exit()
    assert process.log_path.read_text() == "one\ntwo\n"
    assert "writer" in processes.tails()
    assert processes.tails(1).endswith("two")


def test_wait_until_names_the_condition_that_stayed_false(processes: Processes) -> None:
    with pytest.raises(TimeoutError, match="three nodes up"):
        processes.wait_until(lambda: False, "three nodes up", timeout_s=0.01)


_SHOWING = """
import os, sys
print(os.getpid(), os.getppid() == os.getsid(0), os.getcwd(), os.environ.get("SHOWN"), *sys.argv[1:], file=sys.stderr)
print(sorted(os.listdir("/proc/self/fd"))[:-1], "fleet_server.app" in sys.modules, sys.stdin.read())
raise SystemExit(sys.argv[1])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that tells where it is, and ends with its first argument."""
    (tmp_path / "showing.py").write_text(_SHOWING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return "showing"


def test_a_forked_program_is_as_one_that_was_started(processes: Processes, module: str, tmp_path: Path) -> None:
    process = processes.fork(module, "seven", "8", name="forked", env={"SHOWN": "here"})
    assert process.wait_exit() == 1
    assert process.lines == [
        f"{process.pid} False {tmp_path} here seven 8",
        "['0', '1', '2'] True ",
        "seven",
    ]


def test_a_forked_program_is_stopped_killed_and_ended_as_any(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "forever.py").write_text(_FOREVER)
    first, second = (processes.fork("forever", name=name, env={"PYTHONPATH": str(tmp_path)}) for name in ("a", "b"))
    for each in (first, second):
        each.wait_line("up")
        assert each.exit_code is None
        assert os.getsid(each.pid) == each.pid
    with pytest.raises(TimeoutError, match="still runs"):
        first.wait_exit(timeout_s=0.05)
    first.kill()
    assert first.exit_code == -9
    assert not psutil.pid_exists(first.pid)
    second.terminate()
    assert second.wait_exit() == -15


def test_a_forked_program_that_fails_shows_why(processes: Processes) -> None:
    process = processes.fork("no_such_module", name="forked")
    assert process.wait_exit() == 1
    assert "No module named no_such_module" in process.tail()


_LEAVING = """
import atexit, os, threading
atexit.register(os._exit, 7)
atexit.register(print, "called", flush=True)
go = threading.Event()
threading.Thread(target=lambda: (go.wait(), print("waited for", flush=True))).start()
threading.Timer(0.1, go.set).start()
"""


def test_a_forked_program_ends_after_its_threads_and_with_what_it_does_at_its_end(
    processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "leaving.py").write_text(_LEAVING)
    process = processes.fork("leaving", name="forked", env={"PYTHONPATH": str(tmp_path)})
    assert process.wait_exit() == 7
    assert process.lines == ["waited for", "called"]
