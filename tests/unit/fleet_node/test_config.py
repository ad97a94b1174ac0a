"""Settings of a node: where each comes from, and what is said of one that is wrong."""

from pathlib import Path
from typing import Any

import pytest

from fleet.identity import parse_fingerprint
from fleet_node import config
from fleet_node.config import ConfigError, Problem, Settings, declared, load

MARK = "CYXB-OMLK-DPAP-6USK-DWMZ-SUZC-E5VU-VXLJ"
KEY = "98fb1442fe40324279b8b4fa19d6ac747040b779495878f6b090568431b782e8"


@pytest.fixture(autouse=True)
def no_machine_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "absent.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    path.chmod(0o600)
    return path


def from_file(file: Path, text: str, **environ: str) -> Settings:
    file.write_text(text)
    return load(file, environ=environ).settings


def complaints(file: Path, text: str, **environ: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        from_file(file, text, **environ)
    return list(caught.value.problems)


def complaint(file: Path, text: str, **environ: str) -> Problem:
    (problem,) = complaints(file, text, **environ)
    return problem


def test_without_any_source_the_defaults_hold() -> None:
    loaded = load(environ={"XDG_STATE_HOME": "/state"})
    assert loaded.settings == Settings(state_dir=Path("/state/fleet-node"))
    assert loaded.path is None
    assert set(loaded.sources.values()) == {"default"}


@pytest.mark.parametrize("environ", [{}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}])
def test_the_state_folder_is_at_home_unless_told(environ: dict[str, str]) -> None:
    assert load(environ=environ).settings.state_dir == Path.home() / ".local/state/fleet-node"


def test_the_file_sets_everything(file: Path) -> None:
    settings = from_file(
        file,
        f"""
        state_dir = "/var/lib/fleet-node"
        name = "pump-1"
        endpoints = ["gw.example:7443", "[::1]:7443"]
        authority_key = "{KEY}"
        fingerprint = "{MARK}"
        poll_interval_s = 5
        poll_timeout_s = 3600
        max_in_flight = 8
        concurrency = 4
        telemetry_interval_s = 0.5
        own_process_metrics = true
        spool_max_bytes = 2097152
        metrics_listen = ""
        probe_listen = "0.0.0.0:9470"
        probe_endpoints = ["10.1.2.3:9470"]
        log_level = "debug"
        labels = {{ rack = "b4" }}
        [routes]
        authority_required = false
        peer_endpoints = {{ nd_abc = "10.9.8.7:1" }}
        [drivers]
        enabled = ["host", "exec"]
        [drivers.exec.programs.uptime]
        path = "/usr/bin/uptime"
        """,
    )
    assert settings == Settings(
        state_dir=Path("/var/lib/fleet-node"),
        name="pump-1",
        labels={"rack": "b4"},
        endpoints=("gw.example:7443", "[::1]:7443"),
        authority_key=bytes.fromhex(KEY),
        fingerprint=parse_fingerprint(MARK),
        poll_interval_s=5.0,
        poll_timeout_s=3600.0,
        max_in_flight=8,
        concurrency=4,
        telemetry_interval_s=0.5,
        own_process_metrics=True,
        spool_max_bytes=2097152,
        metrics_listen="",
        probe_listen="0.0.0.0:9470",
        probe_endpoints=("10.1.2.3:9470",),
        routes_authority_required=False,
        routes_peer_endpoints={"nd_abc": "10.9.8.7:1"},
        log_level="debug",
        drivers_enabled=("host", "exec"),
        driver_tables={"exec": {"programs": {"uptime": {"path": "/usr/bin/uptime"}}}},
    )


TEXTS: dict[str, tuple[str, Any]] = {
    "state_dir": ("/s", Path("/s")),
    "name": ("pump-2", "pump-2"),
    "labels": ("rack=b4, row=3", {"rack": "b4", "row": "3"}),
    "endpoints": ("a:1,b:2", ("a:1", "b:2")),
    "mtls_endpoints": ("a:3,b:4", ("a:3", "b:4")),
    "authority_key": (KEY, bytes.fromhex(KEY)),
    "protected": ("exec.*,host.reboot", ("exec.*", "host.reboot")),
    "fingerprint": (MARK.lower(), parse_fingerprint(MARK)),
    "poll_interval_s": ("2.5", 2.5),
    "poll_timeout_s": ("60", 60.0),
    "max_in_flight": ("7", 7),
    "concurrency": ("3", 3),
    "telemetry_interval_s": ("1", 1.0),
    "own_process_metrics": ("yes", True),
    "spool_max_bytes": ("1048576", 1048576),
    "metrics_listen": ("[::1]:0", "[::1]:0"),
    "probe_listen": ("10.1.2.3:9470", "10.1.2.3:9470"),
    "probe_endpoints": ("a:1,b:2", ("a:1", "b:2")),
    "routes_authority_required": ("no", False),
    "routes_peer_endpoints": ("nd_abc=a:1,nd_xyz=[::1]:2", {"nd_abc": "a:1", "nd_xyz": "[::1]:2"}),
    "log_level": ("error", "error"),
    "drivers_enabled": ("host,exec", ("host", "exec")),
}


@pytest.mark.parametrize("each", list(declared()), ids=lambda each: each.name)
def test_the_environment_sets_every_setting(each: config.Declared) -> None:
    text, value = TEXTS[each.field]
    listening = {"FLEET_NODE_PROBE_LISTEN": "127.0.0.1:0"}  # without it the endpoints would be a mistake
    loaded = load(environ=listening | {each.environment: text})
    assert getattr(loaded.settings, each.field) == value
    assert loaded.sources[each.name] == f"environment variable {each.environment}"


def test_option_beats_environment_beats_file(file: Path) -> None:
    file.write_text('name = "of-file"\nlog_level = "error"\nconcurrency = 2')
    loaded = load(
        file,
        environ={"FLEET_NODE_NAME": "of-environment", "FLEET_NODE_LOG_LEVEL": "debug"},
        options={"name": "of-option", "log_level": None},
    )
    settings = loaded.settings
    assert (settings.name, settings.log_level, settings.concurrency) == ("of-option", "debug", 2)
    assert loaded.sources["name"] == "option --name"
    assert loaded.sources["concurrency"] == f"line 3 of {file}"


@pytest.mark.parametrize(
    ("text", "setting", "line", "wanted"),
    [
        ("concurrency = 0", "concurrency", 1, "a whole number from 1 to 256"),
        ("\n# concurrency\nconcurrency = true", "concurrency", 3, "a whole number"),
        ('concurrency = "4"', "concurrency", 1, "a whole number"),
        ("name = 'Pump 1'", "name", 1, "1 to 63 characters"),
        ("endpoints = [\n  'a:1',\n  'https://b',\n]", "endpoints", 1, "host:port"),
        ("endpoints = 'a:1'", "endpoints", 1, "a list"),
        ("protected = ['exec.[a-z]']", "protected", 1, "stands for any characters"),
        ("\nlabels.rack = 'b 4'", "labels", 2, "labels"),
        ("[labels]\nRack = 'b4'", "labels", 1, "labels"),
        ("authority_key = '00'", "authority_key", 1, "64 hexadecimal digits"),
        ("fingerprint = 'ABCD'", "fingerprint", 1, "8 groups of 4"),
        ("poll_timeout_s = nan", "poll_timeout_s", 1, "a number from"),
        ("own_process_metrics = 'on'", "own_process_metrics", 1, "true or false"),
        ("metrics_listen = '9465'", "metrics_listen", 1, "host:port"),
        ("probe_listen = '9470'", "probe_listen", 1, "host:port"),
        ("probe_endpoints = ['a:1', 'a:2', 'a:3', 'a:4', 'a:5']", "probe_endpoints", 1, "at most 4"),
        (f"probe_endpoints = ['{'a' * 260}:1']", "probe_endpoints", 1, "at most 4"),
        ("[routes]\nauthority_required = 'yes'", "routes.authority_required", 2, "true or false"),
        ("[routes]\npeer_endpoints = { press-1 = 'a:1' }", "routes.peer_endpoints", 2, "node ids"),
        ("[routes]\npeer_endpoints = { nd_abc = 'a' }", "routes.peer_endpoints", 2, "host:port"),
        ("log_level = 'loud'", "log_level", 1, "debug, info"),
        ("state_dir = 'relative'", "state_dir", 1, "an absolute path"),
        ("state_dir = '~nobody-of-that-name/s'", "state_dir", 1, "an absolute path"),
        ("[drivers]\n\nenabled = 'host'", "drivers.enabled", 3, "a list of names"),
    ],
)
def test_an_error_names_setting_and_line(file: Path, text: str, setting: str, line: int, wanted: str) -> None:
    error = complaint(file, text)
    assert error.setting == setting
    assert error.source == f"line {line} of {file}"
    assert wanted in error.text


def test_an_error_names_the_environment_variable(file: Path) -> None:
    error = complaint(file, "", FLEET_NODE_CONCURRENCY="many")
    assert str(error) == (
        "concurrency (environment variable FLEET_NODE_CONCURRENCY): "
        "'many' will not do; it must be a whole number from 1 to 256"
    )
    assert complaint(file, "", FLEET_NODE_LABELS="rack").setting == "labels"
    assert complaint(file, "", FLEET_NODE_POLL_INTERVAL_S="inf").setting == "poll_interval_s"


def test_everything_that_is_wrong_is_said_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    found = complaints(
        file,
        "concurrency = 0\nnmae = 'a'\nlog_level = 'loud'\nzzz = 1\n[drivers]\nenabled = 'host'\nenabeld = ['exec']",
        FLEET_NODE_POLL_INTERVAL_S="often",
        FLEET_NODE_LOGLEVEL="debug",
    )
    assert sorted((problem.setting, problem.source) for problem in found) == [
        ("FLEET_NODE_LOGLEVEL", "environment variable FLEET_NODE_LOGLEVEL"),
        ("concurrency", f"line 1 of {file}"),
        ("drivers.enabeld", f"line 7 of {file}"),
        ("drivers.enabled", f"line 6 of {file}"),
        ("log_level", f"line 3 of {file}"),
        ("nmae", f"line 2 of {file}"),
        ("poll_interval_s", "environment variable FLEET_NODE_POLL_INTERVAL_S"),
        ("state_dir", "default"),
        ("zzz", f"line 4 of {file}"),
    ]
    with pytest.raises(ConfigError) as caught:
        from_file(file, "concurrency = 0\ndrivers = 3")
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    assert [problem.setting for problem in caught.value.problems] == ["drivers", "state_dir", "concurrency"]


def test_an_error_names_the_option(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"name \(option --name\)"):
        load(file, environ={}, options={"name": "Not A Name"})


def test_an_unknown_setting_is_refused_with_a_suggestion(file: Path) -> None:
    error = complaint(file, 'name = "a"\n\nconcurency = 3')
    assert str(error) == f"concurency (line 3 of {file}): there is no such setting; did you mean concurrency?"
    assert "lists all of them" in str(complaint(file, "whatever = 1"))


def test_a_setting_of_a_driver_outside_its_table_is_refused(file: Path) -> None:
    error = complaint(file, "[drivers]\nenabeld = ['host']")
    assert (error.setting, error.source) == ("drivers.enabeld", f"line 2 of {file}")
    assert "did you mean enabled?" in str(error)
    assert complaint(file, "drivers = ['host']").setting == "drivers"


def test_an_unknown_setting_in_the_table_of_routes_is_refused(file: Path) -> None:
    error = complaint(file, "[routes]\nauthority_require = false")
    assert (error.setting, error.source) == ("routes.authority_require", f"line 2 of {file}")
    assert "did you mean authority_required?" in str(error)
    assert "write `[routes]`" in str(complaint(file, "routes = false"))


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[0:0::0]"])
def test_who_listens_everywhere_says_where_peers_reach_it(file: Path, host: str) -> None:
    error = complaint(file, f"probe_listen = '{host}:9470'")
    assert (error.setting, error.source) == ("probe_listen", f"line 1 of {file}")
    assert "set probe_endpoints, too" in str(error)
    assert from_file(file, f"probe_listen = '{host}:9470'\nprobe_endpoints = ['pump.example:9470']").probe_endpoints
    assert from_file(file, "probe_listen = 'pump.example:9470'").probe_endpoints == ()


def test_endpoints_that_nothing_listens_at_are_a_mistake(file: Path) -> None:
    error = complaint(file, "probe_endpoints = ['10.1.2.3:9470']")
    assert (error.setting, error.source) == ("probe_endpoints", f"line 1 of {file}")
    assert "set probe_listen" in str(error)
    assert complaint(file, "probe_endpoints = ['10.1.2.3:9470']\nprobe_listen = 'x'").setting == "probe_listen"


def test_a_drivers_own_complaint_can_be_placed(file: Path) -> None:
    file.write_text(
        "[drivers.exec]\nprotected = true\n"
        "[drivers.exec.programs.'a.b']\npath = '/bin/a'\n"
        "[drivers.exec.programs.a]\nargs = ['x',\n'y']\nmax_args = 1\n"
    )
    placed = load(file, environ={}).place_of
    assert placed("drivers.exec.protected") == f"line 2 of {file}"
    assert placed("drivers.exec.programs.a.b.path") == f"line 4 of {file}"
    assert placed("drivers.exec.programs.a.max_args") == f"line 8 of {file}"
    assert placed("drivers.exec.programs.a.path") == f"line 5 of {file}"  # what is missing: the table that lacks it
    assert placed("name") == str(file)
    assert load(environ={"HOME": "/h"}).place_of("name") == ""


def test_a_misspelt_variable_is_refused_and_a_foreign_one_is_not(file: Path) -> None:
    assert "FLEET_NODE_LOG_LEVEL" in str(complaint(file, "", FLEET_NODE_LOGLEVEL="debug"))
    # What Kubernetes sets beside a service named fleet-node.
    from_file(file, "", FLEET_NODE_SERVICE_HOST="10.0.0.1", FLEET_NODE_PORT_7443_TCP="tcp://10.0.0.1:7443")


def test_the_config_variable_names_the_file(file: Path) -> None:
    file.write_text('name = "a"')
    assert load(environ={"FLEET_NODE_CONFIG": str(file)}).path == file


def test_the_machines_file_is_read_when_it_is_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", file)
    assert load(environ={}).path == file


@pytest.mark.parametrize(
    ("text", "complaint_text"),
    [("name = ", "line 1"), ('name = "a"\n= 2', "line 2"), ("a = 1\na = 2", "line 2"), ("#" * 70_000, "larger than")],
)
def test_a_file_that_cannot_be_read_says_where(file: Path, text: str, complaint_text: str) -> None:
    assert complaint_text in str(complaint(file, text))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# node\nspool_max_bytes = " + "1" * 5000 + "\nname = 'a'", 2),
        ("name = 'a'\nendpoints = [\n'a:1',\n" + "[" * 5000, 4),
    ],
    ids=["digits", "brackets"],
)
def test_a_file_that_overtaxes_the_parser_says_where(file: Path, text: str, line: int) -> None:
    assert f"(at line {line})" in str(complaint(file, text))


def test_a_file_that_is_not_utf8_says_where(file: Path) -> None:
    file.write_bytes(b'name = "a"\n# \xff\n')
    with pytest.raises(ConfigError, match=r"not UTF-8 \(line 2\)"):
        load(file, environ={})


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "missing.toml", environ={})
    with pytest.raises(ConfigError, match="no plain file"):
        load(tmp_path, environ={})


def test_a_machines_file_behind_a_closed_door_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / ("n" * 300))  # for root no door is closed: a name too long
    with pytest.raises(ConfigError, match="cannot read"):
        load(environ={})


def test_a_user_without_a_home_folder_is_told_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert load(environ={"FLEET_NODE_STATE_DIR": "/s"}).settings.state_dir == Path("/s")
    with pytest.raises(ConfigError, match="give --state-dir"):
        load(environ={})


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_change_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        load(file, environ={})


def test_long_values_are_not_shown_whole(file: Path) -> None:
    assert len(str(complaint(file, f'name = "{"x" * 5000}"'))) < 400


def test_a_host_name_becomes_a_node_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.socket, "gethostname", lambda: "Pump_House.3.example.com")
    assert config.host_name() == "pump-house"
