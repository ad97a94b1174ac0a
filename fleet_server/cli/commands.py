"""`fleetctl commands`: what was issued, how it went, and calling it back."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fleet_server.cli import complete
from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import (
    Styled,
    age,
    clock_text,
    duration,
    excerpt,
    state_cell,
    terminal_width,
    wants_colour,
)

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin

_COLUMNS = [
    Column("COMMAND", spare=1),
    Column("NODE"),
    Column("SEQ", right=True),
    Column("ACTION"),
    Column("STATE"),
    Column("ACTOR", spare=2),
    Column("AGE", right=True, spare=4),
    Column("TOOK", right=True, spare=3),
    Column("RESULT", flexible=True, least=16),
]
OUTCOME_COLUMNS = [
    Column("NODE"),
    Column("SEQ", right=True),
    Column("STATE"),
    Column("KEY", spare=1),
    Column("TOOK", right=True, spare=2),
    Column("RESULT", flexible=True, least=30),
]
_CHANGE_COLUMNS = [
    Column("TIME"),
    Column("NODE"),
    Column("SEQ", right=True, reserve=4),
    Column("ACTION", reserve=9),
    Column("STATE", reserve=9),
    Column("REASON", flexible=True),
]
EXCERPT_CELLS = 120
_ID = re.compile(r"[0-9a-fA-F]{32}")
_NODE_AND_SEQ = re.compile(r"(?P<node>[^/]+)/(?P<seq>[0-9]{1,18})")
_PAGE = 100
_MOST_PAGES = 20


@click.group(cls=Noun)
def commands() -> None:
    """List, show, watch and cancel commands."""


@commands.command("list", example="fleetctl commands list --node press-7 --open")
@click.option("--issue", "issue_id", default="", metavar="ID", help="Only commands of this issue.")
@click.option("--node", default="", shell_complete=complete.node, help="Only commands of this node, by name or id.")
@click.option("--open", "open_only", is_flag=True, help="Only commands that are not final.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="Most commands.")
@click.pass_obj
def list_commands(invocation: Invocation, issue_id: str, node: str, open_only: bool, limit: int) -> None:
    """List commands, newest first."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        found = admin.pages(
            admin.stub.ListCommands,
            lambda page: admin_pb2.ListCommandsRequest(issue_id=issue_id, node=node, open_only=open_only, page=page),
            lambda answer: iter(answer.commands),
            limit=limit,
        )
    _emit(invocation, found)
    if not found:
        invocation.advise("No command matches." if issue_id or node or open_only else "No command was issued yet.")


@commands.command(
    "show",
    example="fleetctl commands show press-7/42\nfleetctl commands show 6f1c0a5be8d84f0f9d2f6c1f6a1b2c3d",
)
@click.argument("command")
@click.pass_obj
def show(invocation: Invocation, command: str) -> None:
    """Show one command with its arguments and its whole output. COMMAND is NODE/SEQ, or an id."""
    from fleet.v1 import admin_pb2

    named = _named(command)
    with invocation.connect() as admin:
        request = admin_pb2.GetCommandRequest(command_id=_id_of(admin, named))
        found = admin.call(admin.stub.GetCommand, request).command
    invocation.emit_message(found, _details(found))
    if not invocation.wants_json and found.output:
        emit_output(invocation, found)


@commands.command(
    "cancel",
    example="fleetctl commands cancel press-7/42\nfleetctl commands cancel --issue 7d1f0c6a52e94b38a1c6f2d90b7e4a15",
)
@click.argument("commands_", metavar="[COMMAND]...", nargs=-1)
@click.option("--issue", "issue_id", default="", metavar="ID", help="Cancel every open command of this issue.")
@click.pass_obj
def cancel(invocation: Invocation, commands_: tuple[str, ...], issue_id: str) -> None:
    """Call commands back. COMMAND is NODE/SEQ, or an id.

    What waits ends at once. What a node has begun is ended by its driver: watch what comes of it.
    """
    from fleet.v1 import admin_pb2, command_pb2

    if bool(commands_) == bool(issue_id):
        raise click.UsageError("name commands, or an issue with --issue")
    named = [_named(one) for one in commands_]
    with invocation.connect() as admin:
        ids = [_id_of(admin, one) for one in named]
        answer = admin.call(
            admin.stub.CancelCommands, admin_pb2.CancelCommandsRequest(command_ids=ids, issue_id=issue_id)
        )
    _emit(invocation, list(answer.commands))
    cancelled = command_pb2.COMMAND_STATE_CANCELLED
    if not any(command.cancel_requested or command.state == cancelled for command in answer.commands):
        invocation.advise("None of them was open: there was nothing to call back.")


@commands.command("watch", example="fleetctl commands watch 7d1f0c6a52e94b38a1c6f2d90b7e4a15")
@click.argument("issue_id", default="")
@click.pass_obj
def watch(invocation: Invocation, issue_id: str) -> None:
    """Show commands as they change: those of an issue until all are final, or every one until Ctrl-C."""
    from fleet.v1 import admin_pb2
    from fleet_server.cli.views import to_json

    request = admin_pb2.WatchCommandsRequest(
        issue_id=issue_id, until_final=bool(issue_id), brief=not invocation.wants_json
    )
    lines = invocation.running_table(_CHANGE_COLUMNS)
    told: dict[bytes, list[Cell]] = {}
    if not issue_id:
        invocation.advise("Commands are shown as they change. Ctrl-C ends.")
    with invocation.connect() as admin:
        for change in admin.follow(admin.stub.WatchCommands, lambda: request):
            if invocation.wants_json:
                for command in change.commands:
                    invocation.emit_json_line(to_json(command))
                continue
            clock = clock_text(invocation.now_ms())
            # A watch that was opened again begins with what stands, most of which was told.
            new = [one for one in change.commands if told.get(one.command_id) != _change_row(one)]
            if new:
                invocation.emit_text(lines.add([[clock, *_change_row(one)] for one in new]))
            for one in new:
                if is_final(one) and not issue_id:
                    told.pop(one.command_id, None)  # nothing more comes of it
                else:
                    told[one.command_id] = _change_row(one)


def command_state(command: admin_pb2.CommandView) -> Styled:
    """Where a command stands; a cancel that is not answered yet is said to be asked for, never done."""
    from fleet.v1 import command_pb2
    from fleet_server.cli.views import enum_word

    word = enum_word(command_pb2.CommandState.DESCRIPTOR, command.state)
    if command.cancel_requested and not is_final(command):
        return Styled("CANCEL_REQUESTED", "yellow")
    return state_cell(word)


def is_final(command: admin_pb2.CommandView) -> bool:
    """Whether nothing more comes of it. A state from a newer server counts as open."""
    from fleet.v1 import command_pb2 as wire

    return command.state in (
        wire.COMMAND_STATE_SUCCEEDED,
        wire.COMMAND_STATE_FAILED,
        wire.COMMAND_STATE_EXPIRED,
        wire.COMMAND_STATE_CANCELLED,
        wire.COMMAND_STATE_REJECTED,
        wire.COMMAND_STATE_INTERRUPTED,
        wire.COMMAND_STATE_QUARANTINED,
    )


def outcome_row(command: admin_pb2.CommandView) -> list[Cell]:
    """A command as a row of `OUTCOME_COLUMNS`."""
    return [
        Styled(command.node_name or command.node_id, bold=True),
        str(command.monotonic_seq),
        command_state(command),
        command.key_id.hex()[:8] or "-",
        _took(command),
        _result(command),
    ]


def _emit(invocation: Invocation, found: Sequence[admin_pb2.CommandView]) -> None:
    now_ms = invocation.now_ms()
    invocation.emit_list(found, _COLUMNS, lambda command: _row(command, now_ms))


def _row(command: admin_pb2.CommandView, now_ms: int) -> list[Cell]:
    return [
        command.command_id.hex(),
        Styled(command.node_name or command.node_id, bold=True),
        str(command.monotonic_seq),
        _action(command),
        command_state(command),
        command.actor,
        age(command.issued_at_ms, now_ms),
        _took(command),
        _result(command),
    ]


def _action(command: admin_pb2.CommandView) -> Cell:
    return Styled(f"{command.action or '-'} (not verified)", "red") if command.unverified else command.action


def _change_row(command: admin_pb2.CommandView) -> list[Cell]:
    return [
        Styled(command.node_name or command.node_id, bold=True),
        str(command.monotonic_seq),
        _action(command),
        command_state(command),
        _reason(command),
    ]


def _details(command: admin_pb2.CommandView) -> list[tuple[str, Cell]]:
    from fleet_server.cli.views import moment_text

    moments = [
        ("issued", command.issued_at_ms),
        ("expires", command.not_after_ms),
        ("sent", command.sent_at_ms),
        ("accepted", command.accepted_at_ms),
        ("started", command.started_at_ms),
        ("finished", command.finished_at_ms),
    ]
    changed = "this row was changed around the server: believe none of it, and see `fleetctl audit tail`"
    return [
        ("command", command.command_id.hex()),
        *([("not verified", Styled(changed, "red"))] if command.unverified else []),
        ("issue", command.issue_id),
        ("node", Styled(f"{command.node_name} ({command.node_id})", bold=True)),
        ("seq", str(command.monotonic_seq)),
        ("action", command.action),
        ("arguments", command.arguments.decode("utf-8", "replace") or "{}"),
        ("state", command_state(command)),
        *([("reason", why)] if (why := _why(command)) else []),
        ("actor", command.actor),
        ("key", command.key_id.hex() or "-"),
        *((label, moment_text(at_ms)) for label, at_ms in moments),
        ("took", _took(command)),
        ("output", "cut at the limit" if command.output_truncated else f"{len(command.output)} bytes"),
    ]


def _took(command: admin_pb2.CommandView) -> str:
    if not command.finished_at_ms or not command.started_at_ms:
        return "-"
    return duration(max(command.finished_at_ms - command.started_at_ms, 0) / 1000)


def _result(command: admin_pb2.CommandView) -> str:
    from fleet.v1 import command_pb2
    from fleet_server.cli.views import output_text

    if command.state == command_pb2.COMMAND_STATE_INTERRUPTED and not command.error:
        return "it started, and nobody can know how it ended"
    return excerpt(_why(command) or output_text(command.output, arguments=command.arguments), EXCERPT_CELLS)


def failure_sentence(command: admin_pb2.CommandView) -> str:
    """How a command that did not succeed ended, whole."""
    return ": ".join(part for part in (command.node_name, command_state(command).text, _why(command)) if part)


def _why(command: admin_pb2.CommandView) -> str:
    return ": ".join(part for part in (_reason(command), command.error) if part)


def _reason(command: admin_pb2.CommandView) -> str:
    """The reason, unless the state says the same."""
    return "" if command.reason == command_state(command).text else command.reason


def emit_output(invocation: Invocation, command: admin_pb2.CommandView) -> None:
    """A command's whole output, for people."""
    from fleet_server.cli.results import lay_out

    stdout = sys.stdout
    invocation.emit_text("")
    invocation.emit_text(lay_out(command.output, colour=wants_colour(stdout), width=terminal_width(stdout)))


def _named(text: str) -> bytes | tuple[str, int]:
    """A command as a person names it: its id, or its node and seq.

    Raises:
        click.BadParameter: it is neither.
    """
    if _ID.fullmatch(text):
        return bytes.fromhex(text)
    if found := _NODE_AND_SEQ.fullmatch(text):
        return found["node"], int(found["seq"])
    raise click.BadParameter(
        f"{text!r} names no command: write NODE/SEQ, as in press-7/42, or an id of 32 hexadecimal digits",
        param_hint="COMMAND",
    )


def _id_of(admin: Admin, named: bytes | tuple[str, int]) -> bytes:
    """The id of a command. By seq it is looked for among the node's newest.

    Raises:
        Refused: the node has no such command, or it is too old to be found by its seq.
    """
    from fleet.v1 import admin_pb2
    from fleet_server.cli.failures import Refused

    if isinstance(named, bytes):
        return named
    node, seq = named
    page = admin_pb2.Page(size=_PAGE)
    for _ in range(_MOST_PAGES):
        answer = admin.call(admin.stub.ListCommands, admin_pb2.ListCommandsRequest(node=node, page=page))
        for command in answer.commands:
            if command.monotonic_seq == seq:
                return command.command_id
        page.token = answer.next_page_token
        if not page.token or (answer.commands and answer.commands[-1].monotonic_seq < seq):
            raise Refused(f"{node} has no command {seq}", hint=f"see `fleetctl commands list --node {node}`")
    raise Refused(
        f"{node}/{seq} is not among the newest {_PAGE * _MOST_PAGES} commands of {node}", hint="name it by its id"
    )
