"""A node's life with its server: joining, leaving, being sent away, coming back, renewing what runs out."""

import asyncio
import shutil
import threading
from dataclasses import replace

import pytest

from fleet.clock import SystemClock
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2, enrollment_pb2, gateway_pb2, trust_pb2
from fleet_node.doctor.finding import Level
from fleet_node.doctor.service import Doctor, Patient
from fleet_node.enrollment.membership import load_pending
from fleet_node.enrollment.service import EnrollmentRefusedError
from fleet_server.trust.tls_rotation import TlsRotation
from tests.integration.handmade import HandmadeNode
from tests.integration.installation import Installation, RunningNode, assert_each_ran_once
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
PENDING = enrollment_pb2.ENROLLMENT_STATE_PENDING


async def pending_enrollment(installation: Installation) -> admin_pb2.EnrollmentView:
    async def look() -> admin_pb2.EnrollmentView | None:
        request = admin_pb2.ListEnrollmentsRequest(state=PENDING)
        answer = await installation.owner.ask("ListEnrollments", request)
        return answer.enrollments[0] if answer.enrollments else None

    return await eventually(look, "a pending enrollment")


async def decide(installation: Installation, enrollment_id: str, **fields: object) -> None:
    request = admin_pb2.DecideEnrollmentRequest(enrollment_id=enrollment_id, **fields)  # type: ignore[arg-type]
    await installation.owner.ask("DecideEnrollment", request)


def applying(installation: Installation, name: str) -> RunningNode:
    node = RunningNode(installation.folder / name, name, installation.clock, endpoints=(installation.gateway,))
    installation.nodes[name] = node
    return node


# -- joining ----------------------------------------------------------------------------------------------------------
async def test_an_operator_compares_fingerprints_and_approves(installation: Installation) -> None:
    node = applying(installation, "press-1")
    token = await installation.join_token(auto_approve=False)
    joining = asyncio.create_task(node.enroll(token))
    asked = await pending_enrollment(installation)
    assert asked.fingerprint == node.enrollment().keys().fingerprint

    with pytest.raises(Refusal) as mismatch:
        await decide(installation, asked.enrollment_id, approve=True, fingerprint=b"x" * 20)
    assert mismatch.value.reason is Reason.FINGERPRINT_MISMATCH
    labels = {"line": "two"}
    await decide(
        installation, asked.enrollment_id, approve=True, fingerprint=asked.fingerprint, name="oven", labels=labels
    )

    await joining
    await node.start()
    view = await installation.owner.node("oven")
    assert (view.node_id, dict(view.labels), view.online) == (node.node_id, labels, True)
    with pytest.raises(Refusal) as decided:
        await decide(installation, asked.enrollment_id, approve=False)
    assert decided.value.reason is Reason.ALREADY_DECIDED


async def test_a_rejected_node_reads_the_reason(installation: Installation) -> None:
    node = applying(installation, "press-1")
    joining = asyncio.create_task(node.enroll(await installation.join_token(auto_approve=False)))
    asked = await pending_enrollment(installation)

    await decide(installation, asked.enrollment_id, approve=False, reason="not ours")

    with pytest.raises(EnrollmentRefusedError, match=r"not ours.*ask for a new token"):
        await joining
    assert not node.folder.membership.exists()


async def test_a_restart_while_waiting_resumes_the_same_enrollment(installation: Installation) -> None:
    node = applying(installation, "press-1")
    token = await installation.join_token(auto_approve=False, max_uses=1)
    before = asyncio.create_task(node.enroll(token))
    asked = await pending_enrollment(installation)
    await eventually(node.folder.enrollment.exists, "the node has the answer")
    before.cancel()
    await asyncio.wait({before})

    pending = load_pending(node.folder.enrollment)
    assert pending is not None
    resumed = asyncio.create_task(node.enrollment().wait_decided(pending))
    await decide(installation, asked.enrollment_id, approve=True)

    assert (await resumed).name == "press-1"


async def test_a_server_restart_while_a_node_waits_costs_it_nothing(installation: Installation) -> None:
    node = applying(installation, "press-1")
    joining = asyncio.create_task(node.enroll(await installation.join_token(auto_approve=False)))
    asked = await pending_enrollment(installation)

    await installation.crash_server()
    await installation.start_server()
    await decide(installation, asked.enrollment_id, approve=True)

    await joining
    await node.start()


async def test_a_node_that_is_gone_before_its_claim_is_committed_is_not_shown_online(
    installation: Installation,
) -> None:
    database = installation.server.database
    before, behind = [(threading.Event(), threading.Event()) for _ in range(2)]

    def occupy(_: object, held: threading.Event, go_on: threading.Event) -> None:
        held.set()
        go_on.wait(20)

    async with HandmadeNode(installation, await installation.enroll("n-1")) as hand:
        session = await hand.handshake()
        occupied = [asyncio.create_task(database.write(lambda tx: occupy(tx, *before)))]
        await asyncio.to_thread(before[0].wait, 20)
        async with hand.connect(session) as stream:
            await stream.send(gateway_pb2.NodeFrame(hello=hand.hello(session)))
            await eventually(database.writer.depth, "the claim waits for the writer")
            occupied.append(asyncio.create_task(database.write(lambda tx: occupy(tx, *behind))))
            await eventually(lambda: database.writer.depth() > 1, "and another job behind it, in the same group")
            before[1].set()
            await asyncio.to_thread(behind[0].wait, 20)
        # On the same connection: the server has heard of the end by now.
        await hand.ask("GetTrustChain", trust_pb2.GetTrustChainRequest(cluster_id=hand.me.cluster_id))
        behind[1].set()
        await asyncio.gather(*occupied)
        await installation.owner.wait_node("n-1", lambda view: view.stream_epoch == 1 and not view.online)


# -- looked at --------------------------------------------------------------------------------------------------------
async def test_a_doctor_on_a_copy_of_a_state_folder_takes_nothing_from_the_node_that_runs(
    installation: Installation,
) -> None:
    node = await installation.add_node("press-1")
    copy = installation.folder / "restored"
    shutil.copytree(node.folder.path, copy, ignore=shutil.ignore_patterns("control.sock"))
    before = await installation.owner.node("press-1")

    patient = Patient(replace(node.settings, state_dir=copy), "no file", str, SystemClock())
    findings = [finding async for finding in Doctor(patient).examine()]

    levels = {finding.check: finding.level for finding in findings if finding.level is not Level.OK}
    assert levels == {"daemon": Level.WARN}, findings  # it does not run on the copy
    assert [finding.check for finding in findings][-1] == "stream"
    after = await installation.owner.node("press-1")
    assert (after.stream_epoch, after.online) == (before.stream_epoch, True)
    assert node.link.streams_opened == 1
    assert [view.state for view in await installation.owner.run("press-1")] == [SUCCEEDED]
    assert len(await installation.owner.audit("stream.opened")) == 1


# -- drained, suspended, revoked --------------------------------------------------------------------------------------
async def drained(installation: Installation, name: str) -> admin_pb2.NodeView:
    request = admin_pb2.DrainNodesRequest(selector=admin_pb2.Selector(patterns=[name]), reason="maintenance")
    async for progress in installation.owner.follow("DrainNodes", request):
        if progress.done:
            return progress.nodes[0]
    raise AssertionError("the drain was never done")


async def test_a_drained_node_finishes_holds_its_queue_and_resumes(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    running = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 200})
    await eventually(node.runs, "the command runs")

    assert (await drained(installation, "n-1")).open_commands == 0, "its result is counted by then"

    (finished,) = await installation.owner.outcomes(running.issue_id)
    assert finished.state == SUCCEEDED
    held = await installation.owner.issue("n-1")
    view = await installation.owner.node("n-1")
    assert (view.drain_state, view.open_commands, view.online) == ("DRAINED", 1, True)
    await node.stop()
    await node.start()  # a drain outlives a restart
    assert (await installation.owner.node("n-1")).drain_state == "DRAINED"
    assert len(node.runs()) == 1

    selector = admin_pb2.Selector(patterns=["n-1"])
    await installation.owner.ask("ResumeNodes", admin_pb2.ResumeNodesRequest(selector=selector))
    (released,) = await installation.owner.outcomes(held.issue_id)
    assert released.state == SUCCEEDED
    assert_each_ran_once(node, [finished.command_id, released.command_id])


async def test_a_suspended_node_loses_its_stream_and_comes_back_when_resumed(quick: Installation) -> None:
    node = await quick.add_node("n-1")

    await quick.owner.set_state("n-1", "SUSPENDED", "odd readings")

    assert "odd readings" in await node.wait_refused("SUSPENDED")
    assert not (await quick.owner.wait_node("n-1", lambda view: not view.online)).online
    with pytest.raises(Refusal) as refused:
        await quick.owner.issue("nobody-else", "n-1", idempotency_key="x", count=1, action="simulated.unknown")
    assert refused.value.reason is Reason.NO_TARGETS
    answer = await quick.owner.issue("n-1")
    assert [each.reason for each in answer.refused] == ["SUSPENDED"]

    await quick.owner.set_state("n-1", "ACTIVE")
    await node.wait_live(streams=2)
    (view,) = await quick.owner.run("n-1")
    assert view.state == SUCCEEDED


async def test_a_revoked_node_is_told_so_and_never_comes_back(quick: Installation) -> None:
    node = await quick.add_node("n-1")

    await quick.owner.set_state("n-1", "REVOKED", "stolen")

    assert "stolen" in await node.wait_refused("REVOKED")
    with pytest.raises(Refusal) as refused:
        await quick.owner.set_state("n-1", "ACTIVE")
    assert refused.value.reason is Reason.CONFLICT
    await node.stop()
    await node.start(wait_live=False)
    await eventually(lambda: node.link.last_refusal, "a refusal")
    assert node.link.last_refusal in ("REVOKED", "UNKNOWN_CREDENTIAL")
    assert not (await quick.owner.node("n-1")).online


async def test_a_watcher_sees_nodes_come_and_go(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    seen: list[tuple[str, bool]] = []

    async def watch() -> None:
        async for answer in quick.owner.follow("WatchNodes", admin_pb2.WatchNodesRequest()):
            seen.extend((view.state, view.online) for view in answer.nodes)
            if seen[-1] == ("SUSPENDED", False):
                return

    watching = asyncio.create_task(watch())
    await eventually(lambda: seen, "the first answer carries all nodes")
    assert seen[0] == ("ACTIVE", True)
    await node.stop()
    await eventually(lambda: ("ACTIVE", False) in seen, "the node goes offline")
    await quick.owner.set_state("n-1", "SUSPENDED")
    await watching


# -- what runs out is renewed -----------------------------------------------------------------------------------------
async def test_a_session_is_renewed_on_its_stream(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    stream = node.link.stream_id

    quick.clock.step_wall(quick.settings.session_ttl_s * 0.8)

    await quick.owner.wait_audit("session.renewed")
    quick.clock.step_wall(quick.settings.session_ttl_s * 0.5)  # past the first end
    (view,) = await quick.owner.run("n-1")
    assert view.state == SUCCEEDED
    assert node.link.stream_id == stream


async def test_a_connected_node_gets_the_renewed_bundle(installation: Installation) -> None:
    await installation.add_node("n-1")
    before = (await installation.owner.node("n-1")).bundle_version

    await installation.server.trust.publish_bundle([installation.gateway, "127.0.0.1:1"])

    view = await installation.owner.wait_node("n-1", lambda view: view.bundle_version.number > before.number)
    assert view.bundle_version.generation == before.generation
    (after,) = await installation.owner.run("n-1")
    assert after.state == SUCCEEDED


async def test_a_renewed_leaf_is_taken_up_without_losing_a_stream(installation: Installation) -> None:
    node = await installation.add_node("n-1", endpoints=())
    stream = node.link.stream_id
    server, hosts = installation.server, installation.settings.certificate_hosts()
    before = server.certificates.leaf_der
    wider = TlsRotation(server.trust, lambda *_: [], hosts=(*hosts, "new.example"), shows=lambda _: False)

    assert await wider.renew()

    assert server.certificates.leaf_der != before
    (view,) = await installation.owner.run("n-1")
    assert (view.state, node.link.stream_id) == (SUCCEEDED, stream)
    await node.stop()
    await node.start()
    later = await installation.add_node("n-2")
    assert later.link.stream_id


async def test_a_node_that_cached_the_old_leaf_finds_the_new_one(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    before = installation.server.certificates.leaf_der

    await installation.crash_server()  # the node reconnects by itself, with the leaf that it remembers
    installation.settings = installation.settings.model_copy(update={"tls_hosts": ("new.example",)})
    await installation.start_server()

    assert installation.server.certificates.leaf_der != before
    await node.wait_live(streams=2)
    (view,) = await installation.owner.run("n-1")
    assert view.state == SUCCEEDED
