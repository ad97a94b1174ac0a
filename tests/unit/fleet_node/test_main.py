"""`fleet-node` as a process: exit codes, sentences, signals, and what it may not import."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.errors import Reason, Refusal
from fleet.identity import load_node_keys, show_fingerprint
from fleet.standard_streams import READER_LEFT
from fleet.v1 import enrollment_pb2
from fleet_node.cli import reference
from fleet_node.cli.root import fleet_node as cli
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import load_membership, load_pending
from fleet_node.status.server import ControlServer
from tests.fakes.gateway import FakeGateway, FakeInstallation

FORBIDDEN = ("sqlalchemy", "typer", "rich", "alembic", "psycopg", "plotext", "pydantic")
MAIN = "from fleet_node.__main__ import main; main()"
SHOW_MODULES = "import atexit, sys; atexit.register(lambda: print('MODULES', *sys.modules, flush=True)); "
NO_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "  # a database is larger
HUNG_SAMPLE = (
    "import threading; from fleet_node.cli import run; from fleet_node.drivers.host import HostDriver; "
    "HostDriver.sample = lambda self: threading.Event().wait(); run.END_WITHIN_S = 1.0; "
)
# Root may write anywhere. Without this capability it may not, and a folder's mode counts for it too.
NO_OVERRIDE = (
    "import ctypes, os, sys\n"
    "for capability in (1, 2):\n"
    "    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'fleet_node', *sys.argv[1:]])"
)


class Ended:
    """How a `fleet-node` ended and what it said."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code = code
        self.out = out.decode()
        self.err = err.decode()


async def start(*args: str | Path, prelude: str = "", program: str = "") -> asyncio.subprocess.Process:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FLEET_NODE_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program or prelude + MAIN,
        *map(str, args),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ | {"FLEET_NODE_METRICS_LISTEN": "127.0.0.1:0"},
    )


async def end(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Ended:
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, out, err)


async def fleet_node(*args: str | Path, stdin: bytes = b"", prelude: str = "", program: str = "") -> Ended:
    return await end(await start(*args, prelude=prelude, program=program), stdin)


# ---- run


async def test_run_holds_a_stream_imports_nothing_heavy_and_ends_in_order(
    gateway: FakeGateway, member: StateFolder
) -> None:
    process = await start("run", "--state-dir", member.path, prelude=SHOW_MODULES)
    stream = await gateway.wait_stream()
    await stream.ping()  # it has read its welcome: before that it would leave without a word
    process.send_signal(signal.SIGTERM)
    assert (await stream.wait_control("goodbye")).goodbye.reason == "SHUTDOWN"
    ended = await end(process)
    assert ended.code == 0
    modules = ended.out[ended.out.index("MODULES") :].split()
    assert "fleet_node.app" in modules
    assert [name for name in modules if name.split(".")[0] in FORBIDDEN] == []
    assert not member.control_socket.exists()
    for line in ended.err.splitlines():
        json.loads(line)


async def test_a_second_signal_ends_at_once(gateway: FakeGateway, member: StateFolder) -> None:
    gateway.lingers = True  # the orderly end waits for the server
    process = await start("run", "--state-dir", member.path)
    stream = await gateway.wait_stream()
    await stream.ping()
    process.send_signal(signal.SIGINT)
    await stream.wait_control("goodbye")
    process.send_signal(signal.SIGTERM)
    assert (await end(process)).code == 128 + signal.SIGTERM


async def test_a_driver_that_hangs_in_a_thread_does_not_keep_the_process_up(
    gateway: FakeGateway, member: StateFolder
) -> None:
    process = await start("run", "--state-dir", member.path, prelude=HUNG_SAMPLE)
    stream = await gateway.wait_stream()
    await stream.ping()
    process.send_signal(signal.SIGTERM)
    await stream.wait_control("goodbye")
    assert (await end(process)).code == 1


async def test_a_node_that_was_killed_starts_again(gateway: FakeGateway, member: StateFolder) -> None:
    first = await start("run", "--state-dir", member.path)
    await gateway.wait_stream()
    first.kill()
    await end(first)
    second = await start("run", "--state-dir", member.path)
    await gateway.wait_stream(2)
    second.terminate()
    assert (await end(second)).code == 0


async def test_one_process_a_state_folder(gateway: FakeGateway, member: StateFolder) -> None:
    first = await start("run", "--state-dir", member.path)
    await gateway.wait_stream()
    second = await fleet_node("run", "--state-dir", member.path)
    assert second.code == 1
    assert f"in use by process {first.pid}" in second.err
    assert len(gateway.streams) == 1
    first.terminate()
    await end(first)


async def test_a_node_that_is_not_enrolled_is_told_the_command(tmp_path: Path) -> None:
    ended = await fleet_node("run", "--state-dir", tmp_path / "state")
    assert ended.code == 2
    assert "not enrolled" in ended.err
    assert "fleet-node enroll" in ended.err


async def test_a_bad_config_names_the_line(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("# node\nconcurrency = -1\n")
    config.chmod(0o600)
    ended = await fleet_node("run", "--config", config)
    assert ended.code == 2
    assert f"concurrency (line 2 of {config})" in ended.err


async def test_a_bad_setting_of_a_driver_names_the_line_and_the_node_runs_without_it(
    gateway: FakeGateway, member: StateFolder, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[drivers]\nenabled = ["host", "exec"]\n[drivers.exec.programs.up]\npath = "bin/up"\n')
    config.chmod(0o600)
    named = f"line 4 of {config}: drivers.exec.programs.up.path: is not absolute"
    doctor = await fleet_node("doctor", "--config", config, "--state-dir", member.path)
    assert named in doctor.out
    process = await start("run", "--config", config, "--state-dir", member.path)
    stream = await gateway.wait_stream(len(gateway.streams) + 1)
    assert [driver.name for driver in stream.hello.drivers] == ["host"]
    process.terminate()
    assert named in (await end(process)).err


async def test_keys_other_than_the_pinned_ones_do_not_run(member: StateFolder, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'fingerprint = "{"ABCD-" * 7}ABCD"\n')
    config.chmod(0o600)
    ended = await fleet_node("run", "--config", config, "--state-dir", member.path)
    assert ended.code == 2
    assert "fingerprint its configuration pins" in ended.err


async def test_a_missing_journal_stops_the_node_before_it_runs_anything_twice(
    gateway: FakeGateway, member: StateFolder
) -> None:
    member.journal.unlink()
    ended = await fleet_node("run", "--state-dir", member.path)
    assert ended.code == 1
    assert "the journal is missing" in ended.err
    assert gateway.streams == []


@pytest.mark.parametrize("verb", ["run", "enroll"])
async def test_a_full_disk_is_told_in_a_sentence(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, verb: str
) -> None:
    state = tmp_path / "state"
    token = installation.join_token().encode()
    ended = await fleet_node(verb, "--state-dir", state, stdin=token, prelude=NO_FILES)
    assert ended.code == 1
    assert f"the state folder {state} cannot be written: File too large" in ended.err
    assert "make room" in ended.err
    assert "Traceback" not in ended.err


async def test_a_disk_that_is_full_before_the_journal_is_made_leaves_the_enrollment_as_it_was(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    gateway.approve()
    token = installation.join_token().encode()
    ended = await fleet_node("enroll", "--state-dir", state, stdin=token, prelude=SMALL_FILES)
    assert ended.code == 1
    assert "journal" in ended.err
    assert "ake room" in ended.err
    assert "Traceback" not in ended.err
    assert not StateFolder(state).membership.exists()
    assert (await fleet_node("enroll", "--state-dir", state)).code == 0


@pytest.mark.parametrize("verb", ["run", "enroll"])
async def test_a_read_only_state_folder_is_told_in_a_sentence(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path, verb: str
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o500)
    token = installation.join_token().encode()
    program = NO_OVERRIDE if os.geteuid() == 0 else ""
    ended = await fleet_node(verb, "--state-dir", state, stdin=token, program=program)
    assert ended.code == 1
    assert f"the state folder {state} cannot be written: Permission denied" in ended.err
    assert "writable" in ended.err
    assert "Traceback" not in ended.err


# ---- enroll


async def test_enroll_shows_the_fingerprint_waits_and_says_what_is_next(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(installation.join_token(owner_pin=b"\xab" * 32) + "\n")
    state = tmp_path / "state"
    process = await start(
        "enroll", "--token-file", token, "--name", "pump-1", "--label", "rack=b4", "--state-dir", state
    )
    await gateway.watch.wait_until(lambda: gateway.polls > 0, lambda: "no poll", 20)
    gateway.approve()
    ended = await end(process)
    assert ended.code == 0
    assert show_fingerprint(load_node_keys(state).fingerprint) in ended.out
    assert "ab" * 32 in ended.out
    assert f"Next: `fleet-node run --state-dir {state}`" in ended.out, "the next step is for this node"
    assert "Waiting for an operator" in ended.err
    assert (gateway.enrollments[0].name, dict(gateway.enrollments[0].labels)) == ("pump-1", {"rack": "b4"})
    assert StateFolder(state).journal.exists()

    again = await fleet_node("enroll", "--state-dir", state)
    assert again.code == 0
    assert "enrolled already" in again.out


async def test_an_interrupted_enroll_resumes_without_the_token(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    process = await start("enroll", "--token", installation.join_token(), "--state-dir", state)
    await gateway.watch.wait_until(lambda: gateway.polls > 0, lambda: "no poll", 20)
    process.send_signal(signal.SIGINT)
    interrupted = await end(process)
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.err
    gateway.approve()
    assert (await fleet_node("enroll", "--state-dir", state)).code == 0
    assert len(gateway.enrollments) == 1


async def test_no_wait_asks_and_ends(installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path) -> None:
    state = tmp_path / "state"
    token = installation.join_token().encode()
    ended = await fleet_node("enroll", "--token-file", "-", "--no-wait", "--state-dir", state, stdin=token)
    assert ended.code == 0
    assert load_pending(StateFolder(state).enrollment) is not None
    status = await fleet_node("status", "--json", "--state-dir", state)
    assert json.loads(status.out)["enrollment"] == "pending"


async def test_what_the_server_refuses_is_exit_code_3(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.refuse["Enroll"] = Refusal(Reason.JOIN_TOKEN_EXPIRED, "the join token has expired: ask for a new one")
    token = installation.join_token().encode()
    ended = await fleet_node("enroll", "--state-dir", tmp_path / "state", stdin=token)
    assert (ended.code, ended.out) == (3, "")
    assert "ask for a new one" in ended.err


async def test_what_an_operator_rejects_is_exit_code_3(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    rejected = enrollment_pb2.GetBootstrapResponse(state=enrollment_pb2.ENROLLMENT_STATE_REJECTED, reason="who are you")
    gateway.bootstrap = lambda: rejected
    ended = await fleet_node("enroll", "--state-dir", tmp_path / "state", stdin=installation.join_token().encode())
    assert ended.code == 3
    assert "who are you" in ended.err


async def test_a_gateway_that_is_away_is_exit_code_4(installation: FakeInstallation, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("poll_timeout_s = 0.1")
    config.chmod(0o600)
    token = installation.join_token(endpoints=["127.0.0.1:1"]).encode()
    ended = await fleet_node("enroll", "--config", config, "--state-dir", tmp_path / "state", stdin=token)
    assert ended.code == 4
    assert "cannot reach 127.0.0.1:1" in ended.err or "no gateway answered in time" in ended.err


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ((), b"", "no join token in standard input"),
        ((), b"garbage", "begins with 'fjt1.'"),
        ((), b"fjt1.AAAA", "copy it again, whole"),
        (("--token-file", "/nonexistent"), b"", "cannot read /nonexistent"),
        (("--token", "a", "--token-file", "b"), b"", "not both"),
        (("--label", "rack"), b"", "KEY=VALUE"),
        (("--name", "Not A Name"), b"", "name (option --name)"),
        (("--state-dir", "~nobody-of-that-name/state"), b"", "state_dir (option --state-dir)"),
    ],
)
async def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], stdin: bytes, said: str) -> None:
    ended = await fleet_node("enroll", "--state-dir", tmp_path / "state", *arguments, stdin=stdin)
    assert ended.code == 2
    assert said in ended.err
    assert load_membership(tmp_path / "state" / "membership.json") is None


# ---- status, doctor, version, help


async def test_status_and_doctor_of_a_running_node(gateway: FakeGateway, member: StateFolder) -> None:
    process = await start("run", "--state-dir", member.path)
    await gateway.wait_stream()
    shown = json.loads((await fleet_node("status", "--json", "--state-dir", member.path)).out)
    assert (shown["enrollment"], shown["daemon"]["pid"]) == ("member", process.pid)
    assert "fak1." not in json.dumps(shown)
    text = await fleet_node("status", "--state-dir", member.path)
    assert f"process {process.pid}" in text.out
    doctor = await fleet_node("doctor", "--state-dir", member.path)
    assert doctor.code == 0
    assert "fail" not in doctor.out
    assert len(gateway.streams) == 1
    process.terminate()
    await end(process)


async def test_a_reader_that_leaves_early_is_no_trouble_with_the_disk(member: StateFolder) -> None:
    program = [sys.executable, "-m", "fleet_node", "status", "--state-dir", member.path]
    shell = await asyncio.create_subprocess_exec(
        *["bash", "-c", '"$@" | head -c 1; exit ${PIPESTATUS[0]}', "bash", *map(str, program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    ended = await end(shell)
    assert ended.err == ""
    assert ended.code in (0, READER_LEFT), "0 when all was written before the reader left"


async def test_status_without_a_state_folder_makes_none(tmp_path: Path) -> None:
    ended = await fleet_node("status", "--state-dir", tmp_path / "state")
    assert ended.code == 0
    assert "not enrolled" in ended.out
    assert not (tmp_path / "state").exists()


async def test_status_of_a_daemon_of_another_version_is_a_sentence(member: StateFolder) -> None:
    async def other() -> dict[str, object]:
        return {"pid": 7, "shape": "of another version"}

    daemon = ControlServer(member.control_socket, {"status": other})
    await daemon.start()
    ended = await fleet_node("status", "--state-dir", member.path)
    await daemon.close()
    assert ended.code == 1
    assert "restart it" in ended.err
    assert "Traceback" not in ended.err


async def test_the_doctor_of_an_ill_node_is_exit_code_1(tmp_path: Path) -> None:
    ended = await fleet_node("doctor", "--json", "--state-dir", tmp_path / "state")
    assert ended.code == 1
    said = json.loads(ended.out)
    assert said["ok"] is False
    assert said["findings"][-1]["level"] == "fail"
    config = tmp_path / "config.toml"
    config.write_text("nmae = 1")
    config.chmod(0o600)
    ended = await fleet_node("doctor", "--config", config)
    assert ended.code == 1
    assert "did you mean name?" in ended.out


@pytest.mark.parametrize("verb", ["enroll", "run", "status", "doctor", "version"])
def test_help_of_every_verb_has_an_example_and_the_exit_codes(verb: str) -> None:
    shown = CliRunner().invoke(cli, [verb, "--help"], prog_name="fleet-node")
    assert shown.exit_code == 0
    assert f"fleet-node {verb}" in shown.output[shown.output.index("Example:") :]
    assert "Exit codes:" in shown.output


def test_version_and_wrong_verbs() -> None:
    assert "protocol 1" in CliRunner().invoke(cli, ["version"]).output
    assert CliRunner().invoke(cli, ["no-such-verb"]).exit_code == 2


def test_the_reference_is_current() -> None:
    page = Path(__file__).parents[3] / reference.DEFAULT_PATH
    assert reference.is_current(page), "run `python -m fleet_node.cli.reference`"
