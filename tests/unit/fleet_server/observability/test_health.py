"""grpc.health.v1 on a real server, through readiness, drain and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fleet.metrics_listener import Health
from fleet_server.observability.health import (
    ADMIN_SERVICE,
    GATEWAY_SERVICE,
    MAX_SERVICE_NAME_CHARS,
    MAX_WATCHERS,
    ServerHealth,
)

WATCHDOG_S = 20.0
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def health() -> ServerHealth:
    return await ServerHealth.create()


@asynccontextmanager
async def listening(health: ServerHealth, service: str) -> AsyncIterator[HealthStub]:
    server = grpc.aio.server()
    health.register(server, service)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncExitStack() as stack, asyncio.timeout(WATCHDOG_S):
        stack.push_async_callback(server.stop, None)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        yield HealthStub(channel)


@pytest.fixture
async def stub(health: ServerHealth) -> AsyncIterator[HealthStub]:
    """The gateway's listener."""
    async with listening(health, GATEWAY_SERVICE) as stub:
        yield stub


@pytest.fixture
async def admin_stub(health: ServerHealth) -> AsyncIterator[HealthStub]:
    """The admin listener."""
    async with listening(health, ADMIN_SERVICE) as stub:
        yield stub


async def test_a_replica_goes_from_starting_to_ready_to_draining_to_stopped(
    health: ServerHealth, stub: HealthStub, admin_stub: HealthStub
) -> None:
    async def statuses() -> list[int]:
        asked = [(stub, ""), (stub, GATEWAY_SERVICE), (admin_stub, ADMIN_SERVICE)]
        return [(await listener.Check(HealthCheckRequest(service=name))).status for listener, name in asked]

    assert await statuses() == [NOT_SERVING] * 3
    assert health.readyz() == Health(False, "starting")
    await health.set_ready()
    assert await statuses() == [SERVING] * 3
    assert health.readyz() == Health(True, "ready")
    await health.set_draining("draining: 3 streams left")
    assert await statuses() == [NOT_SERVING, NOT_SERVING, SERVING], "operators steer the drain"
    assert health.readyz() == Health(False, "draining: 3 streams left")
    await health.close()
    assert await statuses() == [NOT_SERVING] * 3
    await health.set_ready()
    assert await statuses() == [NOT_SERVING] * 3, "nothing comes back after the end"
    assert health.healthz().ok


async def test_a_process_in_which_something_hangs_is_to_be_started_anew() -> None:
    hung = [""]
    health = await ServerHealth.create(lambda: hung[0])
    assert health.healthz() == Health(True, "alive")
    hung[0] = "the database writer hangs"
    assert health.healthz() == Health(False, "the database writer hangs")


async def test_a_watcher_hears_of_the_drain(health: ServerHealth, stub: HealthStub) -> None:
    watch = stub.Watch(HealthCheckRequest(service="fleet.v1.Gateway"))
    assert (await watch.read()).status == NOT_SERVING
    await health.set_ready()
    assert (await watch.read()).status == SERVING
    await health.set_draining()
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_a_listener_knows_only_what_it_serves(
    health: ServerHealth, stub: HealthStub, admin_stub: HealthStub
) -> None:
    await health.set_ready()
    for listener, strange in ((stub, ADMIN_SERVICE), (admin_stub, GATEWAY_SERVICE), (stub, "fleet.v1.Nothing")):
        assert (await listener.Check(HealthCheckRequest(service=""))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listener.Check(HealthCheckRequest(service=strange))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watch = listener.Watch(HealthCheckRequest(service=strange))
        assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


async def test_watchers_are_capped_and_a_slot_comes_free(health: ServerHealth, stub: HealthStub) -> None:
    watches = [stub.Watch(HealthCheckRequest(service="")) for _ in range(MAX_WATCHERS)]
    for watch in watches:
        await watch.read()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Watch(HealthCheckRequest(service="")).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Check(HealthCheckRequest(service=""))).status == NOT_SERVING
    watches.pop().cancel()
    while True:
        again = stub.Watch(HealthCheckRequest(service=""))
        try:
            assert (await again.read()).status == NOT_SERVING
            break
        except grpc.aio.AioRpcError as full:
            assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for watch in [*watches, again]:
        watch.cancel()


async def test_a_watcher_cannot_make_the_server_keep_a_long_name(stub: HealthStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Watch(HealthCheckRequest(service="x" * (MAX_SERVICE_NAME_CHARS + 1))).read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
