"""Two replicas on one PostgreSQL: what is decided at one takes effect on the streams that the other holds."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleet import tls_certificates
from fleet.errors import Reason, Refusal
from fleet.identity import write_private
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.nodes import poll
from tests.integration.installation import Installation
from tests.integration.several import several
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer


@pytest.fixture
async def replicas(tmp_path: Path, postgres: "PostgresServer") -> AsyncIterator[tuple[Installation, Installation]]:
    """Two servers of one installation, each with listeners of its own."""
    async with several(tmp_path, postgres, ["replica-a", "replica-b"]) as (first, second):
        yield first, second


def test_a_decision_is_looked_for_often_enough_to_take_effect_within_a_second() -> None:
    assert poll.INTERVAL_S <= 0.25


async def test_suspend_resume_and_revoke_reach_a_stream_on_the_other_replica(
    replicas: tuple[Installation, Installation],
) -> None:
    here, there = replicas
    node = await here.add_node("n-1")
    assert (await there.owner.node("n-1")).replica_id == "replica-a"

    await there.owner.set_state("n-1", "SUSPENDED", "odd readings")
    assert "odd readings" in await node.wait_refused("SUSPENDED")
    await there.owner.wait_node("n-1", lambda view: not view.online)

    await there.owner.set_state("n-1", "ACTIVE", "checked")
    await node.stop()  # it asks again by itself after 20 s; a start asks at once
    await node.start()
    (view,) = await here.owner.run("n-1")
    assert view.state == command_pb2.COMMAND_STATE_SUCCEEDED

    await there.owner.set_state("n-1", "REVOKED", "stolen")
    assert "stolen" in await node.wait_refused("REVOKED")


async def test_a_drain_reaches_a_stream_on_the_other_replica(replicas: tuple[Installation, Installation]) -> None:
    here, there = replicas
    await here.add_node("n-1")
    request = admin_pb2.DrainNodesRequest(selector=admin_pb2.Selector(patterns=["n-1"]))
    answers = [answer async for answer in there.owner.follow("DrainNodes", request)]
    assert answers[-1].done
    assert (await there.owner.node("n-1")).drain_state == "DRAINED"


async def test_keys_rotate_on_both_replicas_and_a_revoked_one_signs_on_neither(
    replicas: tuple[Installation, Installation],
) -> None:
    here, there = replicas
    nodes = [await here.add_node("n-1"), await there.add_node("n-2")]

    async def run_everywhere() -> set[bytes]:
        views = [*await here.owner.run("n-1"), *await there.owner.run("n-2")]
        assert {view.state for view in views} == {command_pb2.COMMAND_STATE_SUCCEEDED}
        return {view.key_id for view in views}

    async def prepare(at: Installation) -> bytes:
        return (await at.owner.ask("PrepareKey", admin_pb2.PrepareKeyRequest())).key.key_id

    first = await prepare(here)

    async def complete() -> bool:
        answer = await there.owner.ask("GetKeyRollout", admin_pb2.GetKeyRolloutRequest())
        return [(key.key_id, key.asked, key.complete) for key in answer.keys] == [(first, 2, True)]

    await eventually(complete, "both nodes hold the key")
    both = [each.owner.ask("ActivateKey", admin_pb2.ActivateKeyRequest(key=first.hex())) for each in replicas]
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["ActivateKeyResponse", "Refusal"]
    await eventually(
        lambda: {each.server.trust.command_key_id("") for each in replicas} == {first}, "both replicas sign with it"
    )
    assert await run_everywhere() == {first}

    second = await prepare(there)
    await there.owner.ask("RevokeKey", admin_pb2.RevokeKeyRequest(key=first.hex(), reason="leaked"))
    await eventually(lambda: here.server.trust.command_key_id("") == second, "the other replica has heard of it")
    assert await run_everywhere() == {second}
    assert [node.link.streams_opened for node in nodes] == [1, 1]


async def test_both_replicas_show_one_certificate_and_the_one_of_a_new_ca_at_once(
    replicas: tuple[Installation, Installation],
) -> None:
    here, there = replicas
    nodes = [await here.add_node("n-1"), await there.add_node("n-2")]
    shown = {each.server.certificates.leaf_der for each in replicas}
    assert len(shown) == 1
    made = (await here.owner.ask("PrepareTlsCa", admin_pb2.PrepareTlsCaRequest())).ca

    async def complete() -> bool:
        answer = await there.owner.ask("ListTlsCas", admin_pb2.ListTlsCasRequest())
        return [(far.sha256, far.asked, far.complete) for far in answer.rollouts] == [(made.sha256, 2, True)]

    await eventually(complete, "both nodes trust it")
    request = admin_pb2.ActivateTlsCaRequest(ca=made.sha256.hex())
    answers = await asyncio.gather(*(each.owner.ask("ActivateTlsCa", request) for each in replicas))
    assert {answer.ca.phase for answer in answers} == {admin_pb2.TLS_CA_PHASE_ACTIVE}
    await eventually(
        lambda: {each.server.certificates.ca_der for each in replicas} == {made.certificate}, "both have heard of it"
    )
    (leaf,) = {each.server.certificates.leaf_der for each in replicas}
    assert leaf not in shown
    for each in replicas:
        each.log_in()
    (outgoing,) = [ca for ca in here.server.trust.tls.cas if ca.sha256 != made.sha256]
    await there.owner.ask("RetireTlsCa", admin_pb2.RetireTlsCaRequest(ca=outgoing.sha256.hex()))
    assert [node.link.streams_opened for node in nodes] == [1, 1]
    for node, at in zip(nodes, replicas, strict=True):
        await node.stop()
        await node.start()
        assert {view.state for view in await at.owner.run(node.name)} == {command_pb2.COMMAND_STATE_SUCCEEDED}
    (row,) = await here.owner.audit("tls_ca.activated")
    assert row.actor == "owner"


async def test_a_ca_from_outside_waits_until_each_replica_shows_a_certificate_of_it(
    replicas: tuple[Installation, Installation],
) -> None:
    """Nodes that come to the one that does not would be cut off as soon as the own CA is retired."""
    here, there = replicas
    now = dt.datetime.now(dt.UTC)
    outside = tls_certificates.make_ca("company", now)
    leaf = tls_certificates.make_leaf(outside, ["127.0.0.1"], now)
    request = admin_pb2.PrepareTlsCaRequest(certificate=outside.certificate_pem)
    brought = (await here.owner.ask("PrepareTlsCa", request)).ca
    activation = admin_pb2.ActivateTlsCaRequest(ca=brought.sha256.hex())
    for shown_at, missing in (([], "replica-a, replica-b"), ([here], "replica-b")):
        for each in shown_at:
            write_private(each.data / "tls" / "outside.pem", leaf.certificate_pem + leaf.private_key_pem)
        with pytest.raises(Refusal, match=rf"{missing} shows? no certificate .*outside\.pem") as refused:
            await here.owner.ask("ActivateTlsCa", activation)
        assert refused.value.reason is Reason.CONFLICT
    write_private(there.data / "tls" / "outside.pem", leaf.certificate_pem + leaf.private_key_pem)

    async def activated() -> bool:
        try:
            await here.owner.ask("ActivateTlsCa", activation)
        except Refusal:
            return False
        return True

    await eventually(activated, "the other replica has said that it shows one")
    await eventually(lambda: there.server.certificates.leaf_der == leaf.certificate_der, "it shows it")


async def test_a_rotation_ordered_at_one_replica_is_done_over_a_stream_at_the_other(
    replicas: tuple[Installation, Installation],
) -> None:
    here, there = replicas
    node = await here.add_node("n-1")
    before = await there.owner.node("n-1")
    selector = admin_pb2.Selector(patterns=["n-1"])
    request = admin_pb2.RotateNodesRequest(selector=selector, api_key=True, identity=True, sealing=True)
    await there.owner.ask("RotateNodes", request)
    after = await there.owner.wait_node(
        "n-1", lambda view: view.online and not view.rotating and view.fingerprint != before.fingerprint
    )
    assert (after.node_id, after.replica_id) == (before.node_id, "replica-a")
    (view,) = await here.owner.run("n-1")
    assert view.state == command_pb2.COMMAND_STATE_SUCCEEDED
    assert node.link.last_refusal == ""
