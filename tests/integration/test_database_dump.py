"""Who holds a dump of the database holds no secret, after a life in which every kind of them was made."""

import base64
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fleet import jointoken
from fleet.clock import SystemClock
from fleet.v1 import admin_pb2
from fleet_server.database.engine import Connection, Database
from fleet_server.database.schema import metadata
from fleet_server.rekeying import Change
from fleet_server.sessions.service import SessionService
from fleet_server.trust.secrets import SecretBox, make_key_file, read_key_file
from tests.integration.installation import Installation, Template, free_ports
from tests.integration.test_mtls import node_ca

Sealed = dict[str, list[bytes]]


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> Sealed:
    """Everything that the server seals from now on, by table."""
    found: Sealed = {}
    seal = SecretBox.seal

    def record(box: SecretBox, plaintext: bytes, *, row: str) -> bytes:
        found.setdefault(row.split("/", maxsplit=1)[0], []).append(plaintext)
        return seal(box, plaintext, row=row)

    monkeypatch.setattr(SecretBox, "seal", record)
    return found


@dataclass
class Shown:
    """What callers showed: api_key and session token of each stream, the secret of a join token; and the authority that
    another one followed."""

    claims: list[tuple[bytes, bytes]] = field(default_factory=list)
    joining: bytes = b""
    first_authority: bytes = b""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    found = Shown()
    claim = SessionService.claim

    async def record(sessions: SessionService, api_key: str, token: bytes, *words: Any, **named: Any) -> Any:
        found.claims.append((api_key.encode(), token))
        return await claim(sessions, api_key, token, *words, **named)

    monkeypatch.setattr(SessionService, "claim", record)
    return found


@pytest.fixture
async def lived(tmp_path: Path, template: Template, sealed: Sealed, shown: Shown) -> AsyncIterator[Installation]:
    """An installation that has used each of its credentials."""
    new_file = tmp_path / "new.key"
    make_key_file(new_file)
    old_file = tmp_path / "server" / "secret.key"
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    keys = {"secret_encryption_key_file": new_file, "secret_encryption_key_previous_file": old_file}
    async with Installation(tmp_path, template, mtls_listen=listen, heartbeat_interval_s=1, **keys) as running:
        shown.joining = jointoken.decode(await running.join_token()).secret
        await running.add_node("n-1")
        away = await running.enroll("n-2")
        assert len(await running.owner.run("n-1", count=3)) == 3
        order = admin_pb2.RotateNodesRequest(selector=admin_pb2.Selector(patterns=["n-2"]), api_key=True)
        await running.owner.ask("RotateNodes", order)
        await away.start()
        await running.owner.ask("PrepareKey", admin_pb2.PrepareKeyRequest())
        shown.first_authority = running.server.trust.authority.private_bytes()
        rotate = admin_pb2.RotateAuthorityRequest(from_generation=1, reason="a drill")
        await running.owner.ask("RotateAuthority", rotate)
        await Change(
            running.settings.resolved_database_url(),
            old=read_key_file(old_file),
            new=read_key_file(new_file),
            clock=SystemClock(),
            say=lambda _: None,
        ).run()
        yield running


def forms(secret: bytes) -> Iterator[bytes]:
    """How bytes may stand in other bytes: as they are, in hexadecimal, and in Base64 wherever in a longer text."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        for lead in range(3):
            text = encode(bytes(lead) + secret).rstrip(b"=")
            yield text[4:-1] if lead else text[:-1]


def holds(dump: bytes, secret: bytes) -> bool:
    return any(form in dump for form in forms(secret))


def parts(plaintext: bytes) -> Iterator[bytes]:
    """The secrets in something that was sealed: each 32 bytes of keys, the scalar of a key in PEM."""
    if plaintext.startswith(b"-----BEGIN"):
        key = load_pem_private_key(plaintext, password=None)
        assert isinstance(key, EllipticCurvePrivateKey)
        yield key.private_numbers().private_value.to_bytes(32, "big")
    elif len(plaintext) % 32 == 0:
        yield from (plaintext[at : at + 32] for at in range(0, len(plaintext), 32))
    else:
        yield plaintext


def secret_words(text: bytes) -> Iterator[bytes]:
    """The long words of a token's text."""
    yield from (word for word in re.split(rb"[^A-Za-z0-9-]", text) if len(word) >= 32)


async def dumped(installation: Installation) -> bytes:
    """Every value of every row of every table."""

    def read(conn: Connection) -> bytes:
        values: list[Any] = []
        for table in metadata.tables:
            for row in conn.exec_driver_sql(f"SELECT * FROM {table}"):
                values += row
        return b"\x00|\x00".join(
            value if isinstance(value, bytes) else str(value).encode() for value in values if value is not None
        )

    database = Database(installation.settings.resolved_database_url(), readers=1)
    database.start()
    try:
        return await database.read(read)
    finally:
        await database.close()


@pytest.mark.parametrize("around", [b"", b"x", b"xy", b"xyz"])
def test_a_secret_is_found_in_every_form(around: bytes) -> None:
    secret = bytes(range(100, 132))
    whole = around + secret + around
    for text in (
        whole,
        whole.hex().encode(),
        whole.hex().upper().encode(),
        base64.standard_b64encode(whole),
        base64.urlsafe_b64encode(whole),
    ):
        assert holds(b"a row" + text + b"another", secret)
    assert not holds(b"a row" + bytes(range(99, 131)), secret)


async def test_no_secret_of_the_whole_installation_stands_in_any_table(
    lived: Installation, sealed: Sealed, shown: Shown
) -> None:
    dump = await dumped(lived)
    assert holds(dump, lived.server.trust.authority.public_key)  # so the dump holds what is no secret
    made = {"cluster_authorities", "command_keys", "node_ratchets", "sealed_secrets", "sessions", "tls_cas"}
    assert made <= set(sealed), "a kind of secret was not made"
    for table, plaintexts in sealed.items():
        for plaintext in plaintexts:
            for secret in parts(plaintext):
                assert len(secret) >= 32
                assert not holds(dump, secret), f"a secret of {table} stands in the dump"
    others = {
        "an operator's token": lived.owner_token.encode(),
        "a join token": shown.joining,
        "the first authority": shown.first_authority,
        "the CA of client certificates": next(parts(node_ca(lived).private_key_pem)),
    }
    for name in ("secret_encryption_key_file", "secret_encryption_key_previous_file"):
        others[name] = read_key_file(getattr(lived.settings, name)).reveal()
    for number, (api_key, token) in enumerate(shown.claims):
        others |= {f"api_key {number}": api_key, f"session token {number}": token}
    for node in lived.nodes.values():
        others[f"ratchet of {node.name}"] = node.folder.ratchet.read_bytes()
    assert len({api_key for api_key, _ in shown.claims}) == 3, "one each, and one that replaced another"
    for what, secret in others.items():
        assert len(secret) >= 32
        for each in (secret, *secret_words(secret)):
            assert not holds(dump, each), f"{what} stands in the dump"
