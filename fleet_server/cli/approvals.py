"""`fleetctl approvals` and `approve`: protected commands that wait for people's signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete, intents
from fleet_server.cli.failures import Refused
from fleet_server.cli.grammar import Noun, Verb
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import open_key, passphrase_file_option
from fleet_server.cli.people import key_option, own_key_file, verify_people
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, counted, state_cell

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2, trust_pb2
    from fleet_server.cli.connection import Admin

_ID_CHARS = 32
_COLUMNS = [
    Column("ID", flexible=True, least=8),
    Column("STATE"),
    Column("ACTION"),
    Column("NODES", right=True),
    Column("SIGNED"),
    Column("BY", spare=2),
    Column("UNTIL", spare=1),
]


@click.group(cls=Noun)
def approvals() -> None:
    """See and end protected commands that wait for signatures."""


@approvals.command("list", example="fleetctl approvals list")
@click.option("--all", "everything", is_flag=True, help="Also those that are decided.")
@click.pass_obj
def list_approvals(invocation: Invocation, everything: bool) -> None:
    """List what waits for signatures, newest first."""
    with invocation.connect() as admin:
        found = _load(admin, everything=everything)
    if invocation.wants_json:
        invocation.emit_json([intents.to_json(one) for one in found])
        return
    invocation.emit_table(_COLUMNS, [_row(one) for one in found])
    if found and not everything:
        invocation.advise("See exactly what would run: `fleetctl approve ID`")


@approvals.command("show", example="fleetctl approvals show 4f1c")
@click.argument("approval_id", metavar="ID", shell_complete=complete.approval)
@click.pass_obj
def show(invocation: Invocation, approval_id: str) -> None:
    """Show one: what would run, where, and who signed. ID may be its beginning."""
    with invocation.connect() as admin:
        found = find(admin, approval_id)
        intent = intents.read(admin.context, found)
    if invocation.wants_json:
        invocation.emit_json(intents.to_json(found))
        return
    _emit_fields(invocation, found)
    invocation.emit_text("")
    intents.target_table(invocation, intent)


@approvals.command("reject", example="fleetctl approvals reject 4f1c --reason 'not during the shift'")
@click.argument("approval_id", metavar="ID", shell_complete=complete.approval)
@click.option("--reason", required=True, help="Reason for who proposed it, and for the audit.")
@click.pass_obj
def reject(invocation: Invocation, approval_id: str, reason: str) -> None:
    """End one: nobody can sign it any more."""
    _close(invocation, approval_id, withdraw=False, reason=reason)


@approvals.command("withdraw", example="fleetctl approvals withdraw 4f1c")
@click.argument("approval_id", metavar="ID", shell_complete=complete.approval)
@click.option("--reason", default="", help="Reason for the audit.")
@click.pass_obj
def withdraw(invocation: Invocation, approval_id: str, reason: str) -> None:
    """End one that you proposed."""
    _close(invocation, approval_id, withdraw=True, reason=reason)


@click.command(cls=Verb, example="fleetctl approve 4f1c")
@click.argument("approval_id", metavar="ID", shell_complete=complete.approval)
@click.option("--yes", is_flag=True, help="Do not ask.")
@key_option
@passphrase_file_option
@click.pass_obj
def approve(
    invocation: Invocation, approval_id: str, yes: bool, key_file: Path | None, passphrase_file: Path | None
) -> None:
    """Add your signature to a protected command that waits. ID may be its beginning.

    It is shown exactly what will run and where, read from the very bytes that you sign: action, arguments, and each
    node with its fingerprint. With the last signature that the policy asks for the commands are issued.
    """
    from fleet.envelope import Domain
    from fleet.v1 import admin_pb2, trust_pb2

    with invocation.connect() as admin:
        key = own_key_file(admin.context, key_file)
        found = find(admin, approval_id)
        if found.state != "PENDING":
            raise Refused(
                f"it is {found.state} already", hint=f"see: `fleetctl approvals show {found.approval_id[:8]}`"
            )
        intent = intents.read(admin.context, found)
        intents.refuse_untimely(invocation, intent)
        intents.show(invocation, intent, found.command.arguments)
        invocation.say_fields(
            [("  signed by", _verified_signers(invocation, admin, found.command.intent) or "nobody whom we know")]
        )
        invocation.confirm(f"Sign this for {counted(len(intent.targets), 'node')}?", assumed=yes)
        signer = open_key(invocation, key, passphrase_file)
        value = signer.sign_value(Domain.INTENT, found.command.intent.statement)
        request = admin_pb2.SignApprovalRequest(
            approval_id=found.approval_id, signature=trust_pb2.Signature(key_id=signer.key_id, value=value)
        )
        answer = admin.call(admin.stub.SignApproval, request)
    if invocation.wants_json:
        invocation.emit_json(intents.to_json(answer.approval))
    else:
        _emit_fields(invocation, answer.approval)
    if answer.HasField("issue"):
        invocation.advise(f"Issued. Follow the outcomes: `fleetctl commands watch {answer.issue.issue_id}`")
    else:
        invocation.advise("It waits for further signatures.")


def find(admin: Admin, approval_id: str) -> admin_pb2.ApprovalView:
    """By id, or by the beginning of one.

    Raises:
        Refused: there is none, or more than one.
    """
    from fleet.v1 import admin_pb2

    if len(approval_id) >= _ID_CHARS:
        request = admin_pb2.GetApprovalRequest(approval_id=approval_id)
        return admin.call(admin.stub.GetApproval, request).approval
    found = [one for one in _load(admin, everything=True) if one.approval_id.startswith(approval_id.lower())]
    if len(found) != 1:
        what = "no approval begins" if not found else f"{len(found)} approvals begin"
        raise Refused(f"{what} with {approval_id!r}", hint="see them all: `fleetctl approvals list --all`")
    return found[0]


def say_waiting(invocation: Invocation, approval: admin_pb2.ApprovalView) -> None:
    """Tell who proposed a command what others have to do."""
    have, short = len(approval.signers), approval.approval_id[:8]
    invocation.say(
        f"{have} of {approval.required} people signed. Others ({', '.join(approval.roles)}) sign it with "
        f"`fleetctl approve {short}`"
    )


def _close(invocation: Invocation, approval_id: str, *, withdraw: bool, reason: str) -> None:
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        found = find(admin, approval_id)
        request = admin_pb2.CloseApprovalRequest(approval_id=found.approval_id, withdraw=withdraw, reason=reason)
        answer = admin.call(admin.stub.CloseApproval, request)
    if invocation.wants_json:
        invocation.emit_json(intents.to_json(answer.approval))
    else:
        _emit_fields(invocation, answer.approval)


def _verified_signers(invocation: Invocation, admin: Admin, signed: trust_pb2.Signed) -> str:
    """Names of those whose signatures verify here, by grants of the pinned owner; without a pin nobody is known."""
    from fleet import envelope
    from fleet.envelope import Domain, EnvelopeError

    if not admin.context.owner_pin:
        return ""
    people = verify_people(invocation, admin)
    try:
        signers = envelope.verified_signers(signed, domain=Domain.INTENT, keys=people.keys_by_id)
    except EnvelopeError as error:
        raise Refused("do not sign: a signature on it is forged", hint="tell whoever runs the server") from error
    return ", ".join(sorted({people.name_of(people.keys_by_id[each]) for each in signers}))


def _load(admin: Admin, *, everything: bool) -> list[admin_pb2.ApprovalView]:
    from fleet.v1 import admin_pb2

    answer = admin.call(admin.stub.ListApprovals, admin_pb2.ListApprovalsRequest(all=everything))
    return list(answer.approvals)


def _row(approval: admin_pb2.ApprovalView) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    return [
        approval.approval_id,
        state_cell(approval.state),
        approval.command.action,
        str(len(intents.stated(approval).targets)),
        f"{len(approval.signers)} of {approval.required}",
        approval.created_by,
        moment_text(approval.expires_at_ms),
    ]


def _emit_fields(invocation: Invocation, approval: admin_pb2.ApprovalView) -> None:
    from fleet_server.cli.views import moment_text

    shown: list[tuple[str, Cell]] = [
        ("approval", approval.approval_id),
        ("state", state_cell(approval.state)),
        ("action", Styled(approval.command.action, bold=True)),
        ("arguments", approval.command.arguments.decode("utf-8", "replace")),
        ("proposed by", f"{approval.created_by}, {moment_text(approval.created_at_ms)}"),
        ("until", moment_text(approval.expires_at_ms)),
        ("signed", f"{len(approval.signers)} of {approval.required}: {', '.join(approval.signers) or 'nobody'}"),
    ]
    optional = (("closed by", approval.closed_by), ("reason", approval.reason), ("issue", approval.issue_id))
    invocation.emit_fields([*shown, *((label, text) for label, text in optional if text)])
