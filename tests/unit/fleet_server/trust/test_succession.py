"""Rotation of the cluster authority against a real database: what is written, signed, published and audited."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from fleet import command_trust, trust_chain
from fleet import trust as node_trust
from fleet.envelope import Domain, Signer, key_id, verified_signers, verify_one
from fleet.errors import Reason, Refusal
from fleet.trust import BUNDLE_GRACE_S, BUNDLE_LIFETIME_MS, TrustError
from fleet.v1 import trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditCursor
from fleet_server.database.engine import Connection, Database
from fleet_server.streams.rpc import Gateway
from fleet_server.trust import bundles, store
from fleet_server.trust.master_keys import read_state
from fleet_server.trust.secrets import SealError
from fleet_server.trust.service import TrustService, TrustSetupError
from fleet_server.trust.succession import AuthorityRotation, chain_behind
from fleet_server.trust.watch import LOOK_PAUSE_S, WATCH_INTERVAL_S, BundleWatch
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.trust.test_trust import ENDPOINTS, SECRETS, edit, make

NODE_TAKES_BYTES = 4 * 1024 * 1024


async def replica(database: Database, clock: MockClock, *, writer: str = "r-1") -> TrustService:
    trust = make(database, clock, writer=writer)
    await trust.create_cluster()
    await trust.load()
    await trust.publish_bundle(ENDPOINTS)
    return trust


@pytest.fixture
async def trust(database: Database, clock: MockClock) -> TrustService:
    return await replica(database, clock)


async def rotate(trust: TrustService, *, from_generation: int = 0, reason: str = "yearly") -> bytes:
    generation = from_generation or trust.authority_generation
    record = await AuthorityRotation(trust).rotate("ada", from_generation=generation, reason=reason)
    return record.public_key


async def checkpoint(trust: TrustService) -> bool:
    return await trust._audit.checkpoint(trust.sign_checkpoint, trust.cluster_id)


async def test_the_step_is_signed_by_both_and_everything_after_it_by_the_new_one(
    trust: TrustService, clock: MockClock
) -> None:
    old, held = trust.authority.public_key, trust.bundle
    in_flight = trust.sign_command_statement(Domain.COMMAND, b"commands", site="")
    new = await rotate(trust)
    assert (trust.authority.public_key, trust.authority_generation, trust.bundle.version) == (new, 2, (2, 1))
    signers = verified_signers(
        trust.bundle.signed, domain=Domain.TRUST_BUNDLE, keys={key_id(old): old, key_id(new): new}
    )
    assert signers == {key_id(old), key_id(new)}
    stepped = node_trust.advance(held, trust.bundle.signed)
    assert stepped.command_keys == held.command_keys, "the same keys, certified by the new authority"
    now_ms = clock.now_ms()
    assert (
        command_trust.verify_command_envelope(stepped, in_flight, Domain.COMMAND, site="", now_ms=now_ms) == b"commands"
    )
    floor = trust.sign_floor("n-1", seq_floor=1, intents_after_ms=1, audit_chain=0)
    verify_one(floor, domain=Domain.FLOOR, public_key=new)

    await trust.publish_bundle(["other.example:7443"])
    assert [signature.key_id for signature in trust.bundle.signed.signatures] == [key_id(new)]
    walked = node_trust.walk(held, trust.bundle_chain_from(*held.version))
    assert walked.version == (2, 2)
    (row,) = [row for row in (await trust._audit.page(AuditCursor())).rows if row.kind == AuditKind.AUTHORITY_ROTATED]
    assert (row.actor, row.subject) == ("ada", trust.cluster_id)
    told = {"generation": 2, "public_key": new.hex(), "follows": old.hex(), "reason": "yearly"}
    assert json.loads(row.detail) == told


async def test_whoever_pinned_an_authority_of_any_generation_finds_the_newest(trust: TrustService) -> None:
    keys = [trust.authority.public_key]
    for number in range(5):
        await trust.publish_bundle([f"gateway{number}.example:7443"])
        keys.append(await rotate(trust))
    found = await AuthorityRotation(trust).succession()
    assert [(record.generation, record.public_key) for record in found.records] == list(enumerate(keys, 1))
    for first, pinned in enumerate(keys):
        links = trust_chain.from_pin(found.chain, cluster_id=trust.cluster_id, authority_key=pinned)
        assert list(trust_chain.authorities(links).values()) == keys[first:]
        assert links[-1].version == trust.bundle.version
    with pytest.raises(TrustError, match="no link"):
        trust_chain.from_pin(found.chain, cluster_id=trust.cluster_id, authority_key=b"\x01" * 32)
    with pytest.raises(TrustError):
        trust_chain.from_pin(found.chain[:2] + found.chain[3:], cluster_id=trust.cluster_id, authority_key=keys[0])
    with pytest.raises(TrustError):
        trust_chain.from_pin(found.chain, cluster_id="another", authority_key=keys[0])


async def test_a_chain_that_no_message_holds_is_walked_part_by_part(trust: TrustService) -> None:
    held = trust.bundle
    grants = [trust_pb2.Signed(statement=bytes(250)) for _ in range(node_trust.MAX_GRANTS)]
    trust.press._people = lambda *_: trust_pb2.TrustBundleStatement(role_grants=grants)
    for _ in range(18):
        await rotate(trust)
    chain = trust.bundle_chain_from(*held.version)
    assert sum(signed.ByteSize() for signed in chain) > NODE_TAKES_BYTES
    parts = 0
    while held.version < trust.bundle.version:
        part = trust_pb2.GetTrustChainResponse(bundles=bundles.part(trust.bundle_chain_from(*held.version)))
        assert part.ByteSize() < NODE_TAKES_BYTES
        held, parts = node_trust.walk(held, part.bundles), parts + 1
    assert parts == 2


def test_beside_what_else_a_message_holds_there_may_be_room_for_no_link() -> None:
    chain = [trust_pb2.Signed(statement=bytes(node_trust.MAX_BUNDLE_BYTES - 100)) for _ in range(3)]
    assert [len(bundles.part(chain, beside)) for beside in (0, 2**20, 2 * 2**20)] == [1, 1, 0]
    assert bundles.part(chain[:1]) == chain[:1]
    assert bundles.part([]) == []


async def test_bundles_that_nobody_can_hold_are_forgotten_and_every_link_of_the_chain_is_kept(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    keys = [trust.authority.public_key]
    for generation in range(3):
        for number in range(4):
            await trust.publish_bundle([f"gateway{generation}{number}.example:7443"])
        if generation < 2:
            keys.append(await rotate(trust))

    async def versions() -> list[tuple[int, int]]:
        text = "SELECT generation, number FROM trust_bundles ORDER BY generation, number"
        return await database.read(lambda conn: [tuple(row) for row in conn.exec_driver_sql(text)])

    full = [(generation, number) for generation in (1, 2, 3) for number in (1, 2, 3, 4, 5)]
    assert await versions() == full
    await clock.advance(BUNDLE_LIFETIME_MS / 1000 + BUNDLE_GRACE_S)
    await trust.publish_bundle(["gateway24.example:7443"])
    assert await versions() == [*full, (3, 6)], "nodes that were away may come with any of them"
    await clock.advance(24 * 3600 + 1)
    await trust.publish_bundle(["later.example:7443"])
    assert await versions() == [(1, 1), (2, 1), (3, 1), (3, 6), (3, 7)]
    again = await replica(database, clock, writer="r-2")
    for first, pinned in enumerate(keys):
        links = trust_chain.from_pin(again.bundle_chain_from(0, 0), cluster_id=trust.cluster_id, authority_key=pinned)
        assert list(trust_chain.authorities(links).values()) == keys[first:]
        assert links[-1].version >= (3, 7)


async def test_the_private_key_of_the_authority_before_is_erased(trust: TrustService, database: Database) -> None:
    await rotate(trust)

    def private_keys(conn: Connection) -> list[bytes]:
        text = "SELECT sealed_private FROM cluster_authorities ORDER BY generation"
        return [bytes(row[0]) for row in conn.exec_driver_sql(text)]

    old, new = await database.read(private_keys)
    assert not old
    assert new
    assert (await database.read(read_state)).key_id == SECRETS.key_ids[0], "what a restart asks first"


async def test_a_restart_finds_the_new_authority(trust: TrustService, database: Database, clock: MockClock) -> None:
    new = await rotate(trust)
    again = await replica(database, clock, writer="r-2")
    assert (again.authority.public_key, again.bundle.version) == (new, (2, 1))
    assert again.bundle_chain_from(1, 1) == trust.bundle_chain_from(1, 1)


@pytest.mark.parametrize(
    ("from_generation", "reason", "refused"),
    [
        (2, "yearly", Reason.CONFLICT),
        (7, "yearly", Reason.CONFLICT),
        (1, "", Reason.INVALID_ARGUMENT),
        (1, " \n", Reason.INVALID_ARGUMENT),
        (1, "x" * 501, Reason.INVALID_ARGUMENT),
    ],
)
async def test_what_is_refused_changes_nothing(
    trust: TrustService, from_generation: int, reason: str, refused: Reason
) -> None:
    before = trust.authority, trust.bundle
    with pytest.raises(Refusal) as refusal:
        await rotate(trust, from_generation=from_generation, reason=reason)
    assert refusal.value.reason is refused
    assert (trust.authority, trust.bundle) == before
    assert len((await AuthorityRotation(trust).succession()).records) == 1


@pytest.mark.parametrize("broken", ["forget_private", "insert_bundle"])
async def test_a_rotation_that_breaks_off_leaves_the_old_authority_alone(
    trust: TrustService, database: Database, clock: MockClock, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = trust.authority.public_key

    def breaks(*_: object) -> None:
        raise RuntimeError(broken)

    with monkeypatch.context() as patch:
        patch.setattr(store, broken, breaks)
        with pytest.raises(RuntimeError):
            await rotate(trust)
    for each in (trust, await replica(database, clock, writer="r-2")):
        assert (each.authority.public_key, each.bundle.version) == (before, (1, 1))
    await rotate(trust)
    assert trust.bundle.version == (2, 1)


async def test_of_two_replicas_that_rotate_at_once_one_wins_and_both_go_on(database_url: str, clock: MockClock) -> None:
    databases = [Database(database_url) for _ in range(2)]
    for database in databases:
        database.start()
    both = [await replica(database, clock, writer=f"r-{n}") for n, database in enumerate(databases)]
    for generation in (1, 2):
        answers = await asyncio.gather(
            *(rotate(each, from_generation=generation) for each in both), return_exceptions=True
        )
        (refused,) = [answer for answer in answers if isinstance(answer, BaseException)]
        assert isinstance(refused, Refusal)
        assert refused.reason is Reason.CONFLICT
        for each in both:
            await each.publish_bundle(ENDPOINTS)
        (won,) = [answer for answer in answers if isinstance(answer, bytes)]
        assert {each.authority.public_key for each in both} == {won}
        assert {each.bundle.version for each in both} == {(generation + 1, 1)}
    for database in databases:
        await database.close()


async def test_another_replica_follows_within_a_second_and_signs_no_checkpoint_before(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    other = await replica(database, clock, writer="r-2")
    new = await rotate(trust)
    assert not await checkpoint(other), "no authority signs after its successor might have"
    watching = asyncio.create_task(other.watch.run())
    await clock.wait_sleepers(1)
    await clock.advance(WATCH_INTERVAL_S)
    await clock.wait_sleepers(1)
    assert (other.authority.public_key, other.bundle.version) == (new, (2, 1))
    assert await checkpoint(other)
    watching.cancel()


async def test_a_replica_that_is_asked_for_what_it_does_not_know_looks_at_once(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    """Between a rotation and the next look of another replica; the clock stands still."""
    other = await replica(database, clock, writer="r-2")
    await rotate(trust)
    bootstrap = trust.authority.sign(Domain.BOOTSTRAP, b"a bootstrap")
    chain = await chain_behind(other, bootstrap)
    assert trust_chain.from_pin(chain, cluster_id=trust.cluster_id, authority_key=trust.authority.public_key)
    assert other.authority.public_key == trust.authority.public_key
    stranger = Signer.generate().sign(Domain.BOOTSTRAP, b"a bootstrap")
    asking = asyncio.create_task(chain_behind(other, stranger))
    await clock.wait_sleepers(1)
    await clock.advance(LOOK_PAUSE_S)
    with pytest.raises(Refusal) as refused:
        await asking
    assert refused.value.reason is Reason.UNAVAILABLE
    assert refused.value.retry_after_s


async def test_the_chain_that_a_stranger_asks_for_is_the_newest(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    other = await replica(database, clock, writer="r-2")
    await rotate(trust)
    sessions = SimpleNamespace(admission=SimpleNamespace(admit_chain=lambda address: None))
    gateway: Any = SimpleNamespace(_rooms=SimpleNamespace(trust=other, sessions=sessions))
    request = trust_pb2.GetTrustChainRequest(cluster_id=trust.cluster_id, from_generation=1, from_number=1)
    answer = await Gateway._trust_chain(gateway, request, "192.0.2.7")
    assert list(answer.bundles) == trust.bundle_chain_from(1, 1)


async def test_many_who_ask_at_once_cost_two_looks_and_a_pause(clock: MockClock) -> None:
    looks, taken = [], []
    away = [Refusal(Reason.UNAVAILABLE, "away")]

    async def newest() -> tuple[int, int]:
        looks.append(clock.monotonic())
        if away:
            raise away.pop()
        return (1, len(looks))

    async def take_up() -> None:
        taken.append(len(looks))

    watch = BundleWatch(clock=clock, newest=newest, known=lambda: (1, 1), take_up=take_up)
    await asyncio.gather(*(watch.look() for _ in range(50)))
    assert len(looks) == 1, "the database is away, which refuses nobody"
    asking = asyncio.gather(*(watch.look() for _ in range(50)))
    await clock.wait_sleepers(1)
    await clock.advance(LOOK_PAUSE_S)
    await asking
    assert len(looks) == 2
    assert looks[1] - looks[0] >= LOOK_PAUSE_S
    assert taken == [2]


async def test_an_authority_that_was_taken_away_around_the_server_is_not_forgotten(
    trust: TrustService, database: Database
) -> None:
    new = await rotate(trust)
    await edit(database, "DELETE FROM trust_bundles WHERE generation = 2")
    await edit(database, "DELETE FROM cluster_authorities WHERE generation = 2")
    with pytest.raises((TrustSetupError, SealError)):
        await trust.change_keys(lambda *_: None)
    assert trust.authority.public_key == new, "what is in memory goes on being used"


async def test_an_authority_that_was_written_into_the_database_signs_nothing(
    trust: TrustService, database: Database, clock: MockClock
) -> None:
    await edit(
        database,
        "INSERT INTO cluster_authorities (cluster_id, generation, public_key, sealed_private, created_at_ms)"
        " SELECT cluster_id, 2, public_key, sealed_private, created_at_ms FROM cluster_authorities",
    )
    with pytest.raises((TrustSetupError, SealError)):
        await trust.change_keys(lambda *_: None)
    assert trust.authority_generation == 1
    with pytest.raises(TrustSetupError):
        await replica(database, clock, writer="r-2")
