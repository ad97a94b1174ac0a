import asyncio
import json
import threading
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from fleet.audit_findings import AuditFinding
from fleet.envelope import Domain, Signer
from fleet.metrics import Registry
from fleet.secrets import Secret
from fleet.v1 import trust_pb2
from fleet_server.audit import rules
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.trust.secrets import Secrets
from tests.fakes.audit_export import verify_export
from tests.fakes.clock import MockClock

CLUSTER = "c-1"
SECRETS = Secrets(Secret(bytes(32)))
authority = Signer.generate()


def sign(_: Connection, statement: bytes) -> trust_pb2.Signed:
    return authority.sign(Domain.AUDIT_CHECKPOINT, statement)


@pytest.fixture
def wakeup() -> Wakeup:
    return Wakeup()


async def begin(database: Database, audit: AuditService) -> None:
    await database.write(lambda tx: audit.checkpoints.begin(tx.conn, CLUSTER))


@pytest.fixture
async def audit(database: Database, clock: MockClock, wakeup: Wakeup) -> AuditService:
    service = AuditService(database=database, clock=clock, wakeup=wakeup, writer="r-1", row_mac=SECRETS.row_mac)
    await begin(database, service)
    return service


async def record(database: Database, audit: AuditService, subject: str = "n-1", **detail: Any) -> None:
    def deed(tx: Transaction) -> None:
        audit.append(tx, AuditKind.NODE_LABELLED, actor="ada", subject=subject, detail=detail)

    await database.write(deed)


async def verify(audit: AuditService) -> Any:
    return await verify_export(audit, CLUSTER, {authority.key_id: authority.public_key})


async def test_rows_and_checkpoints_verify_from_the_first_to_the_last(database: Database, audit: AuditService) -> None:
    for turn in range(5):
        await asyncio.gather(*(record(database, audit, f"n-{turn}-{i}", labels={"b": "2", "a": "1"}) for i in range(7)))
        assert await audit.checkpoint(sign, CLUSTER)
    await record(database, audit, "after the last checkpoint")
    summary = await verify(audit)
    assert (summary.rows, summary.writers, summary.checkpoints, summary.uncovered_rows) == (36, 1, 5, 1)


async def test_what_is_committed_is_counted_and_what_is_undone_is_not(database: Database, clock: MockClock) -> None:
    metrics = ServerMetrics(Registry()).audit
    audit = AuditService(
        database=database, clock=clock, wakeup=Wakeup(), writer="r-1", row_mac=SECRETS.row_mac, metrics=metrics
    )
    await begin(database, audit)

    def quarantine(tx: Transaction) -> None:
        audit.append(tx, AuditKind.API_KEY_QUARANTINED, actor="server", subject="api_key:1", detail={})

    def undone(tx: Transaction) -> None:
        quarantine(tx)
        raise LookupError

    await asyncio.gather(database.write(quarantine), database.write(undone), return_exceptions=True)
    await record(database, audit)
    assert await audit.checkpoint(sign, CLUSTER)
    assert not await audit.checkpoint(sign, CLUSTER)
    assert metrics.rows.value == 2
    assert metrics.quarantined.labels("api_keys").value == 1
    assert metrics.checkpoint.value == 1


async def test_a_deed_that_is_undone_leaves_no_row_and_no_gap(database: Database, audit: AuditService) -> None:
    def undone(tx: Transaction) -> None:
        audit.append(tx, AuditKind.NODE_LABELLED, actor="ada", subject="undone", detail={})
        raise LookupError

    results = await asyncio.gather(
        record(database, audit, "first"),
        database.write(undone),
        record(database, audit, "last"),
        return_exceptions=True,
    )
    assert isinstance(results[1], LookupError)
    page = await audit.page(AuditCursor())
    assert [(row.number, row.subject) for row in page.rows] == [(1, "first"), (2, "last")]
    assert (await verify(audit)).rows == 2


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_rows SET actor = 'eve' WHERE number = 2",
        "DELETE FROM audit_rows WHERE number = 2",
        "DELETE FROM audit_rows WHERE number = 3",
        "DELETE FROM audit_rows",
        "UPDATE audit_checkpoints SET signed = (SELECT signed FROM audit_checkpoints WHERE number = 1)",
    ],
)
async def test_history_that_was_changed_in_the_database_is_found(
    database: Database, audit: AuditService, tampering: str
) -> None:
    for number in range(3):
        await record(database, audit, f"n-{number}")
        await audit.checkpoint(sign, CLUSTER)
    await database.write(lambda tx: tx.conn.exec_driver_sql(tampering).rowcount)
    with pytest.raises(AuditFinding):
        await verify(audit)


async def test_a_checkpoint_is_due_only_with_news(database: Database, audit: AuditService) -> None:
    assert not await audit.checkpoint(sign, CLUSTER)
    await record(database, audit)
    assert await audit.checkpoint(sign, CLUSTER)
    assert not await audit.checkpoint(sign, CLUSTER)


async def test_each_second_that_has_news_has_a_checkpoint(
    database: Database, audit: AuditService, clock: MockClock
) -> None:
    running = asyncio.create_task(audit.run_checkpoints(sign, CLUSTER))
    await clock.wait_sleepers(1)
    for turn in range(1, 4):
        await record(database, audit)
        await clock.advance(1.0)
        await clock.wait_sleepers(1)
        assert (await verify(audit)).checkpoints == turn
        await clock.advance(1.0)
        await clock.wait_sleepers(1)
    assert (await verify(audit)).uncovered_rows == 0
    running.cancel()


async def test_two_replicas_write_chains_of_their_own_under_common_checkpoints(
    database_url: str, clock: MockClock
) -> None:
    databases = [Database(database_url), Database(database_url)]
    services = [
        AuditService(database=database, clock=clock, wakeup=Wakeup(), writer=f"r-{number}", row_mac=SECRETS.row_mac)
        for number, database in enumerate(databases)
    ]
    for database in databases:
        database.start()
    await begin(databases[0], services[0])
    for _ in range(6):
        pairs = list(zip(databases, services, strict=True))
        await asyncio.gather(*(record(database, service) for database, service in pairs))
        assert any(await asyncio.gather(*(service.checkpoint(sign, CLUSTER) for service in services)))
    await services[0].checkpoint(sign, CLUSTER)
    summary = await verify(services[1])
    assert (summary.rows, summary.writers, summary.uncovered_rows) == (12, 2, 0)
    for database in databases:
        await database.close()


async def test_of_two_replicas_one_makes_the_checkpoints_and_the_other_looks_at_them_now_and_then(
    database: Database, database_url: str, audit: AuditService, clock: MockClock
) -> None:
    elsewhere = Database(database_url, readers=1)
    another = AuditService(database=elsewhere, clock=clock, wakeup=Wakeup(), writer="r-2", row_mac=SECRETS.row_mac)
    elsewhere.start()
    made: list[str] = []
    for _ in range(30):
        for name, each in (("r-1", audit), ("r-2", another)):
            await record(database, audit)
            if await each.checkpoint(sign, CLUSTER, in_turn=True):
                made.append(name)
    assert {*made} == {"r-1", "r-2"}, "each looks through the chains by what it remembers"
    assert 30 <= len(made) <= 35, "but not each of them each second"
    await elsewhere.close()
    assert (await verify(audit)).checkpoints == len(made)


async def test_two_processes_under_one_name_cannot_both_write(database_url: str, clock: MockClock) -> None:
    """The first goes on where it left off, and would fork the chain; the number's uniqueness refuses its row."""
    databases = [Database(database_url), Database(database_url)]
    first, second = (
        AuditService(database=database, clock=clock, wakeup=Wakeup(), writer="r-1", row_mac=SECRETS.row_mac)
        for database in databases
    )
    for database in databases:
        database.start()
    await record(databases[0], first)
    await record(databases[1], second)
    with pytest.raises(IntegrityError):
        await record(databases[0], first)
    for database in databases:
        await database.close()


async def test_following_gives_what_is_written_later(database: Database, audit: AuditService) -> None:
    await record(database, audit, "before")
    subjects: list[str] = []
    checkpoints = 0
    async with aclosing(audit.export(follow=True)) as pages:
        async for page in pages:
            subjects += [row.subject for row in page.rows]
            checkpoints += len(page.checkpoints)
            if subjects == ["before"]:
                await record(database, audit, "later")
            elif not checkpoints:
                await audit.checkpoint(sign, CLUSTER)
            else:
                break
    assert subjects == ["before", "later"]
    assert checkpoints == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_row_that_becomes_visible_behind_a_later_one_is_not_missed(database_url: str, clock: MockClock) -> None:
    """Two replicas commit side by side: the first to take a position is the last to commit."""
    slow, fast = Database(database_url), Database(database_url)
    wakeup = Wakeup()
    audits = [
        AuditService(database=database, clock=clock, wakeup=wakeup, writer=name, row_mac=SECRETS.row_mac)
        for name, database in (("r-slow", slow), ("r-fast", fast))
    ]
    sealed, go_on = threading.Event(), threading.Event()

    def linger(_tx: Transaction) -> None:
        sealed.set()
        go_on.wait(10)

    slow.writer.before_commit(linger)
    slow.start()
    fast.start()
    lingering = asyncio.create_task(record(slow, audits[0], "early"))
    await asyncio.to_thread(sealed.wait, 10)
    await record(fast, audits[1], "late")
    seen: list[tuple[int, str]] = []
    async with aclosing(audits[1].export(follow=True)) as pages:
        async for page in pages:
            seen += [(row.position, row.subject) for row in page.rows]
            if len(seen) == 2:
                break
            go_on.set()
            await lingering
    assert seen == [(2, "late"), (1, "early")]
    assert (await verify(audits[1])).rows == 2
    for database in (slow, fast):
        await database.close()


async def test_the_last_rows_and_pages_after_a_position(database: Database, audit: AuditService) -> None:
    for number in range(10):
        await record(database, audit, str(number))
        await audit.checkpoint(sign, CLUSTER)
    last = [page async for page in audit.export(last=3)]
    assert [row.subject for row in last[0].rows] == ["7", "8", "9"]
    assert len(last[0].checkpoints) == 3
    position = last[0].rows[0].position
    after = [page async for page in audit.export(after=position)]
    assert [row.subject for row in after[0].rows] == ["8", "9"]
    everything = [page async for page in audit.export(last=1000)]
    assert len(everything[0].rows) == len(everything[0].checkpoints) == 10

    cursor, seen = AuditCursor(), []
    while not (page := await audit.page(cursor, limit=4)).empty:
        seen += [row.subject for row in page.rows]
        cursor = page.cursor
    assert seen == [str(number) for number in range(10)]
    assert cursor.checkpoint == 10
    assert [page async for page in audit.export(after=2**64 - 1)] == []


async def test_what_a_stranger_chose_is_stored_in_any_case(database: Database, audit: AuditService) -> None:
    def deed(tx: Transaction) -> None:
        hostile = "\x00\ud800" + "x" * 10_000
        audit.append(tx, AuditKind.SESSION_REFUSED, actor=hostile, subject=hostile, detail={"text": hostile})

    await database.write(deed)
    row = (await audit.page(AuditCursor())).rows[0]
    assert len(row.actor) == rules.MAX_ACTOR_CHARS
    assert len(row.subject) == rules.MAX_SUBJECT_CHARS
    assert json.loads(row.detail)["text"].endswith("xxx")
    await verify(audit)


def test_detail_is_canonical() -> None:
    assert rules.canonical_json({"b": [1, True, None], "a": {"z": "é", "y": 1.5}}) == (
        '{"a":{"y":1.5,"z":"é"},"b":[1,true,null]}'.encode()
    )


def test_detail_that_is_too_large_is_kept_as_its_hash() -> None:
    kept = json.loads(rules.canonical_json({"ids": ["x" * 100] * 10_000}))
    assert kept["bytes"] > rules.MAX_DETAIL_BYTES
    assert len(kept["sha256"]) == 64


@pytest.mark.parametrize("value", [b"raw", Secret("hunter2"), {1, 2}, object()])
def test_detail_takes_json_only_and_so_no_secret(value: Any) -> None:
    with pytest.raises(TypeError) as refused:
        rules.canonical_json({"value": value})
    assert "hunter2" not in str(refused.value)


def test_detail_takes_no_number_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="JSON"):
        rules.canonical_json({"value": float("nan")})


def test_kinds_name_subject_and_action() -> None:
    for kind in AuditKind:
        subject, _, action = kind.value.partition(".")
        assert subject and action and kind.name == f"{subject}_{action}".upper()


async def test_every_commit_with_rows_wakes_who_follows(
    database: Database, audit: AuditService, wakeup: Wakeup
) -> None:
    woken: list[str] = []
    wakeup.subscribe("audit", lambda: woken.append("audit"))
    await database.write(_nothing)
    assert woken == []
    await record(database, audit)
    await asyncio.sleep(0)
    assert woken == ["audit"]


def _nothing(tx: Transaction) -> None:
    _: Connection = tx.conn
