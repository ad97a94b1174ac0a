"""A node's commands room in a process that kills itself at a chosen journal write.

Reads lines "<folder> <kill_at>" and lives one life for each, in a forked child: takes a fixed series of statements and
a cancel, and ends once every command has a final report. At the `kill_at`-th point (0: never) the child sends itself
SIGKILL; points are every SQL statement of the journal, just before it, and the return of every commit, before anything
that the commit allows has happened. Prints "exit <status>" after each life.

The folder keeps `journal.db`, `runs.log` (what the driver really did) and `states.json` (what was reported at last).
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from fleet.clock import ServerTime, SystemClock
from fleet.envelope import Domain, Signer
from fleet.metrics import Registry
from fleet.people import People, take
from fleet.sequence import StreamContext
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet_node.commands.execution import CommandLimits
from fleet_node.commands.journal import Journal
from fleet_node.commands.protection import NoPeople, Verifier
from fleet_node.commands.rules import FINAL_STATES, STATE_NAMES
from fleet_node.commands.service import CommandService
from fleet_node.commands.store import JournalStore
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.observability.metrics import CommandMetrics
from tests.properties import persons
from tests.unit.fleet_node.commands.node import CLUSTER, NODE, FixedTrust, RecordingUplink

SEED = b"\x07" * 32
CANCELLED_SEQ = 8
REPLAYED_SEQ = 9
STARTED_MS = SystemClock().now_ms()
"""One for all lives: they are given the same intents."""
WORK = {"device": "arm", "latency_ms": 2}
STATEMENTS = (
    [(1, "simulated.noop", {}), (2, "simulated.work", WORK), (3, "simulated.work", WORK), (4, "simulated.noop", {})],
    [(5, "simulated.noop", {}), (6, "simulated.nothing", {})],
    [(7, "simulated.work", WORK), (CANCELLED_SEQ, "simulated.noop", {}), (REPLAYED_SEQ, "simulated.noop", {})],
)


class Persons(NoPeople):
    """Two people must sign each noop."""

    people = take(
        People(CLUSTER, persons.PIN),
        owners=[persons.owner_statement()],
        policy=persons.policy(persons.rule("simulated.noop"), not_after_ms=STARTED_MS + persons.DAY_MS),
        grants=[
            persons.grant(key, name, not_after_ms=STARTED_MS + persons.DAY_MS)
            for key, name in ((persons.ADA, "ada"), (persons.BEN, "ben"))
        ],
    )[0]


def intent(seq: int) -> trust_pb2.Signed:
    """The intent of each noop; the last one comes with that of the first."""
    statement = persons.intent(
        action="simulated.noop",
        arguments=b"{}",
        issued_at_ms=STARTED_MS,
        not_after_ms=STARTED_MS + persons.HOUR_MS,
    )
    statement.intent_id = (1 if seq == REPLAYED_SEQ else seq).to_bytes(16, "big")
    return persons.signed_by(persons.ADA, persons.BEN, statement=statement)


class Killer:
    """Counts points and kills at one of them."""

    def __init__(self, kill_at: int) -> None:
        self._left = kill_at

    def point(self, _: object = None) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Life:
    """One life of the node, and of the server that gives it all commands again."""

    def __init__(self, folder: Path, kill_at: int) -> None:
        self._folder = folder
        self._signer = Signer.from_private_bytes(SEED)
        self._states: dict[int, str] = {}
        killer = Killer(kill_at)
        store = JournalStore(folder / "journal.db", NODE)
        store.connection.set_trace_callback(killer.point)
        apply = store.apply

        def apply_and_pass_a_point(*args: object) -> None:
            apply(*args)  # type: ignore[arg-type]
            killer.point()

        store.apply = apply_and_pass_a_point  # type: ignore[method-assign,assignment]
        clock = SystemClock()
        server_time = ServerTime(clock)
        server_time.observe(clock.now_ms())
        metrics = CommandMetrics(Registry())
        self._service = CommandService(
            journal=Journal(store, commit_duration=metrics.commit_duration),
            registry=DriverRegistry.load(["simulated"], {"simulated": {"log_path": str(folder / "runs.log")}}),
            trust=FixedTrust(self._signer, Signer.generate(), clock.now_ms()),  # type: ignore[arg-type]
            site="",
            clock=clock,
            server_time=server_time,
            metrics=metrics,
            limits=CommandLimits(concurrency=2),
            verifier=Verifier(NODE, persons.NAME, lambda: persons.FINGERPRINT, Persons()),
        )
        self._context = StreamContext(CLUSTER, NODE, os.urandom(32))
        self._uplink = RecordingUplink()

    async def live(self) -> None:
        """Give everything, wait for every end, acknowledge it, and stop in order."""
        self._stream = self._service.opened(self._context, gateway_pb2.Welcome(), self._uplink)
        await self._stream.command_frame(self._statement(0, STATEMENTS[0]))
        await self._stream.cancel_frame(self._cancel(CANCELLED_SEQ))
        for statement in STATEMENTS[1:]:
            await self._stream.command_frame(self._statement(statement[0][0] - 1, statement))
        wanted = sum(len(statement) for statement in STATEMENTS)
        while len(self._states) < wanted:
            self._collect()
            if len(self._states) < wanted:
                await self._uplink.wait_news()
        await self._service.close()
        (self._folder / "states.json").write_text(json.dumps(self._states))

    def _collect(self) -> None:
        while reports := self._stream.next_reports():
            for report in map(command_pb2.Report.FromString, reports):
                if report.state in FINAL_STATES:
                    self._states[report.monotonic_seq] = STATE_NAMES[report.state]
                self._service.acked(report.report_no)

    def _statement(self, prev_seq: int, commands: list[tuple[int, str, object]]) -> command_pb2.CommandFrame:
        now_ms = SystemClock().now_ms()
        statement = command_pb2.CommandStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=self._context.stream_binding,
            prev_seq=prev_seq,
            signed_at_ms=now_ms,
            commands=[
                command_pb2.Command(
                    command_id=seq.to_bytes(16, "big"),
                    monotonic_seq=seq,
                    not_after_ms=4_000_000_000_000,
                    action=action,
                    arguments=json.dumps(arguments).encode(),
                    intent=intent(seq) if action == "simulated.noop" else None,
                )
                for seq, action, arguments in commands
            ],
        ).SerializeToString()
        return command_pb2.CommandFrame(signed=self._signer.sign(Domain.COMMAND, statement))

    def _cancel(self, seq: int) -> command_pb2.CancelFrame:
        statement = command_pb2.CancelStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=self._context.stream_binding,
            command_id=seq.to_bytes(16, "big"),
            monotonic_seq=seq,
        ).SerializeToString()
        return command_pb2.CancelFrame(signed=self._signer.sign(Domain.CANCEL, statement))


def main() -> None:
    for line in sys.stdin:
        folder, kill_at = line.rsplit(maxsplit=1)
        child = os.fork()
        if not child:
            asyncio.run(_live(Path(folder), int(kill_at)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        # A killed child may have left half a line of its log.
        print("\nexit", os.waitstatus_to_exitcode(status), flush=True)


async def _live(folder: Path, kill_at: int) -> None:
    await Life(folder, kill_at).live()


if __name__ == "__main__":
    main()
