"""`fleetctl authority`, and what follows a rotation elsewhere: tokens, keys and the audit's signatures."""

from __future__ import annotations

from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from tests.unit.fleet_server.cli.conftest import AUTHORITY, NOW_MS, Fleetctl, authorities
from tests.unit.fleet_server.cli.test_people_and_tokens import join_token
from tests.unit.fleet_server.cli.test_telemetry_audit_keys import checkpoint, entries, exported

SECOND = Signer.from_private_bytes(b"\x06" * 32)
STRANGER = Signer.from_private_bytes(b"\x07" * 32)


def test_authorities_are_shown_with_what_this_machine_can_prove(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, SECOND)
    first, second = ctl.run("authority", "list").stdout.splitlines()[1:]
    assert first.endswith("pinned at login")
    assert second.endswith("follows")
    assert len(ctl.json("authority", "list")["authorities"]) == 2

    ctl.fake.answers["ListAuthorities"] = authorities(STRANGER)
    refused = ctl.run("authority", "list")
    assert refused.exit_code == 3
    assert "does not prove that its authority follows" in refused.stderr


def test_a_chain_that_does_not_lead_over_the_newest_that_was_seen_is_not_shown_as_one_that_follows(
    ctl: Fleetctl,
) -> None:
    """Whoever got hold of the first authority's key makes another successor."""
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, SECOND)
    assert ctl.run("authority", "list").exit_code == 0
    assert ctl.profile.load().contexts["default"].newest_authority == SECOND.public_key
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, STRANGER)
    refused = ctl.run("authority", "list")
    assert refused.exit_code == 3
    assert "does not lead over the newest" in refused.stderr


def test_an_authority_that_the_chain_does_not_prove_is_named_so(ctl: Fleetctl) -> None:
    """The list comes from a table, and whoever writes that proves nothing."""
    answer = authorities(AUTHORITY, SECOND)
    answer.authorities.add(generation=3, public_key=STRANGER.public_key, created_at_ms=NOW_MS)
    ctl.fake.answers["ListAuthorities"] = answer
    assert ctl.run("authority", "list").stdout.splitlines()[3].endswith("NOT proven")
    ctl.log_in(authority_key=SECOND.public_key)
    assert ctl.run("authority", "list").stdout.splitlines()[1].endswith("before the pinned one")


def test_a_rotation_names_the_generation_that_was_seen_and_is_remembered(ctl: Fleetctl) -> None:
    answers = [authorities(AUTHORITY), authorities(AUTHORITY, SECOND)]
    ctl.fake.answers["ListAuthorities"] = answers
    made = admin_pb2.AuthorityView(generation=2, public_key=SECOND.public_key, created_at_ms=NOW_MS)
    ctl.fake.answers["RotateAuthority"] = admin_pb2.RotateAuthorityResponse(authority=made)
    result = ctl.run("authority", "rotate", "--reason", "yearly", "--yes")
    assert result.exit_code == 0, result.output
    assert SECOND.public_key.hex() in result.stdout
    (asked,) = ctl.fake.requests("RotateAuthority")
    assert (asked.from_generation, asked.reason) == (1, "yearly")
    assert ctl.profile.load().contexts["default"].newest_authority == SECOND.public_key


def test_a_rotation_is_asked_about_and_needs_a_reason(ctl: Fleetctl) -> None:
    assert ctl.run("authority", "rotate", "--reason", "yearly").exit_code == 2
    assert ctl.run("authority", "rotate", "--yes").exit_code == 2
    assert ctl.fake.requests("RotateAuthority") == []
    ctl.fake.answers["RotateAuthority"] = Refusal(Reason.CONFLICT, "the authority in force is of generation 2, not 1")
    refused = ctl.run("authority", "rotate", "--reason", "yearly", "--yes")
    assert refused.exit_code != 0
    assert "of generation 2" in refused.stderr


def test_a_join_token_of_a_follower_is_handed_out_and_of_a_stranger_is_not(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, SECOND)
    ctl.fake.answers["CreateJoinToken"] = join_token(SECOND, authority_key=SECOND.public_key)
    assert ctl.run("join-token", "create").exit_code == 0
    ctl.fake.answers["CreateJoinToken"] = join_token()
    assert ctl.run("join-token", "create").exit_code == 3, "the one before signs no token any more"
    ctl.fake.answers["CreateJoinToken"] = join_token(STRANGER, authority_key=STRANGER.public_key)
    assert ctl.run("join-token", "create").exit_code == 3


def test_the_keys_say_that_their_authority_follows_the_pinned_one(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, SECOND)
    ctl.fake.answers["ListKeys"] = admin_pb2.ListKeysResponse(authority_key=SECOND.public_key, authority_generation=2)
    assert "follows the one pinned at login" in ctl.run("keys", "list").stdout
    ctl.fake.answers["ListKeys"] = admin_pb2.ListKeysResponse(authority_key=STRANGER.public_key)
    assert "NOT the one pinned at login" in ctl.run("keys", "list").stdout


def test_checkpoints_verify_across_a_rotation_and_never_back_over_it(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, SECOND)
    rows = entries(3)
    first = checkpoint(1, rows[0])
    second = checkpoint(2, rows[1], previous=first, signer=SECOND)
    ctl.fake.answers["ExportAudit"] = [exported(rows[:2], first, second)]
    assert ctl.run("audit", "verify").exit_code == 0
    for last in (AUTHORITY, STRANGER):
        third = checkpoint(3, rows[2], previous=second, signer=last)
        ctl.fake.answers["ExportAudit"] = [exported(rows, first, second, third)]
        refused = ctl.run("audit", "verify")
        assert refused.exit_code == 1
        assert "CHECKPOINT_BAD_SIGNATURE" in refused.stderr
