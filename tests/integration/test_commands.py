"""Commands from an operator's call to a driver and back, over real streams."""

import asyncio
from collections import Counter

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2
from tests.integration.installation import Installation, assert_each_ran_once

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
FAILED = command_pb2.COMMAND_STATE_FAILED
CANCELLED = command_pb2.COMMAND_STATE_CANCELLED
EXPIRED = command_pb2.COMMAND_STATE_EXPIRED
RUNNING = command_pb2.COMMAND_STATE_RUNNING


async def test_one_issue_reaches_every_node_once(installation: Installation) -> None:
    nodes = await installation.add_nodes(4)

    views = await installation.owner.run("*", count=3)

    assert [(view.node_name, view.monotonic_seq, view.state) for view in views] == [
        (node.name, seq, SUCCEEDED) for node in nodes for seq in (1, 2, 3)
    ]
    for node in nodes:
        assert_each_ran_once(node, [view.command_id for view in views if view.node_id == node.node_id])


async def test_more_than_a_statement_holds_arrives_whole_and_in_order(installation: Installation) -> None:
    node = await installation.add_node("n-1")

    views = await installation.owner.run("n-1", count=100, action="simulated.work", arguments={"device": "press"})

    assert [view.monotonic_seq for view in views] == list(range(1, 101))
    assert {view.state for view in views} == {SUCCEEDED}
    started = list(node.runs())
    assert started == [view.command_id.hex() for view in views]


async def test_a_node_is_never_sent_more_than_it_takes(installation: Installation) -> None:
    node = await installation.add_node("n-1", max_in_flight=2)

    views = await installation.owner.run("n-1", count=20)

    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
    statements = installation.server.metrics.commands.statements.value
    assert statements >= 10


async def test_a_failed_outcome_says_why(installation: Installation) -> None:
    await installation.add_node("n-1")

    (view,) = await installation.owner.run("n-1", action="simulated.work", arguments={"fail_rate": 1})

    assert (view.state, view.reason) == (FAILED, "SIMULATED")
    assert view.error


async def test_a_command_waits_for_a_node_that_is_away(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    issued = await installation.owner.issue("n-1")
    assert (await installation.owner.command(issued.issued[0].command_id)).state == command_pb2.COMMAND_STATE_QUEUED

    await node.start()

    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert view.state == SUCCEEDED


async def test_the_same_idempotency_key_answers_the_first_result(installation: Installation) -> None:
    node = await installation.add_node("n-1")

    first = await installation.owner.issue("n-1", idempotency_key="deploy-7")
    again = await installation.owner.issue("n-1", idempotency_key="deploy-7")

    assert again.repeated_request
    assert (again.issue_id, list(again.issued)) == (first.issue_id, list(first.issued))
    await installation.owner.outcomes(first.issue_id)
    assert_each_ran_once(node, [first.issued[0].command_id])
    with pytest.raises(Refusal) as refused:
        await installation.owner.issue("n-1", count=2, idempotency_key="deploy-7")
    assert refused.value.reason is Reason.IDEMPOTENCY_CONFLICT
    assert "new key" in refused.value.detail


async def test_ten_callers_with_one_key_issue_one_command(installation: Installation) -> None:
    node = await installation.add_node("n-1")

    answers = await asyncio.gather(*(installation.owner.issue("n-1", idempotency_key="k") for _ in range(10)))

    assert len({answer.issue_id for answer in answers}) == 1
    assert sum(not answer.repeated_request for answer in answers) == 1
    await installation.owner.outcomes(answers[0].issue_id)
    assert_each_ran_once(node, [answers[0].issued[0].command_id])


async def test_a_cancel_before_the_first_signature_is_the_servers_to_decide(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    issued = await installation.owner.issue("n-1")
    command_id = issued.issued[0].command_id

    (view,) = await installation.owner.cancel(command_id)

    assert (view.state, view.reason) == (CANCELLED, "CANCELLED_BEFORE_SENDING")
    await node.start()
    (after,) = await installation.owner.run("n-1")
    assert after.state == SUCCEEDED
    assert_each_ran_once(node, [after.command_id])


async def test_a_cancel_of_what_waits_on_the_node_keeps_it_from_running(installation: Installation) -> None:
    node = await installation.add_node("n-1")
    work = {"latency_ms": 60_000, "device": "press"}
    issued = await installation.owner.issue("n-1", count=2, action="simulated.work", arguments=work)
    running, waiting = (each.command_id for each in issued.issued)
    await installation.owner.wait_command(running, lambda view: view.state == RUNNING)

    await installation.owner.cancel(waiting)
    view = await installation.owner.wait_command(waiting, lambda view: view.state == CANCELLED)

    assert not view.cancel_requested
    assert node.runs() == Counter({running.hex(): 1})
    await installation.owner.cancel(running)


async def test_a_cancel_of_what_runs_stops_the_driver(installation: Installation) -> None:
    await installation.add_node("n-1")
    issued = await installation.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 60_000})
    command_id = issued.issued[0].command_id
    await installation.owner.wait_command(command_id, lambda view: view.state == RUNNING)

    (asked,) = await installation.owner.cancel(command_id)

    assert asked.cancel_requested or asked.state == CANCELLED
    (view,) = await installation.owner.outcomes(issued.issue_id)
    assert (view.state, view.reason) == (CANCELLED, "CANCELLED")


async def test_a_cancel_of_what_ended_changes_nothing(installation: Installation) -> None:
    await installation.add_node("n-1")
    (view,) = await installation.owner.run("n-1")

    (after,) = await installation.owner.cancel(view.command_id)

    assert (after.state, after.cancel_requested) == (SUCCEEDED, False)


async def test_a_whole_issue_is_cancelled_at_once(installation: Installation) -> None:
    await installation.add_nodes(2)
    issued = await installation.owner.issue("*", count=5, action="simulated.work", arguments={"latency_ms": 60_000})

    await installation.owner.ask("CancelCommands", admin_pb2.CancelCommandsRequest(issue_id=issued.issue_id))

    views = await installation.owner.outcomes(issued.issue_id)
    assert len(views) == 10
    assert {view.state for view in views} == {CANCELLED}


async def test_a_command_whose_time_passed_before_it_could_be_sent_expires(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await node.stop()
    issued = await quick.owner.issue("n-1", ttl_s=1)

    (view,) = await quick.owner.outcomes(issued.issue_id)

    assert (view.state, view.reason) == (EXPIRED, "NEVER_SENT")
    await node.start()
    (after,) = await quick.owner.run("n-1")
    assert_each_ran_once(node, [after.command_id])


async def test_a_command_whose_time_passes_on_the_node_expires_there(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    slow = await quick.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 600, "device": "press"})
    late = await quick.owner.issue("n-1", action="simulated.work", arguments={"device": "press"}, ttl_s=2)

    (expired,) = await quick.owner.outcomes(late.issue_id)
    (done,) = await quick.owner.outcomes(slow.issue_id)

    assert (expired.state, done.state) == (EXPIRED, SUCCEEDED)
    assert_each_ran_once(node, [done.command_id])


async def test_targets_are_picked_by_name_glob_and_label(installation: Installation) -> None:
    await installation.add_nodes(3)
    selector = admin_pb2.Selector(patterns=["n-2"])
    await installation.owner.ask("LabelNodes", admin_pb2.LabelNodesRequest(selector=selector, set={"line": "two"}))

    async def targets(*patterns: str) -> list[str]:
        return sorted(each.node_name for each in (await installation.owner.issue(*patterns)).issued)

    assert await targets("n-1") == ["n-1"]
    assert await targets("n-[13]") == ["n-1", "n-3"]
    assert await targets("line=two") == ["n-2"]
    assert await targets("line=two", "n-3") == ["n-2", "n-3"]


async def test_what_a_node_says_of_itself_selects_nothing(installation: Installation) -> None:
    await installation.add_node("n-1", labels={"line": "one"})
    view = await installation.owner.node("n-1")
    assert view.reported_labels["line"] == "one"

    for pattern in ("line=one", "os=test"):
        with pytest.raises(Refusal) as refused:
            await installation.owner.issue(pattern)
        assert refused.value.reason is Reason.NO_TARGETS


async def test_watchers_see_every_step_of_every_command(installation: Installation) -> None:
    await installation.add_nodes(2)
    await installation.owner.cancel(
        *[
            each.command_id
            for each in (
                await installation.owner.issue("*", action="simulated.work", arguments={"latency_ms": 5})
            ).issued
        ]
    )
    issued = await installation.owner.issue("*", count=3)
    seen: dict[bytes, list[int]] = {}

    request = admin_pb2.WatchCommandsRequest(issue_id=issued.issue_id, until_final=True, brief=True)
    async for answer in installation.owner.follow("WatchCommands", request):
        for view in answer.commands:
            seen.setdefault(view.command_id, []).append(view.state)

    assert set(seen) == {each.command_id for each in issued.issued}
    for states in seen.values():
        assert states == sorted(states)
        assert states[-1] == SUCCEEDED
    assert answer.open == 0


async def test_the_trail_of_a_command_is_whole(installation: Installation) -> None:
    await installation.add_node("n-1")

    (view,) = await installation.owner.run("n-1")

    assert view.issued_at_ms <= view.sent_at_ms <= view.accepted_at_ms <= view.finished_at_ms
    assert view.key_id == installation.server.trust.command_key_id("")
    assert view.actor == "owner"
    kinds = [entry.kind for entry in await installation.owner.audit()]
    for kind in ("command.issued", "command.reported", "stream.opened", "enrollment.approved"):
        assert kind in kinds
