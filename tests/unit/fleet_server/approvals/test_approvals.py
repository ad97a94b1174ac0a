"""Protected commands wait for people's signatures, and are issued once, as signed, or never."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet.intents import Order, judge_intent
from fleet.v1 import admin_pb2, command_pb2, trust_pb2
from fleet_server.approvals import rules, service
from fleet_server.approvals.rules import ApprovalState
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.approvals.plant import ACTION, ARGUMENTS, Plant

STRANGER = Signer.from_private_bytes(b"\x07" * 32)


def issue(*targets: str, intent: trust_pb2.Signed | None = None) -> admin_pb2.IssueCommandsRequest:
    spec = admin_pb2.CommandSpec(action=ACTION, arguments=ARGUMENTS, intent=intent)
    return admin_pb2.IssueCommandsRequest(selector=admin_pb2.Selector(patterns=targets), commands=[spec])


async def test_with_the_last_signature_the_command_is_issued_as_it_was_signed(plant: Plant) -> None:
    await plant.settle_people()
    one, two = await plant.add_node("n1"), await plant.add_node("n2")
    approval, nothing = await plant.approvals.propose("ada", plant.proposal(plant.intent(one, two), plant.ada))
    assert (approval.state, nothing) == (ApprovalState.PENDING, None)
    view = await plant.approvals.get(approval.approval_id)
    assert (list(view.signers), view.required) == (["ada"], 2)
    assert [each.approval_id for each in await plant.approvals.listed(everything=False)] == [view.approval_id]

    done, issued = await plant.approvals.sign("bob", view.approval_id, plant.signature(view, plant.bob))

    assert issued is not None
    assert (done.state, issued.issued_count) == (ApprovalState.ISSUED, 2)
    (pending,) = await plant.claim(one)
    command = command_pb2.Command.FromString(pending.terms.encoded)
    assert (command.actor, command.action, command.arguments) == ("ada", ACTION, ARGUMENTS)

    people = await plant.database.read(plant.trust.people.verified)
    order = Order(one.node_id, one.name, one.fingerprint, command.action, command.arguments)
    judgement = judge_intent(people, command.intent, order, now_ms=plant.clock.now_ms())
    assert judgement.passes, judgement
    assert judgement.people == {"ada", "bob"}
    assert await plant.approvals.listed(everything=False) == []
    assert (await plant.approvals.get(view.approval_id)).state == "ISSUED"
    told = [kind for kind in await plant.kinds() if kind.startswith(("approval.", "command.issued"))]
    assert told == ["approval.requested", "approval.signed", "command.issued", "approval.issued"]


async def test_approvals_are_forgotten_long_after_their_intent_has_ended(
    plant: Plant, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_PRUNED_AT_ONCE", 2)
    await plant.settle_people()
    node = await plant.add_node("n1")
    proposals = [plant.proposal(plant.intent(node, minutes=minutes), plant.ada) for minutes in (5, 5, 5, 5, 120)]
    made = [(await plant.approvals.propose("ada", proposal))[0].approval_id for proposal in proposals]
    await plant.approvals.close("bob", made[0], withdraw=False, reason="no")
    view = await plant.approvals.get(made[1])
    await plant.approvals.sign("bob", made[1], plant.signature(view, plant.bob))

    async def kept() -> set[str]:
        await plant.approvals.prune()
        return {each.approval_id for each in await plant.approvals.listed(everything=True)}

    plant.approvals._retention_ms = 3_600_000
    await clock.advance(3600 + 299)
    assert await kept() == set(made)
    await clock.advance(2)
    assert await kept() == {made[4]}
    with pytest.raises(Refusal, match="INTENT_REFUSED"):
        await plant.approvals.propose("ada", proposals[1])
    assert (await plant.kinds()).count("approval.requested") == 5


async def test_one_signature_is_enough_where_one_is_asked_for(plant: Plant) -> None:
    await plant.settle_people(required=1)
    node = await plant.add_node("n1")
    approval, issued = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    assert issued is not None
    assert (approval.state, issued.issued_count) == (ApprovalState.ISSUED, 1)


async def test_proposing_twice_is_proposing_once(plant: Plant) -> None:
    await plant.settle_people(required=1)
    node = await plant.add_node("n1")
    proposal = plant.proposal(plant.intent(node), plant.ada)
    await plant.approvals.propose("ada", proposal)
    again, issued = await plant.approvals.propose("ada", proposal)
    assert issued is not None
    assert (again.state, issued.issued_count, issued.repeated_request) == (ApprovalState.ISSUED, 1, True)
    assert len(await plant.claim(node)) == 1


async def test_what_was_approved_and_not_issued_is_issued_by_whoever_comes_after(plant: Plant) -> None:
    await plant.settle_people(required=1)
    node = await plant.add_node("n1")
    real, plant.commands._issuing.issue = plant.commands._issuing.issue, _away  # type: ignore[method-assign]
    with pytest.raises(Refusal, match="UNAVAILABLE"):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    plant.commands._issuing.issue = real  # type: ignore[method-assign]
    await plant.approvals.finish()
    await plant.approvals.finish()
    (view,) = await plant.approvals.listed(everything=True)
    assert (view.state, len(await plant.claim(node))) == ("ISSUED", 1)


@pytest.mark.parametrize("reason", [Reason.OVERLOADED, Reason.QUEUE_FULL, Reason.SUSPENDED, Reason.UNAVAILABLE])
async def test_what_passes_does_not_throw_peoples_signatures_away(plant: Plant, reason: Reason) -> None:
    async def not_now(*_: Any, **__: Any) -> Any:
        raise Refusal(reason, "not now")

    await plant.settle_people(required=1)
    node = await plant.add_node("n1")
    real, plant.commands._issuing.issue = plant.commands._issuing.issue, not_now  # type: ignore[method-assign]
    with pytest.raises(Refusal, match=reason):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    (view,) = await plant.approvals.listed(everything=True)
    assert view.state == "APPROVED"
    plant.commands._issuing.issue = real  # type: ignore[method-assign]
    await plant.approvals.finish()
    (view,) = await plant.approvals.listed(everything=True)
    assert (view.state, len(await plant.claim(node))) == ("ISSUED", 1)


async def test_nothing_is_issued_in_the_name_of_who_may_order_nothing_any_more(plant: Plant) -> None:
    await plant.settle_people()
    node = await plant.add_node("n1")
    approval, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    plant.revoked.add("ada")
    view = await plant.approvals.get(approval.approval_id)
    with pytest.raises(Refusal, match="ada, who proposed it"):
        await plant.approvals.sign("bob", approval.approval_id, plant.signature(view, plant.bob))
    view = await plant.approvals.get(approval.approval_id)
    assert (view.state, view.closed_by, await plant.claim(node)) == ("REJECTED", "server", [])
    assert "approval.closed" in await plant.kinds()


async def test_a_replica_that_was_late_ends_nothing_otherwise(plant: Plant) -> None:
    """It was refused for good just when another one issued the command."""
    await plant.settle_people(required=1)
    node = await plant.add_node("n1")
    replica = await plant.another_replica()

    async def late(actor: str, request: Any) -> Any:
        await plant.approvals.finish()
        raise Refusal(Reason.NO_TARGETS, "no such node")

    real, plant.commands._issuing.issue = plant.commands._issuing.issue, _away  # type: ignore[method-assign]
    with pytest.raises(Refusal):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    plant.commands._issuing.issue = real  # type: ignore[method-assign]
    replica._commands.issue = late  # type: ignore[method-assign]
    await replica.finish()
    (view,) = await plant.approvals.listed(everything=True)
    assert (view.state, len(await plant.claim(node))) == ("ISSUED", 1)
    assert [kind for kind in await plant.kinds() if kind.startswith("approval")][-1] == "approval.issued"


async def test_signatures_of_strangers_take_nobodys_place(plant: Plant) -> None:
    await plant.settle_people()
    node = await plant.add_node("n1")
    strangers = [Signer.generate() for _ in range(15)]
    proposal = plant.proposal(plant.intent(node), plant.ada, *strangers)
    approval, _ = await plant.approvals.propose("ada", proposal)
    view = await plant.approvals.get(approval.approval_id)
    done, _ = await plant.approvals.sign("bob", approval.approval_id, plant.signature(view, plant.bob))
    assert done.state is ApprovalState.ISSUED


async def test_nobody_takes_all_the_places_of_those_who_propose(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_PENDING_EACH", 2)
    await plant.settle_people()
    node = await plant.add_node("n1")
    for _ in range(2):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    with pytest.raises(Refusal, match="commands of yours"):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    await plant.approvals.propose("bob", plant.proposal(plant.intent(node), plant.bob))


async def test_of_many_who_sign_at_once_on_two_replicas_all_see_it_issued_once(plant: Plant) -> None:
    others = {name: Signer.generate() for name in ("cleo", "dan", "eve")}
    await plant.settle_people()
    for name, key in others.items():
        await plant.put(role_grant=plant.grant(name, key))
    node = await plant.add_node("n1")
    replica = await plant.another_replica()
    for _ in range(3):
        approval, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
        view = await plant.approvals.get(approval.approval_id)
        rooms = (plant.approvals, replica, plant.approvals)
        signing = [
            room.sign(name, view.approval_id, plant.signature(view, key))
            for room, (name, key) in zip(rooms, others.items(), strict=True)
        ]
        outcomes = await asyncio.gather(*signing, return_exceptions=True)
        issued = [each for each in outcomes if not isinstance(each, BaseException)]
        late = [each for each in outcomes if isinstance(each, Refusal)]
        assert len(issued) + len(late) == len(others)
        assert {each.reason for each in late} <= {Reason.ALREADY_DECIDED}
        assert {answer.issue_id for _, answer in issued if answer is not None} == {
            (await plant.approvals.get(view.approval_id)).issue_id
        }
    assert len(await plant.claim(node)) == 3


async def test_what_is_approved_is_not_rejected_any_more(plant: Plant) -> None:
    await plant.settle_people(required=1)
    node = await plant.add_node("n1")
    real, plant.commands._issuing.issue = plant.commands._issuing.issue, _away  # type: ignore[method-assign]
    proposal = plant.proposal(plant.intent(node), plant.ada)
    with pytest.raises(Refusal, match="UNAVAILABLE"):
        await plant.approvals.propose("ada", proposal)
    plant.commands._issuing.issue = real  # type: ignore[method-assign]
    (view,) = await plant.approvals.listed(everything=True)
    with pytest.raises(Refusal, match="APPROVED already"):
        await plant.approvals.close("bob", view.approval_id, withdraw=False, reason="no")
    done, issued = await plant.approvals.sign("bob", view.approval_id, plant.signature(view, plant.bob))
    assert issued is not None
    assert (done.state, issued.issued_count) == (ApprovalState.ISSUED, 1)


async def _away(*_: Any) -> Any:
    raise Refusal(Reason.UNAVAILABLE, "the database is away")


BAD: dict[str, Callable[[Plant, Any, Any], admin_pb2.ProposeCommandRequest]] = {
    "a stranger's key": lambda plant, one, _: plant.proposal(plant.intent(one), STRANGER),
    "nobody's signature": lambda plant, one, _: plant.proposal(plant.intent(one)),
    "other arguments": lambda plant, one, _: plant.proposal(plant.intent(one), plant.ada, arguments=b'{"line": 3}'),
    "another action": lambda plant, one, _: plant.proposal(plant.intent(one, action="press.start"), plant.ada),
    "another cluster": lambda plant, one, _: plant.proposal(plant.intent(one, cluster_id="c-other"), plant.ada),
    "no nodes": lambda plant, _, __: plant.proposal(plant.intent(), plant.ada),
    "a short id": lambda plant, one, _: plant.proposal(plant.intent(one, intent_id=b"short"), plant.ada),
    "its end before its begin": lambda plant, one, _: plant.proposal(plant.intent(one, minutes=-1), plant.ada),
}


@pytest.mark.parametrize("case", BAD)
async def test_an_intent_that_no_node_would_take_is_refused_at_once(plant: Plant, case: str) -> None:
    await plant.settle_people()
    one, two = await plant.add_node("n1"), await plant.add_node("n2")
    with pytest.raises(Refusal) as refused:
        await plant.approvals.propose("ada", BAD[case](plant, one, two))
    assert refused.value.reason is Reason.INTENT_REFUSED
    assert await plant.approvals.listed(everything=True) == []


async def test_nobody_is_asked_to_sign_what_no_node_would_take(plant: Plant) -> None:
    await plant.settle_people()
    node, other = await plant.add_node("n1"), await plant.add_node("n2", action="press.start")
    with pytest.raises(Refusal, match="UNKNOWN_ACTION: n2"):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(other), plant.ada))
    await plant.approvals.propose("ada", plant.proposal(plant.intent(node, other), plant.ada))
    await plant.nodes.set_state("owner", ["n1"], "SUSPENDED", "repair")
    with pytest.raises(Refusal, match="SUSPENDED"):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))


async def test_a_list_of_approvals_fits_one_message(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    await plant.settle_people()
    node = await plant.add_node("n1")
    for _ in range(3):
        await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    monkeypatch.setattr(service, "MAX_LISTED_BYTES", 2 * 2600)
    assert len(await plant.approvals.listed(everything=True)) == 2


async def test_signatures_that_do_not_count_are_refused_and_change_nothing(plant: Plant) -> None:
    await plant.settle_people()
    node = await plant.add_node("n1")
    approval, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    view = await plant.approvals.get(approval.approval_id)
    forged = trust_pb2.Signature(key_id=plant.bob.key_id, value=bytes(64))
    for signature in (plant.signature(view, STRANGER), forged):
        with pytest.raises(Refusal, match="INTENT_REFUSED"):
            await plant.approvals.sign("bob", view.approval_id, signature)
    same, nothing = await plant.approvals.sign("ada", view.approval_id, plant.signature(view, plant.ada))
    assert (same.state, nothing) == (ApprovalState.PENDING, None)
    assert list((await plant.approvals.get(view.approval_id)).signers) == ["ada"]


async def test_a_person_whose_grant_has_expired_does_not_count(plant: Plant) -> None:
    await plant.name_owner()
    await plant.put(role_grant=plant.grant("ada", plant.ada, days=20))
    await plant.put(role_grant=plant.grant("bob", plant.bob, days=1))
    await plant.put(policy=plant.policy(2))
    node = await plant.add_node("n1")
    plant.clock.advance_nowait(2 * 24 * 3600.0)
    approval, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    view = await plant.approvals.get(approval.approval_id)
    same, issued = await plant.approvals.sign("bob", view.approval_id, plant.signature(view, plant.bob))
    assert (same.state, issued) == (ApprovalState.PENDING, None)


async def test_after_its_time_nobody_signs_it(plant: Plant) -> None:
    await plant.settle_people()
    node = await plant.add_node("n1")
    approval, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node, minutes=5), plant.ada))
    view = await plant.approvals.get(approval.approval_id)
    plant.clock.advance_nowait(301.0)
    with pytest.raises(Refusal, match="ALREADY_DECIDED"):
        await plant.approvals.sign("bob", view.approval_id, plant.signature(view, plant.bob))
    assert (await plant.approvals.get(view.approval_id)).state == "EXPIRED"
    assert await plant.approvals.listed(everything=False) == []


async def test_the_commands_end_no_later_than_the_intent(plant: Plant) -> None:
    await plant.settle_people(required=1)
    node = await plant.add_node("n1")
    await plant.approvals.propose("ada", plant.proposal(plant.intent(node, minutes=1), plant.ada, ttl_s=3600))
    (pending,) = await plant.claim(node)
    assert pending.terms.not_after_ms <= plant.clock.now_ms() + 60_000


async def test_rejecting_is_anybodys_and_withdrawing_ones_own(plant: Plant) -> None:
    await plant.settle_people()
    node = await plant.add_node("n1")
    first, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    second, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    with pytest.raises(Refusal, match="PERMISSION_DENIED"):
        await plant.approvals.close("bob", first.approval_id, withdraw=True, reason="")
    assert (await plant.approvals.close("bob", first.approval_id, withdraw=False, reason="no")).reason == "no"
    await plant.approvals.close("ada", second.approval_id, withdraw=True, reason="")
    view = await plant.approvals.get(first.approval_id)
    with pytest.raises(Refusal, match="ALREADY_DECIDED"):
        await plant.approvals.sign("bob", first.approval_id, plant.signature(view, plant.bob))
    with pytest.raises(Refusal, match="NOT_FOUND"):
        await plant.approvals.close("bob", "ff", withdraw=False, reason="")
    assert {each.state for each in await plant.approvals.listed(everything=True)} == {"REJECTED", "WITHDRAWN"}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ("UPDATE approvals SET arguments = ?", [b'{"line": 9}']),
        ("UPDATE approvals SET created_by = ?", ["owner"]),
        ("UPDATE approvals SET state = ?", ["APPROVED"]),
        ("UPDATE approvals SET expires_at_ms = expires_at_ms + 1", []),
    ],
)
async def test_a_row_that_was_written_around_the_server_is_used_for_nothing(
    plant: Plant, change: str, fields: list[Any]
) -> None:
    await plant.settle_people()
    node = await plant.add_node("n1")
    approval, _ = await plant.approvals.propose("ada", plant.proposal(plant.intent(node), plant.ada))
    view = await plant.approvals.get(approval.approval_id)
    await plant.tamper(change, *fields)
    await plant.approvals.finish()
    for _ in range(2):
        with pytest.raises(Refusal, match="QUARANTINED"):
            await plant.approvals.sign("bob", view.approval_id, plant.signature(view, plant.bob))
    assert (await plant.approvals.listed(everything=True))[0].state == "QUARANTINED"
    assert await plant.claim(node) == []
    assert (await plant.kinds()).count("approval.quarantined") == 1


# -- issuing without approval ---------------------------------------------------------------------------------------


async def test_a_protected_action_is_issued_to_nobody_without_an_intent(plant: Plant) -> None:
    free, guarded = await plant.add_node("n1", protected=False), await plant.add_node("n2")
    with pytest.raises(Refusal) as refused:
        await plant.commands.issue("ada", issue("*"))
    assert (refused.value.reason, refused.value.metadata) == (Reason.INTENT_REQUIRED, {"action": ACTION})
    assert (await plant.commands.issue("ada", issue("n1"))).issued_count == 1
    await plant.settle_people()
    with pytest.raises(Refusal, match="INTENT_REQUIRED"):  # the policy names it, whatever the node says
        await plant.commands.issue("ada", issue("n1"))
    assert (len(await plant.claim(free)), len(await plant.claim(guarded))) == (1, 0)


async def test_an_intent_serves_no_other_command(plant: Plant) -> None:
    await plant.settle_people(required=1)
    one, two = await plant.add_node("n1"), await plant.add_node("n2")
    signed = plant.proposal(plant.intent(one), plant.ada).command.intent
    with pytest.raises(Refusal, match="does not name the node n2"):
        await plant.commands.issue("ada", issue("*", intent=signed))
    request = issue("n1", intent=signed)
    request.commands[0].arguments = b'{"line": 3}'
    with pytest.raises(Refusal, match="other arguments"):
        await plant.commands.issue("ada", request)
    other = plant.intent(two)
    other.targets[0].fingerprint = one.fingerprint
    with pytest.raises(Refusal, match="another fingerprint"):
        await plant.commands.issue("ada", issue("n2", intent=plant.proposal(other, plant.ada).command.intent))
