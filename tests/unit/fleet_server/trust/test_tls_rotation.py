"""TLS CAs and the certificate that replicas share, on both databases."""

import asyncio
import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from fleet import tls_certificates
from fleet.errors import Reason, Refusal
from fleet.tls import der_to_pem
from fleet.tls_certificates import CA_DAYS, LEAF_DAYS
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.certificates import open_certificates
from fleet_server.config import Settings
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.trust import tls_store
from fleet_server.trust.keyring import TrustSetupError
from fleet_server.trust.rollout import Version
from fleet_server.trust.service import TrustService
from fleet_server.trust.tls_phases import TlsCa, TlsPhase
from fleet_server.trust.tls_rotation import TlsRotation
from tests.fakes.clock import MockClock
from tests.integration.waiting import eventually
from tests.unit.fleet_server.trust.test_trust import ENDPOINTS, SECRETS, edit, make

DAY_MS = 24 * 3600 * 1000
HOSTS = ("gateway.example", "127.0.0.1")


@dataclass
class Replica:
    """One replica of the cluster."""

    trust: TrustService
    tls: TlsRotation
    held: dict[str, tuple[Version, int, int, str]]
    shown: set[bytes]

    def phases(self) -> list[TlsPhase]:
        return [ca.phase for ca in self.trust.tls.cas]

    def leaf_issuer(self) -> bytes:
        assert self.trust.tls.leaf is not None
        return self.trust.tls.leaf.ca_sha256

    async def nodes_follow(self) -> None:
        """Every node takes the newest bundle."""
        for name, (_, nodes, asked, example) in self.held.items():
            self.held[name] = (self.trust.bundle.version, nodes, asked, example)


async def replica(
    database: Database, clock: MockClock, *, writer: str = "r-1", hosts: tuple[str, ...] = HOSTS
) -> Replica:
    trust = make(database, clock, writer=writer)
    await trust.create_cluster()
    await trust.load()
    await trust.publish_bundle(ENDPOINTS)
    held: dict[str, tuple[Version, int, int, str]] = {}
    shown: set[bytes] = set()
    rotation = TlsRotation(trust, lambda *_: list(held.values()), hosts=hosts, shows=shown.__contains__)
    await rotation.renew()
    return Replica(trust, rotation, held, shown)


@pytest.fixture
async def one(database: Database, clock: MockClock) -> Replica:
    return await replica(database, clock)


async def audited(database: Database, clock: MockClock, prefix: str) -> list[str]:
    """By the first replica's chain: in one process each of them writes what any of them did."""
    reader = AuditService(database=database, clock=clock, wakeup=Wakeup(), writer="reader", row_mac=SECRETS.row_mac)
    rows = (await reader.page(AuditCursor())).rows
    return [row.kind for row in rows if row.writer == "r-1" and row.kind.startswith(prefix)]


def now_of(clock: MockClock) -> dt.datetime:
    return dt.datetime.fromtimestamp(clock.now_ms() / 1000, dt.UTC)


def ref(ca: TlsCa) -> str:
    return ca.sha256.hex()


async def rotate(here: Replica) -> tuple[TlsCa, TlsCa]:
    """The whole way; the CA before and the one of now."""
    (before,) = [ca for ca in here.trust.tls.cas if ca.phase is TlsPhase.ACTIVE]
    made = await here.tls.prepare("ada", b"")
    await here.nodes_follow()
    await here.tls.activate("ada", ref(made))
    await here.tls.retire("ada", ref(before))
    return before, made


# -- one certificate for all ------------------------------------------------------------------------------------------
async def test_replicas_show_one_certificate_for_the_names_of_all_and_renew_it_once(
    one: Replica, database: Database, clock: MockClock
) -> None:
    first = one.trust.tls.leaf
    other = await replica(database, clock, writer="r-2")
    assert first is not None
    assert other.trust.tls.leaf == first
    elsewhere = await replica(database, clock, writer="r-3", hosts=(*HOSTS, "elsewhere.example", "2001:DB8:0::1"))
    wider = elsewhere.trust.tls.leaf
    assert wider is not None
    assert wider != first
    assert set(tls_certificates.leaf_hosts(wider.pair.certificate_pem)) == {*HOSTS, "elsewhere.example", "2001:db8::1"}
    assert not await elsewhere.tls.renew(), "another spelling of a host is no other host"

    clock.step_wall(LEAF_DAYS * 24 * 3600 * 2 / 3)
    await asyncio.gather(*(each.tls.renew() for each in (one, other)))
    third = one.trust.tls.leaf
    assert third is not None
    assert third not in (first, wider)
    assert other.trust.tls.leaf == third
    assert set(tls_certificates.leaf_hosts(third.pair.certificate_pem)) == set(HOSTS), "names that are gone go"
    assert len(await audited(database, clock, "tls_leaf.")) == 3


async def test_a_replica_whose_names_were_left_out_adds_them_at_once(
    one: Replica, database: Database, clock: MockClock, tmp_path: Path
) -> None:
    trust = make(database, clock, writer="r-2")
    await trust.load()
    certificates = open_certificates(tmp_path / "tls", HOSTS, clock)
    settings = Settings(data_dir=tmp_path, tls_hosts=("only-here.example",))
    missing = TlsRotation.of_server(trust, lambda *_: [], settings, certificates)
    await missing.open(ENDPOINTS)
    running = asyncio.create_task(missing.run())
    await clock.wait_sleepers(1)
    made = await one.tls.prepare("ada", b"")
    await one.tls.activate("ada", ref(made))
    assert one.trust.tls.leaf is not None
    assert "only-here.example" not in tls_certificates.leaf_hosts(one.trust.tls.leaf.pair.certificate_pem)

    await trust.watch.look()  # it hears of it, and no minute passes
    await eventually(
        lambda: "only-here.example" in tls_certificates.leaf_hosts(der_to_pem(certificates.leaf_der)),
        "its name is in the certificate",
    )

    assert trust.tls.leaf is not None
    assert trust.tls.leaf.ca_sha256 == made.sha256
    running.cancel()


async def test_a_server_knows_what_to_show_before_it_publishes_anything(
    one: Replica, database: Database, clock: MockClock, tmp_path: Path
) -> None:
    again = make(database, clock, writer="r-2")
    await again.load()
    certificates = open_certificates(tmp_path / "tls", HOSTS, clock)
    TlsRotation.of_server(again, lambda *_: [], Settings(data_dir=tmp_path), certificates)
    assert one.trust.tls.leaf is not None
    assert certificates.leaf_der == one.trust.tls.leaf.pair.certificate_der


async def test_renewals_that_fail_are_tried_again_and_files_are_looked_at(
    one: Replica, database: Database, clock: MockClock
) -> None:
    looked: list[int] = []
    rotation = TlsRotation(one.trust, lambda *_: [], hosts=HOSTS, shows=lambda _: False, look=lambda: looked.append(1))
    running = asyncio.create_task(rotation.run())
    await clock.wait_sleepers(1)
    first = one.trust.tls.leaf
    clock.step_wall(LEAF_DAYS * 24 * 3600 * 2 / 3)
    await edit(database, "UPDATE tls_cas SET mac = ?", b"x" * 32)
    await clock.advance(60)
    await clock.wait_sleepers(1)
    assert one.trust.tls.leaf == first
    assert looked == [1]
    running.cancel()


async def test_a_certificate_that_a_wrong_clock_dated_ahead_is_replaced_once_the_clock_is_right(
    one: Replica, clock: MockClock
) -> None:
    """Nodes refuse one that has not begun."""
    clock.step_wall(400 * 24 * 3600)
    assert await one.tls.renew()
    clock.step_wall(-400 * 24 * 3600)
    assert await one.tls.renew()
    leaf = one.trust.tls.leaf
    assert leaf is not None
    began = x509.load_pem_x509_certificate(leaf.pair.certificate_pem).not_valid_before_utc
    assert began.timestamp() * 1000 <= clock.now_ms()
    assert not await one.tls.renew()


@pytest.mark.parametrize("waiting", [True, False])
async def test_an_own_ca_that_ended_is_replaced_and_ends_no_server(
    one: Replica, database: Database, clock: MockClock, waiting: bool
) -> None:
    """Nothing that it signs is believed any more, so nobody could come to rotate it."""
    (ended,) = one.trust.tls.cas
    clock.step_wall((CA_DAYS - 10) * 24 * 3600)
    assert await one.tls.renew()
    prepared = await one.tls.prepare("ada", b"") if waiting else None
    clock.step_wall(10 * 24 * 3600)
    running = asyncio.create_task(one.tls.run())
    await clock.wait_sleepers(1)
    await clock.advance(60)
    await clock.wait_sleepers(1)
    running.cancel()

    again = await replica(database, clock, writer="r-2")
    assert again.phases() == [TlsPhase.REVOKED, TlsPhase.ACTIVE]
    assert again.leaf_issuer() != ended.sha256
    assert prepared is None or again.leaf_issuer() == prepared.sha256
    assert ended.certificate_der not in again.trust.bundle.tls_ca_der


async def test_an_own_ca_that_ended_behind_one_from_outside_is_replaced_too(one: Replica, clock: MockClock) -> None:
    (ended,) = one.trust.tls.cas
    clock.step_wall((CA_DAYS - 100) * 24 * 3600)
    assert await one.tls.renew()
    company = tls_certificates.make_ca("company", now_of(clock))
    brought = await one.tls.prepare("ada", company.certificate_pem)
    await one.tls.activate("ada", ref(brought), override="a terminator shows it")
    await one.tls.prepare("ada", tls_certificates.make_ca("next", now_of(clock)).certificate_pem)
    clock.step_wall(101 * 24 * 3600)

    assert await one.tls.renew()

    assert one.phases() == [TlsPhase.REVOKED, TlsPhase.ACTIVE, TlsPhase.PREPARED, TlsPhase.PREPARED]
    assert one.leaf_issuer() == one.trust.tls.cas[-1].sha256 != ended.sha256
    assert one.trust.bundle.tls_ca_der[0] == company.certificate_der


@pytest.mark.parametrize("years", [-50, 25])
async def test_a_clock_that_is_years_wrong_costs_no_ca_and_no_certificate(
    one: Replica, clock: MockClock, years: int
) -> None:
    """Of one replica, or of all until their time is set."""
    ca, leaf = one.phases(), one.trust.tls.leaf
    clock.step_wall(years * 365 * 24 * 3600)
    with capture_logs() as logs:
        assert not await one.tls.renew()
    assert (one.phases(), one.trust.tls.leaf) == (ca, leaf)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["tls_ca_ended"] * (years > 0)
    clock.step_wall(-years * 365 * 24 * 3600)
    assert not await one.tls.renew()


# -- steps ------------------------------------------------------------------------------------------------------------
async def test_a_whole_rotation_and_where_the_keys_are(one: Replica, database: Database) -> None:
    before, made = await rotate(one)
    assert one.phases() == [TlsPhase.RETIRED, TlsPhase.ACTIVE]
    assert one.leaf_issuer() == made.sha256
    assert one.trust.bundle.tls_ca_der == (made.certificate_der,)
    rows = await database.read(lambda conn: tls_store.cas(conn, one.trust.cluster_id))
    assert [bool(row.sealed_private) for row in rows] == [False, True]
    assert all(b"PRIVATE KEY" not in row.sealed_private for row in rows)
    assert before.sha256 == rows[0].sha256


async def test_other_replicas_take_a_step_up_with_the_bundle(
    one: Replica, database: Database, clock: MockClock
) -> None:
    other = await replica(database, clock, writer="r-2")
    _, made = await rotate(one)
    await other.trust.watch.look()
    assert other.leaf_issuer() == made.sha256
    assert other.phases() == one.phases()
    assert other.trust.bundle.version == one.trust.bundle.version


async def test_of_two_replicas_that_prepare_at_once_one_makes_it(
    one: Replica, database: Database, clock: MockClock
) -> None:
    other = await replica(database, clock, writer="r-2")
    answers = await asyncio.gather(one.tls.prepare("ada", b""), other.tls.prepare("bob", b""), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["Refusal", "TlsCa"]
    made = next(answer for answer in answers if isinstance(answer, TlsCa))
    both = await asyncio.gather(one.tls.activate("ada", ref(made)), other.tls.activate("bob", ref(made)))
    assert [ca.phase for ca, _ in both] == [TlsPhase.ACTIVE, TlsPhase.ACTIVE]
    assert await audited(database, clock, "tls_ca.act") == ["tls_ca.activated"]


@pytest.mark.parametrize("step", ["activate", "retire"])
async def test_a_step_waits_for_the_nodes_that_would_be_cut_off(one: Replica, step: str) -> None:
    (first,) = one.trust.tls.cas
    one.held["old"] = (one.trust.bundle.version, 3, 2, "press-9")
    one.held["restored"] = ((1, 999), 1, 1, "press-1")  # a version that this server never published carries nothing
    made = await one.tls.prepare("ada", b"")
    if step == "retire":
        await one.tls.activate("ada", ref(made), override="now")
    target = made if step == "activate" else first
    with pytest.raises(Refusal, match=r"0 of 3 nodes .* 3 would be cut off .*press-9") as refused:
        await getattr(one.tls, step)("ada", ref(target))
    assert refused.value.reason is Reason.CONFLICT
    with pytest.raises(Refusal, match="say why"):
        await getattr(one.tls, step)("ada", ref(target), override="  ")
    _, far = await getattr(one.tls, step)("ada", ref(target), override="away until Friday")
    assert (far.asked, far.holding, far.away) == (3, 0, 1)


async def test_a_ca_from_outside_waits_until_something_shows_its_certificate(one: Replica, clock: MockClock) -> None:
    company = tls_certificates.make_ca("company", now_of(clock))
    brought = await one.tls.prepare("ada", company.certificate_pem)
    assert await one.tls.prepare("ada", company.certificate_der) == brought, "the same again changes nothing"
    with pytest.raises(Refusal, match=r"outside\.pem"):
        await one.tls.activate("ada", ref(brought))
    one.shown.add(company.certificate_der)
    own = one.leaf_issuer()
    await one.tls.activate("ada", ref(brought))
    assert one.leaf_issuer() == own, "the own one goes on signing what stands behind a terminator"
    assert one.trust.bundle.tls_ca_der[0] == company.certificate_der
    served = one.trust.tls.served()
    assert served is not None
    assert served.active_der == company.certificate_der
    await one.tls.retire("ada", own.hex())
    assert one.trust.bundle.tls_ca_der == (company.certificate_der,)
    assert served.issuer_der == one.trust.tls.row(own).certificate


async def test_the_views_count_who_trusts_what(one: Replica) -> None:
    one.held["old"] = (one.trust.bundle.version, 3, 2, "press-9")
    made = await one.tls.prepare("ada", b"")
    one.held["new"] = (one.trust.bundle.version, 2, 2, "press-1")
    used, rollouts = await one.tls.in_use()
    assert [each.nodes for each in used] == [5, 2]
    assert [(far.record, far.holding, far.asked, far.away) for far in rollouts] == [(made, 2, 4, 1)]


# -- rows that were changed around the server -------------------------------------------------------------------------
@pytest.mark.parametrize("column", ["phase", "certificate", "sealed_private", "first_number", "own"])
async def test_a_changed_ca_is_used_for_nothing_and_the_bundle_stays(
    one: Replica, database: Database, clock: MockClock, column: str
) -> None:
    before = one.trust.bundle
    value: object = b"changed" if column in ("certificate", "sealed_private") else 3
    await edit(database, f"UPDATE tls_cas SET {column} = ?", value)
    with pytest.raises(TrustSetupError, match="Restore the table tls_cas"):
        await one.tls.prepare("ada", b"")
    assert one.trust.bundle == before
    again = make(database, clock, writer="r-2")
    with pytest.raises(TrustSetupError, match="Restore the table tls_cas"):
        await again.load()


async def test_a_changed_certificate_is_replaced_and_told_once(
    one: Replica, database: Database, clock: MockClock
) -> None:
    await edit(database, "UPDATE tls_leaves SET certificate = ?", b"changed")
    other = await replica(database, clock, writer="r-2")
    assert other.trust.tls.leaf is not None
    assert tls_certificates.leaf_hosts(other.trust.tls.leaf.pair.certificate_pem)
    assert await audited(database, clock, "tls_leaf.q") == ["tls_leaf.quarantined"]


async def test_a_ca_that_is_gone_from_the_table_is_not_made_anew(
    one: Replica, database: Database, clock: MockClock
) -> None:
    """Nodes trust the old one: a new one would cut all of them off."""
    await edit(database, "DELETE FROM tls_cas")
    with pytest.raises(TrustSetupError, match="Restore the table tls_cas"):
        await make(database, clock, writer="r-2").load()


@pytest.mark.parametrize("end", ["retire", "revoke"])
async def test_a_row_that_was_put_back_brings_no_ca_back(
    one: Replica, database: Database, clock: MockClock, end: str
) -> None:
    (first,) = one.trust.tls.cas
    made = await one.tls.prepare("ada", b"")
    await one.tls.activate("ada", ref(made))
    old = (await database.read(lambda conn: tls_store.cas(conn, one.trust.cluster_id)))[0]
    if end == "retire":
        await one.tls.retire("ada", ref(first))
    else:
        await one.tls.revoke("ada", ref(first), reason="leaked")
    after = one.phases()
    for known in (True, False):  # a replica that remembers, and one that has just started
        await edit(
            database, "UPDATE tls_cas SET phase = ?, since_ms = ?, mac = ? WHERE sha256 = ?",
            old.phase, old.since_ms, old.mac, first.sha256,
        )  # fmt: skip
        here = one if known else await replica(database, clock, writer="r-2")
        await here.trust.publish_bundle([*ENDPOINTS, f"again-{known}.example:7443"])
        assert here.trust.bundle.tls_ca_der == (made.certificate_der,)
        assert here.phases() == (after if known else [TlsPhase.REVOKED, TlsPhase.ACTIVE])
    assert await audited(database, clock, "tls_ca.q") == ["tls_ca.quarantined"] * 2
