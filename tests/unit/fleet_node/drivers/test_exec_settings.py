import json
import os
from pathlib import Path
from typing import Any

import pytest

from fleet_node.drivers.api import DriverConfigError
from fleet_node.drivers.exec import ExecDriver
from fleet_node.drivers.exec_settings import read_exec_settings
from tests.unit.fleet_node.drivers.programs import script


def program(**settings: Any) -> dict[str, Any]:
    return {"programs": {"it": {"path": "/bin/echo", **settings}}}


WRONG = [
    ({}, "drivers.exec.programs"),
    ({"programs": {}}, "drivers.exec.programs"),
    ({"programs": ["/bin/echo"]}, "drivers.exec.programs"),
    ({"programs": {"it": "/bin/echo"}}, "drivers.exec.programs.it"),
    ({"programs": {"IT; rm": {"path": "/bin/echo"}}}, "drivers.exec.programs.IT; rm"),
    ({"programs": {"it": {}}}, "drivers.exec.programs.it.path"),
    ({**program(), "protect": True}, "drivers.exec.protect"),
    ({**program(), "protected": "yes"}, "drivers.exec.protected"),
    ({**program(), "max_stdout_bytes": 10**9}, "drivers.exec.max_stdout_bytes"),
    (program(path="echo"), "drivers.exec.programs.it.path"),
    (program(path="/no/such/program"), "drivers.exec.programs.it.path"),
    (program(path="/bin"), "drivers.exec.programs.it.path"),
    (program(path="/etc/passwd"), "drivers.exec.programs.it.path"),
    (program(path="/bin/echo\0x"), "drivers.exec.programs.it.path"),
    (program(args="-p"), "drivers.exec.programs.it.args"),
    (program(args=[5]), "drivers.exec.programs.it.args"),
    (program(max_args=-1), "drivers.exec.programs.it.max_args"),
    (program(max_args=True), "drivers.exec.programs.it.max_args"),
    (program(max_arg=1), "drivers.exec.programs.it.max_arg"),
    (program(allowed_args=["a"]), "drivers.exec.programs.it.max_args"),
    (program(timeout_s=0), "drivers.exec.programs.it.timeout_s"),
    (program(timeout_s=100, max_timeout_s=10), "drivers.exec.programs.it.timeout_s"),
    (program(timeout_s=float("nan")), "drivers.exec.programs.it.timeout_s"),
    (program(cwd="tmp"), "drivers.exec.programs.it.cwd"),
    (program(cwd="/no/such/folder"), "drivers.exec.programs.it.cwd"),
    (program(env={"A=B": "x"}), "drivers.exec.programs.it.env.A=B"),
    (program(env={"A": 5}), "drivers.exec.programs.it.env.A"),
]


@pytest.mark.parametrize(("settings", "blamed"), WRONG, ids=[blamed for _, blamed in WRONG])
def test_wrong_settings_are_named(settings: dict[str, Any], blamed: str) -> None:
    with pytest.raises(DriverConfigError) as wrong:
        read_exec_settings(settings)
    assert wrong.value.setting == blamed
    assert str(wrong.value).startswith(blamed + ": ")
    assert wrong.value.remedy


def test_a_program_that_everybody_may_change_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path, "echo hi")
    Path(path).chmod(0o757)
    with pytest.raises(DriverConfigError, match="every user"):
        read_exec_settings(program(path=path))


def test_a_system_on_which_the_guard_cannot_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "waitid")
    with pytest.raises(DriverConfigError, match="run the node on Linux"):
        read_exec_settings(program())


def test_the_environment_of_a_program_is_in_no_repr() -> None:
    read = read_exec_settings(program(env={"TOKEN": "hunter2"}))
    assert read.programs["it"].env["TOKEN"] == "hunter2"
    assert "hunter2" not in repr(read)


def test_the_schema_offers_only_what_some_program_takes() -> None:
    (action,) = ExecDriver(program()).actions()
    assert set(action.arguments_schema["properties"]) == {"program", "timeout_s"}
    assert action.arguments_schema["properties"]["program"]["enum"] == ["it"]
    (action,) = ExecDriver(program(max_args=2, max_stdin_bytes=5)).actions()
    assert set(action.arguments_schema["properties"]) == {"program", "timeout_s", "args", "stdin"}


def test_nothing_of_a_program_but_its_alias_leaves_the_node() -> None:
    (action,) = ExecDriver(program(args=["--token=hunter2"], env={"TOKEN": "hunter2"})).actions()
    sent = json.dumps(action.arguments_schema)
    assert "hunter2" not in sent
    assert "/bin/echo" not in sent


@pytest.mark.parametrize("protected", [True, False])
def test_the_config_decides_whether_runs_need_an_intent(protected: bool) -> None:
    (action,) = ExecDriver({**program(), "protected": protected}).actions()
    assert action.protected is protected


def test_the_most_that_settings_allow_still_fits_the_action(tmp_path: Path) -> None:
    programs = {f"program-{number}": {"path": "/bin/echo"} for number in range(64)}
    settings = {"programs": programs, "max_stdout_bytes": 160 * 1024, "max_stderr_bytes": 64 * 1024}
    (action,) = ExecDriver(settings).actions()
    assert action.max_output_bytes <= 256 * 1024
