"""What keeps several workers from being started, and what they are handed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_server import bootstrap
from fleet_server.config import load
from fleet_server.workers.plan import Plan
from tests.unit.fleet_server.program import call

ELSEWHERE = "postgresql://fleet:hunter2@127.0.0.1:1/fleet"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("FLEET_")]:
        monkeypatch.delenv(name)
    yield


def test_sqlite_has_one_process_and_says_so(tmp_path: Path) -> None:
    for words, env in ((["--workers", "2"], {}), ([], {"FLEET_WORKERS": "2"})):
        refused = call("run", "--data-dir", tmp_path / "data", *words, env=env)
        assert refused.exit_code == 2
        assert "workers = 2 needs PostgreSQL" in refused.stderr
        assert "or workers = 1" in refused.stderr
    assert call("run", "--workers", "0").exit_code == 2


def test_ports_that_cannot_be_shared_are_refused_before_anything_starts(tmp_path: Path) -> None:
    env = {"FLEET_DATABASE_URL": ELSEWHERE}
    run = ["run", "--workers", "2", "--data-dir", tmp_path / "data"]
    any_port = call(*run, "--set", "gateway_listen=127.0.0.1:0", "--set", "gateway_endpoints=a:1", env=env)
    assert (any_port.exit_code, "name a port" in any_port.stderr) == (2, True)
    with socket.socket() as taken:
        # Workers of another installation would share their port with these: the same user may.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = call(*run, "--set", f"admin_listen={address}", env=env)
    assert refused.exit_code == 2
    assert f"cannot listen on {address} (admin_listen): another process holds the port" in refused.stderr


def test_a_worker_s_name_keeps_every_other_process_of_that_name_out_of_the_folder(tmp_path: Path) -> None:
    settings = load(environment={"FLEET_DATABASE_URL": ELSEWHERE}, flags={"data_dir": str(tmp_path / "d")}).settings
    with bootstrap.sole_server(settings):
        own = (tmp_path / "d" / "replica-id").read_text()
        for name in (f"{own}-1", f"{own}-2"):
            with bootstrap.sole_server(settings.model_copy(update={"replica_id": name})):
                pass
        for same in (settings, settings.model_copy(update={"replica_id": own})):
            with pytest.raises(bootstrap.AlreadyRunningError), bootstrap.sole_server(same):
                pass


def test_workers_that_cannot_start_end_the_supervisor_with_their_exit_code() -> None:
    plan = Plan(count=2, arguments=["--set", "nonsense=1"], log_level="info", log_format="json", probe="", locks=[])
    ended = subprocess.run(plan.command_line(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "there is no setting 'nonsense'" in ended.stderr


def test_the_supervisor_loads_nothing_heavy() -> None:
    program = (
        "import sys, fleet_server.workers.__main__; "
        "print([name for name in ('grpc', 'sqlalchemy', 'cryptography', 'pydantic', 'uvloop') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.strip() == "[]"
