"""The cluster's authority rotates under real nodes and running commands: nothing is lost, nobody is left behind."""

import asyncio

import pytest

from fleet import jointoken, trust, trust_chain
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.trust import bundles
from tests.fakes.audit_export import verify_export
from tests.integration.installation import Installation, RunningNode, assert_each_ran_once
from tests.integration.traffic import more, traffic
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


async def authorities(installation: Installation) -> admin_pb2.ListAuthoritiesResponse:
    return await installation.owner.ask("ListAuthorities", admin_pb2.ListAuthoritiesRequest())


async def rotate(installation: Installation) -> bytes:
    generation = installation.server.trust.authority_generation
    request = admin_pb2.RotateAuthorityRequest(from_generation=generation, reason="yearly")
    answer = await installation.owner.ask("RotateAuthority", request)
    assert answer.authority.generation == generation + 1
    return answer.authority.public_key


def generation_of(node: RunningNode) -> int:
    return node.node.trust.state.generation if node.node else 0


async def test_rotations_under_traffic_lose_nothing_and_refuse_nothing(installation: Installation) -> None:
    nodes = await installation.add_nodes(3)
    async with traffic(installation) as orders:
        for generation in (2, 3):
            await more(orders, 5)
            await rotate(installation)
            for node in nodes:
                await eventually(lambda node=node, g=generation: generation_of(node) == g, "the node followed")
        await more(orders, 5)

    views = [view for order in orders for view in await installation.owner.outcomes(order)]
    assert {view.state for view in views} == {SUCCEEDED}
    for node in nodes:
        assert_each_ran_once(node, [view.command_id for view in views if view.node_name == node.name])
        assert node.link.streams_opened == 1, "no stream was cut"
    assert await installation.owner.audit("statement.refused", "node.bundle_refused") == []
    shown = await authorities(installation)
    assert [(view.generation, view.nodes) for view in shown.authorities] == [(1, 0), (2, 0), (3, 3)]


@pytest.fixture(params=["whole", "link by link"])
def chains(request: pytest.FixtureRequest, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that one message holds, and those that it does not."""
    if request.param != "whole":
        monkeypatch.setattr(bundles, "_MAX_PART_BYTES", installation.server.trust.bundle.signed.ByteSize() * 3 // 2)


@pytest.mark.usefixtures("chains")
async def test_a_node_that_was_away_over_five_rotations_walks_the_chain_and_runs_commands(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    await installation.owner.run("n-1")
    await node.stop()
    keys = [await rotate(installation) for _ in range(5)]
    queued = await installation.owner.issue("n-1", count=3)

    await node.start()

    views = await installation.owner.outcomes(queued.issue_id)
    assert {view.state for view in views} == {SUCCEEDED}
    assert node.node is not None
    assert (node.node.trust.state.generation, node.node.trust.state.authority_key) == (6, keys[-1])
    await node.stop()
    await node.start()  # from its disk: pinned is the first, held the sixth
    assert generation_of(node) == 6
    assert {view.state for view in await installation.owner.run("n-1")} == {SUCCEEDED}


@pytest.mark.usefixtures("chains")
async def test_a_token_and_a_pending_enrollment_of_before_stay_good(installation: Installation) -> None:
    first_key = installation.server.trust.authority.public_key
    automatic, by_hand = await installation.join_token(), await installation.join_token(auto_approve=False)
    waiting = RunningNode(installation.folder / "waiting", "waiting", installation.clock)
    pending = await waiting.enrollment().apply(by_hand, waiting.applicant)
    await rotate(installation)
    await rotate(installation)

    await installation.enroll("late", automatic)
    late = installation.nodes["late"]
    await late.start()
    assert {view.state for view in await installation.owner.run("late")} == {SUCCEEDED}
    assert generation_of(late) == 3
    approve = admin_pb2.DecideEnrollmentRequest(enrollment_id=pending.enrollment_id, approve=True)
    await installation.owner.ask("DecideEnrollment", approve)
    await rotate(installation)  # and once more between the decision and the poll
    joined = await waiting.enrollment().wait_decided(pending)
    assert joined.authority_key == first_key, "pinned stays what the token named"
    fresh = trust.verify_join_token(jointoken.decode(await installation.join_token()))
    assert (fresh.authority_key, fresh.authority_generation) == (installation.server.trust.authority.public_key, 4)


async def test_the_audit_verifies_across_generations_from_the_first_key(installation: Installation) -> None:
    first_key = installation.server.trust.authority.public_key
    audit = installation.server.audit
    for _ in range(2):
        await installation.join_token()
        await audit.checkpoint(installation.server.trust.sign_checkpoint, installation.server.trust.cluster_id)
        await rotate(installation)
    await audit.checkpoint(installation.server.trust.sign_checkpoint, installation.server.trust.cluster_id)
    shown = await authorities(installation)
    links = trust_chain.from_pin(shown.chain, cluster_id=shown.cluster_id, authority_key=first_key)
    known = trust_chain.authorities(links)
    assert len(known) == 3
    assert (await verify_export(audit, shown.cluster_id, known)).checkpoints >= 3


async def test_of_two_who_rotate_at_once_one_succeeds(installation: Installation) -> None:
    request = admin_pb2.RotateAuthorityRequest(from_generation=1, reason="yearly")
    answers = await asyncio.gather(
        *(installation.owner.ask("RotateAuthority", request) for _ in range(2)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    assert [refusal.reason for refusal in refused] == [Reason.CONFLICT]
    assert installation.server.trust.authority_generation == 2


async def test_only_an_owner_rotates_the_authority(installation: Installation) -> None:
    release = await installation.operator("rel", "release")
    with pytest.raises(Refusal) as refused:
        await release.ask("RotateAuthority", admin_pb2.RotateAuthorityRequest(from_generation=1, reason="x"))
    assert refused.value.reason is Reason.PERMISSION_DENIED
    assert len((await release.ask("ListAuthorities", admin_pb2.ListAuthoritiesRequest())).authorities) == 1
    await release.close()
