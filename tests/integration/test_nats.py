"""Relays over a real NATS server: who is let in, by what, and what a server in between is told."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nkeys
import pytest

from fleet.identity import write_private
from fleet.metrics import Registry
from fleet_server.database import nats_relay
from fleet_server.database.nats_relay import NatsTransport
from fleet_server.database.relay import Relay, TransportError
from fleet_server.database.wakeup import Wakeup
from fleet_server.observability.metrics import WakeupMetrics
from tests.fakes.nats import start_nats
from tests.fakes.process import Processes
from tests.fakes.tls import FakeAuthority
from tests.integration.clock import QuickClock
from tests.integration.installation import free_ports
from tests.integration.waiting import eventually

PASSWORD = "correct-horse"


def transport(server: str, *, ca_file: Path | None = None, credentials_file: Path | None = None) -> NatsTransport:
    return NatsTransport([server], subject="fleet.c1.wakeup", ca_file=ca_file, credentials_file=credentials_file)


@asynccontextmanager
async def replica(over: NatsTransport) -> AsyncIterator[tuple[Relay, Wakeup, list[frozenset[str] | None]]]:
    """A relay that is up, and the nodes that others hint at."""
    wakeup, hinted = Wakeup(), list[frozenset[str] | None]()
    wakeup.on_hint("node", hinted.append, pause_s=0)
    relay = Relay(transport=over, wakeup=wakeup, clock=QuickClock(), metrics=WakeupMetrics(Registry()))
    running = asyncio.create_task(relay.run())
    try:
        await eventually(lambda: relay.is_up, "it hears itself")
        yield relay, wakeup, hinted
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def private(path: Path, text: str) -> Path:
    write_private(path, text.encode())
    return path


def password(folder: Path) -> tuple[str, str]:
    del folder
    return f'authorization {{ user: fleet, password: "{PASSWORD}" }}', f"fleet:{PASSWORD}\n"


def token(folder: Path) -> tuple[str, str]:
    del folder
    return f'authorization {{ token: "{PASSWORD}" }}', PASSWORD


def nkey(folder: Path) -> tuple[str, str]:
    del folder
    seed = nkeys.encode_seed(b"s" * 32, nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    return f"authorization {{ users: [ {{ nkey: {public} }} ] }}", seed.decode()


@pytest.mark.parametrize("kind", [password, token, nkey])
async def test_replicas_that_may_speak_hear_each_other_over_tls_and_strangers_do_not(
    tmp_path: Path,
    processes: Processes,
    tls_authority: FakeAuthority,
    kind: Callable[[Path], tuple[str, str]],
) -> None:
    config, credentials = kind(tmp_path)
    certificate, key = tls_authority.issue("127.0.0.1").write(tmp_path)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(tls_authority.cert_pem)
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    (tmp_path / "nats.conf").write_text(f"{config}\n{tls}\n")
    (port,) = free_ports(1)
    start_nats(processes, port, config=tmp_path / "nats.conf")
    good = private(tmp_path / "good", credentials)
    server = f"tls://127.0.0.1:{port}"
    with pytest.raises(TransportError, match=r"Authorization"):
        await transport(server, ca_file=ca_file).open()
    with pytest.raises(TransportError, match=r"certificate"):
        await transport(server, credentials_file=good).open()
    over = transport(server, ca_file=ca_file, credentials_file=good)
    async with replica(over) as (_, wakeup, _), replica(over) as (_, _, hinted):
        hinted.clear()
        wakeup.tell_others_nowait(["node:a"])
        await eventually(lambda: frozenset({"a"}) in hinted, "the other one hears of it")


async def test_a_server_in_between_that_asks_for_no_tls_is_told_no_password(tmp_path: Path) -> None:
    told = bytearray()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n')
        while part := await reader.read(1024):
            told.extend(part)
        writer.close()

    listening = await asyncio.start_server(between, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    over = transport(f"tls://127.0.0.1:{port}", credentials_file=private(tmp_path / "c", f"fleet:{PASSWORD}"))
    with pytest.raises(TransportError, match="asks for no TLS"):
        await over.open()
    assert PASSWORD.encode() not in told
    listening.close()


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [("a b", 0o600, "holds none"), ("", 0o600, "holds none"), ("fleet:x", 0o644, "chmod 600")],
)
async def test_credentials_that_are_none_or_that_others_can_read_are_refused(
    tmp_path: Path, processes: Processes, content: str, mode: int, says: str
) -> None:
    (port,) = free_ports(1)
    start_nats(processes, port)
    file = private(tmp_path / "c", content)
    file.chmod(mode)
    with pytest.raises(TransportError, match=says):
        await transport(f"nats://127.0.0.1:{port}", credentials_file=file).open()


async def test_what_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    with pytest.raises(TransportError, match="Connect call failed"):
        await transport(f"nats://127.0.0.1:{port}").open()
    with pytest.raises(TransportError, match="wakeup_ca_file"):
        await transport(f"tls://127.0.0.1:{port}", ca_file=tmp_path / "none").open()
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    with pytest.raises(TransportError, match="pip install"):
        await transport(f"nats://127.0.0.1:{port}").open()


async def test_more_than_a_relay_takes_in_is_everything(processes: Processes) -> None:
    (port,) = free_ports(1)
    start_nats(processes, port)
    link = await transport(f"nats://127.0.0.1:{port}").open()
    messages: Sequence[str] = [f"fleet1 {'b' * 16} node:{number}" for number in range(2 * nats_relay._MAX_PENDING)]
    await link.say(messages)
    await eventually(lambda: link._overflowed, "more came than is kept")
    assert await link.hear() == b"fleet1 0000000000000000 everything"
    await link.close()
