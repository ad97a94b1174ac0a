"""Who may call what on the admin service, and what everyone else is told."""

import asyncio
import sqlite3
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fleet import status
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2
from fleet_server.admin.rules import NEEDED_ROLE, Role
from tests.integration.handmade import HandmadeNode
from tests.integration.installation import Installation
from tests.integration.operator import Operator
from tests.integration.waiting import eventually

METHODS = {method.name: method for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods}


async def outcome(operator: Operator, method: str) -> Refusal | None:
    """What an empty request comes to; a streaming method is left after its first answer."""
    request: Any = message_factory.GetMessageClass(METHODS[method].input_type)()
    try:
        if METHODS[method].server_streaming:
            async for _ in operator.follow(method, request, timeout_s=2.0):
                break
        else:
            await operator.ask(method, request)
    except Refusal as refusal:
        return refusal
    return None


async def test_every_method_is_open_from_its_role_on_and_to_nobody_below(installation: Installation) -> None:
    people = {role: await installation.operator(f"the-{role.word}", role.word) for role in Role}
    assert set(NEEDED_ROLE) == set(METHODS)

    for method, needed in NEEDED_ROLE.items():
        if method in ("DrainReplica", "WatchCommands"):
            continue  # the one ends the server, the other says nothing until something happens
        for role, operator in people.items():
            refusal = await outcome(operator, method)
            denied = refusal is not None and refusal.reason is Reason.PERMISSION_DENIED
            assert denied == (role < needed), (method, role, refusal)
            if denied and refusal is not None:
                assert refusal.metadata["needed_role"] == needed.word
                assert "ask an owner" in refusal.detail
    for operator in people.values():
        await operator.close()


async def test_draining_a_replica_needs_the_release_role(installation: Installation) -> None:
    operator = await installation.operator("ada", "operator")
    refusal = await outcome(operator, "DrainReplica")
    assert refusal is not None
    assert refusal.reason is Reason.PERMISSION_DENIED
    await operator.close()


async def test_asking_again_shortens_a_drain_that_waits_for_a_node(installation: Installation) -> None:
    """The node stays for as long as it may: without the second request the drain would take an hour."""
    async with (
        HandmadeNode(installation, await installation.enroll("n-1")) as node,
        node.welcomed() as stream,
    ):
        request = admin_pb2.DrainReplicaRequest(deadline_s=3600, force=True)
        async for _ in installation.owner.follow("DrainReplica", request):
            break
        goaway = await stream.wait_control("goaway")
        assert goaway.deadline_ms > 3_000_000
        assert await installation.stop_server(deadline_s=1) == 0


@pytest.mark.parametrize("token", ["", "nonsense", "fot1." + "A" * 64], ids=["none", "garbage", "made up"])
async def test_without_a_good_token_nothing_is_told(installation: Installation, token: str) -> None:
    stranger = installation.owner.colleague(token)
    for method in METHODS:
        refusal = await outcome(stranger, method)
        assert refusal is not None
        assert refusal.reason is Reason.UNAUTHENTICATED
    await stranger.close()


async def test_a_revoked_token_ends_at_once(installation: Installation) -> None:
    operator = await installation.operator("ada", "operator")
    assert (await operator.ask("WhoAmI", admin_pb2.WhoAmIRequest())).role == "operator"

    await installation.owner.ask("RevokeOperator", admin_pb2.RevokeOperatorRequest(operator="ada"))

    refusal = await outcome(operator, "WhoAmI")
    assert refusal is not None
    assert refusal.reason is Reason.UNAUTHENTICATED
    await operator.close()


async def test_a_revoked_token_sees_no_more_of_what_it_watches(installation: Installation) -> None:
    operator = await installation.operator("ada", "viewer")
    watch = operator.follow("WatchNodes", admin_pb2.WatchNodesRequest())
    await anext(watch)

    await installation.owner.ask("RevokeOperator", admin_pb2.RevokeOperatorRequest(operator="ada"))
    await installation.add_node("n-1")

    with pytest.raises(Refusal) as caught:
        await anext(watch)
    assert caught.value.reason is Reason.UNAUTHENTICATED
    await operator.close()


async def test_a_role_raised_in_the_database_grants_nothing(installation: Installation) -> None:
    operator = await installation.operator("eve", "viewer")
    with sqlite3.connect(installation.database_file) as database:
        database.execute("UPDATE operators SET role = 'owner' WHERE name = 'eve'")

    refusal = await outcome(operator, "CreateOperator")

    assert refusal is not None
    assert refusal.reason in (Reason.QUARANTINED, Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED)
    await installation.owner.wait_audit("operator.quarantined")
    await operator.close()


async def test_calls_and_refusals_of_operators_are_audited(installation: Installation) -> None:
    viewer = await installation.operator("eve", "viewer")
    await outcome(viewer, "IssueCommands")
    await installation.owner.wait_audit("operator.refused")
    (row,) = await installation.owner.audit("operator.refused")
    assert (row.actor, row.subject) == ("eve", "IssueCommands")
    await viewer.close()


async def test_a_request_that_is_no_message_is_refused_as_such(installation: Installation) -> None:
    call = installation.owner._channel.unary_unary("/fleet.v1.Admin/ListNodes")
    for data, reason in ((b"\xff\xff\xff", Reason.MALFORMED), (b"\x0a" * 4_194_305, Reason.OVERLOADED)):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(data, metadata=installation.owner._metadata, timeout=10)
        refusal = status.decode(failed.value)
        assert refusal.reason is reason
        assert refusal.detail


async def test_control_characters_are_refused_before_they_reach_the_database(installation: Installation) -> None:
    for method, request in (
        ("GetNode", admin_pb2.GetNodeRequest(node="pump\0")),
        ("RevokeOperator", admin_pb2.RevokeOperatorRequest(operator="ada\0")),
        ("RevokeJoinToken", admin_pb2.RevokeJoinTokenRequest(token_id="jt_\0")),
        ("DecideEnrollment", admin_pb2.DecideEnrollmentRequest(enrollment_id="en_\0")),
        ("ListCommands", admin_pb2.ListCommandsRequest(issue_id="is_\0")),
        ("CancelCommands", admin_pb2.CancelCommandsRequest(issue_id="is_\0")),
    ):
        with pytest.raises(Refusal) as caught:
            await installation.owner.ask(method, request)
        assert caught.value.reason is Reason.INVALID_ARGUMENT, method
        assert "control character" in caught.value.detail
    with pytest.raises(Refusal) as caught:
        async for _ in installation.owner.follow("DrainReplica", admin_pb2.DrainReplicaRequest(replica_id="r\0")):
            pass
    assert caught.value.reason is Reason.INVALID_ARGUMENT


async def test_reflection_and_health_answer_without_telling_secrets(installation: Installation) -> None:
    stub = health_pb2_grpc.HealthStub(installation.owner._channel)  # type: ignore[no-untyped-call]
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Check(health_pb2.HealthCheckRequest(service="fleet.v1.Gateway"), timeout=10)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND, "nodes connect elsewhere"

    asking = reflection_pb2_grpc.ServerReflectionStub(installation.owner._channel)  # type: ignore[no-untyped-call]
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    metadata = installation.owner._metadata
    (listed,) = [each async for each in asking.ServerReflectionInfo(iter([question]), metadata=metadata, timeout=10)]
    assert "fleet.v1.Admin" in {service.name for service in listed.list_services_response.service}
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await anext(aiter(asking.ServerReflectionInfo(iter([question]), timeout=10)))
    assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED, "it reads what it is sent: not of strangers"


async def test_what_a_request_says_is_not_looked_at_before_its_token(installation: Installation) -> None:
    """A viewer's is not either, where viewers may not call."""
    viewer = await installation.operator("vic", "viewer")
    call: Any = installation.owner._channel.unary_unary("/fleet.v1.Admin/IssueCommands")
    found = []
    for metadata in (None, viewer._metadata, installation.owner._metadata):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"\xff no message", metadata=metadata, timeout=10)
        found.append(status.decode(failed.value).reason)
    assert found == [Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED, Reason.MALFORMED]
    await viewer.close()


async def test_a_hundred_watchers_that_leave_cost_nothing_afterwards(installation: Installation) -> None:
    await installation.add_node("n-1")
    before = len(asyncio.all_tasks())

    async def glance() -> None:
        async for _ in installation.owner.follow("WatchNodes", admin_pb2.WatchNodesRequest()):
            return

    await asyncio.gather(*(glance() for _ in range(50)))
    await asyncio.gather(*(glance() for _ in range(50)))

    await eventually(lambda: len(asyncio.all_tasks()) <= before + 5, "watchers' tasks are gone")
