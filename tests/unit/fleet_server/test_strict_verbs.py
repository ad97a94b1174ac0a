"""`fleet-server` in strict mode: what `init` makes and says, and what it needs."""

from pathlib import Path

from fleet.envelope import Signer
from fleet.key_file import show_public_key
from tests.unit.fleet_server.program import call
from tests.unit.fleet_server.test_main import TOKEN

ROOT_KEY = show_public_key(Signer.generate().public_key)


def test_init_makes_no_owner_and_names_the_installation(tmp_path: Path) -> None:
    strict = ("--set", "strict=true", "--set", f"product_root_key={ROOT_KEY}")
    made = call("init", "--data-dir", tmp_path / "data", *strict)
    assert made.exit_code == 0, made.output
    assert not TOKEN.search(made.output)
    assert "installation i-" in made.stdout
    assert "fleetctl root sign-activation --installation i-" in made.stderr
    rescue = call("init", "--data-dir", tmp_path / "data", "--owner", "rescue", *strict)
    assert not TOKEN.search(rescue.output)


def test_strict_needs_a_root_key(tmp_path: Path) -> None:
    call("init", "--data-dir", tmp_path / "data")
    refused = call("run", "--data-dir", tmp_path / "data", "--strict")
    assert refused.exit_code == 2
    assert "product_root_key" in refused.stderr
