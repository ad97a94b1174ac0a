"""The gateway in the wrong hands: a node's own code takes it for its server, and refuses what is wrong."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.backoff import BackoffPolicy
from fleet.clock import ServerTime, SystemClock
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.metrics import Registry
from fleet.v1 import command_pb2, gateway_pb2, telemetry_pb2
from fleet_node.commands.journal import Journal
from fleet_node.commands.journal_file import ensure_journal
from fleet_node.commands.service import CommandService
from fleet_node.commands.store import JournalStore
from fleet_node.drivers.registry import DriverRegistry
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile
from fleet_node.link.caller import open_caller
from fleet_node.link.credentials import Credentials
from fleet_node.link.handshake import handshake
from fleet_node.link.hello import SelfDescription
from fleet_node.link.link import Link
from fleet_node.link.ports import Ports, Uplink
from fleet_node.link.ratchet import Ratchet
from fleet_node.link.trust_store import TrustStore
from fleet_node.observability.metrics import NodeMetrics
from tests.fakes.gateway import CLUSTER, NODE, FakeInstallation
from tests.fakes.rogue import RogueGateway, RogueStream, StolenTrust, command, tampered

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


@pytest.fixture
def installation() -> FakeInstallation:
    """An installation, whole."""
    return FakeInstallation()


@pytest.fixture
def stolen(installation: FakeInstallation) -> StolenTrust:
    """All that it signs with."""
    return StolenTrust(
        CLUSTER, installation.authority, installation.command_key, installation.leaf, (installation.bundle(),)
    )


class NodeInProcess:
    """The node's own rooms and link, without a process of their own; telemetry stays silent."""

    def __init__(self, folder: Path, installation: FakeInstallation) -> None:
        self.keys = NodeKeys.generate()
        self.server_time = ServerTime(SystemClock())
        self.metrics = NodeMetrics(Registry())
        authority_key = installation.authority.public_key
        bundle = BundleFile(folder / "bundle.bin", cluster_id=CLUSTER, authority_key=authority_key)
        bundle.save(installation.trust_state())
        self.trust = TrustStore(bundle, self.metrics.link)
        self.ratchet = Ratchet(folder / "ratchet.bin")
        ensure_journal(folder / "journal.db", NODE)
        registry = DriverRegistry.load(["simulated"], {})
        self.commands = CommandService(
            journal=Journal(
                JournalStore(folder / "journal.db", NODE), commit_duration=self.metrics.commands.commit_duration
            ),
            registry=registry,
            trust=self.trust,
            site="",
            clock=SystemClock(),
            server_time=self.server_time,
            metrics=self.metrics.commands,
        )
        self.about = SelfDescription("test", {}, registry.descriptors(), b"b" * 16)
        self.membership = installation.membership()
        state = StateFolder(folder / "state")
        self.credentials = Credentials(state, self.membership, self.keys, server_time=self.server_time)

    @asynccontextmanager
    async def linked(self, rogue: RogueGateway) -> AsyncIterator[Link]:
        """Keep a stream up to `rogue` as the daemon does."""
        link = Link(
            credentials=self.credentials,
            ports=Ports(self.commands, SilentTelemetry(), self.trust, self.ratchet),
            about=self.about,
            clock=SystemClock(),
            server_time=self.server_time,
            metrics=self.metrics.link,
            backoff=BackoffPolicy(initial_s=0.01, maximum_s=0.05),
            endpoints=(rogue.endpoint,),
        )
        running = asyncio.create_task(link.run())
        try:
            yield link
        finally:
            link.stop()
            await running


class SilentTelemetry:
    """A telemetry room with one batch to give on each stream."""

    last_batch_seq = 0

    def opened(self, max_batch_bytes: int, uplink: Uplink) -> "SilentTelemetry":
        self._batches = [telemetry_pb2.TelemetryBatch(batch_seq=1).SerializeToString()]
        uplink.wake()
        return self

    def next_batch(self) -> bytes | None:
        return self._batches.pop() if self._batches else None

    def acked(self, batch_seq: int) -> None:
        self.last_batch_seq = batch_seq

    def close(self) -> None:
        pass


@pytest.fixture
async def node(tmp_path: Path, installation: FakeInstallation) -> AsyncIterator[NodeInProcess]:
    node = NodeInProcess(tmp_path, installation)
    yield node
    await node.commands.close()


@pytest.fixture
async def rogue(stolen: StolenTrust) -> AsyncIterator[RogueGateway]:
    async with RogueGateway(stolen) as gateway:
        yield gateway


@pytest.fixture
async def stream(node: NodeInProcess, rogue: RogueGateway) -> AsyncIterator[RogueStream]:
    async with node.linked(rogue):
        yield await rogue.wait_stream()


async def test_a_node_runs_what_the_stolen_keys_sign(stream: RogueStream) -> None:
    order = command("simulated.noop", 1)
    stream.send_statement([order])
    report = await stream.wait_report(order)
    assert (report.state, report.monotonic_seq) == (SUCCEEDED, 1)
    assert stream.node_id == NODE
    assert stream.hello.drivers[0].name == "simulated"


async def test_a_replay_on_the_same_stream_is_reported_again_and_nothing_runs(stream: RogueStream) -> None:
    order = command("simulated.noop", 1)
    signed = stream.send_statement([order])
    first = await stream.wait_report(order)
    stream.send_signed(signed)
    second = command("simulated.noop", 2)
    stream.send_statement([second])
    await stream.wait_report(second)
    assert {report.finished_at_ms for report in stream.reports(order) if report.state == SUCCEEDED} == {
        first.finished_at_ms
    }


async def test_a_statement_captured_on_one_stream_is_refused_on_the_next(
    stream: RogueStream, rogue: RogueGateway
) -> None:
    order = command("simulated.noop", 1)
    signed = stream.trust.command_key.sign(Domain.COMMAND, stream.statement([order]).SerializeToString())
    stream.end()
    later = await rogue.wait_stream(2)
    later.send_signed(signed)
    refused = await later.wait_control("statement_refused")
    assert refused.reason == "WRONG_STREAM"
    assert later.proof.nonce != stream.proof.nonce


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("WRONG_NODE", {"node_id": "node-2"}),
        ("WRONG_CLUSTER", {"cluster_id": "cluster-2"}),
        ("WRONG_STREAM", {"stream_binding": b"x" * 32}),
        ("GAP", {"prev_seq": 6}),
        ("UNKNOWN_KEY", {"signer": Signer.generate()}),
        ("BAD_SIGNATURE", {"domain": Domain.CANCEL}),
    ],
)
async def test_one_thing_wrong_is_refused_by_name(stream: RogueStream, reason: str, changes: dict[str, Any]) -> None:
    stream.send_statement([command("simulated.noop", 7)], **changes)
    refused = await stream.wait_control("statement_refused")
    assert (refused.reason, refused.last_accepted_seq) == (reason, 0)


async def test_a_tampered_statement_no_longer_verifies(stream: RogueStream) -> None:
    order = command("simulated.noop", 1)
    signed = stream.trust.command_key.sign(Domain.COMMAND, stream.statement([order]).SerializeToString())

    def worse(statement: command_pb2.CommandStatement) -> None:
        statement.commands[0].action = "simulated.work"

    stream.send_signed(tampered(signed, worse))
    assert (await stream.wait_control("statement_refused")).reason == "BAD_SIGNATURE"


async def test_a_used_seq_with_another_command_is_a_conflict(stream: RogueStream) -> None:
    order = command("simulated.noop", 1)
    stream.send_statement([order])
    await stream.wait_report(order)
    stream.send_statement([command("simulated.noop", 1)], prev_seq=0)
    assert (await stream.wait_control("command_refused")).reason == "SEQ_CONFLICT"


async def test_an_expired_command_is_journaled_as_expired(stream: RogueStream) -> None:
    order = command("simulated.noop", 1, not_after_ms=1)
    stream.send_statement([order])
    assert (await stream.wait_report(order)).state == command_pb2.COMMAND_STATE_EXPIRED


async def test_a_cancel_is_answered(stream: RogueStream) -> None:
    order = command("simulated.noop", 1)
    stream.send_cancel(order)
    result = await stream.wait_control("cancel_result")
    assert result.outcome == command_pb2.CANCEL_OUTCOME_TOMBSTONED


async def test_pings_are_answered_and_telemetry_arrives(stream: RogueStream) -> None:
    stream.send(ping=gateway_pb2.Ping(number=3, server_time_ms=stream.welcome.server_time_ms))
    assert (await stream.wait_control("pong")).number == 3
    assert [batch.batch_seq for batch in stream.batches] == [1]


async def test_a_frame_that_is_left_out_ends_the_stream(stream: RogueStream) -> None:
    stream.sealed(ping=gateway_pb2.Ping(number=1))  # withheld
    stream.send(ping=gateway_pb2.Ping(number=2))
    await stream.wait_ended()


async def test_waiting_for_what_does_not_come_tells_what_did(stream: RogueStream) -> None:
    stream.send(ping=gateway_pb2.Ping(number=1))
    await stream.wait_control("pong")
    with pytest.raises(TimeoutError, match=r"no drained from the node; it said .*pong"):
        await stream.wait_control("drained", timeout_s=0.05)


async def test_unacknowledged_reports_come_again_on_the_next_stream(node: NodeInProcess, stolen: StolenTrust) -> None:
    async with RogueGateway(stolen, acknowledges=False) as rogue, node.linked(rogue):
        stream = await rogue.wait_stream()
        order = command("simulated.noop", 1)
        stream.send_statement([order])
        report = await stream.wait_report(order)
        stream.end()
        later = await rogue.wait_stream(2)
        assert (await later.wait_report(order)).report_no == report.report_no
        assert later.hello.last_accepted_seq == 1


async def test_without_the_authority_key_the_handshake_proves_nothing(node: NodeInProcess, stolen: StolenTrust) -> None:
    async with RogueGateway(dataclasses.replace(stolen, authority=Signer.generate())) as rogue:
        caller = await open_caller([rogue.endpoint], node.trust.state.tls_ca_der)
        with pytest.raises(Refusal) as refused:
            await handshake(
                caller,
                membership=node.membership,
                keys=node.keys,
                trust=node.trust,
                server_time=node.server_time,
            )
        await caller.close()
    assert refused.value.reason is Reason.BAD_PROOF
