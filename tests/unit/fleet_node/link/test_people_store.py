"""What a node keeps of people's words: over restarts, whatever the server leaves out of its bundles."""

import asyncio
import base64
from pathlib import Path

import pytest

from fleet.clock import ServerTime
from fleet.envelope import Domain
from fleet.identity import write_private
from fleet.metrics import Registry
from fleet.node_audit import NodeAuditKind
from fleet.people import CLOCK_SLACK_MS, owner_pin
from fleet.v1 import gateway_pb2, trust_pb2
from fleet_node.enrollment.membership import BundleFile, MembershipError
from fleet_node.enrollment.owner_pin import pin_owner, pinned_owner
from fleet_node.link import people_store
from fleet_node.link.key_audit import KeyAudit
from fleet_node.link.people_store import PeopleStore, load_people
from fleet_node.link.trust_store import TrustStore
from fleet_node.observability.metrics import LinkMetrics
from tests.fakes.clock import MockClock
from tests.fakes.gateway import CLUSTER, FakeInstallation
from tests.properties.persons import (
    ADA,
    DAY_MS,
    GRANTS,
    NEXT_OWNER,
    NOW_MS,
    OWNER,
    PIN,
    STRANGER,
    grant,
    owner_statement,
    policy,
    rule,
)
from tests.unit.fleet_node.link.test_key_audit import Heard


class Place:
    """A node's trust on disk, and bundles for it."""

    def __init__(self, folder: Path, installation: FakeInstallation) -> None:
        self.path = folder / "people.json"
        self.clock = MockClock(NOW_MS)
        self.heard = Heard()
        self._installation = installation
        self._file = BundleFile(
            folder / "bundle.bin", cluster_id=CLUSTER, authority_key=installation.authority.public_key
        )
        self._file.save(installation.trust_state())
        self._number = 1

    def open(self, pin: bytes = PIN) -> PeopleStore:
        """A process starts."""
        audit = KeyAudit(self.clock)
        audit.audited_by(self.heard)
        self.server_time = ServerTime(self.clock)
        people = PeopleStore(
            self.path, cluster_id=CLUSTER, pin=pin, clock=self.clock, server_time=self.server_time, audit=audit
        )
        self.trust = TrustStore(self._file, LinkMetrics(Registry()), people)
        return people

    async def offer(self, **said: object) -> gateway_pb2.BundleApplied:
        """The next bundle, with people's words in it; it is applied."""
        applied = await self.offered(**said)
        assert applied.applied
        return applied

    async def offered(self, **said: object) -> gateway_pb2.BundleApplied:
        """The next bundle, with people's words in it; what the node says of it."""
        self._number += 1
        statement = trust_pb2.TrustBundleStatement.FromString(self._installation.bundle(self._number).statement)
        statement.MergeFrom(trust_pb2.TrustBundleStatement(**said))
        signed = self._installation.authority.sign(Domain.TRUST_BUNDLE, statement.SerializeToString())
        return await self.trust.offer([signed])


@pytest.fixture
def place(tmp_path: Path, installation: FakeInstallation) -> Place:
    return Place(tmp_path, installation)


async def test_what_was_verified_once_is_kept(place: Place) -> None:
    people = place.open()
    await place.offer(
        owners=[owner_statement(cluster_id=CLUSTER)],
        policy=policy(version=3, cluster_id=CLUSTER),
        role_grants=[grant(ADA, "ada", cluster_id=CLUSTER)],
    )
    held = people.people
    assert held.policy_in_force is not None
    await place.offer()  # the server leaves everything out
    await place.offer(policy=policy(rule("*", 1), version=2, cluster_id=CLUSTER))
    assert people.people == held
    assert place.open().people == held


async def test_what_was_moved_away_comes_again_from_the_bundle_in_force(place: Place) -> None:
    people = place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=policy(cluster_id=CLUSTER))
    place.path.unlink()
    held = place.open().people
    assert held == people.people
    await place.offer()
    assert place.open().people == held


async def test_a_bundle_is_refused_when_what_people_say_in_it_cannot_be_kept(place: Place) -> None:
    people = place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=policy(version=3, cluster_id=CLUSTER))
    version, kept = place.trust.state.version, place.path.read_bytes()
    place.path.unlink()
    place.path.mkdir()
    stricter = policy(rule(required=3), version=4, cluster_id=CLUSTER)
    refused = await place.offered(policy=stricter)
    assert (refused.applied, refused.reason.startswith("DISK")) == (False, True)
    assert (place.trust.state.version, people.people.policy.version) == (version, 3)
    place.path.rmdir()
    write_private(place.path, kept)

    await place.offer()  # the server does not say it again, and the node never took it
    await place.offer(policy=stricter)

    await place.offer()
    assert place.open().people.policy.version == 4


class Killed(BaseException):
    """The process ends here."""


async def test_killed_between_the_two_files_it_knows_what_people_said_and_takes_the_bundle_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=policy(version=3, cluster_id=CLUSTER))
    version = place.trust.state.version
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(BundleFile, "save", _killed)
        await place.offered(policy=policy(rule(required=3), version=4, cluster_id=CLUSTER))
    people = place.open()
    assert (place.trust.state.version, people.people.policy.version) == (version, 4)
    await place.offer()
    assert place.open().people.policy.version == 4


async def test_killed_before_the_first_file_it_knows_nothing_of_either(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=policy(version=3, cluster_id=CLUSTER))
    version = place.trust.state.version
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(people_store, "write_private", _killed)
        await place.offered(policy=policy(rule(required=3), version=4, cluster_id=CLUSTER))
    people = place.open()
    assert (place.trust.state.version, people.people.policy.version) == (version, 3)


def _killed(*_: object) -> None:
    raise Killed


async def test_the_latest_time_that_people_signed_never_goes_back(place: Place) -> None:
    people = place.open()
    await place.offer(
        owners=[owner_statement(cluster_id=CLUSTER)],
        policy=policy(cluster_id=CLUSTER, issued_at_ms=NOW_MS + CLOCK_SLACK_MS),
    )
    assert people.latest_signed_ms == NOW_MS + CLOCK_SLACK_MS
    await place.offer(policy=policy(version=2, cluster_id=CLUSTER, issued_at_ms=NOW_MS - DAY_MS))
    assert people.latest_signed_ms == place.open().latest_signed_ms == NOW_MS + CLOCK_SLACK_MS


async def test_a_statement_from_far_ahead_moves_no_time(place: Place) -> None:
    people = place.open()
    await place.offer(
        owners=[owner_statement(cluster_id=CLUSTER)],
        role_grants=[grant(ADA, "ada", cluster_id=CLUSTER, issued_at_ms=NOW_MS + 365 * DAY_MS)],
    )
    assert people.latest_signed_ms < NOW_MS


async def test_a_date_that_server_time_alone_vouched_for_stays_believed(place: Place) -> None:
    """Or a server that turns its clock back would keep alive what has ended, on every machine without a battery."""
    place.clock = MockClock(0)
    people = place.open()
    place.server_time.observe(NOW_MS)
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=policy(cluster_id=CLUSTER))
    signed_ms = people.latest_signed_ms
    assert NOW_MS - 30 * DAY_MS < signed_ms < NOW_MS
    people = place.open()
    place.server_time.observe(NOW_MS - 365 * DAY_MS)
    await place.offer()
    assert people.latest_signed_ms == signed_ms


async def test_another_pin_begins_again(place: Place) -> None:
    people = place.open(owner_pin(NEXT_OWNER.public_key))
    await place.offer(
        owners=[owner_statement(cluster_id=CLUSTER)],
        policy=policy(cluster_id=CLUSTER),
        role_grants=[grant(ADA, "ada", cluster_id=CLUSTER)],
    )
    assert people.people.owner is None
    await place.trust.pin_owner(PIN)
    assert people.people.policy_in_force is not None
    assert len(people.people.grants) == 1
    assert place.open().people == people.people
    assert place.open(owner_pin(STRANGER.public_key)).people.owner is None


async def test_another_pin_frees_nothing_while_the_server_withholds_the_next_policy(place: Place) -> None:
    people = place.open()
    first = policy(rule("valve.*"), version=3, cluster_id=CLUSTER)
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=first)
    await place.offer()
    for pin in (b"\x07" * 32, PIN):  # another owner's, and back again
        await place.trust.pin_owner(pin)
        assert people.people.policy_in_force is None
        assert people.people.protects("valve.open")
        assert not people.people.protects("pump.stop")
        await place.offer()
    assert place.open().people.protects("valve.open")
    old = policy(rule("pump.*"), version=2, cluster_id=CLUSTER, issued_at_ms=NOW_MS - 30 * DAY_MS)
    people = place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=old)
    assert people.people.protects("valve.open")  # the owner replaced that one
    later = policy(rule("pump.*"), version=4, cluster_id=CLUSTER, issued_at_ms=NOW_MS)
    await place.offer(policy=later)
    for held in (people.people, place.open().people):
        assert (held.protects("valve.open"), held.protects("pump.stop")) == (False, True)


async def test_another_pin_from_a_restart_on_frees_nothing(place: Place) -> None:
    place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=policy(rule("valve.*"), cluster_id=CLUSTER))
    await place.offer()
    other = owner_pin(NEXT_OWNER.public_key)
    people = place.open(other)
    await place.offer(owners=[owner_statement(NEXT_OWNER, 1, cluster_id=CLUSTER)])
    for held in (people.people, place.open(other).people):
        assert held.owner is not None
        assert (held.policy_in_force, held.protects("valve.open")) == (None, True)


async def test_a_pin_that_cannot_be_written_down_with_it_counts_and_frees_nothing(place: Place) -> None:
    people = place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)], policy=policy(rule("valve.*"), cluster_id=CLUSTER))
    kept = place.path.read_bytes()
    place.path.unlink()
    place.path.mkdir()
    await place.trust.pin_owner(b"\x07" * 32)
    assert (people.people.pin, people.people.protects("valve.open")) == (b"\x07" * 32, True)
    place.path.rmdir()
    write_private(place.path, kept)
    assert place.open(b"\x07" * 32).people.protects("valve.open")


@pytest.mark.parametrize(
    "former", ["7", '{"globs": 7, "issued_at_ms": 1}', '{"globs": ["A ?"], "issued_at_ms": 1}', '{"globs": []}']
)
async def test_a_damaged_memory_of_earlier_policies_is_no_empty_one(place: Place, former: str) -> None:
    place.open()
    await place.offer(owners=[owner_statement(cluster_id=CLUSTER)])
    text = place.path.read_text().rstrip().removesuffix("}")
    place.path.write_text(text + f', "former": {former}}}')
    with pytest.raises(MembershipError, match="damaged"):
        place.open()


async def test_what_is_taken_and_what_is_forged_stands_in_the_audit(place: Place) -> None:
    place.open()
    await place.offer(
        owners=[owner_statement(cluster_id=CLUSTER)],
        policy=policy(version=3, cluster_id=CLUSTER),
        role_grants=[grant(ADA, "ada", cluster_id=CLUSTER)],
    )
    ((kind, taken),) = place.heard.rows
    assert (kind, taken["owner"], taken["policy"], taken["roles"]) == (NodeAuditKind.PEOPLE_TAKEN, 1, 3, 1)
    del place.heard.rows[:]
    forged = grant(STRANGER, "eve", owner=STRANGER, cluster_id=CLUSTER)
    for _ in range(3):
        await place.offer(
            policy=policy(version=2, cluster_id=CLUSTER),
            role_grants=[forged, grant(ADA, "ada", cluster_id=CLUSTER)],
        )
    assert [(kind, row["reason"]) for kind, row in place.heard.rows] == [
        (NodeAuditKind.PEOPLE_REFUSED, "ROLLBACK"),
        (NodeAuditKind.PEOPLE_REFUSED, "WRONG_SIGNER"),
    ]
    place.path.unlink()
    del place.heard.rows[:]
    place.open()
    assert [kind for kind, _ in place.heard.rows][-1:] == [NodeAuditKind.PEOPLE_REFUSED], "none of it is in this bundle"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 2}', b'{"format": 1, "owner_pin": 7}'])
def test_a_damaged_file_says_so(place: Place, content: bytes) -> None:
    place.path.write_bytes(content)
    place.path.chmod(0o600)
    with pytest.raises(MembershipError, match="damaged"):
        place.open()


def test_a_file_that_was_written_by_somebody_else_gains_nothing(place: Place) -> None:
    people = place.open()
    asyncio.run(place.offer(owners=[owner_statement(cluster_id=CLUSTER)]))
    text = place.path.read_text()
    forged = trust_pb2.TrustBundleStatement(
        owners=[owner_statement(STRANGER, 1, cluster_id=CLUSTER)], policy=policy(owner=STRANGER), role_grants=GRANTS
    )
    kept = trust_pb2.TrustBundleStatement(owners=[owner.signed for owner in people.people.owners], cluster_id=CLUSTER)
    place.path.write_text(
        text.replace(
            base64.b64encode(kept.SerializeToString()).decode(), base64.b64encode(forged.SerializeToString()).decode()
        )
    )
    assert load_people(place.path, cluster_id=CLUSTER, pin=PIN)[0].owner is None


def test_a_person_at_the_node_goes_before_the_token(tmp_path: Path, installation: FakeInstallation) -> None:
    membership, path = installation.membership(), tmp_path / "owner.pin"
    assert pinned_owner(path, membership) == b""
    pin_owner(path, PIN)
    assert pinned_owner(path, membership) == PIN
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("half a pin")
    with pytest.raises(MembershipError, match="pin the owner again"):
        pinned_owner(path, membership)


async def test_an_owners_successor_stands_in_the_audit_by_its_key(place: Place) -> None:
    place.open()
    first = owner_statement(cluster_id=CLUSTER)
    await place.offer(owners=[first])
    await place.offer(owners=[first, owner_statement(NEXT_OWNER, 2, OWNER, cluster_id=CLUSTER)])

    told = [(row["owner"], row["owner_sha256"]) for kind, row in place.heard.rows]

    assert told == [(1, PIN.hex()), (2, owner_pin(NEXT_OWNER.public_key).hex())]
