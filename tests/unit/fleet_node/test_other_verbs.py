"""`fleet-node status`, `doctor`, `version` and every help page."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.standard_streams import READER_LEFT
from fleet_node.cli import reference
from fleet_node.cli.root import fleet_node as cli
from fleet_node.enrollment.folder import StateFolder
from fleet_node.status.server import ControlServer
from tests.fakes.gateway import FakeGateway
from tests.unit.fleet_node.program import (
    end,
    fleet_node,
    start,
)


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
    config.write_text("nmae = 1\nconcurrency = 0\n")
    config.chmod(0o600)
    ended = await fleet_node("doctor", "--config", config)
    assert ended.code == 1
    assert "did you mean name?" in ended.out
    ended = await fleet_node("doctor", "--json", "--config", config)
    places = [finding["detail"].partition(":")[0] for finding in json.loads(ended.out)["findings"]]
    assert places == [f"concurrency (line 2 of {config})", f"nmae (line 1 of {config})"]
    first, second = (await fleet_node("status", "--config", config)).err.splitlines()
    assert first.startswith("error: concurrency (")
    assert second.startswith("       nmae (")


async def test_the_doctor_tells_a_driver_that_is_left_out_once(member: StateFolder, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('drivers.enabled = ["host", "exec"]\ndrivers.exec.programs.date.pth = "/bin/date"\n')
    config.chmod(0o600)
    ended = await fleet_node("doctor", "--config", config, "--state-dir", member.path)
    assert "exec (BAD_SETTINGS): line 2" in ended.out
    assert ended.err == "", "a log line that says the same"


@pytest.mark.parametrize("verb", ["enroll", "run", "status", "rotate-keys", "doctor", "version"])
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
