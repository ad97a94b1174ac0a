"""The faults of the proxy, seen from the two ends of a real connection."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.fakes.connection import ProxiedConnection, Side
from tests.fakes.lane import Direction
from tests.fakes.proxy import FaultProxy
from tests.fakes.proxy_thread import FaultProxyThread

UP, DOWN = Direction.UP, Direction.DOWN
_MORE_THAN_BUFFERS_BYTES = 64 * 1024 * 1024


@dataclass
class End:
    """One end of a connection, client's or server's."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def receive(self, n_bytes: int) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readexactly(n_bytes)

    async def wait_eof(self) -> None:
        async with asyncio.timeout(10):
            assert await self.reader.read() == b""

    async def wait_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(10):
                await self.reader.read()


class Network:
    """A listening server, a proxy before it, and clients."""

    def __init__(self, proxy: FaultProxy, accepted: "asyncio.Queue[End]") -> None:
        self.proxy = proxy
        self._accepted = accepted
        self._clients: list[End] = []

    async def connect(self) -> tuple[End, End, ProxiedConnection]:
        client = End(*await asyncio.open_connection(self.proxy.host, self.proxy.port))
        self._clients.append(client)
        async with asyncio.timeout(10):
            server = await self._accepted.get()
        return client, server, self.proxy.connections[-1]

    def hang_up(self) -> None:
        for client in self._clients:
            client.writer.close()


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    accepted: asyncio.Queue[End] = asyncio.Queue()
    ends: list[End] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(End(reader, writer))
        await accepted.put(ends[-1])

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with FaultProxy(server.sockets[0].getsockname()[:2]) as proxy:
        network = Network(proxy, accepted)
        yield network
        network.hang_up()
    for end in ends:
        end.writer.close()
    server.close()


async def _fill(end: End) -> asyncio.Task[None]:
    """Send more than every buffer on the way can hold; the task ends only when the other end reads."""
    return asyncio.create_task(end.send(bytes(_MORE_THAN_BUFFERS_BYTES)))


async def test_healthy_connection_carries_both_ways_and_counts(network: Network) -> None:
    client, server, connection = await network.connect()
    await client.send(b"hello")
    assert await server.receive(5) == b"hello"
    await server.send(b"welcome")
    assert await client.receive(7) == b"welcome"
    await network.proxy.wait_bytes(UP, 5)
    await network.proxy.wait_bytes(DOWN, 7)
    assert (connection.forwarded_bytes(UP), connection.forwarded_bytes(DOWN)) == (5, 7)
    assert network.proxy.opened == 1


async def test_end_of_stream_is_passed_on_and_the_other_direction_lives(network: Network) -> None:
    client, server, _ = await network.connect()
    client.writer.write_eof()
    await server.wait_eof()
    await server.send(b"late")
    assert await client.receive(4) == b"late"
    server.writer.close()
    await client.wait_eof()
    await network.proxy.wait_connections(0)


async def test_end_closes_one_direction_from_the_middle(network: Network) -> None:
    client, server, connection = await network.connect()
    network.proxy.end(UP)
    await server.wait_eof()
    assert connection.ended(UP)
    await server.send(b"still")
    assert await client.receive(5) == b"still"


async def test_cut_resets_both_ends(network: Network) -> None:
    client, server, connection = await network.connect()
    network.proxy.cut()
    await client.wait_reset()
    await server.wait_reset()
    await connection.wait_closed()
    await network.proxy.wait_connections(0)


async def test_cut_of_one_side_leaves_the_other_half_open(network: Network) -> None:
    client, server, connection = await network.connect()
    network.proxy.cut(Side.CLIENT)
    await client.wait_reset()
    await server.send(b"into the void")  # the server has not been told
    assert connection.is_open
    assert connection.forwarded_bytes(DOWN) == 0
    network.proxy.cut()
    await server.wait_reset()
    await connection.wait_closed()


async def test_cut_of_one_connection_spares_the_others(network: Network) -> None:
    first_client, _, first = await network.connect()
    second_client, second_server, _ = await network.connect()
    first.cut()
    await first_client.wait_reset()
    await second_client.send(b"x")
    assert await second_server.receive(1) == b"x"
    await network.proxy.wait_connections(1)


async def test_a_reset_by_the_server_reaches_the_client(network: Network) -> None:
    client, server, _ = await network.connect()
    server.writer.transport.abort()  # what a process killed with unread bytes leaves behind
    await client.send(b"x")
    with pytest.raises(ConnectionError):
        while True:
            await client.send(b"x" * 1024)
    await network.proxy.wait_connections(0)


async def test_deaf_proxy_reads_nothing_until_healed(network: Network) -> None:
    client, server, connection = await network.connect()
    network.proxy.deafen(UP)
    filling = await _fill(client)
    await server.send(b"down still works")
    assert await client.receive(16) == b"down still works"
    assert not filling.done()
    assert connection.forwarded_bytes(UP) == 0
    network.proxy.heal()
    assert len(await server.receive(_MORE_THAN_BUFFERS_BYTES)) == _MORE_THAN_BUFFERS_BYTES
    await filling


async def test_deafness_holds_for_later_connections(network: Network) -> None:
    network.proxy.deafen()
    client, server, connection = await network.connect()
    await client.send(b"anyone?")
    assert connection.forwarded_bytes(UP) == 0
    network.proxy.heal()
    assert await server.receive(7) == b"anyone?"


async def test_held_bytes_come_in_order_on_release(network: Network) -> None:
    client, server, connection = await network.connect()
    network.proxy.hold(UP)
    await client.send(b"one ")
    await client.send(b"two")
    await network.proxy.watch.wait_until(lambda: connection.received_bytes(UP) == 7, str, 10)
    assert connection.forwarded_bytes(UP) == 0
    network.proxy.release(UP)
    assert await server.receive(7) == b"one two"


async def test_held_bytes_are_lost_when_cut(network: Network) -> None:
    client, server, connection = await network.connect()
    connection.hold(UP)
    await client.send(b"never")
    await network.proxy.watch.wait_until(lambda: connection.received_bytes(UP) == 5, str, 10)
    connection.cut()
    await server.wait_reset()
    assert connection.forwarded_bytes(UP) == 0


@pytest.mark.parametrize("n_bytes", [0, 1, 6, 100_000])
async def test_cut_after_forwards_exactly_that_many_bytes(network: Network, n_bytes: int) -> None:
    client, server, connection = await network.connect()
    network.proxy.cut_after(UP, n_bytes)
    client.writer.write(bytes(200_000))
    received = 0
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(10):
            while chunk := await server.reader.read(65536):
                received += len(chunk)
    await connection.wait_closed()
    assert received <= n_bytes  # a reset may overtake bytes in the receiver's buffer
    assert connection.forwarded_bytes(UP) == n_bytes


async def test_slow_direction_paces_in_small_parts(network: Network) -> None:
    client, server, connection = await network.connect()
    network.proxy.slow(UP, bytes_per_s=1000)
    await client.send(bytes(5000))
    await server.receive(1)
    assert connection.forwarded_bytes(UP) < 5000
    network.proxy.heal()
    await server.receive(4999)


async def test_latency_delays_but_keeps_order(network: Network) -> None:
    client, server, _ = await network.connect()
    network.proxy.slow(latency_s=0.02)
    for part in (b"a", b"b", b"c"):
        await client.send(part)
    assert await server.receive(3) == b"abc"


async def test_refuse_keeps_live_connections_and_heal_listens_on_the_same_port(
    network: Network,
) -> None:
    client, server, _ = await network.connect()
    port = network.proxy.port
    network.proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await client.send(b"x")
    assert await server.receive(1) == b"x"
    network.proxy.heal()
    assert network.proxy.port == port
    await network.connect()
    await network.proxy.wait_connections(2)


async def test_target_that_is_down_resets_the_client() -> None:
    with socket.socket() as bound:  # bound, so that nobody else listens there, and never listening
        bound.bind(("127.0.0.1", 0))
        async with FaultProxy(bound.getsockname()) as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            assert proxy.refused_by_target == 1
            assert proxy.opened == 0


async def test_wait_tells_what_it_saw_when_it_fails(network: Network) -> None:
    with pytest.raises(TimeoutError, match="0 live connections, expected 3"):
        await network.proxy.wait_connections(3, timeout_s=0.01)


async def test_threaded_proxy_serves_synchronous_tests() -> None:
    def converse() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            FaultProxyThread(listener.getsockname()) as proxy,
        ):
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
                server, _ = listener.accept()
                client.sendall(b"ping")
                assert server.recv(4) == b"ping"
                proxy.wait_bytes(UP, 4)
                proxy.cut()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
                proxy.wait_connections(0)
                server.close()
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", proxy.port), timeout=10)

    await asyncio.to_thread(converse)
