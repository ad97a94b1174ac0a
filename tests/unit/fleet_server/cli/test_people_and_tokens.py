"""Operators, join tokens and enrollments."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.identity import show_fingerprint
from fleet.v1 import admin_pb2, enrollment_pb2
from fleet_server.cli.views import grouped_hex
from tests.unit.fleet_server.cli.conftest import AUTHORITY, NOW_MS, Fleetctl
from tests.unit.fleet_server.cli.made import node

FINGERPRINT = bytes(range(20))
OTHER_FINGERPRINT = bytes(range(1, 21))


def operator(**changes: Any) -> admin_pb2.OperatorView:
    values = {"operator_id": "op_1", "name": "grace", "role": "release", "created_at_ms": NOW_MS}
    return admin_pb2.OperatorView(**{**values, **changes})


def join_token(signer: Signer = AUTHORITY, **changes: Any) -> admin_pb2.CreateJoinTokenResponse:
    values: dict[str, Any] = {
        "token_id": "jt_1",
        "cluster_id": "cluster-1",
        "endpoints": ["gateway.example:7443"],
        "authority_key": AUTHORITY.public_key,
        "expires_at_ms": NOW_MS + 3_600_000,
        "max_uses": 1,
    }
    statement = enrollment_pb2.JoinTokenStatement(**{**values, **changes}).SerializeToString()
    token = enrollment_pb2.JoinToken(signed=signer.sign(Domain.JOIN_TOKEN, statement), secret=b"\x09" * 32)
    view = admin_pb2.JoinTokenView(token_id="jt_1", state="ACTIVE", max_uses=1, expires_at_ms=NOW_MS + 3_600_000)
    return admin_pb2.CreateJoinTokenResponse(join_token=view, token=token)


def parse_token(text: str) -> enrollment_pb2.JoinToken:
    assert text.startswith("fjt1.")
    body = text.strip().removeprefix("fjt1.")
    return enrollment_pb2.JoinToken.FromString(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def enrollment(**changes: Any) -> admin_pb2.EnrollmentView:
    values: dict[str, Any] = {
        "enrollment_id": "en_1",
        "name": "press-7",
        "state": enrollment_pb2.ENROLLMENT_STATE_PENDING,
        "fingerprint": FINGERPRINT,
        "created_at_ms": NOW_MS - 12_000,
        "peer_address": "192.0.2.7",
    }
    return admin_pb2.EnrollmentView(**{**values, **changes})


def enrollments(ctl: Fleetctl, *found: admin_pb2.EnrollmentView) -> None:
    ctl.fake.answers["ListEnrollments"] = lambda request: admin_pb2.ListEnrollmentsResponse(
        enrollments=[one for one in found if request.state in (0, one.state)]
    )
    ctl.fake.answers["DecideEnrollment"] = lambda request: admin_pb2.DecideEnrollmentResponse(
        enrollment=enrollment(
            enrollment_id=request.enrollment_id,
            state=enrollment_pb2.ENROLLMENT_STATE_APPROVED
            if request.approve
            else enrollment_pb2.ENROLLMENT_STATE_REJECTED,
        )
    )


def test_a_new_operators_token_is_all_of_stdout(ctl: Fleetctl) -> None:
    ctl.fake.answers["CreateOperator"] = admin_pb2.CreateOperatorResponse(operator=operator(), token="fop1.fresh")
    result = ctl.run("operators", "create", "grace", "--role", "release")
    assert (result.exit_code, result.stdout) == (0, "fop1.fresh\n")
    assert ctl.json("operators", "create", "grace", "--role", "release")["token"] == "fop1.fresh"


def test_a_secret_goes_to_a_new_private_file(ctl: Fleetctl, tmp_path: Path) -> None:
    ctl.fake.answers["CreateOperator"] = admin_pb2.CreateOperatorResponse(operator=operator(), token="fop1.fresh")
    file = tmp_path / "grace.token"
    create = ("operators", "create", "grace", "--role", "viewer", "--output-file", str(file))
    result = ctl.run(*create)
    assert result.exit_code == 0
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("fop1.fresh\n", 0o600)
    assert "fop1.fresh" not in result.output
    again = ctl.run(*create)
    assert again.exit_code == 2, "an older file is never written over"
    assert "exists already" in again.stderr
    assert ctl.run(*create[:-1], str(tmp_path / "none" / "x")).exit_code == 2
    assert len(ctl.fake.requests("CreateOperator")) == 1, "and no operator is made whose token has nowhere to go"


def test_a_secret_whose_file_came_to_be_meanwhile_is_not_lost(ctl: Fleetctl, tmp_path: Path) -> None:
    file = tmp_path / "grace.token"

    def create(_request: object) -> admin_pb2.CreateOperatorResponse:
        file.write_text("another's")
        return admin_pb2.CreateOperatorResponse(operator=operator(), token="fop1.fresh")

    ctl.fake.answers["CreateOperator"] = create
    result = ctl.run("operators", "create", "grace", "--role", "viewer", "--output-file", str(file))
    assert result.exit_code == 1
    assert result.stdout == "fop1.fresh\n"
    assert file.read_text() == "another's"


def test_operators_are_listed_and_revoked(ctl: Fleetctl) -> None:
    gone = operator(name="old", revoked_at_ms=NOW_MS)
    ctl.fake.answers["ListOperators"] = admin_pb2.ListOperatorsResponse(operators=[operator(), gone])
    ctl.fake.answers["RevokeOperator"] = admin_pb2.RevokeOperatorResponse(operator=gone)
    table = ctl.run("operators", "list").stdout.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["grace", "release", "ACTIVE"], ["old", "release", "REVOKED"]]
    assert ctl.run("operators", "revoke", "old").exit_code == 2, "nobody is there to ask"
    assert ctl.fake.requests("RevokeOperator") == []
    assert "REVOKED" in ctl.run("operators", "revoke", "old", "--yes").stdout


@pytest.mark.parametrize("own", [True, False])
def test_a_token_is_replaced_and_ones_own_kept_in_the_profile(ctl: Fleetctl, tmp_path: Path, own: bool) -> None:
    ctl.fake.answers["RotateOperatorToken"] = admin_pb2.RotateOperatorTokenResponse(
        operator=operator(), token="fop1.fresh", own=own
    )
    assert ctl.run("operators", "rotate-token", "grace").exit_code == 2, "nobody is there to ask"
    assert ctl.fake.requests("RotateOperatorToken") == []
    file = tmp_path / "grace.token"
    result = ctl.run("operators", "rotate-token", "grace", "--yes", "--output-file", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("fop1.fresh\n", 0o600)
    assert (ctl.profile.load().contexts["default"].token == "fop1.fresh") is own
    assert ctl.run("operators", "rotate-token", "grace", "--yes", "--output-file", str(file)).exit_code == 2
    assert len(ctl.fake.requests("RotateOperatorToken")) == 1, "and no token ends whose successor has nowhere to go"
    assert ctl.json("operators", "rotate-token", "grace", "--yes")["token"] == "fop1.fresh"


def test_a_join_token_says_what_it_trusts(ctl: Fleetctl) -> None:
    ctl.fake.answers["CreateJoinToken"] = join_token()
    result = ctl.run("join-token", "create", "--site", "berlin", "--ttl", "2h", "--uses", "3", "--auto-approve")
    assert result.exit_code == 0
    token = parse_token(result.stdout)
    assert (token.secret, token.owner_pin) == (b"\x09" * 32, b"")
    authority = hashlib.sha256(AUTHORITY.public_key).hexdigest().upper()
    assert authority in result.stderr.replace(":", "")
    request = ctl.fake.requests("CreateJoinToken")[0]
    assert (request.site, request.ttl_s, request.max_uses, request.auto_approve) == ("berlin", 7200, 3, True)


@pytest.mark.parametrize(
    ("endpoints", "warned"),
    [(["127.0.0.1:7443", "[::1]:7443"], True), (["127.0.0.1:7443", "gateway.example:7443"], False)],
)
def test_a_token_that_only_the_servers_own_machine_can_use_says_so(
    ctl: Fleetctl, endpoints: list[str], warned: bool
) -> None:
    ctl.fake.answers["CreateJoinToken"] = join_token(endpoints=endpoints)
    assert ("gateway_endpoints" in ctl.run("join-token", "create").stderr) == warned


def test_the_next_step_keeps_the_token_off_the_command_line(ctl: Fleetctl, tmp_path: Path) -> None:
    ctl.fake.answers["CreateJoinToken"] = join_token()
    assert "fleet-node enroll --token-file FILE`" in ctl.run("join-token", "create").stderr
    written = tmp_path / "join.token"
    result = ctl.run("join-token", "create", "--output-file", str(written))
    assert f"fleet-node enroll --token-file {written}`" in result.stderr


def test_the_owner_pin_comes_from_the_profile_alone(ctl: Fleetctl) -> None:
    forged = join_token()
    forged.token.owner_pin = b"\x66" * 32
    ctl.fake.answers["CreateJoinToken"] = forged
    assert parse_token(ctl.run("join-token", "create").stdout).owner_pin == b""
    ctl.log_in(owner_pin=b"\x11" * 32)
    pin = parse_token(ctl.run("join-token", "create").stdout).owner_pin
    assert pin == b"\x11" * 32


@pytest.mark.parametrize(
    "made",
    [
        join_token(Signer.from_private_bytes(b"\x44" * 32)),
        join_token(authority_key=b"\x44" * 32),
        join_token(cluster_id="another"),
        admin_pb2.CreateJoinTokenResponse(),
    ],
)
def test_a_join_token_of_another_authority_is_not_handed_out(
    ctl: Fleetctl, made: admin_pb2.CreateJoinTokenResponse
) -> None:
    ctl.fake.answers["CreateJoinToken"] = made
    result = ctl.run("join-token", "create")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "authority that was pinned at login" in result.stderr


def test_join_tokens_are_listed_over_all_pages_and_revoked(ctl: Fleetctl) -> None:
    view = join_token().join_token
    ctl.fake.answers["ListJoinTokens"] = lambda request: admin_pb2.ListJoinTokensResponse(
        join_tokens=[view], next_page_token="" if request.page.token == "2" else str(int(request.page.token or 0) + 1)
    )
    assert len(ctl.json("join-token", "list")) == 3
    ctl.fake.answers["RevokeJoinToken"] = admin_pb2.RevokeJoinTokenResponse(join_token=view)
    assert ctl.json("join-token", "revoke", "jt_1")["token_id"] == "jt_1"


def test_a_list_that_never_ends_is_left(ctl: Fleetctl) -> None:
    ctl.fake.answers["ListJoinTokens"] = admin_pb2.ListJoinTokensResponse(next_page_token="same")
    result = ctl.run("join-token", "list")
    assert result.exit_code == 3
    assert "repeats a page" in result.stderr


def test_pending_enrollments_show_fingerprints_in_groups(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment(), enrollment(enrollment_id="en_2", state=enrollment_pb2.ENROLLMENT_STATE_REJECTED))
    result = ctl.run("enrollments", "list")
    assert show_fingerprint(FINGERPRINT) in result.stdout
    assert "en_2" not in result.stdout
    assert [one["state"] for one in ctl.json("enrollments", "list", "--state", "all")] == ["PENDING", "REJECTED"]


def test_approving_shows_the_fingerprint_and_asks(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment())
    result = ctl.run("enrollments", "approve", "press-7", "--label", "line=2", stdin="y\n", person=True)
    assert result.exit_code == 0, result.output
    assert show_fingerprint(FINGERPRINT) in result.stdout
    assert grouped_hex(hashlib.sha256(AUTHORITY.public_key).digest()) in " ".join(result.stderr.split())
    request = ctl.fake.requests("DecideEnrollment")[0]
    assert (request.enrollment_id, request.approve, request.fingerprint) == ("en_1", True, FINGERPRINT)
    assert dict(request.labels) == {"line": "2"}


def test_saying_no_approves_nothing(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment())
    assert ctl.run("enrollments", "approve", "press-7", stdin="n\n", person=True).exit_code == 1
    assert ctl.fake.requests("DecideEnrollment") == []


def test_an_asserted_fingerprint_needs_no_person(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment())
    spoken = show_fingerprint(FINGERPRINT).lower().replace("-", " ")
    assert ctl.run("enrollments", "approve", "en_1", "--fingerprint", spoken).exit_code == 0
    assert ctl.fake.requests("DecideEnrollment")[0].fingerprint == FINGERPRINT


def test_another_fingerprint_is_refused_here(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment())
    wrong = show_fingerprint(OTHER_FINGERPRINT)
    result = ctl.run("enrollments", "approve", "en_1", "--fingerprint", wrong)
    assert result.exit_code == 3
    assert "enrollments reject en_1" in result.stderr
    assert ctl.fake.requests("DecideEnrollment") == []
    assert ctl.run("enrollments", "approve", "en_1", "--fingerprint", "12-34").exit_code == 2


def test_yes_approves_and_claims_no_comparison(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment())
    assert ctl.run("enrollments", "approve", "en_1", "--yes").exit_code == 0
    assert ctl.fake.requests("DecideEnrollment")[0].fingerprint == b""


def test_two_nodes_of_one_name_are_told_apart(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment(), enrollment(enrollment_id="en_2", fingerprint=OTHER_FINGERPRINT))
    result = ctl.run("enrollments", "approve", "press-7", "--yes")
    assert result.exit_code == 3
    assert "en_1 en_2" in result.stderr
    assert ctl.run("enrollments", "approve", "nobody", "--yes").exit_code == 3


def test_rejecting_carries_the_reason(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment())
    result = ctl.run("enrollments", "reject", "press-7", "--reason", "not ours", "-o", "json")
    assert json.loads(result.stdout)["state"] == "REJECTED"
    request = ctl.fake.requests("DecideEnrollment")[0]
    assert (request.approve, request.reason) == (False, "not ours")


def test_a_refusal_of_the_server_is_told(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment())
    ctl.fake.answers["DecideEnrollment"] = Refusal(Reason.ALREADY_DECIDED, "en_1 was approved by ada")
    result = ctl.run("enrollments", "approve", "en_1", "--yes")
    assert result.exit_code == 3
    assert "en_1 was approved by ada" in result.stderr
    assert "--state all" in result.stderr


def test_a_machine_takes_a_nodes_place_after_its_fingerprint_was_compared(ctl: Fleetctl) -> None:
    enrollments(ctl, enrollment(name="spare"))
    ctl.fake.answers["ReplaceNode"] = admin_pb2.ReplaceNodeResponse(node=node(7, checklist_open=1))
    verb = ("nodes", "replace", "press-7", "--with", "spare", "--reason", "stolen")

    assert ctl.run(*verb).exit_code == 2, "nobody is there to ask"
    wrong = ctl.run(*verb, "--fingerprint", show_fingerprint(bytes(20)), "--yes")
    assert "another fingerprint" in wrong.stderr
    assert ctl.fake.requests("ReplaceNode") == []
    done = ctl.run(*verb, "--fingerprint", show_fingerprint(FINGERPRINT), "--yes")

    assert "press-7" in done.stdout
    assert "fleetctl nodes checklist press-7" in done.stderr
    (request,) = ctl.fake.requests("ReplaceNode")
    assert (request.node, request.enrollment_id, request.fingerprint, request.reason) == (
        "press-7",
        "en_1",
        FINGERPRINT,
        "stolen",
    )
    assert ctl.json(*verb, "--yes")[0]["name"] == "press-7"
