"""A floor that the authority signed lies under everything that a node takes from then on, also after a restart."""

from typing import Any

import pytest

from fleet.envelope import Domain, Signer
from fleet.sequence import MAX_SEQ_STEP
from fleet.v1 import trust_pb2
from tests.unit.fleet_node.commands.node import CLUSTER, NODE, TestNode


def floor(node: TestNode, seq: int, *, signer: Signer | None = None, **changes: Any) -> trust_pb2.Signed:
    statement = trust_pb2.FloorStatement(**({"cluster_id": CLUSTER, "node_id": NODE, "seq_floor": seq} | changes))
    return (signer or node.authority).sign(Domain.FLOOR, statement.SerializeToString())


async def test_a_floor_is_durable_and_what_lies_under_it_never_runs(node: TestNode) -> None:
    await node.stream.floor_frame(floor(node, 40))
    assert node.service.hello().last_accepted_seq == 40
    await node.crash()
    await node.restart()
    node.open_stream()
    assert node.service.hello().last_accepted_seq == 40
    under, above = node.command(seq=7), node.command(seq=41)
    await node.give(under, above)
    assert (await node.wait_control("command_refused")).reason == "FORGOTTEN"
    await node.wait_reported(above, "SUCCEEDED")
    assert node.probe.runs == [above.command_id]


async def test_a_lower_floor_moves_nothing(node: TestNode) -> None:
    for seq in (40, 12, 40):
        await node.stream.floor_frame(floor(node, seq))
    assert node.service.hello().last_accepted_seq == 40


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_id": "cluster-2"},
        {"node_id": "node-2"},
        {"seq_floor": MAX_SEQ_STEP + 1},
        {"seq_floor": 2**63},
        {"signer": Signer.generate()},
    ],
)
async def test_a_floor_that_is_not_the_authoritys_word_for_this_node_moves_nothing(
    node: TestNode, changes: dict[str, Any]
) -> None:
    await node.stream.floor_frame(floor(node, 5, **changes))
    assert node.service.hello().last_accepted_seq == 0


async def test_a_command_key_sets_no_floor(node: TestNode) -> None:
    await node.stream.floor_frame(floor(node, 5, signer=node.signer))
    broken = trust_pb2.Signed(statement=b"\xff", signatures=[node.authority.sign(Domain.FLOOR, b"\xff").signatures[0]])
    await node.stream.floor_frame(broken)
    assert node.service.hello().last_accepted_seq == 0


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_waits_at_or_under_the_floor_of_a_welcome_is_left_behind(node: TestNode, restarted: bool) -> None:
    running = [node.command("probe.gate", gate="g") for _ in range(4)]
    waiting, expiring, above = node.command(), node.command(ttl_ms=5000), node.command()
    await node.give(*running, waiting, expiring, above)
    if restarted:
        await node.crash()
        await node.clock.advance(6)
        await node.restart()

    node.open_stream(binding=b"n" * 32, seq_floor=expiring.monotonic_seq)

    for command in (waiting, expiring):
        assert (await node.wait_reported(command, "INTERRUPTED")).reason == "NODE_ADOPTED"
    if not restarted:
        assert node.probe.running == 4, "what runs goes on"
        node.probe.release("g")
    await node.wait_reported(above, "SUCCEEDED")
    assert {waiting.command_id, expiring.command_id}.isdisjoint(node.probe.runs)
