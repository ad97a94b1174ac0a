"""Rotation of command keys against a real database: what is written, signed, published and audited."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from fleet import command_trust
from fleet import trust as node_trust
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.sequence import StatementReason, StatementRefusal
from fleet.trust import TrustState
from fleet.v1 import trust_pb2
from fleet_server.audit.service import AuditCursor
from fleet_server.database.engine import Connection, Database
from fleet_server.trust.phases import DAY_MS
from fleet_server.trust.rollout import BundleHolding
from fleet_server.trust.rotation import KeyRotation
from fleet_server.trust.service import TrustService, TrustSetupError
from fleet_server.trust.watch import WATCH_INTERVAL_S
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.audit.test_spent import Copy
from tests.unit.fleet_server.trust.test_trust import ENDPOINTS, edit, make

ACTIVE, RETIRED = trust_pb2.KEY_PHASE_ACTIVE, trust_pb2.KEY_PHASE_RETIRED
PREPARED, REVOKED = trust_pb2.KEY_PHASE_PREPARED, trust_pb2.KEY_PHASE_REVOKED


@dataclass
class Fleet:
    """What nodes hold, as the nodes room would tell it."""

    holdings: list[BundleHolding] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)

    def __call__(self, conn: Connection, site: str, seen_since_ms: int) -> list[tuple[tuple[int, int], int, int, str]]:
        self.asked_for.append(site)
        return [(held.version, held.nodes, held.asked, held.example) for held in self.holdings]


@dataclass
class Replica:
    """A server's trust, and its rotation."""

    trust: TrustService
    rotation: KeyRotation
    fleet: Fleet

    def phases(self) -> list[int]:
        return [record.key.phase for record in self.trust.command_keys()]


async def replica(database: Database, clock: MockClock, *, writer: str = "r-1", days: int = 0) -> Replica:
    trust = make(database, clock, writer=writer)
    await trust.create_cluster()
    await trust.load()
    await trust.publish_bundle(ENDPOINTS)
    fleet = Fleet()
    rotation = KeyRotation(trust, fleet, days=days)
    return Replica(trust, rotation, fleet)


@pytest.fixture
async def one(database: Database, clock: MockClock) -> Replica:
    return await replica(database, clock)


async def audited(one: Replica, kinds: str = "key.") -> list[tuple[str, str, dict[str, object]]]:
    rows = (await one.trust._audit.page(AuditCursor())).rows
    return [(row.kind, row.actor, json.loads(row.detail)) for row in rows if row.kind.startswith(kinds)]


def verify(state: TrustState, signed: trust_pb2.Signed, clock: MockClock, site: str = "") -> bytes:
    return command_trust.verify_command_envelope(state, signed, Domain.COMMAND, site=site, now_ms=clock.now_ms())


async def test_a_rotation_from_the_first_step_to_the_last(one: Replica, clock: MockClock) -> None:
    trust, before = one.trust, one.trust.command_key_id("")
    old_bundle, in_flight = trust.bundle, trust.sign_command_statement(Domain.COMMAND, b"old", site="")

    made = await one.rotation.prepare("ada", "")
    assert (made.key.phase, made.first_bundle) == (PREPARED, (1, 2))
    assert trust.bundle.version == (1, 2)
    assert made.key_id in trust.bundle.command_keys
    assert trust.command_key_id("") == before, "prepared is not used"

    one.fleet.holdings = [BundleHolding((1, 1), 1, 1, "press-1"), BundleHolding((1, 2), 4, 4, "press-2")]
    with pytest.raises(Refusal, match=r"4 of 5 nodes.*press-1"):
        await one.rotation.activate("ada", made.key_id.hex())
    assert trust.bundle.version == (1, 2)

    one.fleet.holdings = [BundleHolding((1, 2), 5, 5, "press-1")]
    prepared_bundle = trust.bundle
    active, far = await one.rotation.activate("ada", made.key_id.hex()[:8])
    assert (active.key.phase, far.asked, far.holding) == (ACTIVE, 5, 5)
    assert trust.command_key_id("") == made.key_id
    assert one.phases() == [RETIRED, ACTIVE]
    signed = trust.sign_command_statement(Domain.COMMAND, b"new", site="")
    for state in (prepared_bundle, trust.bundle):
        assert verify(state, signed, clock) == b"new"
        assert verify(state, in_flight, clock) == b"old", "what is in flight is not lost"
    with pytest.raises(StatementRefusal):
        verify(old_bundle, signed, clock)

    clock.step_wall(DAY_MS / 1000)
    with pytest.raises(StatementRefusal) as ended:
        verify(trust.bundle, in_flight, clock)
    assert ended.value.reason is StatementReason.KEY_EXPIRED
    await trust.publish_bundle(ENDPOINTS)
    assert before not in trust.bundle.command_keys, "what has ended leaves the bundle"
    assert [(kind, actor) for kind, actor, _ in await audited(one)] == [
        ("key.created", "server"),
        ("key.prepared", "ada"),
        ("key.activated", "ada"),
        ("key.retired", "ada"),
    ]


async def test_an_override_activates_and_its_reason_is_audited(one: Replica) -> None:
    made = await one.rotation.prepare("ada", "")
    one.fleet.holdings = [BundleHolding((1, 1), 3, 2, "press-1")]
    with pytest.raises(Refusal, match="say why"):
        await one.rotation.activate("ada", made.key_id.hex(), override="   ")
    _, far = await one.rotation.activate("ada", made.key_id.hex(), override="press-1 is scrap")
    assert (far.asked, far.holding, far.away) == (2, 0, 1)
    kind, _, detail = (await audited(one))[-2]
    assert kind == "key.activated"
    assert (detail["override"], detail["asked"], detail["holding"]) == ("press-1 is scrap", 2, 0)


async def test_a_site_has_a_key_of_its_own_and_can_give_it_back(one: Replica, clock: MockClock) -> None:
    trust, cluster_key = one.trust, one.trust.command_key_id("")
    made = await one.rotation.prepare("ada", "berlin")
    await one.rotation.activate("ada", made.key_id.hex())
    assert one.fleet.asked_for[-1] == "berlin"
    assert (trust.command_key_id("berlin"), trust.command_key_id("paris")) == (made.key_id, cluster_key)
    signed = trust.sign_command_statement(Domain.COMMAND, b"x", site="berlin")
    assert verify(trust.bundle, signed, clock, site="berlin") == b"x"
    with pytest.raises(StatementRefusal) as elsewhere:
        verify(trust.bundle, signed, clock, site="paris")
    assert elsewhere.value.reason is StatementReason.WRONG_SITE
    retired = await one.rotation.retire("ada", made.key_id.hex(), verify_for_ms=3_600_000)
    assert retired.key.verify_until_ms == clock.now_ms() + 3_600_000
    assert trust.command_key_id("berlin") == cluster_key
    shorter = await one.rotation.retire("ada", made.key_id.hex(), verify_for_ms=1000)
    assert (shorter.key.verify_until_ms, shorter.since_ms) == (clock.now_ms() + 1000, retired.since_ms)


async def test_a_revoked_key_verifies_nothing_and_the_prepared_one_takes_over(one: Replica, clock: MockClock) -> None:
    trust, before = one.trust, one.trust.command_key_id("")
    in_flight = trust.sign_command_statement(Domain.COMMAND, b"old", site="")
    with pytest.raises(Refusal, match="--stop-commands"):
        await one.rotation.revoke("ada", before.hex(), reason="leaked", stop_commands=False)
    assert trust.bundle.version == (1, 1)
    made = await one.rotation.prepare("ada", "")
    revoked = await one.rotation.revoke("ada", before.hex(), reason="leaked", stop_commands=False)
    assert revoked.key.phase == REVOKED
    assert trust.command_key_id("") == made.key_id
    with pytest.raises(StatementRefusal) as worthless:
        verify(trust.bundle, in_flight, clock)
    assert worthless.value.reason is StatementReason.KEY_REVOKED
    assert verify(trust.bundle, trust.sign_command_statement(Domain.COMMAND, b"x", site=""), clock) == b"x"
    kinds = {kind: detail for kind, _, detail in await audited(one)}
    assert kinds["key.revoked"]["reason"] == kinds["key.activated"]["reason"] == "leaked"


async def test_commands_stop_when_the_last_key_is_revoked_and_go_on_with_the_next_also_after_a_restart(
    one: Replica, database: Database, clock: MockClock
) -> None:
    last = one.trust.command_key_id("")
    await one.rotation.revoke("ada", last.hex(), reason="leaked", stop_commands=True)
    with pytest.raises(Refusal) as stopped:
        one.trust.command_key_id("")
    assert stopped.value.reason is Reason.UNAVAILABLE
    again = await replica(database, clock, writer="r-2")  # or nobody could ever prepare another
    made = await again.rotation.prepare("ada", "")
    await again.rotation.activate("ada", made.key_id.hex())
    assert again.trust.command_key_id("") == made.key_id


@pytest.mark.parametrize("verb", ["prepare", "activate", "retire", "revoke"])
async def test_what_is_refused_changes_nothing(one: Replica, verb: str) -> None:
    made = await one.rotation.prepare("ada", "")
    version, keys, seen = one.trust.bundle.version, one.trust.command_keys(), await audited(one)
    active = one.trust.command_key_id("").hex()
    with pytest.raises(Refusal):
        if verb == "prepare":
            await one.rotation.prepare("ada", "")
        elif verb == "activate":
            await one.rotation.activate("ada", active)
        elif verb == "retire":
            await one.rotation.retire("ada", made.key_id.hex(), verify_for_ms=0)
        else:
            await one.rotation.revoke("ada", made.key_id.hex(), reason=" ", stop_commands=True)
    await one.trust.publish_bundle(ENDPOINTS)
    assert (one.trust.bundle.version, one.trust.command_keys()) == (version, keys)
    assert await audited(one) == seen


async def test_two_replicas_that_rotate_at_once_take_turns(database_url: str, clock: MockClock) -> None:
    databases = [Database(database_url) for _ in range(2)]
    for database in databases:
        database.start()
    both = [await replica(database, clock, writer=f"r-{n}", days=30) for n, database in enumerate(databases)]

    prepared = await asyncio.gather(*(each.rotation.prepare("ada", "") for each in both), return_exceptions=True)
    refused = [each for each in prepared if isinstance(each, Refusal)]
    assert len(refused) == 1
    assert refused[0].reason is Reason.CONFLICT
    (made,) = [each for each in prepared if not isinstance(each, BaseException)]
    activated = await asyncio.gather(
        *(each.rotation.activate("ada", made.key_id.hex()) for each in both), return_exceptions=True
    )
    assert sum(isinstance(each, Refusal) for each in activated) == 1
    for each in both:
        await each.trust.publish_bundle(ENDPOINTS)
    assert {each.trust.command_key_id("") for each in both} == {made.key_id}
    assert {each.trust.bundle.version for each in both} == {(1, 3)}

    clock.step_wall(29 * DAY_MS / 1000)
    await asyncio.gather(*(each.rotation.rotate_due() for each in both))
    clock.step_wall(DAY_MS / 1000)
    await asyncio.gather(*(each.rotation.rotate_due() for each in both))
    await asyncio.gather(*(each.rotation.rotate_due() for each in both))
    kinds = [kind for kind, actor, _ in await audited(both[0]) if actor == "schedule"]
    assert sorted(kinds) == ["key.activated", "key.prepared", "key.retired"], "one replica did each step, once"
    for database in databases:
        await database.close()


async def test_the_schedule_waits_for_nodes_and_is_off_by_default(
    one: Replica, database: Database, clock: MockClock
) -> None:
    clock.step_wall(400 * DAY_MS / 1000)
    await one.rotation.rotate_due()
    assert one.phases() == [ACTIVE]
    daily = await replica(database, clock, writer="r-2", days=30)
    await daily.rotation.rotate_due()
    assert daily.phases() == [ACTIVE, PREPARED]
    clock.step_wall(DAY_MS / 1000)
    daily.fleet.holdings = [BundleHolding((1, 1), 1, 1, "press-1")]
    await daily.rotation.rotate_due()
    assert daily.phases() == [ACTIVE, PREPARED], "press-1 would refuse what the key signs"
    daily.fleet.holdings = [BundleHolding(daily.trust.bundle.version, 1, 1, "press-1")]
    await daily.rotation.rotate_due()
    assert daily.phases() == [RETIRED, ACTIVE]
    assert (await audited(one))[-2][2]["schedule_days"] == 30


async def test_another_replica_follows_within_a_second(one: Replica, database: Database, clock: MockClock) -> None:
    other = await replica(database, clock, writer="r-2")
    made = await one.rotation.prepare("ada", "")
    await one.rotation.revoke("ada", one.trust.command_key_id("").hex(), reason="leaked", stop_commands=False)
    watching = asyncio.create_task(other.trust.watch.run())
    await clock.wait_sleepers(1)
    await clock.advance(WATCH_INTERVAL_S)
    await clock.wait_sleepers(1)
    assert other.trust.bundle.version == one.trust.bundle.version
    assert other.trust.command_key_id("") == made.key_id
    watching.cancel()


async def test_replicas_that_offer_different_endpoints_do_not_answer_each_other_without_end(
    one: Replica, database: Database, clock: MockClock
) -> None:
    other = make(database, clock, writer="r-2")
    await other.load()
    await other.publish_bundle(["other.example:7443"])
    watching = [asyncio.create_task(each.watch.run()) for each in (one.trust, other)]
    for _ in range(6):
        await clock.wait_sleepers(2)
        await clock.advance(WATCH_INTERVAL_S)
    await clock.wait_sleepers(2)
    assert one.trust.bundle.version == other.bundle.version == (1, 2)
    for each in watching:
        each.cancel()


async def test_a_node_that_comes_from_another_replica_brings_the_news(
    one: Replica, database: Database, clock: MockClock
) -> None:
    """And the replica that learns of it so publishes nothing of what it remembered."""
    other = await replica(database, clock, writer="r-2")
    made = await one.rotation.prepare("ada", "")
    await one.rotation.activate("ada", made.key_id.hex())
    await other.trust.note_held_bundle(*one.trust.bundle.version)
    assert other.trust.bundle.version == one.trust.bundle.version == (1, 3)
    assert other.trust.command_key_id("") == made.key_id


async def test_a_row_that_was_put_back_around_the_server_is_used_for_nothing(
    one: Replica, database: Database, clock: MockClock
) -> None:
    """A database writer keeps the row of an ACTIVE key, its MAC and all, and restores it after the key was revoked."""

    def copy(conn: Connection) -> tuple[int, int, bytes]:
        row = conn.exec_driver_sql("SELECT phase, since_ms, mac FROM command_keys").one()
        return row[0], row[1], bytes(row[2])

    kept = await database.read(copy)
    revoked = one.trust.command_key_id("")
    made = await one.rotation.prepare("ada", "")
    await one.rotation.revoke("ada", revoked.hex(), reason="leaked", stop_commands=False)
    await edit(database, "UPDATE command_keys SET phase = ?, since_ms = ?, mac = ? WHERE key_id = ?", *kept, revoked)
    for each in (one, await replica(database, clock, writer="r-2")):
        await each.trust.publish_bundle(ENDPOINTS)
        await each.trust.publish_bundle([*ENDPOINTS, "again.example:7443"])
        assert each.trust.command_key_id("") == made.key_id
        assert each.trust.bundle.command_keys[revoked].phase == REVOKED
    assert "key.quarantined" in [kind for kind, _, _ in await audited(one)]


async def test_a_revoked_key_stays_revoked_at_nodes_when_all_of_the_database_goes_back(
    one: Replica, database: Database, clock: MockClock
) -> None:
    """Keys, bundles and audit from before the revocation, and every replica started anew: a restore, honest or not."""
    stolen = one.trust.command_key_id("")
    thief = one.trust._active_keys[stolen].signer
    copy = await Copy(database).take("command_keys", "trust_bundles", "audit_rows", "audit_heads")
    await one.rotation.prepare("ada", "")
    await one.rotation.revoke("ada", stolen.hex(), reason="stolen", stop_commands=False)
    node = one.trust.bundle
    forged = thief.sign(Domain.COMMAND, b"forged")

    await copy.put_back()
    again = await replica(database, clock, writer="r-2")
    await again.trust.note_held_bundle(*node.version)
    node = node_trust.walk(node, again.trust.bundle_chain_from(*node.version))

    assert node.version == again.trust.bundle.version, "the node follows"
    assert node.command_keys[stolen].phase == ACTIVE, "the server knows of nothing"
    with pytest.raises(StatementRefusal) as caught:
        verify(node, forged, clock)
    assert caught.value.reason is StatementReason.KEY_REVOKED
    assert all(detail["held"] == [1, 3] for _, _, detail in await audited(again, "bundle.behind"))
    assert await audited(again, "bundle.behind")


async def test_a_row_that_is_edited_under_a_running_server_is_dropped_and_audited_once(
    one: Replica, database: Database
) -> None:
    made = await one.rotation.prepare("ada", "berlin")
    await edit(database, "UPDATE command_keys SET phase = ? WHERE key_id = ?", ACTIVE, made.key_id)
    for _ in range(3):
        await one.trust.publish_bundle(ENDPOINTS)
    assert made.key_id not in one.trust.bundle.command_keys
    assert one.trust.command_key_id("berlin") == one.trust.command_key_id("")
    assert [kind for kind, _, _ in await audited(one)].count("key.quarantined") == 1
    with pytest.raises(Refusal) as gone:
        await one.rotation.revoke("ada", made.key_id.hex(), reason="leaked", stop_commands=False)
    assert gone.value.reason is Reason.NOT_FOUND


async def test_rows_that_do_not_verify_later_stop_no_server(one: Replica, database: Database, clock: MockClock) -> None:
    await edit(database, "UPDATE cluster_authorities SET public_key = ?", bytes(32))
    running = asyncio.create_task(one.trust.run())
    await clock.wait_sleepers(1)
    await clock.advance(60)
    await clock.wait_sleepers(1)
    assert not running.done()
    assert one.trust.sign_command_statement(Domain.COMMAND, b"x", site="").signatures
    running.cancel()
    with pytest.raises(TrustSetupError):
        await make(database, clock).load()


async def test_keys_are_shown_with_who_holds_them(one: Replica) -> None:
    made = await one.rotation.prepare("ada", "")
    one.fleet.holdings = [BundleHolding((1, 1), 4, 2, "press-1"), BundleHolding((1, 2), 3, 3, "press-2")]
    assert [(used.record.key.phase, used.nodes) for used in await one.rotation.in_use()] == [(ACTIVE, 7), (PREPARED, 3)]
    (far,) = await one.rotation.rollouts()
    assert (far.record, far.asked, far.holding, far.away) == (made, 5, 3, 2)
