"""`fleetctl root` and the files that it makes: what is signed, and what is refused before a server is asked."""

import json
from pathlib import Path

import pytest

from fleet.envelope import Domain, verify_one
from fleet.key_file import parse_public_key, read_public_key
from fleet.v1 import trust_pb2
from fleet_server.cli.signed_file import GRANT, MANIFEST, MAX_FILE_BYTES, read_signed
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl

PASSPHRASE = "correct horse battery"
INSTALLATION = "i-" + "0" * 32
OPERATOR = "op-" + "a" * 16
DAY_MS = 86_400_000


@pytest.fixture
def key(ctl: Fleetctl, tmp_path: Path) -> Path:
    """A key file."""
    made = tmp_path / "root.key"
    assert ctl.run("root", "keygen", str(made), stdin=PASSPHRASE + "\n").exit_code == 0
    return made


def public_key(path: Path) -> str:
    return path.read_text().splitlines()[0]


def test_a_new_key_shows_its_public_half_and_is_never_written_over(ctl: Fleetctl, key: Path, tmp_path: Path) -> None:
    made = ctl.run("root", "keygen", str(tmp_path / "other.key"), stdin=PASSPHRASE + "\n")
    assert parse_public_key(made.stdout) == read_public_key(tmp_path / "other.key")
    before = key.read_bytes()
    again = ctl.run("root", "keygen", str(key), stdin=PASSPHRASE + "\n")
    assert again.exit_code == 2
    assert "exists" in again.stderr
    assert key.read_bytes() == before


@pytest.mark.parametrize("stdin", ["", "short\n"])
def test_a_key_without_a_good_passphrase_is_not_made(ctl: Fleetctl, tmp_path: Path, stdin: str) -> None:
    refused = ctl.run("root", "keygen", str(tmp_path / "root.key"), stdin=stdin)
    assert refused.exit_code == 2
    assert "passphrase" in refused.stderr
    assert not (tmp_path / "root.key").exists()


def test_what_is_signed_is_what_was_asked_for(ctl: Fleetctl, key: Path, tmp_path: Path) -> None:
    words = ["--key", str(key), "--installation", INSTALLATION]
    activation = tmp_path / "a"
    sign = ["root", "sign-activation", *words, "--first-owner-key", public_key(key), "--output-file", str(activation)]
    assert ctl.run(*sign, "--valid-days", "2", stdin=PASSPHRASE + "\n").exit_code == 0
    root = read_public_key(key)
    raw = verify_one(read_signed(activation, MANIFEST), domain=Domain.ACTIVATION, public_key=root)
    assert trust_pb2.ActivationStatement.FromString(raw) == trust_pb2.ActivationStatement(
        installation_id=INSTALLATION,
        first_owner_key=root,
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 2 * DAY_MS,
    )
    grant = ["root", "sign-grant", *words, "--operator", OPERATOR, "--name", "ben", "-o", "json"]
    text = json.loads(ctl.run(*grant, stdin=PASSPHRASE + "\n").stdout)["signed"]
    (tmp_path / "g").write_text(text)
    raw = verify_one(read_signed(tmp_path / "g", GRANT), domain=Domain.PLATFORM_GRANT, public_key=root)
    found = trust_pb2.PlatformRoleGrantStatement.FromString(raw)
    assert (found.operator_id, found.role) == (OPERATOR, "platform-admin")
    again = ctl.run(*sign, stdin=PASSPHRASE + "\n")
    assert again.exit_code == 2
    assert "does not exist" in again.stderr


@pytest.mark.parametrize(
    ("changed", "value", "says"),
    [
        ("--installation", "i-1", "32 hexadecimal digits"),
        ("--first-owner-key", "ed25519:AAAA", "44 characters"),
        ("--key", "/nowhere/root.key", "cannot read"),
        ("--valid-days", "0", "1<=x<=366"),
    ],
)
def test_what_is_wrong_is_refused_with_the_option(
    ctl: Fleetctl, key: Path, changed: str, value: str, says: str
) -> None:
    options = {"--key": str(key), "--installation": INSTALLATION, "--first-owner-key": public_key(key), changed: value}
    words = [part for pair in options.items() for part in pair]
    refused = ctl.run("root", "sign-activation", *words, stdin=PASSPHRASE + "\n")
    assert refused.exit_code == 2
    assert says in " ".join(refused.stderr.split())


def test_a_wrong_passphrase_signs_nothing(ctl: Fleetctl, key: Path) -> None:
    words = ["--key", str(key), "--installation", INSTALLATION, "--operator", OPERATOR, "--name", "ben"]
    refused = ctl.run("root", "sign-grant", *words, stdin="wrong horse battery\n")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert "passphrase" in refused.stderr


def test_a_passphrase_file_that_others_can_read_is_refused(ctl: Fleetctl, key: Path, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE)
    file.chmod(0o644)
    words = ["--key", str(key), "--installation", INSTALLATION, "--operator", OPERATOR, "--name", "ben"]
    refused = ctl.run("root", "sign-grant", *words, "--passphrase-file", str(file))
    assert refused.exit_code == 2
    assert "chmod 600" in refused.stderr


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"fleet-grant:AAAA", b"fleet-activation:!", b"fleet-activation:" + b"A" * MAX_FILE_BYTES]
)
def test_another_file_is_not_sent_to_the_server(ctl: Fleetctl, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    refused = ctl.run("installation", "activate", str(tmp_path / "x"))
    assert refused.exit_code == 2
    assert "no fleet-activation file" in refused.stderr
