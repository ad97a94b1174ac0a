"""A commands room on a real database, with real nodes, audit and MACs, and the few steps that its tests repeat."""

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleet.clock import Clock
from fleet.metrics import Registry
from fleet.v1 import admin_pb2, command_pb2, gateway_pb2
from fleet_server.audit.service import AuditService
from fleet_server.commands.retention import PAUSE_S
from fleet_server.commands.service import CommandService, PendingCommand
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.trust.secrets import RowMac
from tests.fakes.clock import MockClock
from tests.fakes.streams import take_stream

CLUSTER = "cluster-1"
ROW_KEY = hashlib.sha256(b"row key of these tests").digest()
SCHEMA = {
    "type": "object",
    "properties": {"level": {"type": "integer", "maximum": 10}, "tags": {"type": "array", "items": {"type": "string"}}},
    "additionalProperties": False,
}


class BusyLane:
    """A lane that never waits: what is issued to its node is queued."""

    def key_for(self, epoch: int, first_seq: int, count: int) -> bytes | None:
        del epoch, first_seq, count
        return None

    def take(self, commands: Sequence[PendingCommand]) -> None:
        raise AssertionError(commands)


@dataclass
class Room:
    """The room under test and its neighbours."""

    database: Database
    clock: Clock
    wakeup: Wakeup
    audit: AuditService
    nodes: NodeService
    metrics: ServerMetrics
    commands: CommandService

    async def add_node(self, name: str, actions: Sequence[str] = ("host.set",), schema: object = None) -> NodeRecord:
        """An approved node that once said what it can do."""

        def work(tx: Any) -> NodeRecord:
            record = self.nodes.create(
                tx,
                cluster_id=CLUSTER,
                name=name,
                site="",
                identity_key=os.urandom(32),
                sealing_key=os.urandom(32),
                labels={},
            )
            if actions:
                self.nodes.save_profiles(tx, {record.node_id: hello(actions, schema or SCHEMA)})
            return record

        return await self.database.write(work)

    async def open_stream(self, node_id: str, last_accepted_seq: int = 0) -> int:
        """A new stream of the node; its epoch."""
        return await self.database.write(
            lambda tx: take_stream(
                self.nodes,
                tx,
                node_id,
                stream_id=f"s{os.urandom(4).hex()}",
                replica_id="r1",
                last_accepted_seq=last_accepted_seq,
            )
        )

    async def epoch(self, node_id: str) -> int:
        """Epoch of the node's newest stream."""
        return await self.database.read(lambda conn: self.nodes.current_epoch(conn, node_id))

    def another_replica(self, wakeup: Wakeup | None = None) -> CommandService:
        """The same room in another process, as far as what each keeps in memory goes; without a way of `wakeup` to the
        first, neither hears of the other."""
        return CommandService(
            database=self.database,
            clock=self.clock,
            wakeup=wakeup or Wakeup(),
            audit=self.audit,
            nodes=self.nodes,
            metrics=self.metrics.commands,
            row_mac=RowMac(ROW_KEY, "commands"),
            cluster_id=CLUSTER,
        )

    async def claim(self, node_id: str, *, after_seq: int = 0, limit: int = 32, **more: Any) -> list[PendingCommand]:
        """What the node's newest stream is given."""
        record = await self.nodes.get(node_id)
        return await self.commands.claim_pending(node_id, record.stream_epoch, after_seq=after_seq, limit=limit, **more)

    async def views(self, issue_id: str) -> list[admin_pb2.CommandView]:
        """Commands of an issue, by node and seq."""
        request = admin_pb2.ListCommandsRequest(issue_id=issue_id, page=admin_pb2.Page(size=1000))
        return list((await self.commands.list_page(request)).commands)

    async def views_of_node(self, node: str) -> list[admin_pb2.CommandView]:
        """Commands of a node, newest first."""
        return list((await self.commands.list_page(admin_pb2.ListCommandsRequest(node=node))).commands)

    async def state(self, node_id: str, seq: int) -> int:
        """State as the row says."""
        found = await self.query("SELECT state FROM commands WHERE node_id = ? AND seq = ?", node_id, seq)
        return int(found[0][0])

    async def query(self, text: str, *fields: Any) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        return await self.database.read(
            lambda conn: [tuple(row) for row in conn.exec_driver_sql(sql(conn, text), fields)]
        )

    async def tamper(self, text: str, *fields: Any) -> None:
        """Write to the database as somebody who got hold of it would."""
        await self.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), fields).rowcount)

    async def audited(self, kind: str) -> list[dict[str, Any]]:
        """Details of the audit rows of a kind, in order."""
        rows = await self.query("SELECT detail FROM audit_rows WHERE kind = ? ORDER BY position", kind)
        return [json.loads(bytes(row[0])) for row in rows]


async def open_room(database: Database, clock: Clock, **settings: Any) -> Room:
    """A room on an empty database."""
    wakeup = Wakeup()
    metrics = ServerMetrics(Registry())
    audit = AuditService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        writer="r1",
        row_mac=lambda table: RowMac(ROW_KEY, table),
        metrics=metrics.audit,
    )
    nodes = NodeService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        row_mac=RowMac(ROW_KEY, "nodes"),
        replica_id="r1",
    )
    commands = CommandService(
        database=database,
        clock=clock,
        wakeup=wakeup,
        audit=audit,
        nodes=nodes,
        metrics=metrics.commands,
        row_mac=RowMac(ROW_KEY, "commands"),
        cluster_id=CLUSTER,
        **settings,
    )
    nodes.count_open_with(commands.open_counts)
    room = Room(database, clock, wakeup, audit, nodes, metrics, commands)
    await room.tamper(
        "INSERT INTO clusters (cluster_id, installation_id, name, created_at_ms, mac) VALUES (?, ?, ?, ?, ?)",
        CLUSTER,
        "i1",
        "main",
        1,
        b"",
    )
    await commands.load()
    return room


def hello(actions: Sequence[str], schema: object) -> gateway_pb2.HelloBody:
    """A hello that offers these actions, all with one schema."""
    raw = schema if isinstance(schema, bytes) else json.dumps(schema).encode()
    descriptors = [gateway_pb2.ActionDescriptor(action=action, arguments_schema=raw) for action in actions]
    return gateway_pb2.HelloBody(
        software_version="1", drivers=[gateway_pb2.DriverDescriptor(name="host", version="1", actions=descriptors)]
    )


def order(
    *targets: str, count: int = 1, action: str = "host.set", arguments: bytes = b'{"level": 1}', **more: Any
) -> admin_pb2.IssueCommandsRequest:
    """A request of `count` equal commands."""
    return admin_pb2.IssueCommandsRequest(
        selector=admin_pb2.Selector(patterns=targets),
        commands=[admin_pb2.CommandSpec(action=action, arguments=arguments)] * count,
        **more,
    )


async def pruned(room: Room, clock: MockClock, commands: CommandService | None = None) -> int:
    """How many commands were forgotten, the pauses between taken."""
    pruning = asyncio.ensure_future((commands or room.commands).prune())
    while not pruning.done():
        await asyncio.wait([pruning], timeout=0.001)
        await clock.advance(PAUSE_S)
    return await pruning


def report(command: PendingCommand, state: int, number: int = 1, **more: Any) -> command_pb2.Report:
    """A node's report on a command that it was sent."""
    return command_pb2.Report(
        report_no=number,
        command_id=command.command_id,
        monotonic_seq=command.seq,
        state=command_pb2.CommandState.ValueType(state),
        **more,
    )
