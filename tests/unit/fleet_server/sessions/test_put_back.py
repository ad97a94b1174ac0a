"""Who writes the database and holds a machine that was revoked or replaced puts its rows back: each of them carries a
good MAC, for the server wrote it once."""

import secrets

import pytest

from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.node_keys import sign_rotation
from fleet_server.database.engine import Connection, Database
from fleet_server.nodes.record import NodeState
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import Node, World, refused

_TABLES = ("nodes", "api_keys")


class Copies:
    """Rows as they stood."""

    def __init__(self, world: World, rows: dict[str, list[dict[str, object]]]) -> None:
        self._world = world
        self._rows = rows

    @classmethod
    async def take(cls, world: World) -> "Copies":
        def query(conn: Connection) -> dict[str, list[dict[str, object]]]:
            return {
                table: [dict(row._mapping) for row in conn.exec_driver_sql(f"SELECT * FROM {table}")]
                for table in _TABLES
            }

        return cls(world, await world.database.read(query))

    async def put_back(self) -> None:
        for table, key in zip(_TABLES, ("node_id", "key_sha256"), strict=True):
            for row in self._rows[table]:
                columns = ", ".join(f"{column} = ?" for column in row)
                text = f"UPDATE {table} SET {columns} WHERE {key} = ?"
                await self._world.execute(text, *row.values(), row[key])


async def replace_identity(world: World, node: Node) -> None:
    """The node makes itself new keys, and the server takes them."""
    new = NodeKeys.generate()
    statement = sign_rotation(
        cluster_id=world.trust.cluster_id,
        node_id=node.node_id,
        old=node.keys,
        new=new,
        issued_at_ms=world.clock.now_ms(),
    )
    assert (await world.sessions.rotations.take_keys(node.node_id, await world.epoch(node.node_id), statement)).taken
    node.keys = new


async def is_let_in_nowhere(world: World, database: Database, clock: MockClock, node: Node) -> None:
    """Not by the replica that ended it, and not by one that has just started; and the audit tells."""
    for each in (world, await World(database, clock, replica_id=secrets.token_hex(4)).start()):
        node.world = each
        assert await refused(node.connect()) is Reason.QUARANTINED
        await each.nodes.flush()
    assert (await world.node(node.name)).state is NodeState.QUARANTINED
    assert "node.quarantined" in await world.audited()


async def test_a_revoked_machine_whose_rows_are_put_back_stays_out(
    world: World, database: Database, clock: MockClock
) -> None:
    node = await world.member()
    await node.connect()
    before = await Copies.take(world)
    await world.nodes.set_state("ada", [node.name], "REVOKED", "stolen")
    assert await refused(node.connect()) is Reason.REVOKED
    await before.put_back()

    await is_let_in_nowhere(world, database, clock, node)
    await world.nodes.set_state("ada", [node.name], "REVOKED", "stolen, and the database was written to")
    assert await refused(node.connect()) is Reason.REVOKED
    await before.put_back()
    await is_let_in_nowhere(world, database, clock, node)


@pytest.mark.parametrize("first", ["garbled", "put back"])
async def test_what_was_changed_before_the_revocation_does_not_get_around_it(
    world: World, database: Database, clock: MockClock, first: str
) -> None:
    """The revocation meets a row that names other keys than the machine's."""
    node = await world.member()
    oldest = await Copies.take(world)
    await replace_identity(world, node)
    newest = await Copies.take(world)
    await node.connect()
    if first == "garbled":
        await world.execute("UPDATE nodes SET identity_key = ?", bytes(32))
    else:
        await oldest.put_back()
    await world.nodes.set_state("ada", [node.name], "REVOKED", "stolen")
    await newest.put_back()
    await is_let_in_nowhere(world, database, clock, node)


async def test_keys_that_were_replaced_do_not_come_back(world: World, database: Database, clock: MockClock) -> None:
    node = await world.member()
    before, former = await Copies.take(world), node.keys
    await replace_identity(world, node)
    assert await node.connect()
    await before.put_back()
    node.keys = former
    await is_let_in_nowhere(world, database, clock, node)


async def test_a_replaced_machine_does_not_come_back(world: World, database: Database, clock: MockClock) -> None:
    world.sessions.adopt_nodes(lambda _tx, _node_id, _replaced: 41)
    node = await world.member("press-7")
    before = await Copies.take(world)
    spare = Node(world, name="spare")
    await spare.enroll(await world.token())
    await world.enrollment.replace_node("carol", "press-7", spare.enrollment_id, reason="dead")
    await spare.fetch_bootstrap()
    assert await spare.connect()
    await before.put_back()
    await is_let_in_nowhere(world, database, clock, node)


async def test_suspended_resumed_labelled_and_rotated_it_is_let_in(world: World) -> None:
    node = await world.member()
    await world.nodes.set_state("ada", [node.name], "SUSPENDED", "odd")
    await world.nodes.label("ada", [node.name], {"rack": "4"}, [])
    await world.nodes.set_state("ada", [node.name], "ACTIVE", "checked")
    await replace_identity(world, node)
    assert await node.connect()


async def test_a_fleet_does_not_stop_for_a_byte_of_its_audit(
    world: World, database: Database, clock: MockClock
) -> None:
    """A replica that starts and finds the record of what ended changed lets no operator in, and goes on with nodes."""
    node, other = await world.member(), await world.member("node-2")
    await world.nodes.set_state("ada", [other.name], "REVOKED", "stolen")
    await world.execute("UPDATE audit_rows SET actor = 'eve' WHERE writer = 'server:spent'")
    node.world = await World(database, clock, replica_id="r2").start()
    assert await node.connect()
    await replace_identity(node.world, node)
    assert await node.connect()
    with pytest.raises(Refusal, match="what was revoked cannot be told"):
        await node.world.nodes.set_state("ada", [node.name], "REVOKED", "stolen")


async def test_a_machine_that_was_replaced_becomes_the_node_again_by_other_keys_alone(world: World) -> None:
    world.sessions.adopt_nodes(lambda *_: 41)
    first = await world.member("press-7")
    await first.connect()
    spare = Node(world, name="spare")
    await spare.enroll(await world.token(site="elsewhere"))
    await world.enrollment.replace_node("carol", "press-7", spare.enrollment_id, reason="broken")
    await world.clock.advance(5)
    repaired = Node(world, name="repaired")
    repaired.keys = first.keys
    await repaired.enroll(await world.token(site="elsewhere"))
    with pytest.raises(Refusal, match="empty state folder"):
        await world.enrollment.replace_node("carol", "press-7", repaired.enrollment_id, reason="repaired")
    await spare.fetch_bootstrap()
    await spare.connect()
    assert (await world.node("press-7")).state is NodeState.ACTIVE
