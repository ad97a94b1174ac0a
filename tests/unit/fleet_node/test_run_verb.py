"""`fleet-node run` as a process: exit codes, sentences, signals, and what it may not import."""

import json
import os
import signal
from pathlib import Path

import pytest

from fleet_node.enrollment.folder import StateFolder
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.unit.fleet_node.program import (
    FORBIDDEN,
    HUNG_SAMPLE,
    NO_FILES,
    NO_OVERRIDE,
    SHOW_MODULES,
    SMALL_FILES,
    end,
    fleet_node,
    start,
)


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
