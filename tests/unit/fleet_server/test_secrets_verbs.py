"""`fleet-server secrets`: the key is changed from the command line, and its status is told."""

from pathlib import Path

from tests.unit.fleet_server.program import call


def test_secrets_are_rekeyed_and_the_status_tells(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    call("init", "--data-dir", folder)
    before = call("secrets", "status", "--data-dir", folder)
    assert "never changed" in before.stdout
    new = tmp_path / "new.key"
    new.write_text("A" * 43 + "=\n")
    new.chmod(0o600)
    alone = call("secrets", "rekey", "--data-dir", folder)
    assert alone.exit_code == 2
    assert "--new-key-file" in alone.stderr
    done = call("secrets", "rekey", "--data-dir", folder, "--new-key-file", new)
    assert done.exit_code == 0, done.output
    assert "nothing needs the old one" in done.stdout
    assert call("run", "--data-dir", folder).exit_code == 3
    (folder / "secret.key").unlink()
    env = {"FLEET_SECRET_ENCRYPTION_KEY_FILE": str(new)}
    after = call("secrets", "status", "--data-dir", folder, env=env)
    assert "done" in after.stdout
    assert call("init", "--data-dir", folder, env=env).exit_code == 0
