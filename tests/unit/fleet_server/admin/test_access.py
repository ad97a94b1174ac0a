"""Who may call: tokens, roles, tampered rows, the last owner, and the record of calls."""

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet.v1 import admin_pb2
from fleet_server.admin import rules
from fleet_server.admin.access import Caller, OperatorService
from fleet_server.admin.rules import Role
from fleet_server.admin.store import Operator
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.trust.rotation import SCHEDULE
from fleet_server.trust.secrets import Secrets
from tests.fakes.clock import MockClock

SECRETS = Secrets(Secret(bytes(32)))


@pytest.fixture
def audit(database: Database, clock: MockClock) -> AuditService:
    return AuditService(database=database, clock=clock, wakeup=Wakeup(), writer="r1", row_mac=SECRETS.row_mac)


@pytest.fixture
def access(database: Database, clock: MockClock, audit: AuditService) -> OperatorService:
    return OperatorService(database=database, clock=clock, audit=audit, secrets=Secrets(Secret(bytes(32))))


async def _refused(access: OperatorService, token: str, method: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await access.authorise(token, method)
    return caught.value


def test_every_method_of_the_service_has_a_role() -> None:
    methods = {method.name for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods}
    assert set(rules.NEEDED_ROLE) == methods


async def test_a_role_may_do_what_lower_ones_may_and_no_more(access: OperatorService) -> None:
    tokens = {role: (await access.create("init", role.word, role.word))[1].reveal() for role in Role}
    for role, token in tokens.items():
        for method, needed in rules.NEEDED_ROLE.items():
            if role >= needed:
                assert (await access.authorise(token, method)).name == role.word
            else:
                refusal = await _refused(access, token, method)
                assert refusal.reason is Reason.PERMISSION_DENIED
                assert refusal.metadata["needed_role"] == needed.word


async def test_to_revoke_a_node_takes_more_than_to_suspend_it(access: OperatorService) -> None:
    tokens = {role: (await access.create("init", role.word, role.word))[1].reveal() for role in Role}
    for state in ("SUSPENDED", "ACTIVE", "REVOKED"):
        request = admin_pb2.SetNodeStateRequest(state=state)
        if state == "REVOKED":
            with pytest.raises(Refusal) as refused:
                await access.authorise(tokens[Role.OPERATOR], "SetNodeState", request)
            assert refused.value.metadata["needed_role"] == "release"
            await access.authorise(tokens[Role.RELEASE], "SetNodeState", request)
        else:
            await access.authorise(tokens[Role.OPERATOR], "SetNodeState", request)


@pytest.mark.parametrize("token", ["", "fop1.", "fop1.AAAA", "nonsense", "fop1." + "x" * 500])
async def test_strangers_are_unauthenticated(access: OperatorService, token: str) -> None:
    refusal = await _refused(access, token, "WhoAmI")
    assert refusal.reason is Reason.UNAUTHENTICATED
    assert "fleetctl login" in refusal.detail


async def test_an_invented_token_costs_no_query(access: OperatorService, database: Database) -> None:
    _, token = await access.create("init", "ada", "operator")
    await database.close()  # a query would say UNAVAILABLE
    for invented in ("fop1." + "A" * 64, token.reveal()[:-1] + ("A" if token.reveal()[-1] != "A" else "B")):
        assert (await _refused(access, invented, "WhoAmI")).reason is Reason.UNAUTHENTICATED
    assert (await _refused(access, token.reveal(), "WhoAmI")).reason is Reason.UNAVAILABLE


async def test_a_rotated_token_ends_at_once_and_the_new_one_is_the_same_operators(
    access: OperatorService, audit: AuditService
) -> None:
    await access.create("init", "own", "owner")
    ada, before = await access.create("init", "ada", "viewer")
    caller = await access.authorise(before.reveal(), "RotateOperatorToken")
    _, after = await access.rotate_token(caller, "ada")
    assert (await _refused(access, before.reveal(), "WhoAmI")).reason is Reason.UNAUTHENTICATED
    again = await access.authorise(after.reveal(), "WhoAmI")
    assert again == caller
    owner = Caller("own", Role.OWNER, "op-own")
    _, third = await access.rotate_token(owner, ada.operator_id)
    assert (await _refused(access, after.reveal(), "WhoAmI")).reason is Reason.UNAUTHENTICATED
    assert (await access.authorise(third.reveal(), "WhoAmI")).operator_id == ada.operator_id
    rows = [row for row in (await audit.page(AuditCursor())).rows if row.kind == "operator.token_rotated"]
    assert [(row.actor, row.subject, row.detail) for row in rows] == [
        ("ada", "ada", b'{"own":true}'),
        ("own", "ada", b'{"own":false}'),
    ]


async def test_whose_token_may_not_be_rotated(access: OperatorService) -> None:
    for name, role in (("own", "owner"), ("other", "owner"), ("ada", "release"), ("gone", "viewer")):
        await access.create("init", name, role)
    await access.revoke("own", "gone")
    owner, ada = _callers(await access.all(), "own", "ada")
    for caller, name, may, reason in (
        (ada, "", True, Reason.INVALID_ARGUMENT),
        (ada, "own", True, Reason.PERMISSION_DENIED),
        (ada, "gone", True, Reason.PERMISSION_DENIED),
        (ada, "nobody", True, Reason.PERMISSION_DENIED),
        (owner, "nobody", True, Reason.NOT_FOUND),
        (owner, "gone", True, Reason.CONFLICT),
        (owner, "other", False, Reason.PERMISSION_DENIED),
    ):
        with pytest.raises(Refusal) as caught:
            await access.rotate_token(caller, name, may_rotate_owners=may)
        assert caught.value.reason is reason, name
    await access.rotate_token(owner, "own", may_rotate_owners=False)


def _callers(everyone: list[Operator], *names: str) -> list[Caller]:
    found = {each.name: Caller(each.name, each.role, each.operator_id) for each in everyone}
    return [found[name] for name in names]


async def test_a_revoked_token_opens_nothing_at_once(access: OperatorService) -> None:
    _, token = await access.create("init", "ada", "operator")
    assert (await access.authorise(token.reveal(), "ListNodes")).name == "ada"
    await access.revoke("owner", "ada")
    refusal = await _refused(access, token.reveal(), "ListNodes")
    assert refusal.reason is Reason.UNAUTHENTICATED
    assert "revoked" in refusal.detail


@pytest.mark.parametrize(
    "edit",
    [
        "role = 'owner'",
        "created_at_ms = 1",
        "revoked_at_ms = 0, role = 'release'",
        "name = 'root'",
        "operator_id = 'op-0'",
    ],
)
async def test_editing_the_row_gains_nothing(access: OperatorService, database: Database, edit: str) -> None:
    _, token = await access.create("init", "eve", "viewer")
    await access.create("init", "owner", "owner")
    if "revoked" in edit:
        await access.revoke("owner", "eve")
    await database.write(lambda tx: tx.conn.execute(text(f"UPDATE operators SET {edit} WHERE name = 'eve'")))
    assert (await _refused(access, token.reveal(), "WhoAmI")).reason is Reason.UNAUTHENTICATED


async def test_the_last_owner_stays(access: OperatorService) -> None:
    await access.create("init", "owner", "owner")
    with pytest.raises(Refusal) as caught:
        await access.revoke("owner", "owner")
    assert caught.value.reason is Reason.CONFLICT
    await access.create("owner", "second", "owner")
    assert (await access.revoke("second", "owner")).revoked_at_ms > 0


@pytest.fixture
async def replicas(database_url: str, clock: MockClock) -> AsyncIterator[tuple[OperatorService, OperatorService]]:
    """Two servers on one database whose writers hold their commits back until both have one, or a moment is over."""
    together = threading.Barrier(2)

    def hold(_tx: object) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.3)

    def replica(writer: str) -> tuple[Database, OperatorService]:
        database = Database(database_url, readers=1)
        audit = AuditService(database=database, clock=clock, wakeup=Wakeup(), writer=writer, row_mac=SECRETS.row_mac)
        database.writer.before_commit(hold)
        database.start()
        return database, OperatorService(
            database=database, clock=clock, audit=audit, secrets=Secrets(Secret(bytes(32)))
        )

    (first, one), (second, other) = replica("r1"), replica("r2")
    yield one, other
    await first.close()
    await second.close()


async def test_two_replicas_do_not_end_the_last_two_owners(
    access: OperatorService, replicas: tuple[OperatorService, OperatorService]
) -> None:
    await access.create("init", "ada", "owner")
    await access.create("init", "bob", "owner")
    ends = (replicas[0].revoke("bob", "ada"), replicas[1].revoke("ada", "bob"))
    ended = await asyncio.gather(*ends, return_exceptions=True)
    assert [each.reason for each in ended if isinstance(each, Refusal)] == [Reason.CONFLICT]
    assert sum(each.is_owner for each in await access.all()) == 1


async def test_two_replicas_make_one_operator_of_a_name(
    access: OperatorService, replicas: tuple[OperatorService, OperatorService]
) -> None:
    made = await asyncio.gather(
        *(replica.create("init", "ada", "viewer") for replica in replicas), return_exceptions=True
    )
    assert [each.reason for each in made if isinstance(each, Refusal)] == [Reason.CONFLICT]
    assert [each.name for each in await access.all()] == ["ada"]


async def test_a_row_that_is_no_operators_keeps_nobody_from_ending_others(
    access: OperatorService, database: Database
) -> None:
    for name in ("ada", "bob", "eve"):
        await access.create("init", name, "owner")
    await database.write(lambda tx: tx.conn.execute(text("UPDATE operators SET role = 'god' WHERE name = 'eve'")))
    await database.write(lambda tx: tx.conn.execute(text("UPDATE operators SET mac = 'text' WHERE name = 'bob'")))
    with pytest.raises(Refusal) as caught:
        await access.revoke("ada", "ada")  # the last one that is intact
    assert caught.value.reason is Reason.CONFLICT
    assert (await access.revoke("ada", "eve")).revoked_at_ms > 0
    assert (await access.revoke("ada", "bob")).revoked_at_ms > 0


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * 64, "né", "a\n"])
async def test_names_are_plain(access: OperatorService, name: str) -> None:
    with pytest.raises(Refusal) as caught:
        await access.create("owner", name, "viewer")
    assert caught.value.reason is Reason.INVALID_ARGUMENT


async def test_calls_are_audited_in_batches_and_none_is_lost(access: OperatorService, audit: AuditService) -> None:
    _, token = await access.create("init", "ada", "viewer")
    for _ in range(3):
        await access.authorise(token.reveal(), "ListNodes")
    await access.authorise(token.reveal(), "WhoAmI")
    await access.flush()
    await access.flush()  # nothing new: no row
    rows = (await audit.page(AuditCursor())).rows
    called = [row for row in rows if row.kind == "operator.called"]
    assert [row.detail for row in called] == [b'{"calls":{"ListNodes":3,"WhoAmI":1}}']


async def test_a_flood_of_refused_calls_is_one_row_at_once_and_then_a_count(
    access: OperatorService, audit: AuditService
) -> None:
    _, token = await access.create("init", "eve", "viewer")
    for _ in range(50):
        await _refused(access, token.reveal(), "IssueCommands")
    await access.flush()
    await access.flush()
    await _refused(access, token.reveal(), "IssueCommands")
    rows = (await audit.page(AuditCursor())).rows
    told = [(row.subject, row.detail) for row in rows if row.kind == "operator.refused"]
    assert told == [
        ("IssueCommands", b"{}"),
        ("admin", b'{"calls":{"IssueCommands":49}}'),
        ("IssueCommands", b"{}"),
    ]


async def test_a_refusal_that_cannot_be_audited_at_once_is_refused_all_the_same_and_told_later(
    access: OperatorService, audit: AuditService, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = await access.create("init", "eve", "viewer")
    await access.authorise(token.reveal(), "WhoAmI")

    async def away(_work: object) -> None:
        raise Refusal(Reason.UNAVAILABLE, "the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", away)
        assert (await _refused(access, token.reveal(), "CreateOperator")).reason is Reason.PERMISSION_DENIED
        with pytest.raises(Refusal):
            await access.flush()
    await access.flush()
    rows = (await audit.page(AuditCursor())).rows
    told = [row.detail for row in rows if row.kind == "operator.refused"]
    assert told == [b'{"calls":{"CreateOperator":1}}']


async def test_the_answers_of_a_long_call_end_with_the_token_and_are_no_calls(
    access: OperatorService, audit: AuditService
) -> None:
    _, token = await access.create("init", "ada", "viewer")
    await access.authorise(token.reveal(), "WatchNodes")
    assert (await access.check(token.reveal(), "WatchNodes")).name == "ada"
    await access.revoke("owner", "ada")
    with pytest.raises(Refusal) as caught:
        await access.check(token.reveal(), "WatchNodes")
    assert caught.value.reason is Reason.UNAUTHENTICATED
    await access.flush()
    rows = (await audit.page(AuditCursor())).rows
    assert [row.detail for row in rows if row.kind == "operator.called"] == [b'{"calls":{"WatchNodes":1}}']


async def test_a_token_is_in_no_row(access: OperatorService, database: Database) -> None:
    _, token = await access.create("init", "ada", "viewer")
    stored = await database.read(lambda conn: repr(conn.execute(text("SELECT * FROM operators")).all()))
    assert token.reveal() not in stored
    assert token.reveal() not in repr(token)


@pytest.mark.parametrize(
    "name",
    ["server", "Server", "schedule", "product-root", "first-owner", "op-" + "a1" * 8, "OP-" + "A1" * 8],
)
async def test_nobody_is_called_as_somebody_else_is_in_the_audit(access: OperatorService, name: str) -> None:
    with pytest.raises(Refusal, match="choose another name"):
        await access.create("ada", name, "operator")
    assert await access.all() == []


def test_every_actor_that_is_no_operator_has_a_name_that_no_operator_gets() -> None:
    sources = (Path(__file__).parents[4] / "fleet_server").rglob("*.py")
    actors = {found for path in sources for found in re.findall(r'actor="([^"]+)"', path.read_text())} | {SCHEDULE}
    assert actors >= {"server", "schedule", "first-owner"}
    for actor in actors:
        with pytest.raises(Refusal):
            rules.check_operator_name(actor)
