"""A node's commands room with a real journal, and the server's side of its stream as a test plays it."""

import asyncio
import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from fleet.clock import ServerTime
from fleet.envelope import Domain, Signer
from fleet.metrics import Registry
from fleet.sequence import StreamContext
from fleet.trust import CommandKey, TrustState
from fleet.v1 import command_pb2, gateway_pb2, trust_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.execution import CommandLimits
from fleet_node.commands.journal import Journal
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.protection import Verifier
from fleet_node.commands.rules import STATE_NAMES
from fleet_node.commands.service import CommandService
from fleet_node.commands.store import JournalStore
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.link.key_audit import KeyAudit
from fleet_node.observability.metrics import CommandMetrics
from tests.fakes.clock import MockClock
from tests.unit.fleet_node.commands.probe import ProbeDriver

CLUSTER = "cluster-1"
NODE = "node-1"
SITE = "hall-4"
TTL_MS = 60_000
_PROBE = EntryPoint("probe", f"{ProbeDriver.__module__}:ProbeDriver", "fleet_node.drivers")


class FixedTrust:
    """A trust bundle with one command key."""

    def __init__(self, signer: Signer, authority: Signer, now_ms: int) -> None:
        key = CommandKey(signer.public_key, "", 0, 0, trust_pb2.KEY_PHASE_ACTIVE)
        self.state = TrustState(
            CLUSTER, 1, 7, authority.public_key, {signer.key_id: key}, (), (), 0, now_ms + 10**12, 0, trust_pb2.Signed()
        )

    async def offer(self, bundles: object) -> gateway_pb2.BundleApplied:
        raise NotImplementedError


class RecordingUplink:
    """Keeps what a room sends."""

    def __init__(self) -> None:
        self.controls: list[gateway_pb2.NodeControl] = []
        self.woken = asyncio.Event()
        self.renewals = 0

    def renew(self) -> None:
        self.renewals += 1

    def send_control(self, control: gateway_pb2.NodeControl) -> None:
        self.controls.append(control)
        self.woken.set()

    def wake(self) -> None:
        self.woken.set()

    async def wait_news(self) -> None:
        async with asyncio.timeout(5):
            await self.woken.wait()
        self.woken.clear()

    def pop(self, kind: str) -> Any:
        """The first control of that kind, taken out; None when there is none."""
        for control in self.controls:
            if control.WhichOneof("body") == kind:
                self.controls.remove(control)
                return getattr(control, kind)
        return None


class TestNode:
    """One process life of a node's commands room; `crash` and `restart` end it, with and without order."""

    __test__ = False

    def __init__(
        self,
        folder: Path,
        clock: MockClock,
        *,
        limits: CommandLimits | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.verifier = verifier
        self.clock = clock
        self.signer = Signer.generate()
        self.authority = Signer.generate()
        self.path = folder / "journal.db"
        self.limits = limits or CommandLimits(concurrency=4)
        ensure_journal(self.path, NODE)
        self._next_seq = 1
        self._boot()

    def _boot(self) -> None:
        self.registry = DriverRegistry.load(["probe"], {}, installed=[_PROBE])
        self.probe = ProbeDriver.latest
        self.metrics = CommandMetrics(Registry())
        self.server_time = ServerTime(self.clock)
        self.key_audit = KeyAudit(self.clock)
        self.store = JournalStore(self.path, NODE)
        self.journal = Journal(self.store, commit_duration=self.metrics.commit_duration)
        self.service = CommandService(
            journal=self.journal,
            registry=self.registry,
            trust=FixedTrust(self.signer, self.authority, self.clock.now_ms()),
            site=SITE,
            clock=self.clock,
            server_time=self.server_time,
            metrics=self.metrics,
            limits=self.limits,
            verifier=self.verifier,
            refusals=self.key_audit,
        )
        self.key_audit.audited_by(self.service)
        self.states: dict[bytes, command_pb2.Report] = {}
        self.seen: list[command_pb2.Report] = []

    def open_stream(self, *, binding: bytes = b"b" * 32, drained: bool = False, seq_floor: int = 0) -> None:
        """A stream is welcomed."""
        self.server_time.observe(self.clock.now_ms())
        self.context = StreamContext(CLUSTER, NODE, binding)
        self.uplink = RecordingUplink()
        welcome = gateway_pb2.Welcome(drained=drained, seq_floor=seq_floor)
        self.stream = self.service.opened(self.context, welcome, self.uplink)
        self.sent_seq = self.service.hello().last_accepted_seq
        self.uplink.woken.clear()
        self.collect()

    def command(self, action: str = "probe.echo", *, seq: int = 0, ttl_ms: int = TTL_MS, **arguments: Any) -> Any:
        """A command with the next seq."""
        if not seq:
            seq = self._next_seq
        self._next_seq = max(self._next_seq, seq + 1)
        now_ms = self.clock.now_ms()
        return command_pb2.Command(
            command_id=seq.to_bytes(8, "big") * 2,
            monotonic_seq=seq,
            actor="ada",
            issued_at_ms=now_ms,
            not_after_ms=now_ms + ttl_ms,
            action=action,
            arguments=json.dumps(arguments).encode(),
        )

    def frame(self, *commands: command_pb2.Command, **changes: Any) -> command_pb2.CommandFrame:
        """A signed statement for the open stream, with fields changed."""
        fields: dict[str, Any] = {
            "cluster_id": CLUSTER,
            "node_id": NODE,
            "stream_binding": self.context.stream_binding,
            "prev_seq": min(self.sent_seq, min((one.monotonic_seq for one in commands), default=1) - 1),
            "signed_at_ms": self.clock.now_ms(),
            "commands": commands,
        } | changes
        statement = command_pb2.CommandStatement(**fields).SerializeToString()
        return command_pb2.CommandFrame(signed=self.signer.sign(Domain.COMMAND, statement))

    async def give(self, *commands: command_pb2.Command, **changes: Any) -> None:
        """Send commands in one statement."""
        await self.stream.command_frame(self.frame(*commands, **changes))
        self.sent_seq = max([self.sent_seq, *(one.monotonic_seq for one in commands)])

    async def cancel(self, command: command_pb2.Command) -> int:
        """Cancel a command; returns the outcome."""
        await self.stream.cancel_frame(self.cancel_frame(command))
        result: command_pb2.CancelResult = await self.wait_control("cancel_result")
        assert (result.command_id, result.monotonic_seq) == (command.command_id, command.monotonic_seq)
        return result.outcome

    def cancel_frame(self, command: command_pb2.Command) -> command_pb2.CancelFrame:
        statement = command_pb2.CancelStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=self.context.stream_binding,
            command_id=command.command_id,
            monotonic_seq=command.monotonic_seq,
            actor="ada",
        ).SerializeToString()
        return command_pb2.CancelFrame(signed=self.signer.sign(Domain.CANCEL, statement))

    def collect(self) -> list[command_pb2.Report]:
        """Take what is to be reported now."""
        taken: list[command_pb2.Report] = []
        while batch := self.stream.next_reports():
            taken.extend(map(command_pb2.Report.FromString, batch))
        self.seen.extend(taken)
        self.states.update({report.command_id: report for report in taken})
        return taken

    async def wait_reported(self, command: command_pb2.Command, state: str) -> command_pb2.Report:
        """Return the report that says so."""
        return await self.wait_report(command, lambda report: STATE_NAMES[report.state] == state)

    async def wait_report(
        self, command: command_pb2.Command, holds: Callable[[command_pb2.Report], bool]
    ) -> command_pb2.Report:
        while (report := self.states.get(command.command_id)) is None or not holds(report):
            await self.wait_news()
        return report

    async def wait_control(self, kind: str) -> Any:
        """The first control of that kind."""
        while (control := self.uplink.pop(kind)) is None:
            await self.wait_news()
        return control

    async def wait_news(self) -> None:
        """Return once the room has something to say; reports are taken as the link would: when woken."""
        await self.uplink.wait_news()
        self.collect()

    def ack(self) -> None:
        """Acknowledge everything that was given out."""
        self.service.acked(max(report.report_no for report in self.seen))

    async def crash(self) -> None:
        """End as kill -9 would: nothing is stopped, nothing is written any more."""
        await self.journal.close()
        await self.service.close()

    async def restart(self) -> None:
        """Start again after `crash` or an orderly end; opens no stream."""
        self._boot()

    async def close(self) -> None:
        self.probe.release("deaf")
        await self.service.close()
        await self.registry.close()


def state_name(report: command_pb2.Report) -> str:
    return STATE_NAMES[CommandState.ValueType(report.state)]
