"""`fleet-server export` says what is wrong before it begins."""

from pathlib import Path

import pytest

from tests.unit.fleet_server.program import call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    made = call("init", "--data-dir", folder, "--set", "gateway_listen=127.0.0.1:7443")
    assert made.exit_code == 0, made.output
    return folder


def test_a_receiver_that_is_none_is_named(data: Path, tmp_path: Path) -> None:
    for url, said in (("nowhere", "write http://host:port/v1/metrics"), ("http://u:p@h/", "no user or password")):
        ended = call("export", "--data-dir", data, "--set", f"export_url={url}")
        assert (ended.exit_code, said in ended.output) == (2, True), ended.output
    ended = call("export", "--data-dir", data)
    assert (ended.exit_code, "set export_url" in ended.output) == (2, True)
    headers = f"export_headers_file={tmp_path / 'none'}"
    ended = call("export", "--data-dir", data, "--set", "export_url=http://127.0.0.1:1", "--set", headers)
    assert (ended.exit_code, "none" in ended.output) == (2, True)


def test_without_an_installation_there_is_nothing_to_export(tmp_path: Path) -> None:
    ended = call("export", "--data-dir", tmp_path / "none", "--set", "export_url=http://127.0.0.1:1")
    assert (ended.exit_code, "fleet-server init" in ended.output) == (3, True), ended.output
