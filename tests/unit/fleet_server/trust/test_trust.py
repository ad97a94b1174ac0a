import asyncio
import os
from collections.abc import Awaitable

import pytest

from fleet import command_trust
from fleet import trust as node_trust
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet.sequence import StatementRefusal
from fleet.trust import BUNDLE_LIFETIME_MS, MAX_NUMBER_STEP
from fleet.v1 import trust_pb2
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import MAX_NUMBER_RAISE, TrustService, TrustSetupError
from tests.fakes.clock import MockClock

ENDPOINTS = ["gateway.example:7443"]
SECRETS = Secrets(Secret(bytes(32)))


def make(
    database: Database,
    clock: MockClock,
    *,
    secrets: Secrets = SECRETS,
    writer: str = "r-1",
    wakeup: Wakeup | None = None,
) -> TrustService:
    wakeup = wakeup or Wakeup()
    audit = AuditService(database=database, clock=clock, wakeup=wakeup, writer=writer, row_mac=secrets.row_mac)
    return TrustService(
        database=database, secrets=secrets, clock=clock, audit=audit, wakeup=wakeup, cluster_name="main"
    )


@pytest.fixture
def wakeup() -> Wakeup:
    return Wakeup()


@pytest.fixture
async def trust(database: Database, clock: MockClock, wakeup: Wakeup) -> TrustService:
    service = make(database, clock, wakeup=wakeup)
    await service.create_cluster()
    await service.load()
    await service.publish_bundle(ENDPOINTS)
    return service


def edit(database: Database, text: str, *values: object) -> Awaitable[int]:
    def work(tx: Transaction) -> int:
        return tx.conn.exec_driver_sql(sql(tx.conn, text), values).rowcount

    return database.write(work)


async def kinds(database: Database, clock: MockClock) -> list[str]:
    reader = AuditService(database=database, clock=clock, wakeup=Wakeup(), writer="reader", row_mac=SECRETS.row_mac)
    return [row.kind for row in (await reader.page(AuditCursor())).rows]


async def test_a_new_cluster_has_an_authority_an_active_key_and_a_bundle_that_nodes_take(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    state = node_trust.first(trust.bundle.signed, cluster_id=trust.cluster_id, authority_key=trust.authority.public_key)
    assert state.version == (1, 1)
    assert state.endpoints == tuple(ENDPOINTS)
    assert state.tls_ca_der == tuple(trust.tls.published_der) != ()
    assert state.command_keys.keys() == {trust.command_key_id("")}
    assert await kinds(database, clock) == [
        "spent.begun",
        "cluster.created",
        "authority.created",
        "key.created",
        "tls_ca.created",
        "bundle.published",
    ]


async def test_a_node_accepts_what_the_command_key_signed(trust: TrustService, clock: MockClock) -> None:
    signed = trust.sign_command_statement(Domain.COMMAND, b"commands", site="berlin")
    now = clock.now_ms()
    verified = command_trust.verify_command_envelope(trust.bundle, signed, Domain.COMMAND, site="berlin", now_ms=now)
    assert verified == b"commands"
    with pytest.raises(StatementRefusal):
        command_trust.verify_command_envelope(trust.bundle, signed, Domain.CANCEL, site="berlin", now_ms=now)


@pytest.mark.parametrize("domain", [d for d in Domain if d not in (Domain.COMMAND, Domain.CANCEL)])
async def test_a_command_key_signs_nothing_else(trust: TrustService, domain: Domain) -> None:
    with pytest.raises(ValueError, match="signs no"):
        trust.sign_command_statement(domain, b"x", site="")


async def test_loading_again_finds_the_same_keys_and_publishes_nothing(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    again = make(database, clock)
    assert await again.create_cluster() == trust.cluster_id
    await again.load()
    await again.publish_bundle(ENDPOINTS)
    assert again.authority.public_key == trust.authority.public_key
    assert again.command_key_id("") == trust.command_key_id("")
    assert again.bundle.signed == trust.bundle.signed


async def test_many_replicas_that_start_at_once_agree_on_one_authority(database_url: str, clock: MockClock) -> None:
    databases = [Database(database_url) for _ in range(4)]
    services = [make(database, clock, writer=f"r-{number}") for number, database in enumerate(databases)]
    for database in databases:
        database.start()
    await services[0].create_cluster()
    await asyncio.gather(*(service.load() for service in services))
    await asyncio.gather(*(service.publish_bundle(ENDPOINTS) for service in services))
    assert len({service.authority.public_key for service in services}) == 1
    assert len({service.command_key_id("") for service in services}) == 1
    assert {service.bundle.version for service in services} == {(1, 1)}
    seen = await kinds(databases[0], clock)
    assert seen.count("authority.created") == seen.count("key.created") == seen.count("bundle.published") == 1
    for database in databases:
        await database.close()


async def test_changed_content_and_half_a_life_make_a_new_number_and_nothing_else_does(
    trust: TrustService, clock: MockClock
) -> None:
    await trust.publish_bundle(ENDPOINTS)
    assert trust.bundle.version == (1, 1)
    await trust.publish_bundle([*ENDPOINTS, "second.example:7443"])
    assert trust.bundle.version == (1, 2)
    running = asyncio.create_task(trust.run())
    await clock.wait_sleepers(1)
    clock.step_wall(BUNDLE_LIFETIME_MS / 2000 - 61)
    for expected in ((1, 2), (1, 3), (1, 3)):
        await clock.advance(60)
        await clock.wait_sleepers(1)
        assert trust.bundle.version == expected
    assert trust.bundle.expires_at_ms > clock.now_ms() + BUNDLE_LIFETIME_MS * 9 // 10
    running.cancel()


async def test_a_bundle_that_a_wrong_clock_dated_ahead_is_replaced_once_the_clock_is_right(
    database: Database, clock: MockClock
) -> None:
    ahead = MockClock()
    ahead.step_wall((clock.now_ms() - ahead.now_ms()) / 1000 + 3 * 86_400)
    wrong = make(database, ahead)
    await wrong.create_cluster()
    await wrong.load()
    await wrong.publish_bundle(ENDPOINTS)
    assert not wrong.bundle.fresh(clock.now_ms())
    trust = make(database, clock, writer="r-2")
    await trust.load()
    await trust.publish_bundle(ENDPOINTS)
    assert trust.bundle.version == (1, 2)
    assert trust.bundle.fresh(clock.now_ms())


async def test_a_replica_takes_up_what_another_published(
    trust: TrustService, database: Database, clock: MockClock, wakeup: Wakeup
) -> None:
    other = make(database, clock)
    await other.create_cluster()
    await other.load()
    await other.publish_bundle(["elsewhere.example:7443"])
    woken: list[int] = []
    wakeup.subscribe("bundle", lambda: woken.append(1))
    await trust.publish_bundle(["elsewhere.example:7443"])
    assert trust.bundle.version == other.bundle.version == (1, 2)
    assert woken == [1]


async def test_the_chain_brings_any_older_node_to_the_newest_bundle(trust: TrustService) -> None:
    held = trust.bundle
    for number in range(3):
        await trust.publish_bundle([f"gateway{number}.example:7443"])
    chain = trust.bundle_chain_from(*held.version)
    assert node_trust.walk(held, chain).version == trust.bundle.version == (1, 4)
    assert trust.bundle_chain_from(*trust.bundle.version) == []
    assert trust.bundle_chain_from(1, 99) == []
    assert len(trust.bundle_chain_from(0, 0)) == 2, "the first of the generation, and the newest"


async def test_a_node_that_holds_a_forgotten_bundle_lifts_the_number_but_not_without_bound(
    trust: TrustService, clock: MockClock
) -> None:
    await trust.note_held_bundle(1, 40)
    assert trust.bundle.version == (1, 41)
    await trust.note_held_bundle(1, 60)
    assert trust.bundle.version == (1, 41), "once an hour"
    await clock.advance(3600)
    await trust.note_held_bundle(2, 50)
    assert trust.bundle.version == (1, 41), "no generation of this server's"
    await trust.note_held_bundle(1, 2**40)
    assert trust.bundle.version == (1, 41 + MAX_NUMBER_RAISE + 1), "it follows step by step"
    assert MAX_NUMBER_RAISE * 24 * 600 < MAX_NUMBER_STEP, "a node that was away for 600 days still follows"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("phase", 1),
        ("site", "berlin"),
        ("verify_until_ms", 2**50),
        ("not_before_ms", 0),
        ("created_at_ms", 1),
        ("since_ms", 1),
        ("first_generation", 7),
        ("first_number", 7),
    ],
)
async def test_an_edited_command_key_is_refused_at_load(
    trust: TrustService, database: Database, clock: MockClock, column: str, value: object
) -> None:
    await edit(database, f"UPDATE command_keys SET {column} = ?", value)
    with pytest.raises(TrustSetupError, match=trust.command_key_id("").hex()):
        await make(database, clock).load()
    assert (await kinds(database, clock))[-1] == "key.quarantined"


async def test_a_command_key_that_was_written_into_the_database_signs_nothing(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    """A database writer without the secret key puts a key of its own beside the real one."""
    planted = bytes(16)
    await edit(
        database,
        "INSERT INTO command_keys SELECT ?, cluster_id, site, public_key, sealed_private, phase, not_before_ms + 1,"
        " verify_until_ms, created_at_ms + 1, since_ms, first_generation, first_number, mac FROM command_keys",
        planted,
    )
    again = make(database, clock)
    await again.load()
    await again.publish_bundle(ENDPOINTS)
    assert again.command_key_id("") == trust.command_key_id("")
    assert planted not in again.bundle.command_keys
    assert (await kinds(database, clock))[-1] == "key.quarantined"


async def test_another_authority_in_the_row_is_refused(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    await edit(database, "UPDATE cluster_authorities SET public_key = ?", os.urandom(32))
    with pytest.raises(TrustSetupError, match="not its own"):
        await make(database, clock).load()


async def test_an_installation_id_that_was_edited_is_refused(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    """What was signed for another installation would count here."""
    await edit(database, "UPDATE clusters SET installation_id = ?", "i-" + "0" * 32)
    with pytest.raises(TrustSetupError, match="table clusters"):
        await make(database, clock).load()


async def test_a_bundle_that_was_written_into_the_database_is_refused(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    forged = trust_pb2.Signed(statement=trust.bundle.signed.statement).SerializeToString()
    await edit(database, "UPDATE trust_bundles SET signed = ?", forged)
    with pytest.raises(TrustSetupError, match="does not verify"):
        await make(database, clock).load()


async def test_the_wrong_secret_key_is_named_at_load(trust: TrustService, database: Database, clock: MockClock) -> None:
    other = make(database, clock, secrets=Secrets(Secret(os.urandom(32))))
    with pytest.raises(TrustSetupError, match="FLEET_SECRET_ENCRYPTION_KEY"):
        await other.load()


async def test_a_database_without_the_cluster_or_with_another_says_what_to_do(
    database: Database, clock: MockClock
) -> None:
    service = make(database, clock)
    with pytest.raises(TrustSetupError, match="fleet-server init"):
        await service.load()
    await service.create_cluster()
    other = make(database, clock)
    other.cluster_name = "other"
    with pytest.raises(TrustSetupError, match="belongs to cluster main"):
        await other.create_cluster()


async def test_replicas_share_one_tls_ca(trust: TrustService, database: Database, clock: MockClock) -> None:
    other = make(database, clock)
    await other.load()
    await other.publish_bundle(ENDPOINTS)
    assert other.tls.published_der == trust.tls.published_der
    assert other.bundle.version == (1, 1)


async def test_before_the_first_bundle_callers_are_told_to_wait(database: Database, clock: MockClock) -> None:
    service = make(database, clock)
    await service.create_cluster()
    await service.load()
    with pytest.raises(Refusal) as refused:
        service.bundle_chain_from(0, 0)
    assert refused.value.reason is Reason.UNAVAILABLE


async def test_what_operators_see_of_keys_holds_no_private_part(trust: TrustService) -> None:
    records = trust.command_keys()
    assert [record.key_id for record in records] == [trust.command_key_id("")]
    assert trust._active("").signer.private_bytes().hex() not in repr(records)
    assert repr(trust._active("").signer.private_bytes())[2:-1] not in repr(records)
