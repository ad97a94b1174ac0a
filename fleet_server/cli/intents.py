"""Intents on a person's own machine: made from what the person was shown, and checked before a further signature.

What the server says of an intent is not believed: what is shown is read from the very bytes that nodes judge. Names
are among them: the server can give the id of another node for a name, and that node would refuse it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from fleet_server.cli.failures import Refused
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import open_key
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, counted

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2, trust_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.profile import Context

_COLUMNS = [Column("NODE"), Column("FINGERPRINT"), Column("ID", spare=1)]


def draw_up(
    invocation: Invocation,
    admin: Admin,
    request: admin_pb2.IssueCommandsRequest,
    *,
    key_file: Path,
    passphrase_file: Path | None,
    within_s: int,
    yes: bool,
) -> admin_pb2.ProposeCommandRequest:
    """One intent for exactly the nodes that the request means, shown and signed, with its command.

    Args:
        request: what the server refused to issue without an intent.
        within_s: how long others may take to sign.
        yes: the person said yes before.

    Raises:
        Failure: nobody is meant, the person said no, or the key does not open.
    """
    from fleet.people_signing import make_intent, sign_intent
    from fleet.v1 import admin_pb2

    spec = request.commands[0]
    arguments = spec.arguments or b"{}"
    nodes = _targets(admin, request.selector)
    now_ms = invocation.now_ms()
    intent = make_intent(
        admin.context.cluster_id,
        nodes,
        action=spec.action,
        arguments=arguments,
        issued_at_ms=now_ms,
        not_after_ms=now_ms + within_s * 1000,
    )
    show(invocation, intent, arguments)
    invocation.confirm(f"Sign this for {counted(len(nodes), 'node')}?", assumed=yes)
    signed = sign_intent(open_key(invocation, key_file, passphrase_file), intent)
    proposal = admin_pb2.CommandSpec(action=spec.action, arguments=arguments, intent=signed)
    return admin_pb2.ProposeCommandRequest(command=proposal, ttl_s=request.ttl_s)


def read(context: Context, approval: admin_pb2.ApprovalView) -> trust_pb2.IntentStatement:
    """What an approval's intent says, once it is about the command beside it and this cluster.

    Raises:
        Refused: it is not: somebody shows one thing and would have another signed.
    """
    from fleet import intents

    spec = approval.command
    try:
        intent = intents.read_intent(spec.intent)
    except ValueError as error:
        raise _tampered(f"its signed bytes are no intent ({error})") from error
    if intent.cluster_id != context.cluster_id:
        raise _tampered("it is for another cluster than the one that this profile pinned")
    if intent.action != spec.action:
        raise _tampered(f"the server shows {spec.action}, and the intent is for {intent.action}")
    if intent.arguments_sha256 != hashlib.sha256(spec.arguments).digest():
        raise _tampered("the arguments that the server shows are not the ones that were signed")
    return intent


def refuse_untimely(invocation: Invocation, intent: trust_pb2.IntentStatement) -> None:
    """Refuse to sign what counts only later, or not any more.

    Raises:
        Refused: by this machine's clock. One that is dated ahead could be kept until nobody thinks of it, and moves the
            time by which nodes let people's words expire.
    """
    from fleet.people import CLOCK_SLACK_MS
    from fleet_server.cli.views import moment_text

    hint = "is this machine's clock right? Else have it proposed again, and find out who made it so"
    now_ms = invocation.now_ms()
    if intent.issued_at_ms > now_ms + CLOCK_SLACK_MS:
        raise Refused(f"do not sign: it is dated ahead, {moment_text(intent.issued_at_ms)}", hint=hint)
    if now_ms >= intent.not_after_ms:
        raise Refused(f"do not sign: its time is over since {moment_text(intent.not_after_ms)}", hint=hint)


def stated(approval: admin_pb2.ApprovalView) -> trust_pb2.IntentStatement:
    """What an approval's intent says, checked by nobody: to list it. Nothing, when it is no intent."""
    from google.protobuf.message import DecodeError

    from fleet.v1 import trust_pb2

    try:
        return trust_pb2.IntentStatement.FromString(approval.command.intent.statement)
    except DecodeError:
        return trust_pb2.IntentStatement()


def show(invocation: Invocation, intent: trust_pb2.IntentStatement, arguments: bytes) -> None:
    """Exactly what will run, and where, to standard error."""
    from fleet_server.cli.views import moment_text

    invocation.say_fields(
        [
            ("  action", Styled(intent.action, bold=True)),
            ("  arguments", arguments.decode("utf-8", "replace")),
            ("  SHA-256", intent.arguments_sha256.hex()),
            ("  until", moment_text(intent.not_after_ms)),
            *(("  node" if no == 0 else "", text) for no, text in enumerate(_lines(intent))),
        ]
    )


def target_table(invocation: Invocation, intent: trust_pb2.IntentStatement) -> None:
    """The nodes as data."""
    invocation.emit_table(_COLUMNS, _rows(intent))


def _rows(intent: trust_pb2.IntentStatement) -> Iterable[list[Cell]]:
    from fleet.identity import show_fingerprint

    for target in intent.targets:
        yield [Styled(target.name, bold=True), show_fingerprint(target.fingerprint), target.node_id]


def _lines(intent: trust_pb2.IntentStatement) -> Iterable[str]:
    from fleet.identity import show_fingerprint

    for target in intent.targets:
        yield f"{show_fingerprint(target.fingerprint)}  {target.name}  {target.node_id}"


def _targets(admin: Admin, selector: admin_pb2.Selector) -> list[trust_pb2.IntentTarget]:
    """The nodes that are meant, as the server says.

    Raises:
        Refused: there is none, or one of them is not what was asked for.
    """
    from fleet.v1 import admin_pb2, trust_pb2

    nodes = admin.pages(
        admin.stub.ListNodes,
        lambda page: admin_pb2.ListNodesRequest(selector=selector, page=page),
        lambda answer: iter(answer.nodes),
    )
    meant = [node for node in nodes if node.state != "REVOKED"]
    if not meant:
        raise Refused("no node is meant by these targets", hint="see which nodes there are: `fleetctl nodes list`")
    for node in meant:
        if not any(_may_mean(pattern, node) for pattern in selector.patterns):
            raise _tampered(f"the server gives the node {node.name} ({node.node_id}), which nobody asked for")
    return [
        trust_pb2.IntentTarget(node_id=node.node_id, name=node.name, fingerprint=node.fingerprint) for node in meant
    ]


def _may_mean(pattern: str, node: admin_pb2.NodeView) -> bool:
    """Whether a target pattern can mean a node, by its name and id. Which labels it has only the server knows."""
    terms = [term.strip() for term in pattern.split(",")]
    return all("=" in term or term == node.node_id or fnmatchcase(node.name, term) for term in terms)


def _tampered(what: str) -> Refused:
    return Refused(
        f"do not sign: {what}",
        hint="somebody changed it on its way: tell whoever runs the server, and look at `fleetctl audit verify`",
    )


def to_json(approval: admin_pb2.ApprovalView) -> dict[str, object]:
    """An approval as JSON, with what its intent says beside the bytes."""
    from fleet.identity import show_fingerprint
    from fleet_server.cli.views import to_json as whole

    targets = [
        {"name": target.name, "node_id": target.node_id, "fingerprint": show_fingerprint(target.fingerprint)}
        for target in stated(approval).targets
    ]
    spec = approval.command
    value = {key: each for key, each in whole(approval).items() if key != "command"}
    return {**value, "action": spec.action, "arguments": json.loads(spec.arguments or b"null"), "targets": targets}
