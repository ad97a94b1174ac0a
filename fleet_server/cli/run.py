"""`fleetctl run`: issue one action to many nodes, wait for every outcome, and say how each went."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from fleet_server.cli import commands, complete, failures
from fleet_server.cli.failures import Failed, Refused, Unreachable
from fleet_server.cli.grammar import Duration, Verb, typed_arguments
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.passphrase import passphrase_file_option
from fleet_server.cli.people import key_option, own_key_file
from fleet_server.cli.protected import Signing
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.progress import Bar

MAX_ARGUMENTS_BYTES = 64 << 10
_OTHER_COLUMNS = 45
_TEXT_FOR_OTHER = re.compile(
    r'at /(?P<name>[^/"\s]+): "(?P<given>[^"]*)" is not of type "(?:number|integer|boolean|array|object)"'
)
_WATCH_AGAIN_AFTER_S = (0.5, 1.0, 2.0, 4.0, 8.0)


class Run(Verb):
    """`run`, which knows that `--wait` is often taken for the time limit."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; a time after `--wait` is neither a target nor an action."""
        for word, following in itertools.pairwise([*args, ""]):
            option, equals, value = word.partition("=")
            time_limit = value if equals else following
            if option == "--wait" and (equals or Duration.FORM.fullmatch(time_limit)):
                raise click.UsageError(f"--wait takes no time: to wait at most that long, write --timeout {time_limit}")
        return super().parse_args(ctx, args)


@click.command(
    cls=Run,
    example="fleetctl run 'press-*' exec.run --arg program=uptime --ttl 5m\n"
    "fleetctl run rack=4 simulated.work --arg latency_ms:=2000 --no-wait",
)
@click.argument("words", metavar="TARGETS... ACTION", nargs=-1, required=True, shell_complete=complete.target_or_action)
@click.option("--arg", "pairs", multiple=True, metavar="KEY=TEXT", help="An argument; KEY:=JSON for other than text.")
@click.option("--args-json", metavar="JSON", help="All arguments as one JSON object.")
@click.option("--args-file", type=click.File("rb"), help="File with all arguments as one JSON object; - is stdin.")
@click.option("--ttl", type=Duration(), default="5m", show_default=True, help="Nodes do not start it later than this.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until every outcome is known.")
@click.option("--timeout", type=Duration(), help="Wait no longer than this; the commands go on.")
@click.option("--idempotency-key", metavar="TEXT", help="Say it again with the same key and it is issued once.")
@click.option("--sign-within", type=Duration(), default="1h", show_default=True, help="Protected: time to sign it.")
@click.option("--yes", is_flag=True, help="Protected: sign without asking.")
@key_option
@passphrase_file_option
@click.pass_obj
def run(
    invocation: Invocation,
    words: tuple[str, ...],
    pairs: tuple[str, ...],
    args_json: str | None,
    args_file: IO[bytes] | None,
    ttl: int,
    wait: bool,
    timeout: int | None,
    idempotency_key: str | None,
    sign_within: int,
    yes: bool,
    key_file: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Issue ACTION to the nodes that TARGETS mean, and wait for every outcome.

    TARGETS are names, ids, globs, labels (`rack=4`, `rack=4,line=2` for both) or `*`; `fleetctl nodes show NODE` lists
    the actions of a node and their arguments. Ends with 0 when it succeeded on every node, with 1 when it did not on
    some, and with 3 when nothing was issued. Ctrl-C ends the waiting, not the commands.

    A protected action needs people's signatures: exactly what will run where is shown, and signed with your key. When
    the policy asks for more people it waits for them; they sign it with `fleetctl approve`.
    """
    import uuid

    from fleet.v1 import admin_pb2

    *targets, action = words
    if not targets:
        raise click.UsageError(f"say which nodes and which action, as in `fleetctl run {action} host.info`")
    arguments = _arguments(pairs, args_json, args_file)
    key = idempotency_key or uuid.uuid4().hex
    request = admin_pb2.IssueCommandsRequest(
        selector=admin_pb2.Selector(patterns=targets),
        commands=[admin_pb2.CommandSpec(action=action, arguments=arguments)],
        ttl_s=ttl,
        idempotency_key=key,
        summary_only=wait,
    )
    with invocation.connect() as admin:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            issue = _issue(admin, request)
        except Refused as refused:
            if refused.reason != "INTENT_REQUIRED":
                raise
            if idempotency_key is not None:
                raise click.UsageError(
                    f"{action} is protected, and what is signed is good once by itself: leave --idempotency-key out"
                ) from None
            signing = Signing(own_key_file(admin.context, key_file), passphrase_file, sign_within, yes, wait, deadline)
            signed = signing.issue(invocation, admin, request)
            if signed is None:
                return
            issue = signed
        if not issue.issued_count:
            _emit_refused(invocation, issue, wait)
        if not wait:
            _emit_issued(invocation, issue)
            return
        waiting = _Waiting(invocation, admin, issue, deadline)
        outcomes = waiting.wait_outcomes(action)
    _emit_outcomes(invocation, issue, outcomes)


def _arguments(pairs: tuple[str, ...], args_json: str | None, args_file: IO[bytes] | None) -> bytes:
    import json

    if sum((bool(pairs), args_json is not None, args_file is not None)) > 1:
        raise click.UsageError("--arg, --args-json and --args-file exclude each other")
    if args_json is not None:
        raw, option = args_json.encode(), "--args-json"
    elif args_file is not None:
        raw, option = args_file.read(MAX_ARGUMENTS_BYTES + 1), "--args-file"
    else:
        return json.dumps(typed_arguments(pairs)).encode() if pairs else b""
    if len(raw) > MAX_ARGUMENTS_BYTES:
        raise click.BadParameter(f"arguments may have {MAX_ARGUMENTS_BYTES} bytes", param_hint=option)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint=option) from error
    if not isinstance(value, dict):
        raise click.BadParameter("the arguments of an action are a JSON object", param_hint=option)
    return raw


def _issue(admin: Admin, request: admin_pb2.IssueCommandsRequest) -> admin_pb2.IssueCommandsResponse:
    try:
        return admin.call(admin.stub.IssueCommands, request)
    except Unreachable as failure:
        if failure.never_sent:
            failure.hint += "; nothing was issued"
            raise
        # Nobody knows whether the server committed before the line broke; the key makes asking again safe.
        failure.hint += (
            f"; whether it was issued is not known: run it again with --idempotency-key {request.idempotency_key}"
        )
        raise


@dataclass(slots=True)
class _Waiting:
    """Follow an issue until all is final. The newest view of each command wins; a broken watch is opened again, a
    bounded number of times in a row, since the server may just be restarting."""

    invocation: Invocation
    admin: Admin
    issue: admin_pb2.IssueCommandsResponse
    deadline: float | None
    views: dict[bytes, admin_pb2.CommandView] = field(default_factory=dict)
    final: set[bytes] = field(default_factory=set)
    bad: set[bytes] = field(default_factory=set)

    def wait_outcomes(self, action: str) -> list[admin_pb2.CommandView]:
        """Commands by node and seq, as far as they are known when all are final or the deadline has passed."""
        from fleet_server.cli.progress import Bar

        follow_up = f"`fleetctl commands watch {self.issue.issue_id}`"
        try:
            with Bar(action, self.issue.issued_count) as bar:
                self._follow_again(bar)
        except KeyboardInterrupt:
            self.invocation.say(f"The commands go on: {follow_up}")
            raise
        return sorted(self.views.values(), key=lambda view: (view.node_name, view.monotonic_seq))

    def _follow_again(self, bar: Bar) -> None:
        pauses = iter(_WATCH_AGAIN_AFTER_S)
        while self._open_count() and not self._is_late():
            seen = len(self.final)
            try:
                self._follow(bar)
                if self._open_count() and not self._is_late():
                    raise Unreachable("the server ended the watch before every outcome was known")
            except Unreachable as failure:
                if self._is_late():
                    return
                pauses = iter(_WATCH_AGAIN_AFTER_S) if len(self.final) > seen else pauses
                pause_s = next(pauses, None)
                if pause_s is None:
                    failure.hint = f"the commands go on: `fleetctl commands watch {self.issue.issue_id}`"
                    raise
                self.invocation.say(f"{failure.message}: looking again in {pause_s:g} s")
                self.invocation.sleep(pause_s)

    def _follow(self, bar: Bar) -> None:
        from fleet.v1 import admin_pb2

        request = admin_pb2.WatchCommandsRequest(issue_id=self.issue.issue_id, until_final=True)
        left_s = None if self.deadline is None else max(self.deadline - time.monotonic(), 0.001)
        for change in self.admin.stream(self.admin.stub.WatchCommands, request, timeout_s=left_s):
            for view in change.commands:
                self._take(view)
            bar.show(len(self.final), note=self._note())

    def _take(self, view: admin_pb2.CommandView) -> None:
        self.views[view.command_id] = view
        if commands.is_final(view):
            self.final.add(view.command_id)
            if not _succeeded(view):
                self.bad.add(view.command_id)

    def _note(self) -> str:
        """What the open ones do: a node that is away or drained shows as commands that stay queued."""
        from fleet.v1 import command_pb2 as wire

        queued = sum(view.state == wire.COMMAND_STATE_QUEUED for view in self.views.values())
        running = sum(view.state == wire.COMMAND_STATE_RUNNING for view in self.views.values())
        counts = ((running, "running"), (queued, "queued"), (len(self.bad), "not well"))
        return ", ".join(f"{count} {word}" for count, word in counts if count)

    def _open_count(self) -> int:
        return self.issue.issued_count - len(self.final)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


def _succeeded(view: admin_pb2.CommandView) -> bool:
    from fleet.v1 import command_pb2

    return view.state == command_pb2.COMMAND_STATE_SUCCEEDED


def _emit_issued(invocation: Invocation, issue: admin_pb2.IssueCommandsResponse) -> None:
    from fleet_server.cli.views import to_json

    if invocation.wants_json:
        invocation.emit_json(to_json(issue))
    else:
        rows: list[list[Cell]] = [
            [Styled(one.node_name, bold=True), str(one.monotonic_seq), one.command_id.hex()] for one in issue.issued
        ]
        invocation.emit_table([Column("NODE"), Column("SEQ", right=True), Column("COMMAND")], rows)
        invocation.say(f"Follow them: `fleetctl commands watch {issue.issue_id}`")
    _say_repeated(invocation, issue)
    if issue.refused:
        raise Failed(_refused_sentence(issue), hint=_refused_hint(issue))


def _emit_outcomes(
    invocation: Invocation, issue: admin_pb2.IssueCommandsResponse, outcomes: list[admin_pb2.CommandView]
) -> None:
    from fleet_server.cli.views import to_json

    if invocation.wants_json:
        invocation.emit_json(
            {
                "issue_id": issue.issue_id,
                "commands": [to_json(view) for view in outcomes],
                "refused": [to_json(target) for target in issue.refused],
            }
        )
    else:
        rows = [commands.outcome_row(view) for view in outcomes]
        rows += [_refused_row(target) for target in issue.refused]
        invocation.emit_table(commands.OUTCOME_COLUMNS, rows)
        _emit_what_was_cut(invocation, outcomes)
    _say_repeated(invocation, issue)
    succeeded = sum(_succeeded(view) for view in outcomes)
    unknown = issue.issued_count - sum(commands.is_final(view) for view in outcomes)
    total = issue.issued_count + len(issue.refused)
    if succeeded == total:
        invocation.say(f"All {total} succeeded." if total > 1 else "It succeeded.")
        return
    if total == 1 and not unknown:
        (failed,) = outcomes
        raise Failed(
            commands.failure_sentence(failed), hint=f"all about it: `fleetctl commands show {_address(failed)}`"
        )
    parts = [f"{succeeded} of {total} succeeded"]
    if unknown:
        parts.append(f"{unknown} not final yet")
    hint = ""
    if unknown:
        hint = (
            f"the commands go on: `fleetctl commands watch {issue.issue_id}`; a node that takes none for now, "
            "its disk full for one, says so in `fleetctl audit tail`"
        )
    sentence = ", ".join(parts)
    if issue.refused:
        sentence = f"{sentence}; {_refused_sentence(issue)}"
        hint = hint or _refused_hint(issue)
    raise Failed(sentence, hint=hint)


def _emit_what_was_cut(invocation: Invocation, outcomes: list[admin_pb2.CommandView]) -> None:
    """Results that do not fit their row: of one command the whole of it, of more where to see it."""
    import sys

    from fleet_server.cli.terminal import terminal_width
    from fleet_server.cli.views import output_text

    room = min((terminal_width(sys.stdout) or 1000) - _OTHER_COLUMNS, commands.EXCERPT_CELLS)
    texts = [(view, output_text(view.output, arguments=view.arguments).strip()) for view in outcomes]
    cut = [view for view, text in texts if len(text) > room or "\n" in text or " rows]" in text]
    if len(outcomes) == 1 and cut:
        commands.emit_output(invocation, outcomes[0])
    elif cut:
        invocation.say(f"Whole results, one by one: `fleetctl commands show {_address(cut[0])}`")


def _address(view: admin_pb2.CommandView) -> str:
    return f"{view.node_name}/{view.monotonic_seq}"


def _emit_refused(invocation: Invocation, issue: admin_pb2.IssueCommandsResponse, wait: bool) -> None:
    """Show why nothing was issued.

    Raises:
        Refused: always.
    """
    if not issue.refused:
        raise Refused("no node is meant by these targets", hint="see which nodes there are: `fleetctl nodes list`")
    if invocation.wants_json:
        from fleet_server.cli.views import to_json

        refused = [to_json(one) for one in issue.refused]
        invocation.emit_json(
            {"issue_id": issue.issue_id, "commands": [], "refused": refused} if wait else to_json(issue)
        )
    else:
        invocation.emit_table(commands.OUTCOME_COLUMNS, [_refused_row(target) for target in issue.refused])
    raise Refused(_refused_sentence(issue), hint=_refused_hint(issue))


def _refused_sentence(issue: admin_pb2.IssueCommandsResponse) -> str:
    reasons = sorted({target.reason for target in issue.refused})
    total = len(issue.refused) + issue.issued_count
    details = {target.detail for target in issue.refused}
    # The table may have had no room for the detail: when all were refused for the same, it stands here, whole.
    why = f"{reasons[0]}: {details.pop()}" if len(reasons) == len(details) == 1 else ", ".join(reasons)
    whom = issue.refused[0].node_name if total == 1 else f"{len(issue.refused)} of {total} nodes"
    return f"nothing was issued to {whom}: {why}"


def _refused_hint(issue: admin_pb2.IssueCommandsResponse) -> str:
    node = issue.refused[0].node_name or issue.refused[0].node_id
    hints = {failures.hint_for(target.reason).replace("NODE", node) for target in issue.refused}
    details = {target.detail for target in issue.refused}
    if len(details) == 1 and (mistaken := _TEXT_FOR_OTHER.search(details.pop())):
        return (
            f"other than text is written so: `--arg {mistaken['name']}:={_as_json(mistaken['given'])}`; "
            f"all it takes: `fleetctl nodes show {node}`"
        )
    return hints.pop() if len(hints) == 1 else ""


def _as_json(text: str) -> str:
    import json

    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return "JSON"


def _refused_row(target: admin_pb2.RefusedTarget) -> list[Cell]:
    name = Styled(target.node_name or target.node_id, bold=True)
    return [name, "-", Styled("REFUSED", "red"), "-", "-", f"{target.reason}: {target.detail}"]


def _say_repeated(invocation: Invocation, issue: admin_pb2.IssueCommandsResponse) -> None:
    if issue.repeated_request:
        invocation.say("Issued before under this idempotency key; nothing was issued again.")
