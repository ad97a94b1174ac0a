"""`fleetctl commands`: what was issued, how it went, and calling it back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.terminal import Cell, Column, Styled, age, duration, excerpt, state_cell

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2

_COLUMNS = [
    Column("COMMAND"),
    Column("NODE"),
    Column("SEQ", right=True),
    Column("ACTION"),
    Column("STATE"),
    Column("ACTOR"),
    Column("AGE", right=True),
    Column("TOOK", right=True),
    Column("RESULT", flexible=True),
]
OUTCOME_COLUMNS = [
    Column("NODE"),
    Column("SEQ", right=True),
    Column("STATE"),
    Column("KEY"),
    Column("TOOK", right=True),
    Column("RESULT", flexible=True),
]
_EXCERPT_CELLS = 120


@click.group(cls=Noun)
def commands() -> None:
    """List, show, watch and cancel commands."""


@commands.command("list", example="fleetctl commands list --node press-7 --open")
@click.option("--issue", "issue_id", default="", metavar="ID", help="Only commands of this issue.")
@click.option("--node", default="", help="Only commands of this node, by name or id.")
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


@commands.command("show", example="fleetctl commands show 6f1c0a5be8d84f0f9d2f6c1f6a1b2c3d")
@click.argument("command_id")
@click.pass_obj
def show(invocation: Invocation, command_id: str) -> None:
    """Show one command with its arguments and its whole output."""
    from fleet.v1 import admin_pb2

    request = admin_pb2.GetCommandRequest(command_id=_command_id(command_id))
    with invocation.connect() as admin:
        command = admin.call(admin.stub.GetCommand, request).command
    invocation.emit_message(command, _details(command))
    if not invocation.wants_json and command.output:
        invocation.emit_text("")
        invocation.emit_text(_pretty(command.output))


@commands.command("cancel", example="fleetctl commands cancel --issue is_9Kq2")
@click.argument("command_ids", nargs=-1)
@click.option("--issue", "issue_id", default="", metavar="ID", help="Cancel every open command of this issue.")
@click.pass_obj
def cancel(invocation: Invocation, command_ids: tuple[str, ...], issue_id: str) -> None:
    """Ask for cancels. What a node has begun ends by its driver: watch what comes of it."""
    from fleet.v1 import admin_pb2

    if bool(command_ids) == bool(issue_id):
        raise click.UsageError("name commands by their ids, or an issue with --issue")
    request = admin_pb2.CancelCommandsRequest(command_ids=[_command_id(one) for one in command_ids], issue_id=issue_id)
    with invocation.connect() as admin:
        answer = admin.call(admin.stub.CancelCommands, request)
    _emit(invocation, list(answer.commands))


@commands.command("watch", example="fleetctl commands watch is_9Kq2")
@click.argument("issue_id", default="")
@click.pass_obj
def watch(invocation: Invocation, issue_id: str) -> None:
    """Show commands as they change: those of an issue until all are final, or every one until Ctrl-C."""
    from fleet.v1 import admin_pb2
    from fleet_server.cli.views import to_json

    request = admin_pb2.WatchCommandsRequest(
        issue_id=issue_id, until_final=bool(issue_id), brief=not invocation.wants_json
    )
    with invocation.connect() as admin:
        for change in admin.stream(admin.stub.WatchCommands, request):
            for command in change.commands:
                if invocation.wants_json:
                    invocation.emit_json_line(to_json(command))
                else:
                    _emit_change(invocation, command)


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
        command.action,
        command_state(command),
        command.actor,
        age(command.issued_at_ms, now_ms),
        _took(command),
        _result(command),
    ]


def _emit_change(invocation: Invocation, command: admin_pb2.CommandView) -> None:
    import time

    from fleet_server.cli.terminal import printable, styled, wants_colour

    colour = wants_colour(sys.stdout)
    clock = time.strftime("%H:%M:%S", time.localtime(invocation.now_ms() / 1000))
    state = styled(command_state(command), colour=colour)
    node = printable(command.node_name or command.node_id)
    tail = printable(command.reason)
    invocation.emit_text(
        f"{clock}  {node}  seq {command.monotonic_seq}  {printable(command.action)}  {state}  {tail}".rstrip()
    )


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
    return [
        ("command", command.command_id.hex()),
        ("issue", command.issue_id),
        ("node", Styled(f"{command.node_name} ({command.node_id})", bold=True)),
        ("seq", str(command.monotonic_seq)),
        ("action", command.action),
        ("arguments", command.arguments.decode("utf-8", "replace") or "{}"),
        ("state", command_state(command)),
        ("reason", f"{command.reason} {command.error}".strip() or "-"),
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
    text = f"{command.reason}: {command.error}" if command.reason else output_text(command.output)
    return excerpt(text, _EXCERPT_CELLS)


def _pretty(output: bytes) -> str:
    import json

    from fleet_server.cli.terminal import printable

    try:
        text = json.dumps(json.loads(output), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = output.decode("utf-8", "replace")
    return "\n".join(printable(line) for line in text.split("\n"))


def _command_id(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise click.BadParameter(
            f"{text!r} is not a command id: 32 hexadecimal digits, as `fleetctl commands list` shows"
        )
    return value
