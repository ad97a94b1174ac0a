"""A machine that is gone and another that takes its place: nothing runs twice, and the former one stays out."""

import asyncio
import shutil

from fleet.errors import Reason
from fleet.v1 import admin_pb2, enrollment_pb2
from fleet.v1.command_pb2 import COMMAND_STATE_INTERRUPTED as INTERRUPTED
from fleet.v1.command_pb2 import COMMAND_STATE_RUNNING as RUNNING
from fleet.v1.command_pb2 import COMMAND_STATE_SUCCEEDED as SUCCEEDED
from tests.integration.audits import agreed
from tests.integration.installation import Installation, RunningNode
from tests.integration.waiting import eventually


async def take_place(installation: Installation, node: str, name: str) -> RunningNode:
    """Enroll a new machine and have it take the place of `node`; it does not run yet."""
    machine = RunningNode(installation.folder / name, name, installation.clock, endpoints=(installation.gateway,))
    token = await installation.join_token(auto_approve=False)
    asking = asyncio.create_task(machine.enroll(token))
    enrollment = await eventually(lambda: pending(installation, name), f"{name} waits")
    request = admin_pb2.ReplaceNodeRequest(
        node=node, enrollment_id=enrollment.enrollment_id, fingerprint=enrollment.fingerprint, reason="stolen"
    )
    await installation.owner.ask("ReplaceNode", request)
    await installation.owner.ask("ReplaceNode", request)  # an answer that got lost
    await asking
    installation.nodes[name] = machine
    return machine


async def pending(installation: Installation, name: str) -> admin_pb2.EnrollmentView | None:
    """The machine's request."""
    request = admin_pb2.ListEnrollmentsRequest(state=enrollment_pb2.ENROLLMENT_STATE_PENDING)
    answer = await installation.owner.ask("ListEnrollments", request)
    return next((one for one in answer.enrollments if one.name == name), None)


async def test_a_dead_machine_is_replaced_and_its_disk_wakes_up_later(quick: Installation) -> None:
    old = await quick.add_node("n-1")
    done = await quick.owner.run("n-1", count=3)
    await agreed(quick, 3)
    await old.stop()
    disk = quick.folder / "disk"
    shutil.copytree(old.folder.path, disk, ignore=shutil.ignore_patterns("*.sock"))
    await old.start()
    working = await quick.owner.issue("n-1", action="simulated.work", arguments={"latency_ms": 60_000})
    (command,) = working.issued
    await quick.owner.wait_command(command.command_id, lambda view: view.state == RUNNING)

    new = await take_place(quick, "n-1", "spare")  # while the former machine is alive and at work

    assert "stolen" in await old.wait_refused(Reason.REVOKED)
    (unknown,) = await quick.owner.outcomes(working.issue_id)
    assert (unknown.state, unknown.reason) == (INTERRUPTED, "REPLACED")
    queued = await quick.owner.issue("n-1", count=2)
    await old.stop()
    await new.start()
    after = await quick.owner.outcomes(queued.issue_id)
    assert [view.state for view in after] == [SUCCEEDED] * 2
    assert new.node_id == old.node_id
    assert new.runs() == {view.command_id.hex(): 1 for view in after}
    assert old.runs() == {view.command_id.hex(): 1 for view in (*done, command)}

    shutil.rmtree(old.folder.path)
    shutil.copytree(disk, old.folder.path)
    await old.start(wait_live=False)
    assert "another machine has taken this one's place" in await old.wait_refused(Reason.REVOKED)
    assert (await quick.owner.run("n-1"))[0].state == SUCCEEDED
    assert len(old.runs()) == 4

    _, between = await agreed(quick, 6)
    assert (between.broken, [chain.chain for chain in between.chains]) == ((), [1])
    view = await quick.owner.node("n-1")
    assert (view.state, view.online) == ("ACTIVE", True)
    assert view.checklist_open > 0


async def test_of_many_orders_around_a_replacement_none_runs_on_both_machines(quick: Installation) -> None:
    old = await quick.add_node("n-1")
    issues = []

    async def order() -> None:
        for _ in range(40):
            issue = await quick.owner.issue("n-1")
            issues.append(issue)

    ordering = asyncio.create_task(order())
    await eventually(lambda: len(issues) > 10, "orders flow")
    new = await take_place(quick, "n-1", "spare")
    await ordering
    await new.start()

    outcomes = [view for issue in issues for view in await quick.owner.outcomes(issue.issue_id)]
    assert not old.runs().keys() & new.runs().keys()
    assert max((old.runs() + new.runs()).values()) == 1
    for view in outcomes:
        ran = view.command_id.hex() in old.runs() | new.runs()
        assert ran if view.state == SUCCEEDED else view.state == INTERRUPTED
