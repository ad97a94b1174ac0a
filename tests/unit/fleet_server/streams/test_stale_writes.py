"""Every write by a stream but results checks the stream's epoch: what an overtaken one says changes nothing.

The replica that holds it need not know: it was cut off, or stood still, while the node went to another one.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fleet import node_certificate
from fleet.envelope import Domain
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.node_keys import sign_rotation
from fleet.v1 import admin_pb2, command_pb2, gateway_pb2, session_pb2, telemetry_pb2
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.commands.service import CommandService
from fleet_server.database.engine import Database
from fleet_server.database.schema import metadata
from fleet_server.nodes.ownership import refuse_stale
from fleet_server.sessions.claim import StreamClaim
from fleet_server.sessions.rotations import KEYS
from fleet_server.telemetry.service import TelemetryService
from tests.fakes.clock import MockClock
from tests.fakes.streams import take_stream
from tests.unit.fleet_server.sessions.world import Node, World, hello_body

RESULTS = {"reports"}
"""Recorded once, whatever stream they come on."""
WRITES_NOTHING = {"goodbye", "route_health", "config_applied", "lease_ack"}


@dataclass
class Rooms:
    """What a stream goes down into; and a node whose stream of epoch `claim.epoch` is its newest, or was."""

    world: World
    commands: CommandService
    telemetry: TelemetryService
    node_audit: NodeAudit
    node: Node
    claim: StreamClaim
    command: admin_pb2.IssuedCommand

    @property
    def place(self) -> tuple[str, int]:
        return self.node.node_id, self.claim.epoch


@pytest.fixture
async def rooms(database: Database, clock: MockClock) -> Rooms:
    world = await World(database, clock).start()
    action = gateway_pb2.ActionDescriptor(action="simulated.noop", arguments_schema=b"{}")
    body = hello_body(drivers=[gateway_pb2.DriverDescriptor(name="simulated", actions=[action])])
    node = await world.member()
    world.sessions.certificates.offer()
    await world.sessions.rotations.rotate("ada", [node.name], KEYS, 0)
    claim = await node.connect(body)
    parts = {"database": database, "clock": clock, "nodes": world.nodes}
    commands = CommandService(
        **parts,  # type: ignore[arg-type]
        wakeup=world.wakeup,
        audit=world.audit,
        metrics=world.metrics.commands,
        row_mac=world.secrets.row_mac("commands"),
        cluster_id=world.trust.cluster_id,
    )
    telemetry = TelemetryService(**parts, metrics=world.metrics.telemetry, retention_s=3600)  # type: ignore[arg-type]
    node_audit = NodeAudit(
        database,
        clock,
        world.wakeup,
        world.audit,
        world.metrics.audit,
        lambda conn, node_id, epoch: refuse_stale(world.nodes, conn, node_id, epoch),
    )
    spec = admin_pb2.CommandSpec(action="simulated.noop", arguments=b"{}")
    issue = await commands.issue("ada", admin_pb2.IssueCommandsRequest(selector=_all(), commands=[spec, spec]))
    await commands.claim_pending(node.node_id, claim.epoch, after_seq=0, limit=1)
    await commands.cancel("ada", [issue.issued[0].command_id])
    await world.nodes.request_drain("ada", [node.name], 0, "")
    return Rooms(world, commands, telemetry, node_audit, node, claim, issue.issued[0])


def _all() -> admin_pb2.Selector:
    return admin_pb2.Selector(patterns=["*"])


async def claims(rooms: Rooms) -> None:
    await rooms.commands.claim_pending(*rooms.place, after_seq=1, limit=32)


async def reconciles(rooms: Rooms) -> None:
    await rooms.commands.reconcile(*rooms.place, 0)


async def asks_for_cancels(rooms: Rooms) -> None:
    assert await rooms.commands.pending_cancels(*rooms.place)


async def refuses_a_command(rooms: Rooms) -> None:
    refused = command_pb2.CommandRefused(
        command_id=rooms.command.command_id, monotonic_seq=rooms.command.monotonic_seq, reason="FORGOTTEN"
    )
    await rooms.commands.record_command_refused(*rooms.place, refused)


async def refuses_a_statement(rooms: Rooms) -> None:
    refused = command_pb2.StatementRefused(statement_sha256=b"s" * 32, reason="GAP")
    await rooms.commands.record_statement_refused(*rooms.place, refused)


async def answers_a_cancel(rooms: Rooms) -> None:
    result = command_pb2.CancelResult(
        command_id=rooms.command.command_id,
        monotonic_seq=rooms.command.monotonic_seq,
        outcome=command_pb2.CANCEL_OUTCOME_TOMBSTONED,
    )
    await rooms.commands.record_cancel_result(*rooms.place, result)


async def renews_its_session(rooms: Rooms) -> None:
    sessions, (node_id, _) = rooms.world.sessions, rooms.place
    challenge = sessions.reauth_challenge(node_id, "s1")
    statement = session_pb2.ReauthStatement(challenge=challenge, stream_id="s1").SerializeToString()
    await sessions.reauth(rooms.claim.session, "s1", rooms.node.keys.identity.sign(Domain.REAUTH, statement))


async def says_it_is_drained(rooms: Rooms) -> None:
    assert await rooms.world.nodes.mark_drained(*rooms.place)


async def takes_a_bundle(rooms: Rooms) -> None:
    version = session_pb2.BundleVersion(generation=1, number=7)
    await rooms.world.nodes.note_bundle(*rooms.place, gateway_pb2.BundleApplied(version=version, reason="ROLLBACK"))


async def brings_new_keys(rooms: Rooms) -> None:
    statement = sign_rotation(
        cluster_id=rooms.world.trust.cluster_id,
        node_id=rooms.node.node_id,
        old=rooms.node.keys,
        new=NodeKeys.generate(),
        issued_at_ms=rooms.world.clock.now_ms(),
    )
    assert (await rooms.world.sessions.rotations.take_keys(*rooms.place, statement)).taken


async def follows_no_order(rooms: Rooms) -> None:
    answer = gateway_pb2.RotationAnswer(subject=gateway_pb2.ROTATION_SUBJECT_NODE_KEYS, reason="PINNED")
    await rooms.world.sessions.rotations.answered(*rooms.place, answer)


async def asks_for_a_certificate(rooms: Rooms) -> None:
    key = node_certificate.public_key_bytes(ec.generate_private_key(ec.SECP256R1()))
    assert (await rooms.world.sessions.certificates.issue(*rooms.place, key)).certificate


async def sends_rows_of_its_audit(rooms: Rooms) -> None:
    await rooms.node_audit.take(*rooms.place, gateway_pb2.AuditRows(rows=[gateway_pb2.AuditRow(number=1)]))


async def shows_life(rooms: Rooms) -> None:
    node_id, epoch = rooms.place
    rooms.world.nodes.note_alive_nowait(node_id, epoch=epoch, rtt_us=7, clock_offset_ms=-7, accepted_seq=1)
    await rooms.world.nodes.flush()


async def sends_telemetry(rooms: Rooms) -> None:
    stream = rooms.telemetry.open_stream(*rooms.place, lambda _: None)
    series = telemetry_pb2.SeriesDefinition(series=0, name="cpu", kind=telemetry_pb2.SERIES_KIND_GAUGE)
    batch = telemetry_pb2.TelemetryBatch(
        batch_seq=1, base_time_ms=1, definitions=[series], series=[0], time_offset_ms=[0], values=[1.0]
    )
    stream.ingest_nowait(batch.SerializeToString())
    await rooms.telemetry.flush()


Write = Callable[[Rooms], Awaitable[None]]
BY_FRAME: Mapping[str, tuple[Write, ...]] = {
    "statement_refused": (refuses_a_statement,),
    "command_refused": (refuses_a_command,),
    "cancel_result": (answers_a_cancel,),
    "pong": (shows_life,),
    "reauth_proof": (renews_its_session,),
    "drained": (says_it_is_drained,),
    "audit": (sends_rows_of_its_audit,),
    "bundle_applied": (takes_a_bundle,),
    "node_key_rotation": (brings_new_keys,),
    "rotation_answer": (follows_no_order,),
    "certificate_request": (asks_for_a_certificate,),
}
WRITES = [*(write for writes in BY_FRAME.values() for write in writes), claims, reconciles, asks_for_cancels]
WRITES += [sends_telemetry]
SILENT = {shows_life, sends_telemetry}
"""In bulk, for many nodes: what is stale is left out."""


def test_whatever_a_node_says_is_here() -> None:
    """A new frame has to say here what of it is written, and that it checks the epoch."""
    said = {field.name for field in gateway_pb2.NodeControl.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert said == set(BY_FRAME) | RESULTS | WRITES_NOTHING


async def dump(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    tables = [table.name for table in metadata.sorted_tables]
    return await database.read(
        lambda conn: {
            name: sorted(map(tuple, conn.exec_driver_sql(f"SELECT * FROM {name}")), key=repr) for name in tables
        }
    )


@pytest.mark.parametrize("write", WRITES)
async def test_a_stale_stream_writes_nothing(rooms: Rooms, write: Write) -> None:
    world = rooms.world
    await world.database.write(
        lambda tx: take_stream(
            world.nodes, tx, rooms.node.node_id, stream_id="s2", takeover_of="", replica_id="r2", last_accepted_seq=0
        )
    )
    before = await dump(world.database)
    if write in SILENT:
        await write(rooms)
    else:
        with pytest.raises(Refusal) as refused:
            await write(rooms)
        assert refused.value.reason is Reason.SUPERSEDED
    assert await dump(world.database) == before


@pytest.mark.parametrize("write", WRITES)
async def test_the_newest_one_writes(rooms: Rooms, write: Write) -> None:
    """Or the test above would hold for what is never written."""
    before = await dump(rooms.world.database)
    await write(rooms)
    if write not in {asks_for_cancels, reconciles}:
        assert await dump(rooms.world.database) != before


async def test_results_are_recorded_whatever_stream_they_come_on(rooms: Rooms) -> None:
    world, command = rooms.world, rooms.command
    await world.database.write(
        lambda tx: take_stream(
            world.nodes, tx, rooms.node.node_id, stream_id="s2", takeover_of="", replica_id="r2", last_accepted_seq=0
        )
    )
    report = command_pb2.Report(
        command_id=command.command_id,
        monotonic_seq=command.monotonic_seq,
        state=command_pb2.COMMAND_STATE_SUCCEEDED,
        report_no=1,
    )
    await rooms.commands.record_reports(rooms.node.node_id, [report])
    assert (await rooms.commands.get(command.command_id)).state == command_pb2.COMMAND_STATE_SUCCEEDED
