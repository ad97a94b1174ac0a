"""`fleetctl drain wave` over nodes: batch after batch, each drained before the next begins."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fleet_server.cli import wave_rules
from fleet_server.cli.failures import Failed, Unreachable
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.terminal import counted
from fleet_server.cli.wave_rules import Tally

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2
    from fleet_server.cli.connection import Admin
    from fleet_server.cli.progress import Bar

T = TypeVar("T")
_POLL_S = 1.0
_GRACE_S = 30.0
"""After a batch's deadline, for nodes to stop what runs and to say so."""
_AWAY_S = 120.0
"""So long a server that is away is waited for: replicas may be upgraded meanwhile."""
_NAMED = 5
_PATTERNS = 500
"""Names in one selector."""
_MOST_OPEN = 64
"""Commands of one node that are looked at again after its drain: more do not run at a time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for. Times in seconds.

    Args:
        targets: selector.
        batch: "10" or "10%".
        resume: give a batch work again once it is drained and `pause_s` has passed.
        again: the command that goes on with this wave, without `--after`.
    """

    targets: Sequence[str]
    batch: str
    budget: int
    deadline_s: int
    pause_s: int
    reason: str
    resume: bool
    after: str
    again: str


def patiently(invocation: Invocation, ask: Callable[[], T], within_s: float = _AWAY_S) -> T:
    """What `ask` answers; a server that is away is asked again.

    Raises:
        Failure: of the last attempt.
    """
    waited_s = 0.0
    while True:
        try:
            return ask()
        except Unreachable as failure:
            if waited_s >= within_s:
                raise
            if not waited_s:
                invocation.say(f"{failure.message}: asking again for {within_s:.0f} s")
            invocation.sleep(_POLL_S)
            waited_s += _POLL_S + failure.waited_s


class NodeWave:
    """One wave.

    Args:
        admin: whoever answers; it may be another replica from call to call.
    """

    def __init__(self, invocation: Invocation, admin: Admin, plan: Plan) -> None:
        self._invocation = invocation
        self._admin = admin
        self._plan = plan
        self.tally = Tally(plan.budget)
        self.left_out: dict[str, str] = {}
        self.batches: list[Sequence[admin_pb2.NodeView]] = []
        self._current: list[str] = []  # batch: those of it that were asked, and are not drained
        self._finished = ""
        self._drained: list[str] = []  # of the current batch

    def prepare(self) -> None:
        """Find the nodes, and cut them into batches.

        Raises:
            Failure: there are none, or the server refuses.
        """
        found = self._nodes(self._plan.targets)
        self.left_out = {node.name: why for node in found if (why := wave_rules.why_left_out(node, self._plan.after))}
        members = sorted((node for node in found if node.name not in self.left_out), key=lambda node: node.name)
        self.batches = wave_rules.batches(members, wave_rules.batch_size(self._plan.batch, len(members)))

    def run(self) -> None:
        """Drain batch after batch.

        Raises:
            Failed: more failures than the budget allows.
        """
        from fleet_server.cli.progress import Bar

        total = sum(map(len, self.batches))
        try:
            with Bar("draining nodes", total) as bar:
                for number, batch in enumerate(self.batches, 1):
                    self._current = [node.name for node in batch]
                    self._drain(batch, bar, f"batch {number} of {len(self.batches)}")
                    self._finish(last=number == len(self.batches))
                    if self.tally.stops:
                        break
        except KeyboardInterrupt:
            self._invocation.say(f"The wave stops here. {self.how_to_go_on()}")
            raise
        except Unreachable as failure:
            failure.hint = self.how_to_go_on()
            raise
        if self.tally.stops:
            raise Failed(
                f"the wave stopped: {counted(len(self.tally.failed), 'failure')}, a budget of {self._plan.budget}",
                hint=self.how_to_go_on(),
            )

    def how_to_go_on(self) -> str:
        """What to do about a wave that did not come to its end."""
        said = []
        if self._current:
            named = shlex.join(self._current[:_NAMED]) + (" …" if len(self._current) > _NAMED else "")
            said.append(f"Asked to drain, and left so: {named}. To give them work again: `fleetctl resume node`.")
        behind = (self._finished if self._plan.resume else "") or self._plan.after
        after = f" --after {shlex.quote(behind)}" if behind else ""
        said.append(f"To go on: `{self._plan.again}{after}`")
        return " ".join(said)

    def _drain(self, batch: Sequence[admin_pb2.NodeView], bar: Bar, title: str) -> None:
        names = [node.name for node in batch]
        open_before = {node.name: self._open_commands(node) for node in batch if node.open_commands}
        parts = wave_rules.batches(names, _PATTERNS)
        for part in parts:
            patiently(self._invocation, partial(self._ask, part))
        waited_s = 0.0
        while True:
            shown = {node.name: node for part in parts for node in self._nodes(part)}
            left = [node for node in shown.values() if node.drain_state != "DRAINED" and node.state == "ACTIVE"]
            done = len(self.tally.done) + len(self.tally.failed) + len(batch) - len(left)
            bar.show(done, note=f"{title}, {counted(sum(node.open_commands for node in left), 'open command')}")
            if not left or waited_s >= self._plan.deadline_s + _GRACE_S:
                break
            self._invocation.sleep(_POLL_S)
            waited_s += _POLL_S
        self._drained = [node.name for node in shown.values() if node.drain_state == "DRAINED"]
        for before in batch:
            node = shown.get(before.name, before)
            why = wave_rules.why_failed(node, self._cut_short(open_before.get(node.name, ())))
            if why:
                self.tally.failed[node.name] = why
                self._invocation.say(f"{node.name}: {why}")
            else:
                self.tally.done.append(node.name)

    def _finish(self, *, last: bool) -> None:
        goes_on = not self.tally.stops and (self._plan.resume or not last)
        if self._plan.pause_s and goes_on:
            self._invocation.sleep(self._plan.pause_s)
        if self._plan.resume:
            for part in wave_rules.batches(self._drained, _PATTERNS):
                patiently(self._invocation, partial(self._resume, part))
        self._finished = self._current[-1]
        self._current = [name for name in self._current if name not in self._drained]

    def _nodes(self, patterns: Sequence[str]) -> list[admin_pb2.NodeView]:
        from fleet.v1 import admin_pb2

        selector = admin_pb2.Selector(patterns=patterns)
        return patiently(
            self._invocation,
            lambda: self._admin.pages(
                self._admin.stub.ListNodes,
                lambda page: admin_pb2.ListNodesRequest(selector=selector, page=page),
                lambda answer: iter(answer.nodes),
            ),
        )

    def _ask(self, names: Sequence[str]) -> None:
        from fleet.v1 import admin_pb2
        from fleet_server.cli.connection import CALL_TIMEOUT_S

        request = admin_pb2.DrainNodesRequest(
            selector=admin_pb2.Selector(patterns=names), deadline_s=self._plan.deadline_s, reason=self._plan.reason
        )
        for _ in self._admin.stream(self._admin.stub.DrainNodes, request, timeout_s=CALL_TIMEOUT_S):
            return  # asked; how it goes is looked at, for this replica may not be here to the end

    def _resume(self, names: Sequence[str]) -> None:
        from fleet.v1 import admin_pb2

        request = admin_pb2.ResumeNodesRequest(selector=admin_pb2.Selector(patterns=names))
        self._admin.call(self._admin.stub.ResumeNodes, request)

    def _open_commands(self, node: admin_pb2.NodeView) -> list[bytes]:
        """Those that the node has, or is about to get; what only waits on the server is not touched by a drain."""
        from fleet.v1 import admin_pb2, command_pb2

        found = patiently(
            self._invocation,
            lambda: self._admin.pages(
                self._admin.stub.ListCommands,
                lambda page: admin_pb2.ListCommandsRequest(node=node.node_id, open_only=True, page=page),
                lambda answer: iter(answer.commands),
            ),
        )
        sent = [each for each in found if each.state != command_pb2.COMMAND_STATE_QUEUED]
        return [each.command_id for each in sorted(sent, key=lambda each: each.monotonic_seq)[:_MOST_OPEN]]

    def _command(self, request: admin_pb2.GetCommandRequest) -> admin_pb2.CommandView:
        return self._admin.call(self._admin.stub.GetCommand, request).command

    def _cut_short(self, command_ids: Sequence[bytes]) -> int:
        from fleet.v1 import admin_pb2, command_pb2

        found = 0
        for command_id in command_ids:
            request = admin_pb2.GetCommandRequest(command_id=command_id)
            command = patiently(self._invocation, partial(self._command, request))
            found += command.reason == "DRAIN_DEADLINE" or command.state == command_pb2.COMMAND_STATE_INTERRUPTED
        return found
