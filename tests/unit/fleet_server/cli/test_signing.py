"""What people sign with fleetctl: they see exactly that, and nothing that the server says is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from fleet import people_signing
from fleet.envelope import Domain, Signer, verify_one
from fleet.errors import Reason, Refusal
from fleet.key_file import create_key_file, load_key_file
from fleet.key_possession import verify_possession
from fleet.people import owner_pin
from fleet.secrets import Secret
from fleet.v1 import admin_pb2, trust_pb2
from tests.unit.fleet_server.cli.conftest import NOW_MS, Fleetctl

CLUSTER = "cluster-1"
PASSPHRASE = "a passphrase of these tests"
ARGUMENTS = b'{"line": 2}'


def ask() -> Secret[str]:
    return Secret(PASSPHRASE)


class Desk:
    """A person's key files, and the statements that the fake server hands out."""

    def __init__(self, ctl: Fleetctl) -> None:
        self.ctl = ctl
        self.owner_file, self.key_file = ctl.folder / "owner.key", ctl.folder / "ada.key"
        self.owner = create_key_file(self.owner_file, ask, scrypt_cost=2**10)
        self.ada = create_key_file(self.key_file, ask, scrypt_cost=2**10)
        self.statements = admin_pb2.GetOwnerStatementsResponse(
            owners=[people_signing.sign_owner(CLUSTER, self.owner, generation=1, issued_at_ms=NOW_MS - 5000)]
        )
        self.grant("ada", self.ada)
        ctl.fake.answers["GetOwnerStatements"] = lambda _: self.statements
        ctl.fake.answers["PutOwnerStatement"] = admin_pb2.PutOwnerStatementResponse()
        self.log_in()

    def log_in(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "owner_pin": owner_pin(self.owner.public_key),
            "owner_key_file": str(self.owner_file),
            "key_file": str(self.key_file),
        }
        self.ctl.log_in(**{**values, **changes})

    def grant(self, name: str, key: Signer) -> None:
        said = trust_pb2.RoleGrantStatement(
            cluster_id=CLUSTER,
            operator_key=key.public_key,
            operator_name=name,
            role="operator",
            issued_at_ms=NOW_MS - 4000,
            not_after_ms=NOW_MS + 1_000_000,
        )
        self.statements.role_grants.append(people_signing.sign_grant(self.owner, said))

    def run(self, *args: str, stdin: str = PASSPHRASE + "\n") -> Any:
        return self.ctl.run(*args, stdin=stdin)

    def put(self) -> admin_pb2.PutOwnerStatementRequest:
        (request,) = self.ctl.fake.requests("PutOwnerStatement")
        return request  # type: ignore[no-any-return]


@pytest.fixture
def desk(ctl: Fleetctl) -> Desk:
    return Desk(ctl)


# -- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_is_made_in_a_file_that_only_the_passphrase_opens(ctl: Fleetctl) -> None:
    path = ctl.folder / "new.key"
    result = ctl.run("operator", "keygen", "--out", str(path), stdin=PASSPHRASE + "\n")
    assert result.exit_code == 0, result.output
    assert path.stat().st_mode & 0o777 == 0o600
    key = load_key_file(path, ask)
    assert hashlib.sha256(key.public_key).hexdigest().upper() in result.stdout.replace(":", "")
    again = ctl.run("operator", "keygen", "--out", str(path), stdin=PASSPHRASE + "\n")
    assert (again.exit_code, "exists" in again.stderr) == (2, True)
    weak = ctl.run("operator", "keygen", "--out", str(ctl.folder / "weak.key"), stdin="short\n")
    assert (weak.exit_code, (ctl.folder / "weak.key").exists()) == (2, False)


def test_the_public_key_is_enrolled_and_the_file_remembered(desk: Desk) -> None:
    desk.log_in(key_file="")
    view = admin_pb2.OperatorKeyView(public_key=desk.ada.public_key, operator="ada", enrolled_at_ms=NOW_MS)
    desk.ctl.fake.answers["EnrollOperatorKey"] = admin_pb2.EnrollOperatorKeyResponse(key=view)
    refused = desk.run("operator", "enroll", "--key", str(desk.key_file), stdin="another passphrase\n")
    assert (refused.exit_code, desk.ctl.fake.requests("EnrollOperatorKey")) == (2, [])
    result = desk.run("operator", "enroll", "--key", str(desk.key_file))
    assert result.exit_code == 0, result.output
    (request,) = desk.ctl.fake.requests("EnrollOperatorKey")
    me = desk.ctl.fake.answers["WhoAmI"]
    key = verify_possession(request.signed, cluster_id=CLUSTER, operator=me.operator, now_ms=NOW_MS)
    assert key == desk.ada.public_key
    assert desk.ctl.profile.load().contexts["default"].key_file == str(desk.key_file)


# -- what owners sign -----------------------------------------------------------------------------------------------


def test_a_grant_is_signed_for_the_key_that_was_compared(desk: Desk) -> None:
    bob = Signer.generate()
    keys = [admin_pb2.OperatorKeyView(public_key=bob.public_key, operator="bob", enrolled_at_ms=1)]
    desk.ctl.fake.answers["ListOperatorKeys"] = admin_pb2.ListOperatorKeysResponse(keys=keys)
    unasked = desk.run("operator", "grant", "bob")
    assert (unasked.exit_code, "--fingerprint" in unasked.stderr) == (2, True)
    other = desk.run("operator", "grant", "bob", "--fingerprint", "00" * 32)
    assert (other.exit_code, "do not grant" in other.stderr) == (3, True)
    nobody = desk.run("operator", "grant", "eve")
    assert nobody.exit_code == 3
    assert not desk.ctl.fake.requests("PutOwnerStatement")

    sha256 = hashlib.sha256(bob.public_key).hexdigest()
    result = desk.run("operator", "grant", "bob", "--role", "release", "--for", "30d", "--fingerprint", sha256)

    assert result.exit_code == 0, result.output
    signed = desk.put().role_grant
    raw = verify_one(signed, domain=Domain.ROLE_GRANT, public_key=desk.owner.public_key)
    said = trust_pb2.RoleGrantStatement.FromString(raw)
    assert (said.cluster_id, said.operator_key, said.operator_name) == (CLUSTER, bob.public_key, "bob")
    assert (said.role, said.issued_at_ms, said.not_after_ms) == ("release", NOW_MS, NOW_MS + 30 * 86_400_000)


def test_a_policy_comes_from_a_small_file(desk: Desk) -> None:
    file = desk.ctl.folder / "policy.toml"
    file.write_text('for = "90d"\n[[rule]]\nactions = "exec.*"\npeople = 2\nroles = ["operator", "release"]\n')
    result = desk.run("policy", "set", str(file))
    assert result.exit_code == 0, result.output
    raw = verify_one(desk.put().policy, domain=Domain.POLICY, public_key=desk.owner.public_key)
    said = trust_pb2.PolicyStatement.FromString(raw)
    assert (said.version, said.not_after_ms) == (1, NOW_MS + 90 * 86_400_000)
    (rule,) = said.rules
    assert (rule.action_glob, rule.required, list(rule.roles)) == ("exec.*", 2, ["operator", "release"])

    desk.statements.policy.CopyFrom(desk.put().policy)
    shown = desk.ctl.json("policy", "show")
    assert (shown["version"], shown["rules"][0]["people"]) == (1, 2)
    desk.ctl.fake.calls.clear()
    unseen = desk.run("policy", "sign", "--for", "10d")
    assert (unseen.exit_code, "--yes" in unseen.stderr) == (2, True)
    assert "exec.*: 2 of operator, release" in unseen.stderr, "who signs sees what"
    assert not desk.ctl.fake.requests("PutOwnerStatement")
    assert desk.run("policy", "sign", "--for", "10d", "--yes").exit_code == 0
    again = trust_pb2.PolicyStatement.FromString(desk.put().policy.statement)
    assert (again.version, again.rules, again.not_after_ms) == (2, said.rules, NOW_MS + 10 * 86_400_000)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense", "not TOML"),
        ("[[rule]]\n", "`for`"),
        ('for = "soon"\nrule = []\n', "duration"),
        ('for = "9d"\nrules = []\nrule = []\n', "`rules`"),
        ('for = "9d"\n[[rule]]\nactions = "a.*"\npeople = 0\nroles = ["operator"]\n', "1 to 16"),
        ('for = "9d"\n[[rule]]\nactions = "a.*"\npeople = true\nroles = ["operator"]\n', "`people`"),
        ('for = "9d"\n[[rule]]\nactions = "a.*"\npeople = 1\nroles = ["admin"]\n', "'admin' is no role"),
        ('for = "9d"\n[[rule]]\nactions = "A ?"\npeople = 1\nroles = ["operator"]\n', "glob"),
        ('for = "9d"\n[[rule]]\nactions = "a.*"\npeople = 1\nroles = ["operator"]\nextra = 1\n', "`extra`"),
    ],
)
def test_a_policy_that_says_nothing_clear_is_not_signed(desk: Desk, text: str, named: str) -> None:
    file = desk.ctl.folder / "policy.toml"
    file.write_text(text)
    result = desk.run("policy", "set", str(file))
    assert (result.exit_code, named in result.stderr) == (2, True), result.stderr
    assert not desk.ctl.fake.requests("PutOwnerStatement")


def test_the_first_owner_is_named_once_and_pinned(desk: Desk) -> None:
    desk.log_in(owner_pin=b"", owner_key_file="")
    taken = desk.run("owner", "init", "--owner-key", str(desk.owner_file))
    assert (taken.exit_code, "has an owner already" in taken.stderr) == (3, True)
    desk.statements = admin_pb2.GetOwnerStatementsResponse()
    result = desk.run("owner", "init", "--owner-key", str(desk.owner_file))
    assert result.exit_code == 0, result.output
    verify_one(desk.put().owner, domain=Domain.OWNER, public_key=desk.owner.public_key)
    context = desk.ctl.profile.load().contexts["default"]
    assert (context.owner_pin, context.owner_key_file) == (owner_pin(desk.owner.public_key), str(desk.owner_file))


def test_what_the_pinned_owner_did_not_sign_is_nobodys_word(desk: Desk) -> None:
    desk.ctl.fake.answers["ListOperatorKeys"] = admin_pb2.ListOperatorKeysResponse()
    desk.log_in(owner_pin=b"")
    unpinned = desk.run("operator", "list")
    assert (unpinned.exit_code, "--owner-pin" in unpinned.stderr) == (2, True)
    desk.log_in(owner_pin=b"\x11" * 32)
    other = desk.run("policy", "show")
    assert (other.exit_code, "pinned owner" in other.stderr) == (3, True)


def test_only_the_owner_in_force_names_a_successor(desk: Desk) -> None:
    new = desk.ctl.folder / "new.key"
    create_key_file(new, ask, scrypt_cost=2**10)
    wrong = desk.run("owner", "rotate", "--new-key", str(new), "--owner-key", str(desk.key_file), "--yes")
    assert (wrong.exit_code, "not the owner" in wrong.stderr) == (3, True)
    assert not desk.ctl.fake.requests("PutOwnerStatement")


# -- intents --------------------------------------------------------------------------------------------------------

NODES = [
    admin_pb2.NodeView(node_id="id-1", name="n-1", state="ACTIVE", fingerprint=b"\x01" * 20),
    admin_pb2.NodeView(node_id="id-2", name="n-2", state="ACTIVE", fingerprint=b"\x02" * 20),
]


def approval(desk: Desk, **changes: Any) -> admin_pb2.ApprovalView:
    statement = people_signing.make_intent(
        changes.pop("cluster_id", CLUSTER),
        [trust_pb2.IntentTarget(node_id=node.node_id, name=node.name, fingerprint=node.fingerprint) for node in NODES],
        action="press.stop",
        arguments=ARGUMENTS,
        issued_at_ms=(issued_at_ms := changes.pop("issued_at_ms", NOW_MS - 1000)),
        not_after_ms=issued_at_ms + 61_000,
    )
    signed = people_signing.sign_intent(desk.ada, statement)
    spec = admin_pb2.CommandSpec(
        action=changes.pop("action", "press.stop"), arguments=changes.pop("arguments", ARGUMENTS), intent=signed
    )
    values: dict[str, Any] = {
        "approval_id": statement.intent_id.hex(),
        "state": "PENDING",
        "command": spec,
        "signers": ["ada"],
        "required": 2,
        "created_by": "ada",
        "expires_at_ms": statement.not_after_ms,
    }
    return admin_pb2.ApprovalView(**{**values, **changes})


def test_run_signs_one_intent_for_exactly_the_nodes_that_were_shown(desk: Desk) -> None:
    fake = desk.ctl.fake
    fake.answers["IssueCommands"] = Refusal(Reason.INTENT_REQUIRED, "press.stop is protected")
    fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=NODES)
    fake.answers["ProposeCommand"] = admin_pb2.ProposeCommandResponse(approval=approval(desk))
    words = ("run", "n-*", "press.stop", "--args-json", ARGUMENTS.decode(), "--no-wait")
    unasked = desk.run(*words)
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (2, True)
    assert not fake.requests("ProposeCommand")

    result = desk.run(*words, "--yes")

    assert result.exit_code == 0, result.output
    for shown in ("press.stop", ARGUMENTS.decode(), "n-1", "AEAQ", "fleetctl approve"):
        assert shown in result.stderr
    (request,) = fake.requests("ProposeCommand")
    raw = verify_one(request.command.intent, domain=Domain.INTENT, public_key=desk.ada.public_key)
    intent = trust_pb2.IntentStatement.FromString(raw)
    assert [(one.node_id, one.name, one.fingerprint) for one in intent.targets] == [
        ("id-1", "n-1", b"\x01" * 20),
        ("id-2", "n-2", b"\x02" * 20),
    ]
    assert (intent.cluster_id, intent.action) == (CLUSTER, "press.stop")
    assert intent.arguments_sha256 == hashlib.sha256(request.command.arguments).digest()
    assert intent.not_after_ms == NOW_MS + 3_600_000


@pytest.mark.parametrize("pattern", ["n-1", "id-1", "n-[13]", "site=oslo, n-1"])
def test_a_node_that_nobody_asked_for_is_not_signed_for(desk: Desk, pattern: str) -> None:
    fake = desk.ctl.fake
    fake.answers["IssueCommands"] = Refusal(Reason.INTENT_REQUIRED, "press.stop is protected")
    fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=NODES)
    result = desk.run("run", pattern, "press.stop", "--args-json", ARGUMENTS.decode(), "--no-wait", "--yes")
    assert (result.exit_code, "do not sign" in result.stderr, "n-2" in result.stderr) == (3, True, True)
    assert not fake.requests("ProposeCommand")


@pytest.mark.parametrize("targets", ["*", "n-?", "id-1 n-2", "site=oslo", "n-*,line=2"])
def test_what_fits_the_targets_is_signed_for(desk: Desk, targets: str) -> None:
    fake = desk.ctl.fake
    fake.answers["IssueCommands"] = Refusal(Reason.INTENT_REQUIRED, "press.stop is protected")
    fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=NODES)
    fake.answers["ProposeCommand"] = admin_pb2.ProposeCommandResponse(approval=approval(desk))
    words = ("press.stop", "--args-json", ARGUMENTS.decode(), "--no-wait", "--yes")
    assert desk.run("run", *targets.split(), *words).exit_code == 0


def test_run_without_a_key_says_how_to_get_one(desk: Desk) -> None:
    desk.log_in(key_file="")
    desk.ctl.fake.answers["IssueCommands"] = Refusal(Reason.INTENT_REQUIRED, "press.stop is protected")
    result = desk.run("run", "n-1", "press.stop")
    assert (result.exit_code, "operator keygen" in result.stderr) == (2, True)


def test_run_takes_no_idempotency_key_for_what_is_signed(desk: Desk) -> None:
    desk.ctl.fake.answers["IssueCommands"] = Refusal(Reason.INTENT_REQUIRED, "press.stop is protected")
    result = desk.run("run", "n-1", "press.stop", "--idempotency-key", "monday", "--yes")
    assert (result.exit_code, "good once by itself" in result.stderr) == (2, True)


def test_whether_a_proposal_arrived_can_be_looked_up(desk: Desk) -> None:
    fake = desk.ctl.fake
    fake.answers["IssueCommands"] = Refusal(Reason.INTENT_REQUIRED, "press.stop is protected")
    fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=NODES)
    fake.answers["ProposeCommand"] = grpc.StatusCode.UNAVAILABLE
    result = desk.run("run", "n-*", "press.stop", "--yes")
    assert (result.exit_code, "fleetctl approvals list --all" in result.stderr) == (4, True)


def test_run_ends_when_somebody_rejects(desk: Desk) -> None:
    fake, waiting = desk.ctl.fake, approval(desk)
    fake.answers["IssueCommands"] = Refusal(Reason.INTENT_REQUIRED, "press.stop is protected")
    fake.answers["ListNodes"] = admin_pb2.ListNodesResponse(nodes=NODES)
    fake.answers["ProposeCommand"] = admin_pb2.ProposeCommandResponse(approval=waiting)
    rejected = approval(desk, state="REJECTED", closed_by="bob", reason="not now")
    fake.answers["GetApproval"] = [
        admin_pb2.GetApprovalResponse(approval=waiting),
        admin_pb2.GetApprovalResponse(approval=rejected),
    ]
    result = desk.run("run", "n-*", "press.stop", "--yes")
    assert (result.exit_code, "REJECTED by bob: not now" in result.stderr) == (3, True)
    assert desk.ctl.slept_s == [2.0]


def test_approve_signs_the_very_bytes(desk: Desk) -> None:
    found = approval(desk)
    desk.ctl.fake.answers["ListApprovals"] = admin_pb2.ListApprovalsResponse(approvals=[found])
    issue = admin_pb2.IssueCommandsResponse(issue_id="i-1", issued_count=2)
    desk.ctl.fake.answers["SignApproval"] = admin_pb2.SignApprovalResponse(
        approval=approval(desk, state="ISSUED"), issue=issue
    )
    result = desk.run("approve", found.approval_id[:6], "--yes")
    assert result.exit_code == 0, result.output
    for shown in ("press.stop", ARGUMENTS.decode(), "n-1", "n-2", "ada", "commands watch i-1"):
        assert shown in result.stderr
    (request,) = desk.ctl.fake.requests("SignApproval")
    signed = trust_pb2.Signed(statement=found.command.intent.statement, signatures=[request.signature])
    verify_one(signed, domain=Domain.INTENT, public_key=desk.ada.public_key)


TAMPERED: dict[str, Callable[[Desk], admin_pb2.ApprovalView]] = {
    "another action": lambda desk: approval(desk, action="press.start"),
    "other arguments": lambda desk: approval(desk, arguments=b'{"line": 3}'),
    "another cluster": lambda desk: approval(desk, cluster_id="cluster-2"),
    "a date ahead": lambda desk: approval(desk, issued_at_ms=NOW_MS + 601_000),
    "a time that is over": lambda desk: approval(desk, issued_at_ms=NOW_MS - 61_000),
    "no intent": lambda desk: approval(desk, command=admin_pb2.CommandSpec(action="press.stop", arguments=ARGUMENTS)),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_server_that_shows_one_thing_and_wants_another_signed_gets_nothing(desk: Desk, case: str) -> None:
    found = TAMPERED[case](desk)
    desk.ctl.fake.answers["GetApproval"] = admin_pb2.GetApprovalResponse(approval=found)
    result = desk.run("approve", found.approval_id, "--yes")
    assert (result.exit_code, "do not sign" in result.stderr) == (3, True), result.output
    assert not desk.ctl.fake.requests("SignApproval")


def test_a_forged_signature_on_it_is_no_reason_to_sign(desk: Desk) -> None:
    found = approval(desk)
    found.command.intent.signatures[0].value = bytes(64)
    desk.ctl.fake.answers["GetApproval"] = admin_pb2.GetApprovalResponse(approval=found)
    result = desk.run("approve", found.approval_id, "--yes")
    assert (result.exit_code, "forged" in result.stderr) == (3, True)


def test_a_wrong_passphrase_and_a_decided_approval_sign_nothing(desk: Desk) -> None:
    found = approval(desk)
    desk.ctl.fake.answers["GetApproval"] = lambda _: admin_pb2.GetApprovalResponse(approval=found)
    wrong = desk.run("approve", found.approval_id, "--yes", stdin="another passphrase\n")
    assert wrong.exit_code == 2
    found.state = "EXPIRED"
    assert desk.run("approve", found.approval_id, "--yes").exit_code == 3
    assert not desk.ctl.fake.requests("SignApproval")


def test_the_owner_pin_is_remembered_from_login(ctl: Fleetctl, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("fop1.x")
    pin = "ab" * 32
    words = ("login", ctl.server, "--ca-file", ctl.ca_file, "--token-file", str(token))
    assert ctl.run(*words, "--owner-pin", "not a pin").exit_code == 2
    assert ctl.run(*words, "--owner-pin", pin).exit_code == 0
    assert ctl.run(*words).exit_code == 0
    assert ctl.profile.load().contexts["default"].owner_pin.hex() == pin
