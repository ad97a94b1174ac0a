"""`fleetctl enrollments`: nodes that ask to join, compared by fingerprint and decided by a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Noun, key_value
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, age

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.failures import Refused

STATES = ("pending", "approved", "rejected", "all")
_COLUMNS = [
    Column("ID", spare=3),
    Column("NAME"),
    Column("STATE"),
    Column("FINGERPRINT"),
    Column("SITE", spare=2),
    Column("FROM", spare=5),
    Column("AGE", right=True, spare=4),
    Column("BY", spare=1),
]


@click.group(cls=Noun)
def enrollments() -> None:
    """Decide which nodes may join."""


@enrollments.command("list", example="fleetctl enrollments list --state all")
@click.option("--state", type=click.Choice(STATES), default="pending", show_default=True, help="Which ones.")
@click.pass_obj
def list_enrollments(invocation: Invocation, state: str) -> None:
    """List enrollments, newest first."""
    with invocation.connect() as admin:
        found = _load(admin, state)
    now_ms = invocation.now_ms()
    invocation.emit_list(found, _COLUMNS, lambda enrollment: _row(enrollment, now_ms))
    if state == "pending" and found:
        invocation.advise("Compare each fingerprint with what the node prints: `fleetctl enrollments approve NAME`")
    elif state == "pending":
        invocation.advise("Nobody waits. Decided ones: `fleetctl enrollments list --state all`")


@enrollments.command(
    "approve",
    example="fleetctl enrollments approve press-7 --fingerprint 'K3PD-...-QX7M' --label line=2",
)
@click.argument("enrollment", shell_complete=complete.enrollment)
@click.option("--fingerprint", metavar="TEXT", help="Fingerprint that you read on the node; must match.")
@click.option("--name", default="", help="Name to give instead of the one that the node wishes.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label to set; may be repeated.")
@click.option("--yes", is_flag=True, help="Approve without comparing.")
@click.pass_obj
def approve(
    invocation: Invocation, enrollment: str, fingerprint: str | None, name: str, labels: tuple[str, ...], yes: bool
) -> None:
    """Approve a node. ENROLLMENT is an id, or the name of one that is pending.

    Without --fingerprint the node's fingerprint is shown and you are asked to compare it with what the node itself
    prints.
    """
    from fleet.v1 import admin_pb2

    chosen_labels = dict(key_value(label, option="--label") for label in labels)
    with invocation.connect() as admin:
        found = find_enrollment(admin, enrollment)
        say_authority(invocation, admin)
        compared = compare(invocation, found, fingerprint, yes)
        request = admin_pb2.DecideEnrollmentRequest(
            enrollment_id=found.enrollment_id, approve=True, fingerprint=compared, name=name, labels=chosen_labels
        )
        answer = admin.call(admin.stub.DecideEnrollment, request)
    _emit(invocation, answer.enrollment)


@enrollments.command("reject", example="fleetctl enrollments reject press-7 --reason 'not one of ours'")
@click.argument("enrollment", shell_complete=complete.enrollment)
@click.option("--reason", required=True, help="Reason that the node shows.")
@click.pass_obj
def reject(invocation: Invocation, enrollment: str, reason: str) -> None:
    """Reject a node for good. ENROLLMENT is an id, or the name of one that is pending."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        found = find_enrollment(admin, enrollment)
        request = admin_pb2.DecideEnrollmentRequest(enrollment_id=found.enrollment_id, approve=False, reason=reason)
        answer = admin.call(admin.stub.DecideEnrollment, request)
    _emit(invocation, answer.enrollment)


def _load(admin: Admin, state: str) -> list[admin_pb2.EnrollmentView]:
    from fleet.v1 import admin_pb2, enrollment_pb2

    number = 0
    if state != "all":
        number = enrollment_pb2.EnrollmentState.Value(f"ENROLLMENT_STATE_{state.upper()}")
    return admin.pages(
        admin.stub.ListEnrollments,
        lambda page: admin_pb2.ListEnrollmentsRequest(
            state=enrollment_pb2.EnrollmentState.ValueType(number), page=page
        ),
        lambda answer: iter(answer.enrollments),
    )


def find_enrollment(admin: Admin, wanted: str) -> admin_pb2.EnrollmentView:
    """By id; or by name among those that wait, when only one has it: two nodes may wish the same name."""
    from fleet_server.cli.failures import Refused

    pending = _load(admin, "pending")
    named = [one for one in pending if wanted in (one.enrollment_id, one.name)]
    if not named:
        named = [one for one in _load(admin, "all") if one.enrollment_id == wanted]
    if not named:
        raise _none_of_that_name(admin, wanted)
    if len(named) > 1:
        ids = " ".join(one.enrollment_id for one in named)
        raise Refused(f"{len(named)} nodes wish the name {wanted!r}", hint=f"name one by its id: {ids}")
    return named[0]


def _none_of_that_name(admin: Admin, wanted: str) -> Refused:
    from fleet.v1 import enrollment_pb2
    from fleet_server.cli.failures import Refused
    from fleet_server.cli.views import enum_word

    decided = [one for one in _load(admin, "all") if one.name == wanted]
    if not decided:
        return Refused(f"no enrollment {wanted!r}", hint="see who waits: `fleetctl enrollments list`")
    word = enum_word(enrollment_pb2.EnrollmentState.DESCRIPTOR, decided[0].state)
    return Refused(
        f"{wanted!r} does not wait: {decided[0].decided_by or 'its join token'} decided {word}",
        hint="see what stands: `fleetctl enrollments list --state all`",
    )


def say_authority(invocation: Invocation, admin: Admin) -> None:
    """Which authority's word the node takes: the one pinned at login, or else the one that the server names."""
    import hashlib

    from fleet.v1 import admin_pb2
    from fleet_server.cli.views import grouped_hex

    pinned = admin.context.authority_key
    key = pinned or admin.call(admin.stub.WhoAmI, admin_pb2.WhoAmIRequest()).authority_key
    source = "pinned at login" if pinned else "as this server says; log in to pin it"
    invocation.say_fields([("authority", f"SHA-256 {grouped_hex(hashlib.sha256(key).digest())} ({source})")])


def compare(invocation: Invocation, enrollment: admin_pb2.EnrollmentView, asserted: str | None, assumed: bool) -> bytes:
    """The fingerprint that a person compared; empty when nobody did."""
    import hmac

    from fleet.identity import parse_fingerprint, show_fingerprint
    from fleet_server.cli.failures import Refused

    if asserted is not None:
        try:
            value = parse_fingerprint(asserted)
        except ValueError as error:
            raise click.BadParameter(
                "8 groups of 4 characters, as the node prints them", param_hint="--fingerprint"
            ) from error
        if not hmac.compare_digest(value, enrollment.fingerprint):
            raise Refused(
                f"the node that asks has another fingerprint: {show_fingerprint(enrollment.fingerprint)}",
                hint=f"do not approve it: `fleetctl enrollments reject {enrollment.enrollment_id} --reason TEXT`",
            )
        return value
    shown = invocation.emit_text if not invocation.wants_json and not assumed else invocation.say
    shown(
        f"{enrollment.name} asks to join from {enrollment.peer_address or 'an unknown address'}, with this fingerprint:"
    )
    shown("")
    shown("    " + show_fingerprint(enrollment.fingerprint))
    shown("")
    invocation.confirm("Does the node itself print the same?", assumed=assumed, option="--fingerprint TEXT")
    return b"" if assumed else enrollment.fingerprint


def _emit(invocation: Invocation, enrollment: admin_pb2.EnrollmentView) -> None:
    titles = [column.title.lower() for column in _COLUMNS]
    row = _row(enrollment, invocation.now_ms())
    shown = [*zip(titles, row, strict=True), ("node", enrollment.node_id or "-")]
    invocation.emit_message(enrollment, shown)


def _row(enrollment: admin_pb2.EnrollmentView, now_ms: int) -> list[Cell]:
    from fleet.identity import show_fingerprint
    from fleet.v1 import enrollment_pb2
    from fleet_server.cli.views import enum_cell

    return [
        enrollment.enrollment_id,
        Styled(enrollment.name, bold=True),
        enum_cell(enrollment_pb2.EnrollmentState.DESCRIPTOR, enrollment.state),
        show_fingerprint(enrollment.fingerprint),
        enrollment.site or "-",
        enrollment.peer_address or "-",
        age(enrollment.created_at_ms, now_ms),
        enrollment.decided_by or "-",
    ]
