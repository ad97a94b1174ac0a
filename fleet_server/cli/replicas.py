"""`fleetctl replicas`: the server's replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fleet_server.cli.grammar import Noun
from fleet_server.cli.invocation import Invocation
from fleet_server.cli.tables import Cell, Column
from fleet_server.cli.terminal import Styled, age, state_cell

if TYPE_CHECKING:
    from fleet.v1 import admin_pb2

_COLUMNS = [
    Column("REPLICA"),
    Column("STATE"),
    Column("VERSION"),
    Column("STREAMS", right=True),
    Column("ADMITS", right=True),
    Column("HEARTBEAT", right=True),
    Column("UP", right=True),
]


@click.group(cls=Noun)
def replicas() -> None:
    """See the server's replicas. To drain one: `fleetctl drain replica`."""


@replicas.command("list", example="fleetctl replicas list")
@click.pass_obj
def list_replicas(invocation: Invocation) -> None:
    """List replicas with their streams and the handshakes that each admits per second."""
    from fleet.v1 import admin_pb2

    with invocation.connect() as admin:
        answer = admin.call(admin.stub.ListReplicas, admin_pb2.ListReplicasRequest())
    now_ms = invocation.now_ms()
    invocation.emit_list(answer.replicas, _COLUMNS, lambda replica: _row(replica, now_ms))


def _row(replica: admin_pb2.ReplicaView, now_ms: int) -> list[Cell]:
    return [
        Styled(replica.replica_id, bold=True),
        state_cell(replica.state),
        replica.version,
        str(replica.streams),
        f"{replica.admission_per_s:.0f}/s",
        age(replica.heartbeat_at_ms, now_ms),
        age(replica.started_at_ms, now_ms),
    ]
