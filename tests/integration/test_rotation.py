"""Rotation of a node's credentials over its live stream, end to end: the real server, real nodes, real files."""

import asyncio
import json
import stat

import pytest

from fleet.clock import SystemClock
from fleet.errors import Reason, Refusal
from fleet.identity import load_node_keys, show_fingerprint
from fleet.node_signatures import NodeSignatures
from fleet.v1 import admin_pb2, command_pb2
from fleet_node.doctor.finding import Level
from fleet_node.doctor.service import Doctor, Patient
from fleet_node.enrollment.membership import load_membership
from tests.fakes.process import Processes
from tests.integration.audits import agreed
from tests.integration.installation import Installation, RunningNode, assert_each_ran_once
from tests.integration.processes import BIN, NodeProcess
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


async def rotate(
    installation: Installation, name: str = "n-1", *, overlap_s: int = 0, **keys: bool
) -> admin_pb2.NodeView:
    selector = admin_pb2.Selector(patterns=[name])
    request = admin_pb2.RotateNodesRequest(selector=selector, overlap_s=overlap_s, **keys)
    answer = await installation.owner.ask("RotateNodes", request)
    return answer.nodes[0]


async def wait_rotated(installation: Installation, node: RunningNode) -> admin_pb2.NodeView:
    """The server has nothing left to do, and the node has forgotten what was replaced."""
    await eventually(lambda: not node.folder.rotation.exists(), "the node has settled")
    return await installation.owner.wait_node(node.name, lambda view: view.online and not view.rotating)


def api_key_of(node: RunningNode) -> str:
    membership = load_membership(node.folder.membership)
    assert membership is not None
    return membership.api_key.reveal()


async def test_a_new_api_key_is_stored_used_and_ends_the_former(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    before, former = await installation.owner.node("n-1"), api_key_of(node)

    ordered = await rotate(installation, api_key=True)
    assert list(ordered.rotating) in (["api"], [])
    after = await eventually_replaced(installation, node, former)

    assert (after.node_id, after.fingerprint, after.last_seq) == (before.node_id, before.fingerprint, before.last_seq)
    assert stat.S_IMODE(node.folder.membership.stat().st_mode) == 0o600
    replaced = await installation.owner.wait_audit("api_key.replaced")
    assert replaced["ordered_by"] == "owner"
    (view,) = await installation.owner.run("n-1")
    assert view.state == SUCCEEDED


async def eventually_replaced(installation: Installation, node: RunningNode, former: str) -> admin_pb2.NodeView:
    await eventually(lambda: api_key_of(node) != former, "the node holds another api_key")
    return await wait_rotated(installation, node)


@pytest.mark.parametrize(
    "which", [("identity",), ("sealing",), ("identity", "sealing"), ("api_key", "identity", "sealing")]
)
async def test_new_keys_keep_node_name_history_and_seq(installation: Installation, which: tuple[str, ...]) -> None:
    node = await installation.add_node("n-1")
    await installation.owner.run("n-1", count=3)
    before, held = await installation.owner.node("n-1"), load_node_keys(node.folder.path)

    await rotate(installation, **dict.fromkeys(which, True))
    await installation.owner.wait_node("n-1", lambda view: view.fingerprint != before.fingerprint)
    after = await wait_rotated(installation, node)

    new = load_node_keys(node.folder.path)
    assert after.fingerprint == new.fingerprint != held.fingerprint
    assert (new.identity.public_key != held.identity.public_key) == ("identity" in which)
    assert (new.sealing_public != held.sealing_public) == ("sealing" in which)
    assert (after.node_id, after.name, after.last_seq) == (before.node_id, "n-1", 3)
    told = await installation.owner.wait_audit("node.keys_replaced")
    assert told["former_fingerprint"] == show_fingerprint(before.fingerprint)
    assert told["fingerprint"] == show_fingerprint(after.fingerprint)
    (view,) = await installation.owner.run("n-1")
    assert (view.state, view.monotonic_seq) == (SUCCEEDED, 4)

    await node.stop()
    node.membership = load_membership(node.folder.membership)  # type: ignore[assignment]
    await node.start()
    (view,) = await installation.owner.run("n-1")
    assert view.state == SUCCEEDED


async def test_the_nodes_audit_is_signed_by_each_of_its_keys_in_turn(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await quick.owner.run("n-1")
    for _ in range(3):
        held = load_node_keys(node.folder.path)
        await rotate(quick, identity=True)
        await quick.owner.wait_node("n-1", lambda view, held=held: view.fingerprint != held.fingerprint)  # type: ignore[misc]
        await wait_rotated(quick, node)
    await rotate(quick, sealing=True)
    await wait_rotated(quick, node)
    await quick.owner.run("n-1")
    await agreed(quick, 2)
    await node.stop()
    await node.start()
    await eventually(lambda: signed_by(quick, node), "what it told last is signed by its keys")
    await agreed(quick, 2)


async def signed_by(installation: Installation, node: RunningNode) -> bool:
    signatures = NodeSignatures()
    for row in await installation.owner.audit():
        signatures.add_row(row)
    signatures.finish()
    return signatures.fingerprints == {node.node_id: show_fingerprint(load_node_keys(node.folder.path).fingerprint)}


async def test_everything_again_and_again_under_traffic_loses_no_command(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    issues: list[admin_pb2.IssueCommandsResponse] = []

    stopping = asyncio.Event()

    async def issue() -> None:
        while not stopping.is_set():
            issues.append(await installation.owner.issue("n-1", count=5))

    issuing = asyncio.create_task(issue())
    for number in range(1, 6):
        former = load_node_keys(node.folder.path).fingerprint
        await eventually(lambda: len(issues) >= 3 * number, "traffic")  # noqa: B023 - awaited here
        await rotate(installation, api_key=True, identity=True, sealing=True)
        await installation.owner.wait_node("n-1", lambda view: view.fingerprint != former)  # noqa: B023
        await wait_rotated(installation, node)
    stopping.set()
    await issuing
    views = [view for issued in issues for view in await installation.owner.outcomes(issued.issue_id)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])


async def test_a_node_that_is_away_hears_of_it_when_it_comes(installation: Installation) -> None:
    node = await installation.enroll("n-1")
    former = api_key_of(node)
    ordered = await rotate(installation, api_key=True, identity=True, sealing=True, overlap_s=3600)
    assert list(ordered.rotating) == ["api", "identity", "sealing"]
    await node.start()
    await eventually_replaced(installation, node, former)


async def test_the_former_api_key_lives_until_its_time_and_a_third_one_there_is_never(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    first = api_key_of(node)
    await rotate(installation, api_key=True, overlap_s=3600)
    await eventually_replaced(installation, node, first)
    with pytest.raises(Refusal, match="a third one there is never") as third:
        await rotate(installation, api_key=True, overlap_s=3600)
    assert third.value.reason is Reason.CONFLICT

    second = api_key_of(node)
    await rotate(installation, api_key=True, overlap_s=0)
    await eventually_replaced(installation, node, second)
    ended = await installation.server.database.read(
        lambda conn: conn.exec_driver_sql("SELECT count(*) FROM api_keys WHERE revoked_at_ms = 0").scalar()
    )
    assert ended == 1


async def test_a_node_whose_fingerprint_is_pinned_refuses_new_keys_and_takes_a_new_api_key(
    installation: Installation,
) -> None:
    node = await installation.enroll("n-1")
    keys, former = load_node_keys(node.folder.path), api_key_of(node)
    node.settings = type(node.settings)(**{**vars_of(node), "fingerprint": keys.fingerprint})
    await node.start()
    await rotate(installation, api_key=True, identity=True, sealing=True)
    await eventually_replaced(installation, node, former)
    assert load_node_keys(node.folder.path).fingerprint == keys.fingerprint
    told = await installation.owner.wait_audit("node.rotation_refused")
    assert told == {"rotate": "keys", "by": "node", "reason": "PINNED"}


def vars_of(node: RunningNode) -> dict[str, object]:
    return {name: getattr(node.settings, name) for name in node.settings.__dataclass_fields__}


async def test_a_viewer_may_not_and_a_revoked_node_cannot(installation: Installation) -> None:
    await installation.enroll("n-1")
    viewer = await installation.operator("eve", "viewer")
    request = admin_pb2.RotateNodesRequest(selector=admin_pb2.Selector(patterns=["n-1"]), api_key=True)
    with pytest.raises(Refusal) as role:
        await viewer.ask("RotateNodes", request)
    assert role.value.reason is Reason.PERMISSION_DENIED
    await viewer.close()
    with pytest.raises(Refusal) as nothing:
        await rotate(installation)
    assert nothing.value.reason is Reason.INVALID_ARGUMENT
    await installation.owner.set_state("n-1", "REVOKED", "stolen")
    with pytest.raises(Refusal) as revoked:
        await rotate(installation, api_key=True)
    assert revoked.value.reason is Reason.REVOKED


async def test_a_rotation_written_around_the_server_orders_nothing(installation: Installation) -> None:
    node = await installation.enroll("n-1")
    await rotate(installation, api_key=True, overlap_s=3600)
    await installation.server.database.write(
        lambda tx: tx.conn.exec_driver_sql("UPDATE credential_rotations SET wanted = 6")
    )
    await node.start()
    await installation.owner.run("n-1")
    assert not node.folder.rotation.exists()
    with pytest.raises(Refusal) as tampered:
        await rotate(installation, api_key=True)
    assert tampered.value.reason is Reason.QUARANTINED
    assert "api_key.replaced" not in {json.dumps(entry.kind) for entry in await installation.owner.audit()}


async def fleet_node(node: NodeProcess, processes: Processes, *words: str) -> tuple[int, str]:
    """Exit code and output of a verb for this node."""
    started = processes.start([BIN / "fleet-node", *words, "--config", node.config], name=words[0])
    return await asyncio.to_thread(started.wait_exit), started.tail()


async def test_a_node_rotates_its_own_keys_when_its_user_says_so(
    installation: Installation, processes: Processes
) -> None:
    node = NodeProcess(await installation.enroll("n-1"), processes)
    installation.nodes["n-1"] = node
    await node.start()
    before = (await installation.owner.node("n-1")).fingerprint

    code, said = await fleet_node(node, processes, "rotate-keys")
    assert code == 0, said
    after = (await installation.owner.node("n-1")).fingerprint
    assert after != before
    assert show_fingerprint(after) in said
    assert show_fingerprint(before) in said

    await node.stop()
    code, said = await fleet_node(node, processes, "rotate-keys")
    assert code == 1
    assert "no daemon runs" in said


async def test_the_doctor_knocks_with_whichever_keys_the_server_knows(
    installation: Installation, processes: Processes
) -> None:
    """The server has taken new keys, and the node died before it heard."""
    node = await installation.add_node("n-1")
    assert node.node is not None
    credentials = node.node.link.credentials
    statement = await credentials.begin(identity=True, sealing_key=True)
    nodes = installation.server.nodes
    epoch = (await nodes.get(node.node_id)).stream_epoch
    rotations = installation.server.sessions.rotations
    taken = await rotations.take_keys(node.node_id, epoch, statement.node_key_rotation)
    assert taken.taken
    await node.stop()

    patient = Patient(settings=node.settings, config="none", place_of=lambda _: "", clock=SystemClock())
    findings = {finding.check: finding async for finding in Doctor(patient).examine()}
    assert findings["handshake"].level is Level.OK, findings["handshake"]
    await node.start()
    await wait_rotated(installation, node)
