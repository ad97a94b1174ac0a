from pathlib import Path

import pytest
from pydantic import ValidationError

from fleet.envelope import Signer
from fleet.key_file import show_public_key
from fleet_server.config import ConfigError, Settings, load
from fleet_server.config.reference import render

KEY = "A" * 43 + "="
ROOT_KEY = show_public_key(Signer.from_private_bytes(bytes(32)).public_key)
DOCS = Path(__file__).parents[3] / "docs" / "server-settings.md"


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet-server.toml"
    path.write_text(text)
    return path


def problems(file: Path | None = None, **sources: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(file, **{"environment": {}, **sources})
    return refused.value.problems


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'cluster_name = "file"\n\nsession_ttl_s = 100\nmax_streams = 7\n')
    loaded = load(
        file,
        environment={"FLEET_CLUSTER_NAME": "environment", "FLEET_SESSION_TTL_S": "200"},
        flags={"cluster_name": "flag"},
    )
    settings = loaded.settings
    assert (settings.cluster_name, settings.session_ttl_s, settings.max_streams) == ("flag", 200, 7)
    assert settings.database_readers == 4
    assert loaded.sources["cluster_name"] == "flag cluster_name"
    assert loaded.sources["session_ttl_s"] == "environment FLEET_SESSION_TTL_S"
    assert loaded.sources["max_streams"] == f"{file} line 4"
    assert loaded.sources["database_readers"] == "default"


def test_the_file_can_be_named_by_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, 'cluster_name = "named"')
    assert load(environment={"FLEET_CONFIG": str(file)}).settings.cluster_name == "named"


def test_lists_are_arrays_in_the_file_and_commas_elsewhere(tmp_path: Path) -> None:
    wanted = ("a.example:7443", "[::1]:7443")
    file = write(tmp_path, 'gateway_endpoints = ["a.example:7443",\n  "[::1]:7443"]\n')
    assert load(file, environment={}).settings.gateway_endpoints == wanted
    variables = {"FLEET_GATEWAY_ENDPOINTS": "a.example:7443, [::1]:7443"}
    assert load(environment=variables).settings.gateway_endpoints == wanted
    assert load(environment={}, flags={"gateway_endpoints": ",".join(wanted)}).settings.gateway_endpoints == wanted


def test_everything_that_is_wrong_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '# comment\nadmin_listen = "nowhere"\nsession_ttl_s = 5\n"log_level" = "loud"\n'
        'gateway_endpoints = ["ok:1", "bad"]\nsesion_ttl_s = 900\n[database]\nurl = "x"\n',
    )
    found = problems(file, environment={"FLEET_MAX_STREAMS": "many"})
    for line, name in ((2, "admin_listen"), (3, "session_ttl_s"), (4, "log_level"), (5, "gateway_endpoints (entry 2)")):
        assert any(text.startswith(f"{file} line {line}: {name}: ") for text in found), (name, found)
    assert f"{file} line 6: there is no setting 'sesion_ttl_s'; did you mean 'session_ttl_s'?" in found
    assert any(text.startswith(f"{file} line 7: there is no setting 'database'") for text in found)
    assert any(text.startswith("environment FLEET_MAX_STREAMS: max_streams: ") for text in found)
    assert len(found) == 7


def test_a_file_that_is_no_toml_names_the_line(tmp_path: Path) -> None:
    file = write(tmp_path, 'mode = "development"\ncluster_name = \n')
    assert "line 2" in problems(file)[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "absent.toml") == [
        f"{tmp_path / 'absent.toml'}: cannot be read (No such file or directory): name another with --config"
    ]


def test_an_unknown_flag_is_refused() -> None:
    assert problems(flags={"data-dir": "x"}) == [
        "flag data-dir: there is no setting 'data-dir'; did you mean 'data_dir'?"
    ]


def test_a_misspelt_variable_is_never_ignored() -> None:
    (problem,) = problems(None, environment={"FLEET_HEARTBEAT_INTERVALL_S": "3"})
    assert (
        problem
        == "environment: there is no setting 'FLEET_HEARTBEAT_INTERVALL_S'; did you mean 'heartbeat_interval_s'?"
    )


def test_other_variables_of_the_environment_are_none_of_its_business() -> None:
    assert load(environment={"FLEET_SERVER": "x", "PATH": "/", "FLEET_LOG_LEVEL": ""}).settings.log_level == "info"


def test_production_needs_key_and_endpoints() -> None:
    assert "FLEET_SECRET_ENCRYPTION_KEY" in problems(environment={"FLEET_MODE": "production"})[0]
    with_key = {"FLEET_MODE": "production", "FLEET_SECRET_ENCRYPTION_KEY": KEY}
    assert "gateway_endpoints" in problems(environment=with_key)[0]
    ready = {**with_key, "FLEET_GATEWAY_ENDPOINTS": "g:7443"}
    assert "product_root_key" in problems(environment=ready)[0]
    assert load(environment={**ready, "FLEET_STRICT": "false"}).settings.production
    strict = load(environment={**ready, "FLEET_PRODUCT_ROOT_KEY": ROOT_KEY}).settings
    assert strict.is_strict
    assert strict.root_key() == Signer.from_private_bytes(bytes(32)).public_key


def test_all_that_production_lacks_is_said_at_once() -> None:
    found = problems(
        environment={"FLEET_MODE": "production", "FLEET_SESSION_TTL_S": "60", "FLEET_HEARTBEAT_INTERVAL_S": "60"}
    )
    wanted = ["secret encryption key", "gateway_endpoints", "product_root_key", "session_ttl_s"]
    assert len(found) == len(wanted), found
    assert all(name in problem for name, problem in zip(wanted, found, strict=True))


def test_nodes_are_told_a_port_that_is_known_before() -> None:
    any_port = {"FLEET_GATEWAY_LISTEN": "127.0.0.1:0"}
    assert problems(environment=any_port)[0].startswith("gateway_listen takes any free port: set gateway_endpoints")
    assert load(environment={**any_port, "FLEET_GATEWAY_ENDPOINTS": "g:7443"}).settings.gateway_endpoints == ("g:7443",)


def test_what_may_be_left_open_is_no_path_in_the_page() -> None:
    assert "| `strict` | `FLEET_STRICT` | true or false |" in render()
    assert "| `secret_encryption_key_file` | `FLEET_SECRET_ENCRYPTION_KEY_FILE` | path |" in render()


def test_strict_mode_is_for_development_too_when_it_is_asked_for() -> None:
    assert not load(environment={}).settings.is_strict
    assert "product_root_key" in problems(environment={"FLEET_STRICT": "true"})[0]
    assert load(environment={"FLEET_STRICT": "true", "FLEET_PRODUCT_ROOT_KEY": ROOT_KEY}).settings.is_strict


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"admin_listen": "127.0.0.1:70000"}, "host:port"),
        ({"gateway_listen": "off"}, "host:port"),
        ({"mtls_listen": "off"}, "host:port"),
        ({"cluster_name": "no spaces"}, "letters"),
        ({"tls_terminator_leaf_sha256": "abc"}, "64 hexadecimal"),
        ({"tls_hosts": "extra.example, köln.example"}, "xn--"),
        ({"tls_hosts": "two words"}, "ASCII"),
        ({"max_frame_bytes": "65536"}, "greater than or equal to 1048576"),
        ({"max_telemetry_frame_bytes": "65537"}, "less than or equal to 65536"),
        ({"secret_encryption_key": KEY, "secret_encryption_key_file": "/k"}, "keep one"),
        ({"mode": "test"}, "development"),
        ({"product_root_key": "ed25519:AAAA"}, "44 characters"),
        ({"product_root_key": show_public_key(bytes(32))}, "44 characters"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: dict[str, str], words: str) -> None:
    assert words in problems(flags=flags)[0]


def test_secrets_print_nowhere() -> None:
    secret = {"FLEET_SECRET_ENCRYPTION_KEY": "hunter2", "FLEET_DATABASE_URL": "postgresql://fleet:hunter2@db/fleet"}
    loaded = load(environment=secret)
    assert "hunter2" not in repr(loaded) + str(loaded.settings) + str(loaded.shown())
    assert loaded.settings.resolved_database_url() == "postgresql://fleet:hunter2@db/fleet"
    for broken in problems(environment={**secret, "FLEET_MODE": "nonsense"}):
        assert "hunter2" not in broken


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load(environment={}).settings.cluster_name = "other"  # type: ignore[misc]


def test_what_follows_from_the_settings(tmp_path: Path) -> None:
    flags = {
        "data_dir": str(tmp_path),
        "gateway_listen": "0.0.0.0:9000",
        "tls_hosts": "extra.example",
        "tls_terminator_leaf_sha256": ":".join(["AB"] * 32),
    }
    settings = load(environment={}, flags=flags).settings
    assert settings.resolved_database_url() == f"sqlite:///{tmp_path}/fleet.db"
    assert settings.advertised_endpoints() == ("127.0.0.1:9000",)
    assert settings.certificate_hosts() == ("extra.example", "localhost", "127.0.0.1", "::1")
    assert settings.terminator_leaves() == {b"\xab" * 32}
    named = load(environment={}, flags={**flags, "gateway_endpoints": "g.example:7443"}).settings
    assert named.advertised_endpoints() == ("g.example:7443",)
    assert named.certificate_hosts()[0] == "g.example"


def test_every_setting_is_described_and_the_page_is_current() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    assert DOCS.read_text() == render(), "run `fleet-server config --reference > docs/server-settings.md`"
