"""A server that shows less than this machine has seen owners sign: an older policy, and roles that were taken away."""

from __future__ import annotations

import grpc
import pytest

from fleet import jointoken, people_signing
from fleet.envelope import Domain, Signer, verify_one
from fleet.key_file import create_key_file
from fleet.people import owner_pin
from fleet.v1 import admin_pb2, enrollment_pb2, trust_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl
from tests.unit.fleet_server.cli.test_signing import CLUSTER, PASSPHRASE, Desk, ask


@pytest.fixture
def desk(ctl: Fleetctl) -> Desk:
    return Desk(ctl)


def policy_of(desk: Desk, version: int, people: int) -> trust_pb2.Signed:
    rule = trust_pb2.PolicyRule(action_glob="press.*", required=people, roles=["operator"])
    said = trust_pb2.PolicyStatement(
        cluster_id=CLUSTER, version=version, rules=[rule], issued_at_ms=NOW_MS - 3000, not_after_ms=NOW_MS + 10**9
    )
    return people_signing.sign_policy(desk.owner, said)


def role_ended(desk: Desk, name: str, key: Signer) -> trust_pb2.Signed:
    said = trust_pb2.RoleGrantStatement(
        cluster_id=CLUSTER,
        operator_key=key.public_key,
        operator_name=name,
        role="operator",
        issued_at_ms=NOW_MS - 2000,
        not_after_ms=NOW_MS - 2001,
    )
    return people_signing.sign_grant(desk.owner, said)


@pytest.fixture
def lied_to(desk: Desk) -> Desk:
    """This machine has seen policy 2, which asks for three people, and the end of eve's role. The server now shows
    policy 1, which asks for one, and eve's role."""
    eve = Signer.generate()
    desk.grant("eve", eve)
    before = admin_pb2.GetOwnerStatementsResponse()
    before.CopyFrom(desk.statements)
    before.policy.CopyFrom(policy_of(desk, 1, 1))
    desk.statements.policy.CopyFrom(policy_of(desk, 2, 3))
    desk.statements.role_grants.append(role_ended(desk, "eve", eve))
    assert desk.run("policy", "show").exit_code == 0
    desk.statements = before
    return desk


def signed_by_successor(desk: Desk) -> list[admin_pb2.PutOwnerStatementRequest]:
    """What was sent after the statement that names the next owner."""
    requests = desk.ctl.fake.requests("PutOwnerStatement")
    (at,) = [no for no, request in enumerate(requests) if request.HasField("owner")]
    return requests[at + 1 :]  # type: ignore[no-any-return]


def test_a_new_owner_signs_what_stands_and_not_what_the_server_shows(lied_to: Desk) -> None:
    new = lied_to.ctl.folder / "new.key"
    successor = create_key_file(new, ask, scrypt_cost=2**10)
    result = lied_to.run("owner", "rotate", "--new-key", str(new), "--yes", stdin=f"{PASSPHRASE}\n{PASSPHRASE}\n")

    assert result.exit_code == 0, result.output
    assert "does not show what this machine has seen signed: policy 2, the end of eve's role operator" in result.stderr
    signed = signed_by_successor(lied_to)
    policies = [request.policy for request in signed if request.HasField("policy")]
    grants = [request.role_grant for request in signed if request.HasField("role_grant")]
    (raw,) = [verify_one(one, domain=Domain.POLICY, public_key=successor.public_key) for one in policies]
    policy = trust_pb2.PolicyStatement.FromString(raw)
    assert (policy.version, policy.rules[0].required) == (3, 3)
    named = [trust_pb2.RoleGrantStatement.FromString(one.statement).operator_name for one in grants]
    assert named == ["ada"]
    assert "press.*: 3 of operator" in result.stderr
    assert "ada has the role operator until" in result.stderr


def test_a_policy_is_not_signed_again_as_an_older_one(lied_to: Desk) -> None:
    assert lied_to.run("policy", "sign", "--yes").exit_code == 0
    *brought_back, signed = lied_to.ctl.fake.requests("PutOwnerStatement")
    assert [request.WhichOneof("statement") for request in brought_back] == ["policy", "role_grant"]
    said = trust_pb2.PolicyStatement.FromString(signed.policy.statement)
    assert (said.version, said.rules[0].required) == (3, 3)


def test_what_was_seen_under_another_pin_is_nobodys_word(lied_to: Desk) -> None:
    lied_to.log_in(owner_pin=b"\x11" * 32)
    other = lied_to.run("policy", "show")
    assert (other.exit_code, "pinned owner" in other.stderr) == (3, True)


def test_what_this_machine_has_seen_is_private_and_damage_is_told(lied_to: Desk) -> None:
    kept = lied_to.ctl.profile.path.with_suffix(".people.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    for damage in ("no json", '{"format": 1, "contexts": {"default": {}}}', '{"format": 2, "contexts": {}}'):
        kept.write_text(damage)
        result = lied_to.run("policy", "show")
        assert (result.exit_code, "is damaged" in result.stderr) == (2, True), result.output
    kept.unlink()
    assert lied_to.run("policy", "show").exit_code == 0


def test_what_this_machine_signed_itself_is_not_signed_again_as_older(desk: Desk) -> None:
    """The server took a stricter policy and the end of eve's role, said so, and never showed either."""
    desk.grant("eve", Signer.generate())
    desk.statements.policy.CopyFrom(policy_of(desk, 1, 1))
    stricter = desk.ctl.folder / "stricter.toml"
    stricter.write_text('for = "90d"\n[[rule]]\nactions = "press.*"\npeople = 3\nroles = ["operator"]\n')
    assert desk.run("policy", "set", str(stricter)).exit_code == 0
    assert desk.run("operator", "revoke-grant", "eve", "--yes").exit_code == 0
    desk.ctl.fake.calls.clear()

    new = desk.ctl.folder / "new.key"
    create_key_file(new, ask, scrypt_cost=2**10)
    result = desk.run("owner", "rotate", "--new-key", str(new), "--yes", stdin=f"{PASSPHRASE}\n{PASSPHRASE}\n")

    assert result.exit_code == 0, result.output
    assert "does not show what this machine has seen signed: policy 2, the end of eve's role operator" in result.stderr
    signed = signed_by_successor(desk)
    (policy,) = [request.policy.statement for request in signed if request.HasField("policy")]
    assert trust_pb2.PolicyStatement.FromString(policy).rules[0].required == 3
    grants = [request.role_grant.statement for request in signed if request.HasField("role_grant")]
    assert [trust_pb2.RoleGrantStatement.FromString(one).operator_name for one in grants] == ["ada"]


def test_the_end_of_a_role_that_the_server_lost_is_sent_again(desk: Desk) -> None:
    desk.grant("eve", Signer.generate())
    assert desk.run("operator", "revoke-grant", "eve", "--yes").exit_code == 0
    said = desk.put().role_grant
    desk.ctl.fake.calls.clear()
    again = desk.run("operator", "revoke-grant", "eve", "--yes")
    assert again.exit_code == 0, again.output
    assert desk.put().role_grant == said
    desk.statements.role_grants.append(said)
    done = desk.run("operator", "revoke-grant", "eve", "--yes")
    assert (done.exit_code, "no such role" in done.stderr) == (3, True)


def test_what_did_not_reach_the_server_is_not_taken_for_signed(desk: Desk) -> None:
    desk.grant("eve", Signer.generate())
    desk.ctl.fake.answers["PutOwnerStatement"] = grpc.StatusCode.UNAVAILABLE
    assert desk.run("operator", "revoke-grant", "eve", "--yes").exit_code == 4
    desk.ctl.fake.answers["PutOwnerStatement"] = admin_pb2.PutOwnerStatementResponse()
    assert desk.run("operator", "revoke-grant", "eve", "--yes").exit_code == 0


def test_the_rules_that_were_shown_are_not_signed_in_place_of_others_that_appear(desk: Desk) -> None:
    """The server shows policy 1 to be read, and policy 2, which the nodes hold, once that was agreed to: signed as
    policy 3, the rules of 1 would stand above it."""
    older, newer = admin_pb2.GetOwnerStatementsResponse(), admin_pb2.GetOwnerStatementsResponse()
    for statements, policy in ((older, policy_of(desk, 1, 1)), (newer, policy_of(desk, 2, 3))):
        statements.CopyFrom(desk.statements)
        statements.policy.CopyFrom(policy)
    desk.ctl.fake.answers["GetOwnerStatements"] = [older, newer]
    assert desk.run("policy", "sign", "--yes").exit_code == 0
    said = trust_pb2.PolicyStatement.FromString(desk.put().policy.statement)
    assert (said.version, said.rules[0].required) == (2, 1), "nodes that hold another policy 2 refuse it"


def test_who_signs_next_brings_back_what_the_servers_database_lost(desk: Desk) -> None:
    """The database is from before the owner changed: without that statement it would refuse whatever the new owner
    signs, and nodes whatever the old one does."""
    desk.statements.policy.CopyFrom(policy_of(desk, 1, 1))
    new = desk.ctl.folder / "new.key"
    create_key_file(new, ask, scrypt_cost=2**10)
    before = admin_pb2.GetOwnerStatementsResponse()
    before.CopyFrom(desk.statements)
    rotated = desk.run("owner", "rotate", "--new-key", str(new), "--yes", stdin=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    assert rotated.exit_code == 0, rotated.output
    sent = desk.ctl.fake.requests("PutOwnerStatement")
    desk.log_in(owner_key_file=str(new))  # with the first owner's pin still, as others have it
    desk.statements.owners.append(sent[0].owner)
    desk.statements.policy.CopyFrom(sent[1].policy)
    desk.statements.role_grants.append(sent[2].role_grant)
    assert desk.run("policy", "show").exit_code == 0
    desk.statements = before
    desk.ctl.fake.calls.clear()

    again = desk.run("policy", "sign", "--yes")

    assert again.exit_code == 0, again.output
    assert "owner 2, policy 2, ada's role operator" in again.stderr
    *brought, signed = desk.ctl.fake.requests("PutOwnerStatement")
    assert brought == sent
    assert trust_pb2.PolicyStatement.FromString(signed.policy.statement).version == 3


def test_a_new_node_pins_the_newest_owner_that_this_machine_has_seen(desk: Desk) -> None:
    """The first owner's key was stolen, and its successor named: with the first one's pin a node that joins would take
    whichever successor the thief names."""
    successor = Signer.generate()
    named = people_signing.sign_owner(CLUSTER, successor, generation=2, issued_at_ms=NOW_MS - 3000, before=desk.owner)
    desk.statements.owners.append(named)
    made = admin_pb2.CreateJoinTokenResponse(token=enrollment_pb2.JoinToken(secret=b"\x09" * 32))
    made.token.signed.statement = enrollment_pb2.JoinTokenStatement(cluster_id=CLUSTER).SerializeToString()
    desk.ctl.fake.answers["CreateJoinToken"] = made
    desk.log_in(authority_key=b"")

    def pinned() -> bytes:
        created = desk.run("join-token", "create")
        assert created.exit_code == 0, created.output
        return jointoken.decode(created.stdout).owner_pin

    assert pinned() == owner_pin(desk.owner.public_key)
    assert desk.run("policy", "show").exit_code == 3, "there is none; who owns the cluster is known now"
    assert pinned() == owner_pin(successor.public_key)
