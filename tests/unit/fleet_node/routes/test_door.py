"""The door before a probe listener: what strangers may hold, and that they take nothing of what peers need."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from hyperframe.frame import ContinuationFrame, HeadersFrame, SettingsFrame

from fleet import status
from fleet.clock import SystemClock
from fleet.envelope import Signer
from fleet.tls import der_to_pem
from fleet_node.routes.intake import ProbeLimits
from fleet_node.routes.listener import ProbeListener
from fleet_node.routes.peer_channels import CERTIFICATE_NAME
from fleet_node.routes.probe_caller import ProbeCaller
from fleet_node.routes.probe_rules import request
from fleet_node.routes.walk_rules import WalkState
from tests.unit.fleet_node.routes.mesh import GENERATION, ROUTE, TIMEOUT_S, MeshNode, mesh, probe, refusal_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
KIB = 1024
_LONG_FIELD = b"\x00\x01a\x7f\xe1\xb9\xca\x07"
"""The beginning of a header field that says that it has 15.9 million bytes (HPACK, RFC 7541)."""


@contextlib.asynccontextmanager
async def stranger(node: MeshNode) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that speaks HTTP/2 over TLS, and calls nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = node.endpoint.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(PREFACE)
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> None:
    """Wait until the other side closed."""
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass


async def walk(source: MeshNode) -> tuple[WalkState, str]:
    walked = await source.caller.walk(ROUTE, GENERATION, (source.node_id, "d"), TIMEOUT_S)
    return walked.state, walked.failure


ANSWERED = (WalkState.ANSWERED, "")


async def test_headers_that_never_end_are_cut_off(tmp_path: Path) -> None:
    """gRPC would keep 16 MiB of them."""
    async with mesh(tmp_path, "d") as nodes, stranger(nodes["d"]) as (reader, writer):
        gone = asyncio.create_task(ended(reader))
        more, sent = ContinuationFrame(1, data=bytes(16 * KIB - 9), flags=[]).serialize(), 0
        writer.write(HeadersFrame(1, data=_LONG_FIELD, flags=[]).serialize())
        with contextlib.suppress(OSError):
            while not writer.is_closing() and sent < 16 * KIB * KIB:
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(0)
                sent += len(more)
        await gone
    assert sent < 8 * KIB * KIB  # but for what the sockets hold


async def test_a_stranger_has_a_short_time_and_a_peer_stays(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd", ProbeLimits(stranger_s=0.3)) as nodes:
        nodes.route("sd")
        assert await walk(nodes["s"]) == ANSWERED
        stays = [*nodes["d"].listener.door._peers["s"]]
        async with stranger(nodes["d"]) as (reader, _):
            await ended(reader)
        assert await walk(nodes["s"]) == ANSWERED
        assert nodes["d"].listener.door._peers == {"s": stays}


async def test_the_oldest_stranger_gives_way_and_no_peer(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd", ProbeLimits(strangers=2)) as nodes, contextlib.AsyncExitStack() as stack:
        nodes.route("sd")
        assert await walk(nodes["s"]) == ANSWERED
        readers = [(await stack.enter_async_context(stranger(nodes["d"])))[0] for _ in range(4)]
        await asyncio.gather(*map(ended, readers[:2]))
        assert [reader.at_eof() for reader in readers] == [True, True, False, False]
        assert await walk(nodes["s"]) == ANSWERED


async def test_a_flood_of_strangers_blinds_no_peer_that_is_connected(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sxd", ProbeLimits(all_per_s=0.001, all_burst=3, address_burst=3)) as nodes:
        nodes.route("sd", "xd")
        assert await walk(nodes["s"]) == ANSWERED
        reasons = [(await refusal_of(nodes["d"], request(probe("sd"), 1, Signer.generate()))).reason for _ in range(3)]
        assert [str(reason) for reason in reasons] == ["BAD_PROOF", "BAD_PROOF", "RATE_LIMITED"]
        assert await walk(nodes["s"]) == ANSWERED
        assert await walk(nodes["x"]) == (WalkState.INCONCLUSIVE, "RATE_LIMITED")  # it comes as a stranger


async def test_a_stranger_at_a_peers_address_who_uses_its_name_blinds_no_peer_that_is_connected(tmp_path: Path) -> None:
    """Behind one gateway all have one address."""
    async with mesh(tmp_path, "sd", ProbeLimits(caller_per_s=0.001, caller_burst=3)) as nodes:
        nodes.route("sd")
        assert await walk(nodes["s"]) == ANSWERED
        reasons = [(await refusal_of(nodes["d"], request(probe("sd"), 1, Signer.generate()))).reason for _ in range(3)]
        assert [str(reason) for reason in reasons] == ["BAD_PROOF", "BAD_PROOF", "RATE_LIMITED"]
        assert await walk(nodes["s"]) == ANSWERED


async def test_a_peer_has_few_connections(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd", ProbeLimits(peer_connections=1)) as nodes:
        nodes.route("sd")
        first, second = (ProbeCaller(nodes["s"].view, SystemClock()) for _ in range(2))
        for caller in (first, second):
            assert (await caller.walk(ROUTE, GENERATION, "sd", TIMEOUT_S)).state is WalkState.ANSWERED
        again = await first.walk(ROUTE, GENERATION, "sd", TIMEOUT_S)
        await first.close()
        await second.close()
    assert again.state in (WalkState.ANSWERED, WalkState.UNREACHABLE)  # dialled anew, or met while it ended


async def test_a_call_past_the_door_is_refused(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes:
        nodes.route("sd")
        inner = nodes["d"].listener.door.port
        credentials = grpc.ssl_channel_credentials(der_to_pem(nodes["d"].listener.certificate))
        options = [("grpc.ssl_target_name_override", CERTIFICATE_NAME)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{inner}", credentials, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary("/fleet.v1.Probe/Walk")(request(probe("sd"), 1, nodes["s"].view.signer))
    assert status.decode(raised.value).reason == "FOREIGN"


async def test_every_address_of_the_machine_is_heard(tmp_path: Path) -> None:
    async with mesh(tmp_path, "s") as nodes:
        node = MeshNode("d", tmp_path)
        node.listener = ProbeListener("[::]:0", tmp_path / "d.pem", node.view, node.caller, SystemClock())
        await node.listener.start()
        if not node.listener.certificate:
            pytest.skip("this machine has no IPv6")
        node.view.peers = {"s": nodes["s"].as_peer()}
        node.view.configs = {}
        for host in ("127.0.0.1", "[::1]"):
            peer = node.as_peer()
            peer.probe_endpoints[:] = [f"{host}:{node.endpoint.rpartition(':')[2]}"]
            nodes["s"].view.peers = {"d": peer}
            assert await walk(nodes["s"]) == (WalkState.INCONCLUSIVE, "UNKNOWN_ROUTE")
        await node.close()
