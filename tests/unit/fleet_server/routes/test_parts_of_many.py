"""Parts of many nodes, asked for at one moment."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from fleet.envelope import Signer
from fleet_server.routes.record import LeaseRecord
from tests.unit.fleet_server.routes.mesh import Mesh


@pytest.fixture
async def reads(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A None for each read of the database that streams asked for."""
    counted: list[None] = []
    for asked in (mesh.routes._parts_asked, mesh.routes._leases_asked, mesh.routes._listeners_asked):
        read: Callable[..., Any] = asked._run

        async def counting(work: Any, read: Callable[..., Any] = read) -> Any:
            counted.append(None)
            return await read(work)

        monkeypatch.setattr(asked, "_run", counting)
    return counted


async def test_many_that_ask_together_are_answered_by_one_read_and_each_with_its_own(
    mesh: Mesh, reads: list[None]
) -> None:
    names = [f"n{number}" for number in range(12)]
    await mesh.add_nodes(*names)
    for source, destination in itertools.pairwise(names):
        await mesh.connect(source, destination)
    await mesh.add_nodes("stranger")
    reads.clear()
    parts = await asyncio.gather(*(mesh.routes.snapshot(mesh.ids[name]) for name in (*names, "stranger")))
    assert len(reads) == 1
    assert parts[-1] is None
    for name, part in zip(names, parts, strict=False):
        alone = await mesh.content(name)
        assert part is not None
        assert (part.version, len(alone.routes)) == (alone.version, 1 if name in (names[0], names[-1]) else 2)
        assert all(mesh.ids[name] in config.path for config in alone.routes)


async def test_a_lease_is_signed_once_however_many_are_told_of_it(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await mesh.add_nodes("relay")
    await mesh.routes.add_relay("relay", by="ada")
    route = await mesh.connect("a", "b")
    await lend(mesh, route.route_id, mesh.ids["relay"])
    signed = 0
    sign = Signer.sign

    def counting(self: Signer, *args: Any) -> Any:
        nonlocal signed
        signed += 1
        return sign(self, *args)

    monkeypatch.setattr(Signer, "sign", counting)
    of_source, of_relay, of_foreign = [await mesh.routes.leases_of(mesh.ids[name]) for name in ("a", "relay", "b")]
    assert (of_source, of_foreign, signed) == (of_relay, [], 1)
    assert len(of_source) == 1


async def lend(mesh: Mesh, route_id: str, relay_id: str) -> None:
    """A lease as a decision grants it."""
    now_ms = mesh.routes.now_ms()
    lease = LeaseRecord(
        route_id=route_id,
        lease_id="ls_1",
        relay_id=relay_id,
        generation=1,
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + 120_000,
        withdrawn=False,
    )
    await mesh.database.write(lambda tx: mesh.routes.leases.save(tx.conn, lease))
