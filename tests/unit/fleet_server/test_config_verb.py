"""`fleet-server config`: each setting with its source."""

import json
import re
from pathlib import Path

import pytest

from fleet_server.config.reference import render
from fleet_server.replicas.identity import own_replica_id
from tests.unit.fleet_server.program import call
from tests.unit.fleet_server.test_main import surroundings

__all__ = ["surroundings"]  # a fixture for every test here


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_config_shows_values_with_sources_and_masks_secrets(tmp_path: Path) -> None:
    file = tmp_path / "fleet-server.toml"
    file.write_text("session_ttl_s = 600\n")
    env = {"FLEET_SECRET_ENCRYPTION_KEY": "hunter2"}
    shown = call("config", "--config", file, "--set", "max_streams=5", "--output", "json", env=env)
    assert shown.exit_code == 0, shown.output
    settings = json.loads(shown.stdout)
    assert settings["session_ttl_s"] == {"value": "600", "source": f"{file} line 1"}
    assert settings["max_streams"] == {"value": "5", "source": "flag max_streams"}
    assert settings["secret_encryption_key"]["value"] == "[secret]"
    table = call("config", "--config", file, env=env)
    assert re.search(rf"^session_ttl_s +600 +{re.escape(str(file))} line 1$", table.stdout, re.MULTILINE)
    assert "hunter2" not in shown.output + table.output
    assert call("config", "--reference").stdout == render()


def shown_settings(*words: str | Path, env: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    shown = call("config", "--output", "json", *words, env=env)
    assert shown.exit_code == 0, shown.output
    return {name: (row["value"], row["source"]) for name, row in json.loads(shown.stdout).items()}


def test_config_shows_what_the_server_derives_where_nothing_is_given(folder: Path) -> None:
    shown = shown_settings("--data-dir", folder, "--set", "gateway_listen=0.0.0.0:9000")
    assert shown["gateway_endpoints"] == ("127.0.0.1:9000", "derived")
    assert shown["tls_hosts"] == ("localhost, 127.0.0.1, ::1", "derived")
    assert shown["database_url"] == (f"sqlite:///{folder}/fleet.db", "derived")
    assert shown["secret_encryption_key_file"] == (f"{folder}/secret.key", "derived")
    assert shown["replica_id"] == ("", "derived"), "made at the first start, not by looking"
    assert not folder.exists()
    folder.mkdir(mode=0o700)
    replica_id = own_replica_id(folder)
    assert shown_settings("--data-dir", folder)["replica_id"] == (replica_id, "derived")


def test_config_shows_what_is_given_with_its_own_source(folder: Path) -> None:
    env = {"FLEET_DATABASE_URL": "postgresql://fleet:hun/ter2@db.example/fleet?password=hunter2"}
    flags = ["replica_id=one", "gateway_endpoints=g.example:7443", "tls_hosts=extra.example"]
    shown = shown_settings(*(word for flag in flags for word in ("--set", flag)), env=env)
    assert shown["replica_id"] == ("one", "flag replica_id")
    assert shown["gateway_endpoints"] == ("g.example:7443", "flag gateway_endpoints")
    hosts = "g.example, extra.example, localhost, 127.0.0.1, ::1"
    assert shown["tls_hosts"] == (hosts, "flag tls_hosts and derived")
    url = "postgresql+psycopg://fleet:***@db.example/fleet"
    assert shown["database_url"] == (url, "environment FLEET_DATABASE_URL")


def test_config_shows_nothing_of_a_database_url_that_it_cannot_read() -> None:
    shown = shown_settings(env={"FLEET_DATABASE_URL": "mysql://fleet:hunter2@db.example/fleet"})
    assert shown["database_url"] == ("[secret]", "environment FLEET_DATABASE_URL")
