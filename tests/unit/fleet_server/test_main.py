import asyncio
import os
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import create_engine

from fleet.clock import SystemClock
from fleet.errors import Refusal
from fleet.standard_streams import READER_LEFT
from fleet_server import bootstrap
from fleet_server.config import Settings, load
from fleet_server.database.migrate import SchemaState
from fleet_server.trust.secrets import KEY_FILE_NAME, make_key_file
from fleet_server.trust.service import TrustSetupError
from tests.unit.fleet_server.program import call

TOKEN = re.compile(r"^fop1\.\S+$", re.MULTILINE)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import logging

    for name in [name for name in os.environ if name.startswith("FLEET_")]:
        monkeypatch.delenv(name)
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers = handlers  # what a verb configured must not reach the next test


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def init(folder: Path, *words: str | Path, env: dict[str, str] | None = None) -> Result:
    return call("init", "--data-dir", folder, *words, env=env)


def test_init_makes_a_private_installation_and_shows_the_token_once(folder: Path) -> None:
    first = init(folder)
    assert first.exit_code == 0, first.output
    token = TOKEN.findall(first.stdout)
    assert len(token) == 1
    assert "made a secret encryption key" in first.stderr
    assert "fleetctl login" in first.stderr
    assert folder.stat().st_mode & 0o777 == 0o700
    public = {"ca.crt"}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in public:
            assert path.stat().st_mode & 0o077 == 0, path
    stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert token[0].encode() not in stored

    again = init(folder)
    assert again.exit_code == 0
    assert not TOKEN.findall(again.output)
    assert "exists already" in again.stdout
    assert first.stdout.splitlines()[:5] == again.stdout.splitlines()[:5]


def test_the_next_step_is_for_the_installation_just_made(folder: Path) -> None:
    made = init(folder, "--set", "admin_listen=127.0.0.1:7999")
    assert f"`fleet-server run --data-dir {folder} --set admin_listen=127.0.0.1:7999`" in made.stderr
    assert "`fleetctl login 127.0.0.1:7999 --ca-file" in made.stderr


def test_init_with_another_owner_helps_who_lost_every_token(folder: Path) -> None:
    init(folder)
    rescued = init(folder, "--owner", "rescue")
    assert len(TOKEN.findall(rescued.stdout)) == 1


def test_the_token_can_go_to_a_private_file_instead(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "owner.token"
    made = init(folder, "--owner-token-file", file)
    assert made.exit_code == 0, made.output
    assert not TOKEN.findall(made.output)
    assert f"--token-file {file}`" in made.stderr, "the next step uses it"
    assert file.stat().st_mode & 0o777 == 0o600
    assert TOKEN.fullmatch(file.read_text().strip())
    refused = init(folder, "--owner", "second", "--owner-token-file", file)
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr
    assert init(folder, "--owner", "second", "--owner-token-file", tmp_path / "no" / "file").exit_code == 2


def test_inits_at_once_make_one_installation(folder: Path) -> None:
    settings = load(environment={}, flags={"data_dir": str(folder)}).settings
    made = [each for each in inits_at_once([settings] * 3) if isinstance(each, bootstrap.Installation)]
    assert len(made) == 3
    assert len({installation.cluster_id for installation in made}) == 1
    assert len({installation.authority_key for installation in made}) == 1
    assert sum(installation.owner_token is not None for installation in made) == 1


def inits_at_once(settings: Sequence[Settings]) -> list[bootstrap.Installation | Exception]:
    """What becomes of one run each, all at once."""

    def one(each: Settings) -> bootstrap.Installation | Exception:
        try:
            return asyncio.run(bootstrap.init(each, owner="ada", clock=SystemClock()))
        except (TrustSetupError, Refusal) as error:
            return error

    with ThreadPoolExecutor(len(settings)) as threads:
        return list(threads.map(one, settings))


def written_by(url: str, kind: str) -> set[str]:
    """Audit chains with rows of a kind."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT DISTINCT writer FROM audit_rows WHERE kind = '{kind}'").fetchall()
    engine.dispose()
    return {row[0] for row in found}


def settings_of_machines(tmp_path: Path, count: int, **shared: str) -> list[Settings]:
    """Machines with a data folder each, and other settings the same."""
    return [
        load(environment={}, flags={"data_dir": str(tmp_path / f"m{number}"), **shared}).settings
        for number in range(count)
    ]


def test_inits_of_several_machines_at_once_make_one_installation(tmp_path: Path, postgres_url: str) -> None:
    key = tmp_path / "shared.key"
    make_key_file(key)
    machines = settings_of_machines(tmp_path, 3, database_url=postgres_url, secret_encryption_key_file=str(key))
    made = [each for each in inits_at_once(machines) if isinstance(each, bootstrap.Installation)]
    assert len(made) == 3
    assert len({(each.cluster_id, each.authority_key, each.tls_ca_sha256) for each in made}) == 1
    assert sum(each.owner_token is not None for each in made) == 1
    assert sum(each.schema_before.state is SchemaState.EMPTY for each in made) == 1
    more = settings_of_machines(tmp_path, 2, database_url=postgres_url, secret_encryption_key_file=str(key))
    rescue = [asyncio.run(bootstrap.init(each, owner="rescue", clock=SystemClock())) for each in more]
    assert [each.owner_token is not None for each in rescue] == [True, False]
    assert len(written_by(postgres_url, "operator.created")) == 2, "each run writes an audit chain of its own"


def test_of_two_machines_that_each_make_a_key_one_is_told_that_the_other_was_first(
    tmp_path: Path, postgres_url: str
) -> None:
    machines = settings_of_machines(tmp_path, 2, database_url=postgres_url)
    ends = inits_at_once(machines)
    (lost,) = (number for number, each in enumerate(ends) if isinstance(each, Exception))
    assert "another secret encryption key" in str(ends[lost])
    assert not (machines[lost].data_dir / KEY_FILE_NAME).exists()
    assert isinstance(ends[1 - lost], bootstrap.Installation)


def test_a_bad_owner_name_is_refused(folder: Path) -> None:
    refused = init(folder, "--owner", "no spaces please")
    assert refused.exit_code == 3
    assert "name" in refused.stderr


def test_a_folder_that_others_can_read_is_refused_with_the_command_that_closes_it(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    refused = init(folder)
    assert refused.exit_code == 2
    assert f"chmod 700 {folder}" in refused.stderr


def test_production_takes_no_key_from_the_folder(folder: Path) -> None:
    init(folder)
    production = {"FLEET_MODE": "production", "FLEET_GATEWAY_ENDPOINTS": "g.example:7443"}
    refused = call("run", "--data-dir", folder, env=production)
    assert refused.exit_code == 2
    assert "FLEET_SECRET_ENCRYPTION_KEY" in refused.stderr


def test_init_on_postgresql(folder: Path, postgres_url: str) -> None:
    env = {"FLEET_DATABASE_URL": postgres_url}
    made = init(folder, env=env)
    assert made.exit_code == 0, made.output
    assert call("db", "check", "--data-dir", folder, env=env).exit_code == 0
    assert not (folder / "fleet.db").exists()


def test_run_before_init_names_init(folder: Path) -> None:
    refused = call("run", "--data-dir", folder)
    assert refused.exit_code == 3
    assert "fleet-server init" in refused.stderr
    assert not folder.exists()


def test_run_with_a_lost_or_wrong_secret_key_says_so(folder: Path) -> None:
    init(folder)
    key = (folder / "secret.key").read_text()
    (folder / "secret.key").unlink()
    lost = call("run", "--data-dir", folder)
    assert lost.exit_code == 2
    assert "restore" in lost.stderr
    wrong = init(folder, env={"FLEET_SECRET_ENCRYPTION_KEY": "A" * 43 + "="})
    assert wrong.exit_code == 3
    assert "another secret encryption key" in wrong.stderr
    assert key.strip() not in lost.output + wrong.output


def test_run_upgrades_an_older_sqlite_file_itself_and_names_the_verb_for_postgresql(
    folder: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgraded: list[str] = []
    older = bootstrap.SchemaReport(bootstrap.SchemaState.OLDER, "0000", "0001")
    monkeypatch.setattr(bootstrap.migrate, "check", lambda url: older)
    monkeypatch.setattr(bootstrap.migrate, "upgrade", upgraded.append)
    settings = load(environment={}, flags={"data_dir": str(folder)}).settings
    with bootstrap.sole_server(settings), pytest.raises(bootstrap.AlreadyRunningError):
        bootstrap.require_schema(settings)
    assert upgraded == []
    bootstrap.require_schema(settings)
    assert upgraded == [f"sqlite:///{folder}/fleet.db"]
    with pytest.raises(bootstrap.SchemaError, match="fleet-server db upgrade"):
        bootstrap.require_schema(load(environment={"FLEET_DATABASE_URL": postgres_url}).settings)
    assert len(upgraded) == 1


def test_a_newer_database_is_refused_by_run_and_check(folder: Path) -> None:
    init(folder)
    with sqlite3.connect(folder / "fleet.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for verb in (["run"], ["db", "check"], ["db", "upgrade"]):
        refused = call(*verb, "--data-dir", folder)
        assert refused.exit_code == 3, refused.output
        assert "install the newer fleet-server" in refused.stderr


def test_db_upgrade_and_check(folder: Path, postgres_url: str) -> None:
    env = {"FLEET_DATABASE_URL": postgres_url}
    empty = call("db", "check", env=env)
    assert (empty.exit_code, "fleet-server init" in empty.stderr) == (3, True)
    assert "before: empty" in call("db", "upgrade", env=env).stdout
    assert "nothing to do" in call("db", "upgrade", env=env).stdout
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM nodes").scalar() == 0
        connection.exec_driver_sql("CREATE INDEX ix_commands_open ON commands (not_after_ms) WHERE state < 5")
    engine.dispose()
    checked = call("db", "check", env=env)
    assert (checked.exit_code, "run `fleet-server db upgrade` again" in checked.stdout) == (0, True)
    assert "index ix_commands_open dropped" in call("db", "upgrade", env=env).stdout


def test_db_upgrade_leaves_a_sqlite_file_alone_while_a_server_runs_on_it(folder: Path) -> None:
    init(folder)
    settings = load(environment={}, flags={"data_dir": str(folder)}).settings
    with bootstrap.sole_server(settings):
        current = call("db", "upgrade", "--data-dir", folder)
        assert (current.exit_code, "nothing to do" in current.stdout) == (0, True), "it changes nothing, so it may"
        older = bootstrap.SchemaReport(bootstrap.SchemaState.OLDER, "0000", "0001")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(bootstrap.migrate, "check", lambda url: older)
            refused = call("db", "upgrade", "--data-dir", folder)
    assert refused.exit_code == 3
    assert f"another fleet-server runs on {folder}: stop it first" in refused.stderr


def test_db_upgrade_makes_no_installation(folder: Path) -> None:
    refused = call("db", "upgrade", "--data-dir", folder)
    assert (refused.exit_code, "fleet-server init" in refused.stderr) == (3, True)
    assert not folder.exists()


def test_db_check_names_the_first_things_that_are_not_as_the_revision_says(folder: Path) -> None:
    init(folder)
    assert call("db", "check", "--data-dir", folder).exit_code == 0
    with sqlite3.connect(folder / "fleet.db") as connection:
        for table in ("audit_checkpoints", "audit_heads", "audit_rows", "telemetry_latest"):
            connection.execute(f"DROP TABLE {table}")
    refused = call("db", "check", "--data-dir", folder)
    assert refused.exit_code == 3
    assert "table audit_checkpoints is missing; table audit_heads is missing; " in refused.stderr
    assert "; and 1 more\n" in refused.stderr
    assert "backup" in refused.stderr


@pytest.mark.parametrize("verb", [["run"], ["db", "check"], ["db", "upgrade"]])
def test_a_database_that_does_not_answer_is_exit_code_4(folder: Path, verb: list[str]) -> None:
    env = {"FLEET_DATABASE_URL": "postgresql://fleet:hunter2@127.0.0.1:1/fleet"}
    away = call(*verb, "--data-dir", folder, env=env)
    assert away.exit_code == 4
    assert "hunter2" not in away.output


def test_bad_settings_are_exit_code_2_and_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "fleet-server.toml"
    file.write_text("\nsesion_ttl_s = 600\n")
    refused = call("run", "--config", file)
    assert refused.exit_code == 2
    assert f"{file} line 2: there is no setting 'sesion_ttl_s'; did you mean 'session_ttl_s'?" in refused.stderr


@pytest.mark.parametrize("name", ["secret_encryption_key", "database_url"])
def test_secrets_are_not_taken_from_flags(name: str) -> None:
    refused = call("config", "--set", f"{name}=hunter2")
    assert refused.exit_code == 2
    assert f"FLEET_{name.upper()}" in refused.stderr
    assert "hunter2" not in refused.output
    assert call("config", "--set", "nonsense").exit_code == 2


def test_one_server_a_data_folder(folder: Path) -> None:
    settings = load(environment={}, flags={"data_dir": str(folder)}).settings
    with (
        bootstrap.sole_server(settings),
        pytest.raises(bootstrap.AlreadyRunningError, match="stop it first"),
        bootstrap.sole_server(settings),
    ):
        pass
    with bootstrap.sole_server(settings):
        pass


@pytest.mark.parametrize(
    "verb", [[], ["init"], ["run"], ["config"], ["db"], ["db", "upgrade"], ["db", "check"], ["version"]]
)
def test_every_verb_has_help_with_an_example(verb: list[str]) -> None:
    shown = call(*verb, "--help")
    assert shown.exit_code == 0
    if verb != ["db"]:
        assert "Example:\n  fleet-server " + " ".join(verb or ["init"]) in shown.stdout
        assert "  4  the database does not answer" in shown.stdout
    assert "..." not in shown.stdout.partition("Commands:")[2], "no sentence is cut off"


def test_help_is_there_before_the_server_is() -> None:
    program = (
        "import contextlib, sys\n"
        "from fleet_server.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "print(sorted({'grpc', 'sqlalchemy', 'pydantic', 'alembic', 'cryptography'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("setting", ["gateway_listen", "metrics_listen"])
def test_a_port_that_is_taken_is_told_in_our_words_alone(folder: Path, setting: str) -> None:
    init(folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = {"admin_listen": "127.0.0.1:0", "gateway_listen": "127.0.0.1:0", "metrics_listen": "off"}
        listen |= {"gateway_endpoints": "127.0.0.1:7443", setting: address}
        words = [word for name, value in listen.items() for word in ("--set", f"{name}={value}")]
        ran = subprocess.run(
            [sys.executable, "-m", "fleet_server", "run", "--data-dir", folder, *words],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        f"error: cannot listen on {address} ({setting}): another process holds the port; choose another one"
    ]


def test_a_lost_key_is_not_replaced(folder: Path) -> None:
    init(folder)
    key = folder / "secret.key"
    kept = key.read_bytes()
    key.unlink()
    refused = init(folder)
    assert refused.exit_code == 3
    assert not key.exists(), "a new key would open nothing, and hide that the right one is missing"
    key.write_bytes(kept)
    key.chmod(0o600)
    assert init(folder).exit_code == 0


def test_output_that_nobody_reads_or_that_cannot_be_written_is_told(folder: Path) -> None:
    words = [sys.executable, "-m", "fleet_server", "config", "--data-dir", str(folder)]
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: cannot write the output: No space left on device\n next: ")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as left:
        assert left.stdout is not None
        assert left.stderr is not None
        left.stdout.close()
        assert left.stderr.read() == b""
    assert left.returncode == READER_LEFT


def test_the_program_runs_as_a_module_too() -> None:
    ran = subprocess.run([sys.executable, "-m", "fleet_server", "version"], capture_output=True, text=True, check=True)
    assert ran.stdout == call("version").stdout
