"""`fleetctl tls`: the TLS CAs by which nodes and operators know the server, and their rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin

_CA_COLUMNS = [
    Column("TLS CA"),
    Column("PHASE"),
    Column("FROM", spare=2),
    Column("SUBJECT", flexible=True, spare=1),
    Column("SINCE", spare=3),
    Column("ENDS"),
    Column("NODES", right=True),
]
_ROLLOUT_COLUMNS = [
    Column("TLS CA"),
    Column("TRUST IT", right=True),
    Column("AWAY", right=True),
    Column("STILL LACK IT", spare=1),
]
_ID_CHARS = 16
_ENDS_SOON_MS = 90 * 24 * 3600 * 1000


@click.group(cls=Noun)
def tls() -> None:
    """See and rotate the TLS CAs that nodes trust the server by.

    A CA is PREPARED (nodes trust it), then ACTIVE (its certificate is shown), then OUTGOING (nodes still trust it),
    then RETIRED; or REVOKED, at once. CA is its SHA-256, or the first 8 digits or more.
    """


@tls.command("list", example="fleetctl tls list")
@click.pass_obj
def list_cas(invocation: Invocation) -> None:
    """Show every TLS CA, where it stands, and how many nodes trust it."""
    with invocation.connect() as admin:
        answer = _list(invocation, admin)
    if invocation.wants_json:
        invocation.emit_message(answer, [])
        return
    invocation.emit_table(_CA_COLUMNS, [_row(ca, invocation.now_ms()) for ca in answer.cas])


@tls.command("rollout", example="fleetctl tls rollout")
@click.pass_obj
def rollout(invocation: Invocation) -> None:
    """Show how many nodes trust the PREPARED CA, and the ACTIVE one while another is OUTGOING.

    Asked for are active nodes that are online or were seen within a day. Nodes that are away fetch what they missed
    when they connect.
    """
    with invocation.connect() as admin:
        answer = _list(invocation, admin)
    if invocation.wants_json:
        invocation.emit_message(answer, [])
        return
    invocation.emit_table(_ROLLOUT_COLUMNS, [_rollout_row(far) for far in answer.rollouts])
    if not answer.rollouts:
        invocation.say("Nodes have no CA to learn. To prepare the next one: `fleetctl tls prepare`")
    for step in _next_steps(answer):
        invocation.say(f"Ready: `{step}`")


@tls.command("prepare", example="fleetctl tls prepare\nfleetctl tls prepare --ca-file company-root.pem")
@click.option("--ca-file", type=click.Path(), metavar="FILE", help="PEM file of a CA from outside, not an own one.")
@click.pass_obj
def prepare(invocation: Invocation, ca_file: str | None) -> None:
    """Let nodes trust another CA, beside those that they trust. Nothing of it is shown yet.

    Without --ca-file the server makes it, and seals its key. With it the CA is one that somebody else keeps: its
    certificate is shown by a TLS terminator, or by the server from `outside.pem`.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.profile import read_ca_file

    request = admin_pb2.PrepareTlsCaRequest(certificate=read_ca_file(ca_file).encode() if ca_file else b"")
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.PrepareTlsCa, request)
    _emit_ca(invocation, answer, answer.ca)
    if ca_file:
        invocation.advise(
            "Next: let its certificate be shown, by a terminator that tls_terminator_leaf_sha256 names, or from"
            " outside.pem in each replica's data folder"
        )
    activate_it = f"fleetctl tls activate {_short(answer.ca.sha256)}"
    invocation.advise(f"Next: `fleetctl tls rollout`, and `{activate_it}` once every node trusts it")


@tls.command("activate", example="fleetctl tls activate 3f9c2a71")
@click.argument("ca", shell_complete=complete.tls_ca)
@click.option("--override", metavar="REASON", help="Activate although nodes do not trust it; REASON is audited.")
@click.option("--yes", is_flag=True, help="With --override: do not ask.")
@click.pass_obj
def activate(invocation: Invocation, ca: str, override: str | None, yes: bool) -> None:
    """Show a certificate of a PREPARED CA from now on, on every replica and without a restart.

    Streams that are open stay. The CA before it is OUTGOING: nodes trust it until it is retired. Refused until every
    node that is online or was seen within a day trusts the CA. With --override nodes that do not are cut off from their
    next connection on until they have fetched the signed bundle that names it, which they do by themselves.
    """
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        _confirm_override(invocation, admin, override, yes)
        request = admin_pb2.ActivateTlsCaRequest(ca=ca, override_reason=override or "")
        answer = admin.call(admin.stub.ActivateTlsCa, request)
        _emit_ca(invocation, answer, answer.ca)
        invocation.advise(f"{answer.rollout.holding} of {counted(answer.rollout.asked, 'node')} trust it")
        going = [ca for ca in _after_step(invocation, admin) if ca.phase == admin_pb2.TLS_CA_PHASE_OUTGOING]
    for each in going:
        retire_it = f"fleetctl tls retire {_short(each.sha256)}"
        invocation.advise(f"Next: `fleetctl tls rollout`, and `{retire_it}` once every node trusts the ACTIVE one")


@tls.command("retire", example="fleetctl tls retire 77aa01c2")
@click.argument("ca", shell_complete=complete.tls_ca)
@click.option("--override", metavar="REASON", help="Retire although nodes do not trust the ACTIVE one; audited.")
@click.option("--yes", is_flag=True, help="With --override: do not ask.")
@click.pass_obj
def retire(invocation: Invocation, ca: str, override: str | None, yes: bool) -> None:
    """Let nodes trust an OUTGOING CA no longer.

    Refused until every node that is online or was seen within a day trusts the ACTIVE one.
    """
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        _confirm_override(invocation, admin, override, yes)
        request = admin_pb2.RetireTlsCaRequest(ca=ca, override_reason=override or "")
        answer = admin.call(admin.stub.RetireTlsCa, request)
    _emit_ca(invocation, answer, answer.ca)
    invocation.advise("Next: where FLEETCTL_CA_FILE names a file, copy tls/ca.crt from a server's data folder again")


@tls.command("revoke", example="fleetctl tls revoke 3f9c2a71 --reason 'the host of replica-b was broken into'")
@click.argument("ca", shell_complete=complete.tls_ca)
@click.option("--reason", required=True, help="Reason for the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke(invocation: Invocation, ca: str, reason: str, yes: bool) -> None:
    """Let nodes trust a CA no longer, at once and for good.

    The PREPARED one, if there is one, takes the place of one that was ACTIVE in the same moment, without waiting for a
    rollout. Streams that are open stay.
    """
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        invocation.confirm(f"Revoke TLS CA {ca} for good?", assumed=yes)
        answer = admin.call(admin.stub.RevokeTlsCa, admin_pb2.RevokeTlsCaRequest(ca=ca, reason=reason))
        _emit_ca(invocation, answer, answer.ca)
        _after_step(invocation, admin)  # this machine trusts it no longer, either
    invocation.advise("Next: `fleetctl join-token revoke` for tokens that are out: they may name it")
    invocation.advise("Next: have every operator run `fleetctl tls list`, after which that machine trusts it no longer")


def _list(invocation: Invocation, admin: Admin) -> admin_pb2.ListTlsCasResponse:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.tls_following import keep_up

    answer = admin.call(admin.stub.ListTlsCas, admin_pb2.ListTlsCasRequest())
    keep_up(invocation, admin.context, answer)
    return answer


def _after_step(invocation: Invocation, admin: Admin) -> Sequence[admin_pb2.TlsCaView]:
    """The CAs as they are now; none when they cannot be had, for the step was taken."""
    from fleet_server.cli.failures import Failure

    try:
        return _list(invocation, admin).cas
    except Failure:
        return []


def _confirm_override(invocation: Invocation, admin: Admin, override: str | None, yes: bool) -> None:
    """Say how many nodes an override would cut off before it does."""
    if override is None:
        return
    if not override.strip():
        raise click.BadParameter("say why", param_hint="--override")
    lacking = max((far.asked - far.holding for far in _list(invocation, admin).rollouts), default=0)
    if lacking:
        invocation.confirm(f"{counted(lacking, 'node')} would be cut off until they fetch it. Go on?", assumed=yes)


def _next_steps(answer: admin_pb2.ListTlsCasResponse) -> list[str]:
    from fleet.v1 import admin_pb2

    phases = {ca.sha256: ca.phase for ca in answer.cas}
    steps = []
    for far in answer.rollouts:
        if far.complete and phases.get(far.sha256) == admin_pb2.TLS_CA_PHASE_PREPARED:
            steps.append(f"fleetctl tls activate {_short(far.sha256)}")
        elif far.complete:
            outgoing = [ca for ca in answer.cas if ca.phase == admin_pb2.TLS_CA_PHASE_OUTGOING]
            steps += [f"fleetctl tls retire {_short(ca.sha256)}" for ca in outgoing]
    return steps


def _short(sha256: bytes) -> str:
    return sha256.hex()[:8]


def _emit_ca(invocation: Invocation, answer: Message, ca: admin_pb2.TlsCaView) -> None:
    from fleet_server.cli.views import grouped_hex, moment_text

    shown: list[tuple[str, Cell]] = [
        ("TLS CA", ca.sha256.hex()[:_ID_CHARS]),
        ("", f"SHA-256 {grouped_hex(ca.sha256)}"),
        ("phase", _phase(ca)),
        ("from", _origin(ca)),
        ("subject", ca.subject),
        ("ends", moment_text(ca.not_after_ms)),
    ]
    invocation.emit_message(answer, shown)


def _row(ca: admin_pb2.TlsCaView, now_ms: int) -> list[Cell]:
    from fleet_server.cli.views import moment_text

    soon = ca.not_after_ms - now_ms < _ENDS_SOON_MS
    ends = Styled(moment_text(ca.not_after_ms), "yellow" if soon else None)
    return [
        ca.sha256.hex()[:_ID_CHARS],
        _phase(ca),
        _origin(ca),
        ca.subject,
        moment_text(ca.since_ms),
        ends,
        str(ca.nodes),
    ]


def _rollout_row(far: admin_pb2.TlsCaRollout) -> list[Cell]:
    return [
        far.sha256.hex()[:_ID_CHARS],
        Styled(f"{far.holding} of {far.asked}", "green" if far.complete else "yellow"),
        str(far.away),
        ", ".join(far.lacking) or "-",
    ]


def _phase(ca: admin_pb2.TlsCaView) -> Cell:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.views import enum_cell

    return enum_cell(admin_pb2.TlsCaPhase.DESCRIPTOR, ca.phase)


def _origin(ca: admin_pb2.TlsCaView) -> str:
    return "here" if ca.own else "outside"
