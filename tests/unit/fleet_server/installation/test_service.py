"""An installation in strict mode over both databases: what opens it, and what somebody who can write them gains."""

from typing import Any

import pytest

from fleet.clock import Clock
from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet.secrets import Secret
from fleet_server.admin.access import OperatorService
from fleet_server.admin.rules import Role
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.installation.service import InstallationService
from fleet_server.sessions.strangers import Strangers
from fleet_server.trust.secrets import Secrets
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.installation import signed
from tests.unit.fleet_server.installation.signed import INSTALLATION, OPERATOR, OWNER, ROOT, STRANGER

SECRETS = Secrets(Secret(bytes(32)))
ADDRESS = "192.0.2.1"


class Parts:
    """The room with what it needs.

    Args:
        burst: calls without credentials that it takes at once.
        address_burst: of them from one address.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        writer: str = "r1",
        burst: float = 1000,
        address_burst: float = 1000,
        root_key: bytes = ROOT.public_key,
    ) -> None:
        self.database = database
        self.clock = clock
        self.audit = AuditService(
            database=database, clock=clock, wakeup=Wakeup(), writer=writer, row_mac=SECRETS.row_mac
        )
        self.operators = OperatorService(database=database, clock=clock, audit=self.audit, secrets=SECRETS)
        self.service = InstallationService(
            database=database,
            clock=clock,
            audit=self.audit,
            strict=True,
            root_key=root_key,
            challenge_key=lambda: SECRETS.derive("owner-challenge"),
            bucket=Strangers(clock.monotonic(), burst=burst, address_burst=address_burst),
        )
        self.service.make_owners_with(self.operators.make_owner)

    async def load(self) -> "Parts":
        """Ready for calls."""
        await self.service.load(INSTALLATION, "c-1")
        return self

    async def activate(self, by: Signer = ROOT) -> None:
        """Import a manifest of now."""
        await self.service.activate(signed.manifest(by, **self.times()), ADDRESS)

    def times(self) -> dict[str, Any]:
        """Issued now, good for a day."""
        now_ms = self.clock.now_ms()
        return {"issued_at_ms": now_ms, "not_after_ms": now_ms + signed.DAY_MS}

    async def claim(self, by: Signer = OWNER, name: str = "ada", operator_id: str = "op-" + "0" * 16) -> str:
        """Claim the first owner; the token."""
        challenge = (await self.service.view(ADDRESS)).challenge
        now_ms = self.clock.now_ms()
        thing = signed.claim(challenge, by, operator_name=name, operator_id=operator_id, issued_at_ms=now_ms)
        return (await self.service.claim_owner(thing, ADDRESS))[1].reveal()

    async def edit(self, text: str, *values: object) -> int:
        """Write the database around the server."""
        return await self.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), values).rowcount)

    async def kinds(self) -> list[str]:
        """Kinds of all audit rows."""
        page = await self.audit.page(AuditCursor())
        return [row.kind for row in page.rows]


@pytest.fixture
async def parts(database: Database, clock: MockClock) -> Parts:
    return await Parts(database, clock).load()


async def test_nothing_is_served_before_a_manifest_and_everything_after(parts: Parts) -> None:
    with pytest.raises(Refusal, match="sign-activation") as caught:
        parts.service.require_active()
    assert caught.value.reason is Reason.NOT_ACTIVATED
    assert caught.value.retry_after_s
    await parts.activate()
    parts.service.require_active()
    await parts.activate()
    assert await parts.kinds() == ["installation.activated"]


async def test_another_replica_and_the_next_start_find_the_import(parts: Parts, database: Database) -> None:
    other = Parts(database, parts.clock, writer="r2")
    await other.load()
    assert other.service.waits_for
    await parts.activate()
    await other.load()
    other.service.require_active()


async def test_each_call_may_be_made_at_another_replica_than_the_one_before(parts: Parts, database: Database) -> None:
    other = await Parts(database, parts.clock, writer="r2").load()
    await parts.activate()
    shown = await other.service.view(ADDRESS)
    assert shown.authority is not None
    assert not shown.waits_for
    other.service.require_active()
    times = {"issued_at_ms": parts.clock.now_ms(), "operator_name": "ada", "operator_id": OPERATOR}
    claim = signed.claim((await parts.service.view(ADDRESS)).challenge, OWNER, **times)
    await other.service.claim_owner(claim, ADDRESS)
    assert await parts.service.is_platform_admin(OPERATOR)
    with pytest.raises(Refusal):
        await parts.service.claim_owner(claim, ADDRESS)
    granted = await other.service.import_grant(signed.grant(operator_id="op-" + "1" * 16, **other.times()), ADDRESS)
    assert granted in (await parts.service.view(ADDRESS)).grants


async def test_the_first_owner_claims_a_token_and_again_when_it_is_lost(parts: Parts, clock: MockClock) -> None:
    await parts.activate()
    first = await parts.claim()
    caller = await parts.operators.authorise(first, "CreateOperator")
    assert caller.role is Role.OWNER
    assert await parts.service.is_platform_admin(caller.operator_id)
    await clock.advance(2)
    second = await parts.claim()
    with pytest.raises(Refusal, match="not known"):
        await parts.operators.authorise(first, "WhoAmI")
    assert (await parts.operators.authorise(second, "WhoAmI")).operator_id == caller.operator_id
    assert (await parts.kinds()).count("installation.owner_claimed") == 2


@pytest.mark.parametrize("same_key", [True, False])
async def test_a_renewed_manifest_keeps_the_claim_of_the_same_owner_key_and_of_no_other(
    parts: Parts, clock: MockClock, same_key: bool
) -> None:
    await parts.activate()
    await parts.claim()
    operator_id = (await parts.operators.all())[0].operator_id
    await clock.advance(2)
    owner = OWNER if same_key else STRANGER
    renewed = signed.manifest(first_owner_key=owner.public_key, **parts.times())
    view = await parts.service.activate(renewed, ADDRESS)
    assert view.authority is not None
    assert (view.authority.claim is not None) is same_key
    assert await parts.service.is_platform_admin(operator_id) is same_key
    await clock.advance(2)
    if same_key:
        assert (await parts.operators.authorise(await parts.claim(), "WhoAmI")).operator_id == operator_id
        return
    with pytest.raises(Refusal, match="exists already"):
        await parts.claim(by=STRANGER, operator_id=OPERATOR)


async def test_a_renewed_manifest_makes_no_old_claim_good_again(parts: Parts, clock: MockClock) -> None:
    await parts.activate()
    challenge = (await parts.service.view(ADDRESS)).challenge
    claim = signed.claim(challenge, issued_at_ms=parts.clock.now_ms())
    await parts.service.claim_owner(claim, ADDRESS)
    await clock.advance(2)
    await parts.activate()
    with pytest.raises(Refusal, match="made already"):
        await parts.service.claim_owner(claim, ADDRESS)


async def test_a_claim_played_again_gives_nothing(parts: Parts) -> None:
    await parts.activate()
    challenge = (await parts.service.view(ADDRESS)).challenge
    thing = signed.claim(challenge, issued_at_ms=parts.clock.now_ms())
    await parts.service.claim_owner(thing, ADDRESS)
    with pytest.raises(Refusal, match="made already"):
        await parts.service.claim_owner(thing, ADDRESS)


async def test_nobody_else_claims(parts: Parts) -> None:
    with pytest.raises(Refusal) as early:
        await parts.claim()
    assert early.value.reason is Reason.NOT_ACTIVATED
    await parts.activate()
    for who in (ROOT, STRANGER):
        with pytest.raises(Refusal) as caught:
            await parts.claim(who)
        assert caught.value.reason is Reason.BAD_PROOF


async def test_a_claim_takes_no_other_operator_over(parts: Parts) -> None:
    await parts.activate()
    operator, _ = await parts.operators.create("init", "ben", "viewer")
    for name, operator_id in (("ada", operator.operator_id), ("ben", OPERATOR)):
        with pytest.raises(Refusal) as caught:
            await parts.claim(name=name, operator_id=operator_id)
        assert caught.value.reason is Reason.CONFLICT
    assert (await parts.service.view(ADDRESS)).authority is not None
    assert "installation.owner_claimed" not in await parts.kinds()


async def test_a_signed_grant_makes_a_platform_admin_until_it_expires(parts: Parts, clock: MockClock) -> None:
    await parts.activate()
    with pytest.raises(Refusal, match="sign-grant"):
        await parts.service.require_platform_admin(OPERATOR, "this")
    await parts.service.import_grant(signed.grant(**parts.times()), ADDRESS)
    await parts.service.import_grant(signed.grant(**parts.times()), ADDRESS)
    await parts.service.require_platform_admin(OPERATOR, "this")
    assert not await parts.service.is_platform_admin("op-" + "b" * 16)
    assert (await parts.kinds()).count("platform_grant.imported") == 1
    await clock.advance(signed.DAY_MS / 1000)
    assert not await parts.service.is_platform_admin(OPERATOR)


async def test_who_writes_the_database_activates_nothing(parts: Parts) -> None:
    for thing in (signed.manifest(STRANGER), signed.manifest(installation_id="i-" + "1" * 32)):
        await parts.edit("DELETE FROM installation_authority")
        await parts.edit(
            "INSERT INTO installation_authority (installation_id, manifest, activated_at_ms, claim)"
            " VALUES (?, ?, 0, ?)",
            INSTALLATION,
            thing.SerializeToString(),
            b"",
        )
        await parts.load()
        assert parts.service.waits_for
    await parts.edit("UPDATE installation_authority SET manifest = ?", b"\xff\xff")
    await parts.load()
    assert parts.service.waits_for


async def test_who_writes_the_database_becomes_no_platform_admin(parts: Parts) -> None:
    await parts.activate()
    await parts.claim()
    challenge = (await parts.service.view(ADDRESS)).challenge
    forged_claim = signed.claim(challenge, STRANGER, operator_id=OPERATOR)
    await parts.edit("UPDATE installation_authority SET claim = ?", forged_claim.SerializeToString())
    text = (
        "INSERT INTO platform_role_grants (grant_sha256, installation_id, signed, imported_at_ms) VALUES (?, ?, ?, 0)"
    )
    elsewhere = signed.grant(installation_id="i-" + "1" * 32, **parts.times())
    forged = signed.grant(STRANGER, **parts.times())
    for number, thing in enumerate((forged, elsewhere, signed.grant(OWNER, **parts.times()))):
        await parts.edit(text, bytes([number]) * 32, INSTALLATION, thing.SerializeToString())
    await parts.edit(text, b"\x09" * 32, INSTALLATION, b"\xff\xff")
    await parts.load()
    assert not await parts.service.is_platform_admin(OPERATOR)
    assert (await parts.service.view(ADDRESS)).grants == ()


@pytest.mark.parametrize("how", ["put back", "removed and imported again"])
async def test_an_owner_who_was_replaced_does_not_come_back_with_the_older_manifest(
    parts: Parts, database: Database, clock: MockClock, how: str
) -> None:
    """Whose key was stolen, so that the product root named another; the thief writes the database."""
    older = signed.manifest(ROOT, **parts.times())
    await parts.service.activate(older, ADDRESS)
    await clock.advance(60)
    await parts.service.activate(signed.manifest(ROOT, first_owner_key=STRANGER.public_key, **parts.times()), ADDRESS)
    if how == "put back":
        await parts.edit("UPDATE installation_authority SET manifest = ?", older.SerializeToString())
    else:
        await parts.edit("DELETE FROM installation_authority")
    for each in (parts, await Parts(database, clock, writer="r2").load()):
        if how != "put back":
            with pytest.raises(Refusal, match="took this one's place"):
                await each.service.activate(older, ADDRESS)
        with pytest.raises(Refusal):
            await each.claim(OWNER)
    newest = signed.manifest(ROOT, first_owner_key=STRANGER.public_key, **parts.times())
    await parts.service.activate(newest, ADDRESS)
    assert await parts.claim(STRANGER)


async def test_another_pin_ends_what_the_old_root_signed(parts: Parts, database: Database) -> None:
    await parts.activate()
    await parts.service.import_grant(signed.grant(**parts.times()), ADDRESS)
    other = await Parts(database, parts.clock, writer="r2", root_key=STRANGER.public_key).load()
    assert other.service.waits_for
    assert not await other.service.is_platform_admin(OPERATOR)


async def test_callers_without_a_token_are_bounded(database: Database, clock: MockClock) -> None:
    parts = await Parts(database, clock, burst=3).load()
    for _ in range(3):
        await parts.service.view(ADDRESS)
    for call in (
        parts.service.view(ADDRESS),
        parts.service.activate(signed.manifest(), ADDRESS),
        parts.service.claim_owner(signed.claim(b""), ADDRESS),
        parts.service.import_grant(signed.grant(), ADDRESS),
    ):
        with pytest.raises(Refusal) as caught:
            await call
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.retry_after_s


async def test_one_address_leaves_room_for_others(database: Database, clock: MockClock) -> None:
    parts = await Parts(database, clock, burst=5, address_burst=3).load()
    for _ in range(3):
        await parts.service.view("198.51.100.1")
    for _ in range(20):
        with pytest.raises(Refusal):
            await parts.service.view("198.51.100.1")
    await parts.activate()
    assert await parts.kinds() == ["installation.activated"]


async def test_what_is_refused_never_reaches_the_writer(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would break up the group that others share."""
    await parts.activate()
    await parts.claim()
    jobs: list[object] = []
    monkeypatch.setattr(parts.database, "write", jobs.append)
    challenge = (await parts.service.view(ADDRESS)).challenge
    claims = (
        signed.claim(challenge, STRANGER),
        signed.claim(challenge, issued_at_ms=parts.clock.now_ms()),
        signed.claim(b"", issued_at_ms=parts.clock.now_ms() + 1),
    )
    for thing in claims:
        with pytest.raises(Refusal):
            await parts.service.claim_owner(thing, ADDRESS)
    older = parts.times() | {"issued_at_ms": parts.clock.now_ms() - 1}
    for fields in (older, older | {"not_after_ms": 1}):
        with pytest.raises(Refusal):
            await parts.service.activate(signed.manifest(**fields), ADDRESS)
    await parts.activate()
    assert jobs == []


async def test_a_claim_that_meets_a_taken_name_leaves_the_group_of_others_alone(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.activate()
    await parts.operators.create("init", "ben", "viewer")
    raised: list[Exception] = []
    real = parts.database.write

    async def write(job: Any) -> Any:
        def watched(tx: Any) -> Any:
            try:
                return job(tx)
            except Exception as error:
                raised.append(error)
                raise

        return await real(watched)

    monkeypatch.setattr(parts.database, "write", write)
    with pytest.raises(Refusal, match="exists already"):
        await parts.claim(name="ben")
    assert raised == []
