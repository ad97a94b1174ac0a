"""Orders that cannot be carried out: each says why and what to do, and none of them takes a seq."""

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2
from fleet_server.commands import rules
from tests.integration.handmade import HandmadeNode
from tests.integration.installation import Installation

REJECTED = command_pb2.COMMAND_STATE_REJECTED


async def refused_issue(installation: Installation, *patterns: str, **fields: object) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await installation.owner.issue(*patterns, **fields)  # type: ignore[arg-type]
    return refused.value


async def refused_target(installation: Installation, *patterns: str, **fields: object) -> admin_pb2.RefusedTarget:
    answer = await installation.owner.issue(*patterns, **fields)  # type: ignore[arg-type]
    assert not answer.issued
    (target,) = answer.refused
    return target


async def test_to_nobody(installation: Installation) -> None:
    await installation.add_node("n-1")
    for pattern in ("n-2", "line=*", "press-*"):
        refusal = await refused_issue(installation, pattern)
        assert refusal.reason is Reason.NO_TARGETS
        assert "fleetctl nodes list" in refusal.detail
    with pytest.raises(Refusal) as nobody:
        spec = admin_pb2.CommandSpec(action="simulated.noop")
        await installation.owner.ask("IssueCommands", admin_pb2.IssueCommandsRequest(commands=[spec]))
    assert nobody.value.reason is Reason.NO_TARGETS


async def test_an_unknown_action(installation: Installation) -> None:
    await installation.add_node("n-1")
    target = await refused_target(installation, "n-1", action="simulated.explode")
    assert target.reason == "UNKNOWN_ACTION"
    assert "simulated.explode" in target.detail


@pytest.mark.parametrize(
    "arguments",
    [{"latency_ms": "soon"}, {"latency_ms": -1}, {"colour": "red"}, {"fail_rate": 2}],
    ids=str,
)
async def test_arguments_off_the_schema(installation: Installation, arguments: dict[str, object]) -> None:
    await installation.add_node("n-1")
    target = await refused_target(installation, "n-1", action="simulated.work", arguments=arguments)
    assert target.reason == "ARGUMENTS_INVALID"
    assert next(iter(arguments)) in target.detail
    assert (await installation.owner.node("n-1")).last_seq == 0


@pytest.mark.parametrize("text", [b"{", b"[]", b"7", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff", b"[" * 5000])
async def test_arguments_that_are_no_json_object(installation: Installation, text: bytes) -> None:
    await installation.add_node("n-1")
    request = admin_pb2.IssueCommandsRequest(
        selector=admin_pb2.Selector(patterns=["*"]),
        commands=[admin_pb2.CommandSpec(action="simulated.noop", arguments=text)],
    )
    with pytest.raises(Refusal) as refused:
        await installation.owner.ask("IssueCommands", request)
    assert refused.value.reason is Reason.ARGUMENTS_INVALID
    assert "the arguments of the command are no JSON" in refused.value.detail


async def test_too_large(installation: Installation) -> None:
    await installation.add_node("n-1")
    refusal = await refused_issue(installation, "n-1", arguments={"x": "y" * rules.MAX_ARGUMENT_BYTES})
    assert refusal.reason is Reason.ARGUMENTS_TOO_LARGE
    assert str(rules.MAX_ARGUMENT_BYTES) in refusal.detail
    assert (await refused_issue(installation, "n-1", count=1025)).reason is Reason.INVALID_ARGUMENT
    assert (await refused_issue(installation, "n-1", ttl_s=2**31)).reason is Reason.INVALID_ARGUMENT
    assert (await refused_issue(installation, "n-1", idempotency_key="k" * 129)).reason is Reason.INVALID_ARGUMENT


async def test_a_request_of_many_megabytes_is_refused_as_such(installation: Installation) -> None:
    await installation.add_node("n-1")
    refusal = await refused_issue(installation, "n-1", count=70, arguments={"x": "y" * 64_000})
    assert refusal.reason in (Reason.FRAME_TOO_LARGE, Reason.OVERLOADED)
    assert refusal.detail


@pytest.mark.parametrize("state", ["SUSPENDED", "REVOKED"])
async def test_to_a_node_that_was_sent_away(installation: Installation, state: str) -> None:
    await installation.add_nodes(2)
    await installation.owner.set_state("n-1", state, "odd readings")

    answer = await installation.owner.issue("*")

    assert [each.node_name for each in answer.issued] == ["n-2"]
    (target,) = answer.refused
    assert (target.node_name, target.reason) == ("n-1", state)
    assert "odd readings" in target.detail


async def test_to_a_node_that_never_connected(installation: Installation) -> None:
    await installation.enroll("n-1")
    target = await refused_target(installation, "n-1")
    assert target.reason == "UNKNOWN_ACTION"
    assert "never connected" in target.detail


async def test_what_waited_for_a_node_that_lost_the_action_is_rejected_there(installation: Installation) -> None:
    node = await installation.enroll("n-1")
    async with HandmadeNode(installation, node) as hand, hand.welcomed():
        pass  # it says that it has simulated.noop, with a schema of its own
    issued = await installation.owner.issue("n-1")
    object.__setattr__(node.settings, "drivers_enabled", ("host",))
    object.__setattr__(node.settings, "driver_tables", {})

    await node.start()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert (view.state, view.reason) == (REJECTED, "UNKNOWN_ACTION")
    assert view.error


async def test_to_a_node_whose_queue_is_full(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    for _ in range(9):
        await installation.owner.issue("n-1", count=1024, summary_only=True)

    target = await refused_target(installation, "n-1", count=1024)

    assert target.reason == "QUEUE_FULL"
    assert "wait for results, or cancel" in target.detail


async def test_cancels_of_what_is_not_there(installation: Installation) -> None:
    for request, reason in (
        (admin_pb2.CancelCommandsRequest(command_ids=[b"x" * 16]), Reason.NOT_FOUND),
        (admin_pb2.CancelCommandsRequest(command_ids=[b"short"]), Reason.INVALID_ARGUMENT),
        (admin_pb2.CancelCommandsRequest(issue_id="no-such"), Reason.NOT_FOUND),
        (admin_pb2.CancelCommandsRequest(), Reason.INVALID_ARGUMENT),
    ):
        with pytest.raises(Refusal) as refused:
            await installation.owner.ask("CancelCommands", request)
        assert refused.value.reason is reason
        assert refused.value.detail
