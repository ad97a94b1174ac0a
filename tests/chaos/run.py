"""One run: build the world, break it as planned, heal it, wait until all has ended, hear the witnesses, judge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from fleet.errors import Refusal
from fleet.v1 import admin_pb2
from tests.chaos import checker, collecting, program_logs
from tests.chaos.driver import REPEAT
from tests.chaos.evidence import Evidence, Issue, Journal, LogLine, Violation
from tests.chaos.faults import Done, Faults
from tests.chaos.operators import Desk, Issuer, hire, take_answer, take_told
from tests.chaos.programs import Program
from tests.chaos.schedule import Event, plan
from tests.chaos.world import Size, World, world
from tests.integration.command_line import run_fleetctl

OPERATORS = 6
BOUND_S = 590
"""The whole run takes no longer, whatever the machine does beside it; with what then has to be ended, ten minutes."""
_SETTLE_S = 60.0
_QUIET_WITHIN_S = 120.0
_SHOW_EVERY_S = 2.0
_LOOK_EVERY_S = 0.5
_STOP_WITHIN_S = 60.0
_SIGNED_WITHIN_S = 40
_VERIFIED_TIMES = 11
_VERIFY_AGAIN_S = 1.5
_VERIFIED = {
    "verified": True,
    "alarms": 0,
    "taken_unvouched": [],
    "broken_nodes": [],
    "later_chains": [],
    "lost_commands": 0,
    "left_out_commands": 0,
    "awaited_commands": 0,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What is run.

    Args:
        seed: of the schedule and of what operators wish.
        seconds: how long things are broken.
        size: of the world.
        gap_s: mean seconds between two faults.
        folder: for all files.
    """

    seed: int
    seconds: float
    size: Size
    gap_s: float
    folder: Path


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    violations: Sequence[Violation]
    states: Counter[str]
    issues: int
    unknown_answers: int
    refusals: Counter[str]
    done: Sequence[Done]
    lines: int
    took_s: float


class Run:
    """A run under way.

    Args:
        options: what is run.
        show: told each line that a person may read.
    """

    def __init__(self, options: Options, show: Callable[[str], None]) -> None:
        self._options = options
        self._show = show
        self._start_s = time.monotonic()
        self._desks: list[Desk] = []
        self._issuers: list[Issuer] = []
        self._not_healed: list[str] = []
        self._roll_call = Issue("roll-call", "owner", "simulated.noop to every node")

    async def run(self) -> Report:
        """Do all of it.

        Raises:
            TimeoutError: it took too long; the text says what was waited for.
        """
        options = self._options
        events = plan(options.seed, options.seconds, options.size.shape(), gap_s=options.gap_s)
        self._say(f"seed {options.seed}: {len(events)} faults in {options.seconds:g} s, {options.size.members} nodes")
        for event in events:
            self._show(f"  {event}")
        async with asyncio.timeout(BOUND_S):
            async with world(options.folder, options.size, lifetime_s=BOUND_S + 60) as built:
                self._say("everything is up")
                showing = asyncio.create_task(self._show_progress(built))
                try:
                    done = await self._break(built, events)
                    return await self._judge(built, done)
                finally:
                    showing.cancel()
                    await asyncio.wait({showing})
                    for issuer in self._issuers:
                        await issuer.close()
                    for desk in self._desks:
                        await desk.close()

    async def _break(self, built: World, events: Sequence[Event]) -> Sequence[Done]:
        options = self._options
        owner = Desk(built.admins, built.ca_pem, built.token, "owner", f"{options.seed}:owner")
        self._desks = [owner]
        await self._until(built, "every node is online", self._all_online)
        self._desks += await hire(owner, OPERATORS, built.admins, built.ca_pem, options.seed)
        names = [membership.name for _, membership in built.memberships().values()]
        every_s = max(0.15, 20 / len(names))
        self._issuers = [Issuer(desk, f"{options.seed}:{desk.name}", names, every_s) for desk in self._desks[1:]]
        issuing = [asyncio.create_task(issuer.run()) for issuer in self._issuers]
        faults = Faults(built, owner, self._say)
        try:
            await faults.run(events)
            self._say("healing")
            self._not_healed = await built.heal()
            for issuer in self._issuers:
                issuer.end()
            await asyncio.wait(issuing, timeout=_SETTLE_S)
        finally:
            for task in issuing:
                task.cancel()
            results = await asyncio.gather(*issuing, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return faults.done

    async def _judge(self, built: World, done: Sequence[Done]) -> Report:
        self._say("healed; waiting until everything has ended")
        with contextlib.suppress(TimeoutError):  # what is open or away then is what the rules find
            await self._until(built, "every node is online and every command has ended", self._all_ended)
        await self._call_the_roll(built)
        self._say("verifying the audit")
        audit = await self._verify_audit(built)
        self._say("stopping")
        stopped = await self._stop(built)
        self._say("reading the evidence")
        evidence = await asyncio.to_thread(self._collect, built)
        evidence.audit = audit
        evidence.faults = [
            *evidence.faults,
            *self._not_healed,
            *stopped,
            *(each.failed for each in done if each.failed),
        ]
        violations = checker.check(evidence)
        if violations:
            await asyncio.to_thread(_keep, built, evidence, done, violations)
        return Report(
            violations,
            Counter(row.state for row in evidence.commands),
            len(evidence.issues),
            sum(issue.unknown for issue in evidence.issues),
            sum((desk.refusals for desk in self._desks), Counter()),
            done,
            sum(len(lines) for lines in evidence.runs.values()),
            time.monotonic() - self._start_s,
        )

    async def _call_the_roll(self, built: World) -> None:
        """Every node runs one more command: the fleet works as it did before."""
        owner, issue = self._desks[0], self._roll_call
        request = admin_pb2.IssueCommandsRequest(
            selector=admin_pb2.Selector(patterns=["*"]),
            commands=[admin_pb2.CommandSpec(action="simulated.noop")],
            idempotency_key=issue.key,
        )
        watch = admin_pb2.WatchCommandsRequest(until_final=True)
        asked_s = time.monotonic()
        with contextlib.suppress(Refusal, TimeoutError):
            take_answer(issue, await owner.insist("IssueCommands", request, _SETTLE_S))
            watch.issue_id = issue.issue_id
            async with asyncio.timeout(_SETTLE_S):
                while not issue.commands.keys() <= issue.told.keys():
                    with contextlib.suppress(Refusal):  # it is watched again
                        async for answer in owner.follow("WatchCommands", watch):
                            take_told(issue, answer.commands)
        told_s = time.monotonic() - asked_s
        self._say(f"roll call: {len(issue.told)} of {built.size.members} nodes told after {told_s:.1f} s")

    async def _verify_audit(self, built: World) -> list[str]:
        """As a person does: fleetctl, logged in anew. What it says beside that all is well."""
        token = built.folder / "owner.token"
        token.touch(mode=0o600)
        token.write_text(built.token)
        environment = {**os.environ, "FLEETCTL_PROFILE": str(built.folder / "profile.toml"), "NO_COLOR": "1"}
        ca = built.folder / built.shape.replicas[0] / "tls" / "ca.crt"
        words = ["login", built.admins[0], "--ca-file", ca, "--token-file", token]
        code, _, err = await run_fleetctl(environment, *words)
        if code:
            return [f"fleetctl login ended with {code}: {err}"]
        words = ["audit", "verify", "--signed-within", _SIGNED_WITHIN_S, "--output", "json"]
        wrong: list[str] = []
        for _ in range(_VERIFIED_TIMES):  # nodes tell the newest of their rows within seconds
            code, out, err = await run_fleetctl(environment, *words)
            if code:
                wrong = [f"it ended with {code}: {out} {err}"]
                break
            (built.folder / "audit.json").write_text(out)
            said = json.loads(out)
            wrong = [f"{name} is {said[name]}" for name, expected in _VERIFIED.items() if said[name] != expected]
            if not wrong:
                break
            await asyncio.sleep(_VERIFY_AGAIN_S)
        if wrong:
            _, out, _ = await run_fleetctl(environment, "audit", "export")
            (built.folder / "audit.jsonl").write_text(out)
        return [f"fleetctl audit verify: {each}" for each in wrong]

    async def _stop(self, built: World) -> list[str]:
        async def stop(programs: Sequence[Program]) -> list[str]:
            codes = await asyncio.gather(*(each.stop(within_s=_STOP_WITHIN_S) for each in programs))
            return [
                f"{each.name} ended with {code} after the last SIGTERM:\n{each.tail()}"
                for each, code in zip(programs, codes, strict=True)
                if code != 0
            ]

        return [*await stop(built.node_programs), *await stop(list(built.replicas.values()))]

    def _collect(self, built: World) -> Evidence:
        runs: dict[str, list[LogLine]] = {}
        journals: dict[str, Journal] = {}
        unread = []
        for node_id, (folder, membership) in built.memberships().items():
            try:
                runs[node_id] = list(collecting.runs(folder))
                journals[node_id] = collecting.journal(folder, node_id)
            except collecting.UNREADABLE as error:
                unread.append(f"{membership.name} in {folder}: {type(error).__name__}: {error}")
        faults = []
        for program in built.programs:
            log = built.folder / "logs" / f"{program.name}.log"
            faults += program_logs.findings(program.name, log.read_text().splitlines())
            faults += [str(ending) for ending in program.endings if ending.was_ready]
        kept_log = built.folder / "logs" / "postgres.log"
        kept_log.write_bytes(built.database.log_path.read_bytes())
        faults += program_logs.database_findings(kept_log.read_text(errors="replace").splitlines())
        issues = [issue for issuer in self._issuers for issue in issuer.issues]
        return Evidence(
            issues=[*issues, self._roll_call],
            roll_call=self._roll_call,
            commands=collecting.commands(built.database),
            nodes=collecting.nodes(built.database),
            issue_counts=collecting.issue_counts(built.database),
            runs=runs,
            journals=journals,
            repeatable=frozenset({REPEAT}),
            errors=[error for desk in self._desks for error in desk.errors],
            faults=faults,
            unread=unread,
        )

    async def _until(self, built: World, what: str, holds: Callable[[World], bool]) -> None:
        deadline_s = time.monotonic() + _QUIET_WITHIN_S
        while not await asyncio.to_thread(holds, built):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not within {_QUIET_WITHIN_S:g} s: {what}: {_figures(built)}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _all_online(self, built: World) -> bool:
        return _figures(built)[0] == built.size.members

    def _all_ended(self, built: World) -> bool:
        online, issued, ended = _figures(built)
        return online == built.size.members and issued == ended

    async def _show_progress(self, built: World) -> None:
        while True:
            try:
                online, issued, ended = await asyncio.to_thread(_figures, built)
                text = f"{online} streams, {issued} issued, {ended} ended"
            except psycopg.OperationalError:
                text = "the database is away"
            self._say(text)
            await asyncio.sleep(_SHOW_EVERY_S)

    def _say(self, text: str) -> None:
        self._show(f"{time.monotonic() - self._start_s:6.1f} s  {text}")


def _figures(built: World) -> tuple[int, int, int]:
    """Nodes online, commands issued, commands ended."""
    ((online,),) = built.database.ask("SELECT count(*) FROM nodes WHERE online = 1")
    ((issued, ended),) = built.database.ask("SELECT count(*), count(*) FILTER (WHERE state >= 5) FROM commands")
    return online, issued, ended


def _keep(built: World, evidence: Evidence, done: Sequence[Done], violations: Sequence[Violation]) -> None:
    """What a person needs to follow a violation up, beside logs, journals and run logs, which are there already."""
    kept = {
        "violations": [asdict(each) for each in violations],
        "faults": [{"what": str(each.event), "began_s": each.began_s, "ended_s": each.ended_s} for each in done],
        "issues": [asdict(each) for each in evidence.issues],
        "commands": [asdict(each) for each in evidence.commands],
        "nodes": [asdict(each) for each in evidence.nodes],
    }
    (built.folder / "evidence.json").write_text(json.dumps(_shown(kept), indent=1))


def _shown(value: Any) -> Any:
    """Ids in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {_shown(key): _shown(each) for key, each in value.items()}
    return [_shown(each) for each in value] if isinstance(value, list | tuple) else value
