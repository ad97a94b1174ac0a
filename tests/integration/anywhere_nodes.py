"""Calls about operators, nodes, commands, telemetry and replicas, at a replica that holds no stream."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fleet import jointoken
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2 as pb
from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.enrollment.service import EnrollmentRefusedError
from fleet_server.nodes.record import NodeState
from tests.integration.anywhere import ACTION, Case, Matrix, only, runs
from tests.integration.operator import Operator
from tests.integration.waiting import eventually


async def operators(m: Matrix) -> None:
    said, elsewhere = await m.call("WhoAmI", pb.WhoAmIRequest()), await m.here.owner.ask("WhoAmI", pb.WhoAmIRequest())
    assert (said.replica_id, elsewhere.replica_id) == ("replica-b", "replica-a")
    assert said.authority_key == elsewhere.authority_key
    made = await m.call("CreateOperator", pb.CreateOperatorRequest(name="ada", role="operator"))
    ada = m.here.owner.colleague(made.token)
    assert (await ada.ask("WhoAmI", pb.WhoAmIRequest())).operator == "ada"
    new = (await m.call("RotateOperatorToken", pb.RotateOperatorTokenRequest(operator="ada"))).token
    renewed = m.here.owner.colleague(new)
    assert (await renewed.ask("WhoAmI", pb.WhoAmIRequest())).operator == "ada"
    await unknown(ada)
    await m.call("RevokeOperator", pb.RevokeOperatorRequest(operator="ada"))
    await unknown(renewed)
    await m.same("ListOperators", pb.ListOperatorsRequest())


async def unknown(operator: Operator) -> None:
    """Its token ends within the second for which a replica remembers it."""

    async def refused() -> bool:
        try:
            await operator.ask("WhoAmI", pb.WhoAmIRequest())
        except Refusal as refusal:
            return refusal.reason is Reason.UNAUTHENTICATED
        return False

    await eventually(refused, "its token opens nothing any more", timeout_s=5)
    await operator.close()


async def joining(m: Matrix) -> None:
    token = (await m.call("CreateJoinToken", pb.CreateJoinTokenRequest(max_uses=3))).token
    for name in ("n-1", "n-2"):
        node, applied = await m.apply(name, jointoken.encode(token))
        (waiting,) = (await m.same("ListEnrollments", pb.ListEnrollmentsRequest(state=1))).enrollments
        decision = pb.DecideEnrollmentRequest(enrollment_id=waiting.enrollment_id, approve=True)
        await m.call("DecideEnrollment", decision)
        node.membership = await node.enrollment().wait_decided(applied)
        m.nodes[name] = m.here.nodes[name] = node
        await node.start()
    (listed,) = (await m.same("ListJoinTokens", pb.ListJoinTokensRequest())).join_tokens
    await m.call("RevokeJoinToken", pb.RevokeJoinTokenRequest(token_id=listed.token_id))
    with pytest.raises(EnrollmentRefusedError, match="revoked"):
        await m.apply("n-3", jointoken.encode(token))
    assert (await m.node("n-1")).replica_id == "replica-a"


async def nodes(m: Matrix) -> None:
    await m.same("ListNodes", pb.ListNodesRequest())
    labels = pb.LabelNodesRequest(selector=only("n-1"), set={"role": "press"})
    async for answer in m.follow("WatchNodes", pb.WatchNodesRequest()):
        if not any(node.labels for node in answer.nodes):
            await m.here.owner.ask("LabelNodes", labels)
            continue
        break
    labels.set["role"] = "web"
    await m.call("LabelNodes", labels)
    assert (await m.node("n-1")).labels == {"role": "web"}
    view = await m.node("n-2")
    await m.call("RotateNodes", pb.RotateNodesRequest(selector=only("n-2"), identity=True))
    await m.there.owner.wait_node("n-2", lambda now: not now.rotating and now.fingerprint != view.fingerprint)
    drained = [answer async for answer in m.follow("DrainNodes", pb.DrainNodesRequest(selector=only("n-2")))]
    assert drained[-1].done
    await m.call("ResumeNodes", pb.ResumeNodesRequest(selector=only("n-2")))
    assert (await m.node("n-2")).drain_state == "NONE"


async def commands(m: Matrix) -> None:
    spec = pb.CommandSpec(action="simulated.noop", arguments=b"{}")
    request = pb.IssueCommandsRequest(selector=only("n-1"), commands=[spec], idempotency_key="once")
    at_once = (m.call("IssueCommands", request), m.here.owner.ask("IssueCommands", request))
    one, other = await asyncio.gather(*at_once)
    assert one.issue_id == other.issue_id
    assert one.repeated_request != other.repeated_request
    watched = pb.WatchCommandsRequest(issue_id=one.issue_id, until_final=True)
    told = [view async for answer in m.follow("WatchCommands", watched) for view in answer.commands]
    assert told[-1].state == command_pb2.COMMAND_STATE_SUCCEEDED
    (listed,) = (await m.same("ListCommands", pb.ListCommandsRequest(issue_id=one.issue_id))).commands
    await m.same("GetCommand", pb.GetCommandRequest(command_id=listed.command_id))

    long = await m.there.owner.issue("n-1", action=ACTION, arguments={"latency_ms": 60_000})
    (issued,) = long.issued
    running = command_pb2.COMMAND_STATE_RUNNING
    await m.here.owner.wait_command(issued.command_id, lambda view: view.state == running)
    await m.call("CancelCommands", pb.CancelCommandsRequest(command_ids=[issued.command_id]))
    cancelled = command_pb2.COMMAND_STATE_CANCELLED
    await m.there.owner.wait_command(issued.command_id, lambda view: view.state == cancelled)


async def telemetry(m: Matrix) -> None:
    await m.nodes["n-1"].stop()
    settings = m.nodes["n-1"].settings
    m.nodes["n-1"].settings = replace(settings, telemetry_interval_s=0.1)
    await m.nodes["n-1"].start()
    request = pb.LatestTelemetryRequest(selector=only("n-1"))

    async def latest() -> set[str]:
        return {value.name for value in (await m.call("LatestTelemetry", request)).values}

    found = await eventually(latest, "it is stored within a second")
    assert found == {value.name for value in (await m.here.owner.ask("LatestTelemetry", request)).values}
    past = pb.TelemetryHistoryRequest(node="n-1", from_ms=1, to_ms=m.here.clock.now_ms() - 1500)
    await eventually(lambda: m.same("TelemetryHistory", past), "and told of alike")
    await m.nodes["n-1"].stop()
    m.nodes["n-1"].settings = settings
    await m.nodes["n-1"].start()


async def states(m: Matrix) -> None:
    state = pb.SetNodeStateRequest(selector=only("n-2"), state="SUSPENDED", reason="odd")
    await m.call("SetNodeState", state)
    assert (await m.node("n-2")).state == "SUSPENDED"
    await m.nodes["n-2"].wait_refused("SUSPENDED")
    await m.there.owner.set_state("n-2", "ACTIVE")
    await m.nodes["n-2"].stop()
    here = m.here.server.nodes
    record = await here.get("n-2")
    await m.here.server.database.write(lambda tx: here.quarantine(tx, record, "two of them"))
    assert (await m.node("n-2")).state == NodeState.QUARANTINED
    await m.call("AdoptNodes", pb.AdoptNodesRequest(selector=only("n-2"), reason="it is this one"))
    await m.nodes["n-2"].start()
    await m.there.owner.set_state("n-2", "REVOKED", "stolen")
    await m.nodes["n-2"].wait_refused("REVOKED")
    left = next(item for item in (await checklist(m)) if not item.done_at_ms)
    await m.call("TickChecklist", pb.TickChecklistRequest(node="n-2", item=left.item, note="done"))
    assert next(item for item in (await checklist(m)) if item.item == left.item).done_at_ms
    await m.nodes["n-2"].stop()


async def checklist(m: Matrix) -> Any:
    """Of the revoked node."""
    return (await m.same("GetChecklist", pb.GetChecklistRequest(node="n-2"))).items


async def replacing(m: Matrix) -> None:
    token = await m.here.join_token(auto_approve=False)
    machine, applied = await m.apply("n-2-new", token)
    (waiting,) = (await m.same("ListEnrollments", pb.ListEnrollmentsRequest(state=1))).enrollments
    request = pb.ReplaceNodeRequest(node="n-2", enrollment_id=waiting.enrollment_id, reason="a new disk")
    await m.call("ReplaceNode", request)
    machine.membership = await machine.enrollment().wait_decided(applied)
    m.nodes["n-2"] = m.here.nodes["n-2"] = machine
    await machine.start()
    assert (await m.node("n-2")).state == NodeState.ACTIVE


async def replicas(m: Matrix) -> None:
    await m.same("ListReplicas", pb.ListReplicasRequest())
    request = pb.DrainReplicaRequest(replica_id="replica-a", deadline_s=10, reason=gateway_pb2.GOAWAY_REASON_UPGRADE)
    for node in m.nodes.values():  # from now on it may go to either
        await node.stop()
        node.settings = replace(node.settings, endpoints=(m.here.gateway, m.there.gateway))
        await node.start()
    told = [answer async for answer in m.follow("DrainReplica", request)]
    assert told[-1].done
    for name in m.nodes:
        await m.there.owner.wait_node(name, lambda view: view.online and view.replica_id == "replica-b")
    await runs(m)


BEGINNING: tuple[Case, ...] = (operators, joining, nodes, commands, telemetry)
ENDING: tuple[Case, ...] = (states, replacing, replicas)
"""Each ends more than the one before."""
