"""Command keys rotate under real nodes and running commands: nothing is lost, and nothing revoked runs."""

from pathlib import Path

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2, gateway_pb2, trust_pb2
from tests.fakes.rogue import FINAL_STATES, RogueGateway, command
from tests.integration.installation import Installation, Template, assert_each_ran_once
from tests.integration.traffic import more, traffic
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
QUEUED = command_pb2.COMMAND_STATE_QUEUED
DAY_S = 24 * 3600


async def keys(installation: Installation) -> admin_pb2.ListKeysResponse:
    return await installation.owner.ask("ListKeys", admin_pb2.ListKeysRequest())


async def rollout(installation: Installation) -> list[admin_pb2.KeyRollout]:
    answer = await installation.owner.ask("GetKeyRollout", admin_pb2.GetKeyRolloutRequest())
    return list(answer.keys)


async def prepare(installation: Installation, site: str = "") -> bytes:
    answer = await installation.owner.ask("PrepareKey", admin_pb2.PrepareKeyRequest(site=site))
    return answer.key.key_id


async def wait_everywhere(installation: Installation) -> None:
    async def complete() -> bool:
        found = await rollout(installation)
        return bool(found) and all(each.complete for each in found)

    await eventually(complete, "every node holds the key")


async def activate(installation: Installation, key_id: bytes, **fields: str) -> admin_pb2.ActivateKeyResponse:
    request = admin_pb2.ActivateKeyRequest(key=key_id.hex(), **fields)
    return await installation.owner.ask("ActivateKey", request)


async def rotate(installation: Installation) -> bytes:
    key_id = await prepare(installation)
    await wait_everywhere(installation)
    await activate(installation, key_id)
    return key_id


async def revoke(installation: Installation, key_id: bytes, *, stop_commands: bool = False) -> None:
    request = admin_pb2.RevokeKeyRequest(key=key_id.hex(), reason="leaked", stop_commands=stop_commands)
    await installation.owner.ask("RevokeKey", request)


async def test_two_rotations_under_traffic_lose_nothing_and_refuse_nothing(installation: Installation) -> None:
    nodes = await installation.add_nodes(3)
    used = [installation.server.trust.command_key_id("")]
    async with traffic(installation) as orders:
        for _ in range(2):
            await more(orders, 5)
            used.append(await rotate(installation))
        await more(orders, 5)

    views = [view for order in orders for view in await installation.owner.outcomes(order)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert {view.key_id for view in views} == set(used), "what every key signed is on record"
    for node in nodes:
        assert_each_ran_once(node, [view.command_id for view in views if view.node_name == node.name])
    assert await installation.owner.audit("statement.refused") == []
    for node in nodes:
        assert node.link.streams_opened == 1
    phases = {key.key_id: key.phase for key in (await keys(installation)).command_keys}
    assert [phases[key_id] for key_id in used] == [
        trust_pb2.KEY_PHASE_RETIRED,
        trust_pb2.KEY_PHASE_RETIRED,
        trust_pb2.KEY_PHASE_ACTIVE,
    ]
    kinds = [entry.kind for entry in await installation.owner.audit("key.prepared", "key.activated", "key.retired")]
    assert sorted(kinds) == ["key.activated"] * 2 + ["key.prepared"] * 2 + ["key.retired"] * 2


async def test_revocations_under_traffic_lose_nothing(installation: Installation) -> None:
    """What is in flight becomes worthless in the node's eyes, and is signed again: more often than a stream forgives
    refusals."""
    nodes = await installation.add_nodes(2)
    revoked = []
    async with traffic(installation) as orders:
        for _ in range(7):
            await more(orders, 1)
            revoked.append(installation.server.trust.command_key_id(""))
            await prepare(installation)
            await revoke(installation, revoked[-1])
        await more(orders, 2)
    views = [view for order in orders for view in await installation.owner.outcomes(order)]
    assert {view.state for view in views} == {SUCCEEDED}
    for node in nodes:
        assert_each_ran_once(node, [view.command_id for view in views if view.node_name == node.name])


async def test_what_a_revoked_key_signed_is_worthless_from_the_moment_the_node_hears_of_it(
    installation: Installation,
) -> None:
    """The gateway is in the wrong hands and keeps the key; it can hold back the bundle, and pass it on, no more."""
    async with RogueGateway(installation.stolen()) as rogue:
        node = await installation.add_node("n-1", endpoints=(rogue.endpoint,))
        stream = await rogue.wait_stream()
        before, after = command("simulated.noop", 1), command("simulated.noop", 2)
        stream.send_statement([before])
        await stream.wait_report(before, FINAL_STATES)

        await prepare(installation)
        await revoke(installation, rogue.trust.command_key.key_id)
        stream.send(trust_bundle=gateway_pb2.TrustBundles(bundles=[installation.server.trust.bundle.signed]))
        stream.send_statement([after])

        refused = await stream.wait_control("statement_refused", lambda _: True)
        assert refused.reason == "KEY_REVOKED"
        assert_each_ran_once(node, [before.command_id])


async def test_a_node_that_was_away_over_two_rotations_comes_back_and_runs_commands(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    await installation.owner.run("n-1")
    await node.stop()
    await installation.owner.wait_node("n-1", lambda view: not view.online)
    for _ in range(2):
        installation.clock.step_wall(2 * DAY_S)  # it is not waited for any more, and the key that it knows has ended
        await rotate(installation)
    queued = await installation.owner.issue("n-1", count=3)

    await node.start()

    views = await installation.owner.outcomes(queued.issue_id)
    assert {(view.state, view.key_id) for view in views} == {(SUCCEEDED, installation.server.trust.command_key_id(""))}
    held = await keys(installation)
    assert {key.nodes for key in held.command_keys if key.phase == trust_pb2.KEY_PHASE_ACTIVE} == {1}


async def test_activation_waits_for_a_node_that_left_a_moment_ago_unless_it_is_overridden(
    installation: Installation,
) -> None:
    there = await installation.add_node("there")
    gone = await installation.add_node("gone")
    await gone.stop()
    await installation.owner.wait_node("gone", lambda view: not view.online)
    key_id = await prepare(installation)
    await eventually(lambda: there.node and there.node.trust.state.number == 2, "the bundle is there")

    async def refused() -> Refusal | None:
        try:
            await activate(installation, key_id)
        except Refusal as refusal:
            return refusal if refusal.metadata["holding"] == "1" else None
        return None

    refusal = await eventually(refused, "activation is refused")
    assert refusal.reason is Reason.CONFLICT
    assert "1 of 2 nodes" in refusal.detail
    assert "gone" in refusal.detail
    (far,) = await rollout(installation)
    assert (far.asked, far.holding, far.away, list(far.lacking), far.complete) == (2, 1, 0, ["gone"], False)

    activated = await activate(installation, key_id, override_reason="gone is being repaired")
    assert (activated.rollout.asked, activated.rollout.holding) == (2, 1)
    detail = await installation.owner.wait_audit("key.activated")
    assert detail["override"] == "gone is being repaired"
    await gone.start()
    views = await installation.owner.run("*")
    assert {(view.state, view.key_id) for view in views} == {(SUCCEEDED, key_id)}
    assert await installation.owner.audit("statement.refused") == []


async def test_without_a_key_commands_wait_and_go_on_with_the_next(installation: Installation) -> None:
    await installation.add_node("n-1")
    last = installation.server.trust.command_key_id("")
    with pytest.raises(Refusal) as refused:
        await revoke(installation, last)
    assert refused.value.reason is Reason.CONFLICT
    await revoke(installation, last, stop_commands=True)
    waiting = await installation.owner.issue("n-1", count=3)
    assert [view.state for view in (await listed(installation, waiting.issue_id))] == [QUEUED] * 3

    key_id = await rotate(installation)

    views = await installation.owner.outcomes(waiting.issue_id)
    assert {(view.state, view.key_id) for view in views} == {(SUCCEEDED, key_id)}


async def test_a_sites_key_signs_for_its_nodes_alone(installation: Installation) -> None:
    await installation.enroll("b-1", await installation.join_token(site="berlin"))
    await installation.enroll("p-1", await installation.join_token(site="paris"))
    for node in installation.nodes.values():
        await node.start()
    cluster_key = installation.server.trust.command_key_id("")
    berlin_key = await prepare(installation, site="berlin")
    await wait_everywhere(installation)
    await activate(installation, berlin_key)
    views = await installation.owner.run("*")
    assert [(view.node_name, view.state, view.key_id) for view in views] == [
        ("b-1", SUCCEEDED, berlin_key),
        ("p-1", SUCCEEDED, cluster_key),
    ]
    await installation.owner.ask("RetireKey", admin_pb2.RetireKeyRequest(key=berlin_key.hex()))
    views = await installation.owner.run("*")
    assert {(view.state, view.key_id) for view in views} == {(SUCCEEDED, cluster_key)}


async def test_the_schedule_rotates_by_itself(tmp_path: Path, template: Template) -> None:
    async with Installation(tmp_path, template, command_key_rotation_days=2) as installation:
        node = await installation.add_node("n-1")
        rotation, used = installation.server.rotation, []
        for _ in range(2):
            used.append(installation.server.trust.command_key_id(""))
            await rotation.rotate_due()
            assert await rollout(installation) == [], "too early"
            installation.clock.step_wall(DAY_S)  # sessions end, and the node comes back by itself
            await rotation.rotate_due()
            await node.wait_live(node.link.streams_opened)
            await wait_everywhere(installation)
            installation.clock.step_wall(DAY_S)
            await rotation.rotate_due()
        used.append(installation.server.trust.command_key_id(""))
        assert len(set(used)) == 3
        (view,) = await installation.owner.run("n-1")
        assert (view.state, view.key_id) == (SUCCEEDED, used[-1])
        actors = {entry.actor for entry in await installation.owner.audit("key.prepared", "key.activated")}
        assert actors == {"schedule"}


async def test_only_an_owner_changes_keys(installation: Installation) -> None:
    release = await installation.operator("rel", "release")
    for method, request in (
        ("PrepareKey", admin_pb2.PrepareKeyRequest()),
        ("ActivateKey", admin_pb2.ActivateKeyRequest()),
        ("RetireKey", admin_pb2.RetireKeyRequest()),
        ("RevokeKey", admin_pb2.RevokeKeyRequest()),
    ):
        with pytest.raises(Refusal) as refused:
            await release.ask(method, request)
        assert refused.value.reason is Reason.PERMISSION_DENIED
    await release.ask("GetKeyRollout", admin_pb2.GetKeyRolloutRequest())
    await release.close()


async def listed(installation: Installation, issue_id: str) -> list[admin_pb2.CommandView]:
    answer = await installation.owner.ask("ListCommands", admin_pb2.ListCommandsRequest(issue_id=issue_id))
    return list(answer.commands)
