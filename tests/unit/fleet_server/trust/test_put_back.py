"""Rows of keys, CAs and bundles that somebody who writes the database put back, their MACs and signatures still good:
what was revoked stays revoked, at a replica that lags behind, at one that forgot, and at one that has just started."""

from collections.abc import Awaitable

import pytest

from fleet.v1 import trust_pb2
from fleet_server.database.engine import Connection, Database
from fleet_server.trust.tls_phases import TlsPhase
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.trust import test_rotation, test_tls_rotation
from tests.unit.fleet_server.trust.test_trust import ENDPOINTS, edit

REVOKED = trust_pb2.KEY_PHASE_REVOKED


def rows(database: Database, table: str) -> Awaitable[list[tuple[object, ...]]]:
    def query(conn: Connection) -> list[tuple[object, ...]]:
        return [tuple(row) for row in conn.exec_driver_sql(f"SELECT * FROM {table}")]

    return database.read(query)


async def put_back(database: Database, table: str, row: tuple[object, ...], key: str, value: bytes) -> None:
    await edit(database, f"DELETE FROM {table} WHERE {key} = ?", value)
    await edit(database, f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)


async def test_a_replica_that_lags_behind_believes_the_bundle_before_its_memory(
    database: Database, clock: MockClock
) -> None:
    one = await test_rotation.replica(database, clock)
    lagging = await test_rotation.replica(database, clock, writer="r-2")
    stolen = one.trust.command_key_id("")
    (row,) = await rows(database, "command_keys")
    await one.rotation.prepare("ada", "")
    await one.rotation.revoke("ada", stolen.hex(), reason="stolen", stop_commands=False)
    await put_back(database, "command_keys", row, "key_id", stolen)

    await lagging.trust.publish_bundle(ENDPOINTS)

    assert lagging.trust.bundle.command_keys[stolen].phase == REVOKED
    assert lagging.trust.command_key_id("") != stolen


@pytest.mark.parametrize("who", ["a replica that forgot it", "one that has just started"])
async def test_a_revoked_key_stays_revoked_whatever_is_put_back_beside_it(
    database: Database, clock: MockClock, who: str
) -> None:
    one = await test_rotation.replica(database, clock)
    stolen = one.trust.command_key_id("")
    (row,) = await rows(database, "command_keys")
    made = await one.rotation.prepare("ada", "")
    await one.rotation.revoke("ada", stolen.hex(), reason="stolen", stop_commands=False)
    await edit(database, "DELETE FROM command_keys WHERE key_id = ?", stolen)
    await one.trust.publish_bundle(ENDPOINTS)  # names it no more
    if who == "one that has just started":
        await edit(database, "DELETE FROM trust_bundles WHERE number > 1")
    await put_back(database, "command_keys", row, "key_id", stolen)

    again = one if who == "a replica that forgot it" else await test_rotation.replica(database, clock, writer="r-2")
    await again.trust.publish_bundle([*ENDPOINTS, "again.example:7443"])

    assert again.trust.bundle.command_keys[stolen].phase == REVOKED
    assert again.trust.command_key_id("") == made.key_id
    assert "key.quarantined" in [kind for kind, _, _ in await test_rotation.audited(one)]


async def test_a_revoked_ca_stays_revoked_at_a_server_that_has_just_started(
    database: Database, clock: MockClock
) -> None:
    """Nodes remember nothing of it: whoever has its key would terminate TLS before them again."""
    one = await test_tls_rotation.replica(database, clock)
    (stolen,) = one.trust.tls.cas
    (row,) = await rows(database, "tls_cas")
    await one.tls.prepare("ada", b"")
    await one.tls.revoke("ada", stolen.sha256.hex(), reason="stolen")
    await edit(database, "DELETE FROM trust_bundles WHERE number > 1")
    await put_back(database, "tls_cas", row, "sha256", stolen.sha256)

    again = await test_tls_rotation.replica(database, clock, writer="r-2")

    assert again.phases() == [TlsPhase.REVOKED, TlsPhase.ACTIVE]
    assert stolen.certificate_der not in again.trust.bundle.tls_ca_der
    assert "tls_ca.quarantined" in await test_tls_rotation.audited(database, clock, "tls_ca.q")


async def test_a_bundle_that_was_taken_out_takes_no_replica_back(database: Database, clock: MockClock) -> None:
    """Its number would be given to another bundle, which no node that holds the first one takes."""
    one = await test_rotation.replica(database, clock)
    made = await one.rotation.prepare("ada", "")
    before = one.trust.bundle
    await edit(database, "DELETE FROM trust_bundles WHERE number > 1")

    await one.trust.watch.look()

    assert one.trust.bundle.version == (1, before.number + 1)
    assert made.key_id in one.trust.bundle.command_keys
    await edit(database, "DELETE FROM trust_bundles")
    await one.trust.publish_bundle(ENDPOINTS)
    assert one.trust.bundle.version == (1, before.number + 2)
