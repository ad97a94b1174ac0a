"""What people contribute: keys once each, statements only as the owner signs them, and all of it in the bundle."""

from typing import Any

import pytest

from fleet import people_signing
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.key_possession import sign_possession
from fleet.people import owner_pin, restore
from fleet.v1 import trust_pb2
from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.approvals.plant import Plant, build


@pytest.fixture
async def plant(database: Database, clock: MockClock) -> Plant:
    return await build(database, clock)


def carried(plant: Plant) -> trust_pb2.TrustBundleStatement:
    return trust_pb2.TrustBundleStatement.FromString(plant.trust.bundle.signed.statement)


async def test_nodes_get_what_the_owner_signed_with_a_new_bundle(plant: Plant) -> None:
    before = plant.trust.bundle.version
    assert not plant.trust.people.policy_covers("press.stop")
    await plant.settle_people()
    assert plant.trust.bundle.version > before
    people = restore(plant.trust.cluster_id, owner_pin(plant.owner.public_key), carried(plant))
    assert {grant.name for grant in people.grants.values()} == {"ada", "bob"}
    assert plant.trust.people.policy_covers("press.stop")
    assert not plant.trust.people.policy_covers("host.info")
    assert (await plant.kinds()).count("owner_statement.accepted") == 4


async def test_the_first_owner_is_whom_the_activation_names(plant: Plant) -> None:
    plant.trust.people.expect_first_owner(lambda: plant.ada.public_key)
    with pytest.raises(Refusal, match="activation manifest"):
        await plant.name_owner()
    plant.trust.people.expect_first_owner(lambda: plant.owner.public_key)
    await plant.name_owner()
    assert len(carried(plant).owners) == 1


async def test_only_the_owner_in_force_is_listened_to(plant: Plant) -> None:
    with pytest.raises(Refusal) as nobody:
        await plant.put(policy=plant.policy())
    assert nobody.value.metadata == {"why": "NO_OWNER"}
    await plant.settle_people()
    stranger, now_ms = Signer.generate(), plant.clock.now_ms()
    cluster = plant.trust.cluster_id
    usurper = people_signing.sign_owner(cluster, stranger, generation=1, issued_at_ms=now_ms)
    skipping = people_signing.sign_owner(cluster, stranger, generation=3, issued_at_ms=now_ms, before=plant.owner)
    alone = people_signing.sign_owner(cluster, stranger, generation=2, issued_at_ms=now_ms)
    refusals = {}
    for name, statement in {
        "policy": {"policy": plant.policy(version=2, signer=stranger)},
        "rollback": {"policy": plant.policy(required=1, version=1)},
        "usurper": {"owner": usurper},
        "skipping": {"owner": skipping},
        "alone": {"owner": alone},
        "as a grant": {"role_grant": plant.owner.sign(Domain.POLICY, b"policy")},
    }.items():
        with pytest.raises(Refusal) as refused:
            await plant.put(**statement)
        refusals[name] = refused.value.metadata.get("why", refused.value.reason)
    assert refusals == {
        "policy": "WRONG_SIGNER",
        "rollback": "ROLLBACK",
        "usurper": Reason.CONFLICT,
        "skipping": "SKIPPED_GENERATION",
        "alone": "WRONG_SIGNER",
        "as a grant": "WRONG_SIGNER",
    }
    await plant.put(
        owner=people_signing.sign_owner(cluster, stranger, generation=2, issued_at_ms=now_ms, before=plant.owner)
    )
    assert len(carried(plant).owners) == 2


async def test_the_same_again_and_the_future_are_refused(plant: Plant) -> None:
    await plant.name_owner()
    grant = plant.grant("ada", plant.ada)
    await plant.put(role_grant=grant)
    with pytest.raises(Refusal, match="CONFLICT"):
        await plant.put(role_grant=grant)
    ahead = plant.clock.now_ms() + 3_600_000
    said = trust_pb2.RoleGrantStatement.FromString(grant.statement)
    said.issued_at_ms, said.not_after_ms = ahead, ahead + 1
    with pytest.raises(Refusal, match="CLOCK_SKEW"):
        await plant.put(role_grant=people_signing.sign_grant(plant.owner, said))


async def test_a_record_of_owners_that_was_changed_around_the_server_says_nothing(plant: Plant) -> None:
    await plant.settle_people(required=2)
    await plant.tamper("UPDATE cluster_people SET kept = ?", b"")
    with pytest.raises(Refusal, match="QUARANTINED"):
        await plant.put(policy=plant.policy(required=1, version=2))
    await plant.trust._refresh()
    await plant.trust._refresh()
    assert not carried(plant).owners
    assert (await plant.kinds()).count("owner_statement.quarantined") == 1


def held(plant: Plant, operator: str, **changes: Any) -> trust_pb2.Signed:
    terms = {"cluster_id": plant.trust.cluster_id, "operator": operator, "now_ms": plant.clock.now_ms()}
    return sign_possession(plant.ada, **(terms | changes))


async def test_a_key_is_enrolled_by_who_signs_with_it(plant: Plant) -> None:
    now_ms = plant.clock.now_ms()
    said = trust_pb2.OperatorKeyStatement.FromString(held(plant, "ada").statement)
    refused = {
        "no statement": (trust_pb2.Signed(statement=b"\xff"), Reason.INVALID_ARGUMENT),
        "nothing": (trust_pb2.Signed(), Reason.INVALID_ARGUMENT),
        "unsigned": (trust_pb2.Signed(statement=said.SerializeToString()), Reason.BAD_PROOF),
        "somebody else's key": (
            Signer.generate().sign(Domain.OPERATOR_KEY, said.SerializeToString()),
            Reason.BAD_PROOF,
        ),
        "as a grant": (plant.ada.sign(Domain.ROLE_GRANT, said.SerializeToString()), Reason.BAD_PROOF),
        "for another account": (held(plant, "bob"), Reason.BAD_PROOF),
        "for another cluster": (held(plant, "ada", cluster_id="c-other"), Reason.BAD_PROOF),
        "old": (held(plant, "ada", now_ms=now_ms - 600_001), Reason.CLOCK_SKEW),
        "ahead": (held(plant, "ada", now_ms=now_ms + 600_001), Reason.CLOCK_SKEW),
    }
    for key in (b"short", bytes(32)):
        said.public_key = key
        refused[key.hex()] = (plant.ada.sign(Domain.OPERATOR_KEY, said.SerializeToString()), Reason.INVALID_ARGUMENT)
    found = {}
    for name, (signed, _) in refused.items():
        with pytest.raises(Refusal) as refusal:
            await plant.trust.people.enroll_key("ada", signed)
        found[name] = refusal.value.reason
    assert found == {name: reason for name, (_, reason) in refused.items()}
    assert await plant.trust.people.keys() == []
    await plant.trust.people.enroll_key("ada", held(plant, "ada", now_ms=now_ms - 600_000))
    assert [key.public_key for key in await plant.trust.people.keys()] == [plant.ada.public_key]


async def test_a_key_is_one_persons(plant: Plant) -> None:
    await plant.trust.people.enroll_key("ada", held(plant, "ada"))
    again = await plant.trust.people.enroll_key("ada", held(plant, "ada"))
    assert again.operator == "ada"
    with pytest.raises(Refusal, match="another operator"):
        await plant.trust.people.enroll_key("bob", held(plant, "bob"))
    await plant.tamper("UPDATE operator_keys SET operator = ?", "bob")
    assert await plant.trust.people.keys() == []
    assert await plant.trust.people.keys() == []
    assert (await plant.kinds()).count("operator.key_quarantined") == 1
    assert (await plant.kinds()).count("operator.key_enrolled") == 1
