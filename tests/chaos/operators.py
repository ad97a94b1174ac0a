"""Operators who issue all the while, at any replica, and never take silence for an answer.

Each asks for one thing after another. What gets no answer is asked for again at another replica with the same
idempotency key, until there is one: that is what the product tells its users to do, and what makes "nothing lost"
something that can be checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from fleet.errors import Advice, Reason, Refusal, advice
from fleet.status import is_refusal
from fleet.v1 import admin_pb2, command_pb2
from tests.chaos.driver import REPEAT
from tests.chaos.evidence import FINAL, Issue
from tests.integration.operator import Operator

CALL_TIMEOUT_S = 4.0
_WATCH_TIMEOUT_S = 8.0
_PAUSE_S = 0.2
_ASK_AGAIN = 0.1
"""Of the issues that were answered so many are asked for once more: the answer has to be the first one."""
_CANCELLED = 0.12
_LOOKED_AT = 0.5
_WATCHED = 0.4
_WATCHES_AT_ONCE = 6
_RECENT = 12
_ROLE = "operator"


class Desk:
    """A way to every replica under one operator's token.

    Args:
        admins: addresses of the replicas' admin listeners.
        ca_pem: the installation's CA.
        token: the operator's.
        name: of the operator, for messages.
        seed: of the order in which replicas are asked.
    """

    def __init__(self, admins: Sequence[str], ca_pem: bytes, token: str, name: str, seed: str) -> None:
        self._replicas = [Operator(address, ca_pem, token) for address in admins]
        self._chance = random.Random(seed)
        self.name = name
        self.errors: list[str] = []
        """Answers that no operator should get."""
        self.refusals: Counter[str] = Counter()
        """How often a call got no answer, or was refused, by reason."""

    async def ask(self, method: str, request: Any) -> Any:
        """Ask any replica once.

        Raises:
            Refusal: what it said, or that it said nothing.
        """
        try:
            return await self._chance.choice(self._replicas).ask(method, request, CALL_TIMEOUT_S)
        except Refusal as refusal:
            self._note(method, refusal)
            raise

    async def follow(self, method: str, request: Any) -> AsyncIterator[Any]:
        """Ask any replica for a stream of answers, for some seconds.

        Raises:
            Refusal: it ended so, or said nothing.
        """
        try:
            async for answer in self._chance.choice(self._replicas).follow(method, request, _WATCH_TIMEOUT_S):
                yield answer
        except Refusal as refusal:
            self._note(method, refusal)
            raise

    async def insist(self, method: str, request: Any, within_s: float) -> Any:
        """Ask one replica after another until one answers.

        Raises:
            Refusal: the last one, once the time is over; at once when asking again is of no use.
        """
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                return await self.ask(method, request)
            except Refusal as refusal:
                if advice(refusal.reason) is Advice.STOP or time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(self._chance.uniform(_PAUSE_S / 4, _PAUSE_S))

    async def close(self) -> None:
        """Hang up."""
        for each in self._replicas:
            await each.close()

    def _note(self, method: str, refusal: Refusal) -> None:
        self.refusals[str(refusal.reason)] += 1
        if refusal.reason is not Reason.INTERNAL:
            return
        cause = refusal.__cause__
        said = isinstance(cause, grpc.RpcError) and is_refusal(cause)
        self.errors.append(f"{self.name}, {method}: {'the server' if said else 'gRPC'} said {refusal}")


class Issuer:
    """One operator.

    Args:
        desk: asks the replicas.
        seed: of what is asked for.
        names: of the nodes.
        every_s: mean pause between two issues.
    """

    def __init__(self, desk: Desk, seed: str, names: Sequence[str], every_s: float) -> None:
        self._desk = desk
        self._chance = random.Random(seed)
        self._names = names
        self._every_s = every_s
        self._watches = asyncio.Semaphore(_WATCHES_AT_ONCE)
        self._watching: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self.issues: list[Issue] = []

    async def run(self) -> None:
        """Issue until `end`; the last one is answered before this returns."""
        while not self._ending.is_set():
            await self._issue(len(self.issues) + 1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self._chance.expovariate(1 / self._every_s))

    def end(self) -> None:
        """Issue nothing more."""
        self._ending.set()

    async def close(self) -> None:
        """Watch no more."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def _issue(self, number: int) -> None:
        chance = self._chance
        patterns, action, arguments, count = self._wish()
        request = admin_pb2.IssueCommandsRequest(
            selector=admin_pb2.Selector(patterns=patterns),
            commands=[admin_pb2.CommandSpec(action=action, arguments=json.dumps(arguments).encode())] * count,
            ttl_s=chance.choice([1, 2, 5, 20, 60, 600, 600, 600]),
            idempotency_key=f"{self._desk.name}-{number}",
        )
        wanted = f"{count} {action} {arguments} to {', '.join(patterns)} within {request.ttl_s} s"
        issue = Issue(request.idempotency_key, self._desk.name, wanted)
        self.issues.append(issue)
        await self.settle(issue, request)
        if chance.random() < _ASK_AGAIN:
            await self.settle(issue, request)
        if chance.random() < _CANCELLED:
            await self._cancel(chance.choice(self.issues[-_RECENT:]))
        if chance.random() < _LOOKED_AT:
            await self._look(issue)
        if chance.random() < _WATCHED and issue.commands:
            task = asyncio.create_task(self._watch(issue))
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)

    async def settle(self, issue: Issue, request: admin_pb2.IssueCommandsRequest) -> None:
        """Ask until there is an answer, whatever it is. Whoever has waited enough cancels it."""
        while True:
            issue.attempts += 1
            try:
                answer = await self._desk.ask("IssueCommands", request)
            except Refusal as refusal:
                if advice(refusal.reason) is Advice.STOP:
                    if issue.issue_id:
                        issue.differing.append(f"{issue.key}: was answered, and is now refused: {refusal}")
                    issue.refusal = str(refusal)
                    return
                issue.unknown += 1
                await asyncio.sleep(self._chance.uniform(_PAUSE_S / 4, _PAUSE_S))
                continue
            take_answer(issue, answer)
            return

    def _wish(self) -> tuple[list[str], str, dict[str, Any], int]:
        """For which nodes, what, and how often."""
        chance = self._chance
        one = chance.choice(self._names)
        patterns = chance.choice([[one], [one], [one], [one[:-1] + "?"], chance.sample(self._names, 3)])
        work: dict[str, Any] = chance.choice(
            [
                {"latency_ms": 10},
                {"latency_ms": 200, "jitter_ms": 300},
                {"latency_ms": 50, "fail_rate": 0.5},
                {"latency_ms": 300, "device": f"arm-{chance.randrange(2)}"},
                {"latency_ms": 2500, "jitter_ms": 2000},
                {"latency_ms": 5, "output_bytes": 4000},
            ]
        )
        action, arguments = chance.choice(
            [
                ("simulated.noop", {}),
                ("simulated.work", work),
                ("simulated.work", work),
                ("simulated.work", work),
                (REPEAT, {"latency_ms": chance.choice([20, 1500])}),
            ]
        )
        return patterns, action, arguments, chance.choice([1, 1, 2, 4])

    async def _cancel(self, issue: Issue) -> None:
        """Ask for a cancel of all of it, or of one command; what came of it the outcome says."""
        if not issue.commands:
            return
        request = admin_pb2.CancelCommandsRequest(issue_id=issue.issue_id)
        if self._chance.random() < 0.5:
            request = admin_pb2.CancelCommandsRequest(command_ids=[self._chance.choice(list(issue.commands))])
        with contextlib.suppress(Refusal):
            answer = await self._desk.insist("CancelCommands", request, CALL_TIMEOUT_S)
            take_told(issue, answer.commands)

    async def _look(self, issue: Issue) -> None:
        """Read something once, as a person who wonders does."""
        page = admin_pb2.Page(size=50)
        method, request = self._chance.choice(
            [
                ("ListNodes", admin_pb2.ListNodesRequest(page=page)),
                ("ListCommands", admin_pb2.ListCommandsRequest(issue_id=issue.issue_id, page=page)),
                ("ListCommands", admin_pb2.ListCommandsRequest(open_only=True, page=page)),
                ("ListReplicas", admin_pb2.ListReplicasRequest()),
            ]
        )
        with contextlib.suppress(Refusal):
            answer = await self._desk.ask(method, request)
            if method == "ListCommands":
                take_told(issue, [view for view in answer.commands if view.issue_id == issue.issue_id])

    async def _watch(self, issue: Issue) -> None:
        """Watch, at one replica after another, until every outcome was told."""
        request = admin_pb2.WatchCommandsRequest(issue_id=issue.issue_id, until_final=True, brief=True)
        async with self._watches:
            while not issue.commands.keys() <= issue.told.keys():
                with contextlib.suppress(Refusal):
                    async for answer in self._desk.follow("WatchCommands", request):
                        take_told(issue, answer.commands)
                await asyncio.sleep(_PAUSE_S)


def take_answer(issue: Issue, answer: admin_pb2.IssueCommandsResponse) -> None:
    """Note what an issue was answered; a later answer has to be the same."""
    commands = {each.command_id: (each.node_id, each.monotonic_seq) for each in answer.issued}
    refused = {each.node_id: each.reason for each in answer.refused}
    if issue.issue_id and (issue.issue_id, issue.commands, issue.refused) != (answer.issue_id, commands, refused):
        issue.differing.append(
            f"issue {issue.key} was answered as {issue.issue_id} with {len(issue.commands)} commands, then as"
            f" {answer.issue_id} with {len(commands)}"
        )
        return
    issue.issue_id, issue.commands, issue.refused = answer.issue_id, commands, refused


def take_told(issue: Issue, views: Sequence[admin_pb2.CommandView]) -> None:
    """Note what a watch says is final; that may not change any more."""
    for view in views:
        state = command_pb2.CommandState.Name(view.state).removeprefix("COMMAND_STATE_")
        before = issue.told.get(view.command_id)
        if before is not None and before != state:
            issue.changed.append(f"{issue.operator} was told {view.command_id.hex()} is {before}, then {state}")
        elif state in FINAL:
            issue.told[view.command_id] = state


async def hire(owner: Desk, count: int, admins: Sequence[str], ca_pem: bytes, seed: int) -> list[Desk]:
    """So many operators, each with a token of its own."""
    desks = []
    for number in range(1, count + 1):
        name = f"operator-{number}"
        made = await owner.ask("CreateOperator", admin_pb2.CreateOperatorRequest(name=name, role=_ROLE))
        desks.append(Desk(admins, ca_pem, made.token, name, f"{seed}:{name}:desk"))
    return desks
