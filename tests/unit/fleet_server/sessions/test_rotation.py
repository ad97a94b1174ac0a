"""Rotation over both databases: what may be ordered, what each side may lose on the way, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet import sealing
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.node_keys import sign_rotation
from fleet.v1 import gateway_pb2
from fleet_server.nodes.record import NodeRecord, NodeState
from fleet_server.sessions import rotations
from fleet_server.sessions.rotations import KEYS, ApiKeyRow, Rotation, Wanted
from fleet_server.sessions.service import ENDED_KEPT_MS
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import Node, World, refused

HOUR_MS = 3_600_000
ALL = Wanted.API_KEY | KEYS
API_KEY = gateway_pb2.ROTATION_SUBJECT_API_KEY
NODE_KEYS = gateway_pb2.ROTATION_SUBJECT_NODE_KEYS


def key(number: int, ends_ms: int = 0) -> ApiKeyRow:
    return ApiKeyRow(bytes([number]) * 32, "nd", number, ends_ms, intact=True)


STANDING, FORMER, OFFERED = key(1), key(0, 5_000), key(2)
OFFER = Rotation("nd", Wanted.API_KEY, new_key_sha256=OFFERED.key_sha256, sealed_api_key=b"s")
ACTIVE = NodeState.ACTIVE


def record(state: NodeState) -> NodeRecord:
    return NodeRecord("nd", "cl", "n", "", b"i" * 32, b"s" * 32, {}, state, "", 0, b"", intact=True)


@pytest.mark.parametrize(
    ("held", "live", "wanted", "overlap_ms", "state", "reason"),
    [
        (Rotation("nd"), [STANDING], Wanted.API_KEY, 1, NodeState.REVOKED, Reason.REVOKED),
        (Rotation("nd"), [STANDING], Wanted.API_KEY, 1, NodeState.QUARANTINED, Reason.QUARANTINED),
        (Rotation("nd", intact=False), [STANDING], Wanted.IDENTITY, 1, ACTIVE, Reason.QUARANTINED),
        (Rotation("nd"), [FORMER, STANDING], Wanted.API_KEY, 1, ACTIVE, Reason.CONFLICT),
        (Rotation("nd"), [FORMER, STANDING], ALL, 1, ACTIVE, Reason.CONFLICT),
        (Rotation("nd"), [STANDING], Wanted.API_KEY, 1, ACTIVE, None),
        (Rotation("nd"), [STANDING], Wanted.API_KEY, 1, NodeState.SUSPENDED, None),
        (Rotation("nd"), [FORMER, STANDING], KEYS, 1, ACTIVE, None),
        (Rotation("nd"), [FORMER, STANDING], Wanted.API_KEY, 0, ACTIVE, None),
        (OFFER, [STANDING, OFFERED], ALL, 1, ACTIVE, None),
    ],
)
def test_what_may_be_ordered(
    held: Rotation,
    live: list[ApiKeyRow],
    wanted: Wanted,
    overlap_ms: int,
    state: NodeState,
    reason: Reason | None,
) -> None:
    decided = rotations.order(
        held, record(state), live, wanted=wanted, overlap_ms=overlap_ms, actor="ada", now_ms=1_000
    )
    if reason is None:
        assert isinstance(decided, Rotation)
        assert decided.wanted == held.wanted | wanted
        assert decided.new_key_sha256 == held.new_key_sha256, "an offer stands"
    else:
        assert isinstance(decided, Refusal)
        assert decided.reason is reason


@pytest.mark.parametrize(("wanted", "overlap_s"), [(Wanted(0), 60), (ALL, 30 * 86_400 + 1)])
def test_an_order_that_makes_no_sense(wanted: Wanted, overlap_s: int) -> None:
    with pytest.raises(Refusal) as wrong:
        rotations.checked_order(wanted, overlap_s)
    assert wrong.value.reason is Reason.INVALID_ARGUMENT


def test_keys_go_first_and_a_tampered_order_says_nothing() -> None:
    everything = Rotation("nd", ALL)
    (order,) = everything.orders()
    assert (order.rotate_keys.identity, order.rotate_keys.sealing) == (True, True)
    assert not everything.needs_api_key
    assert replace(everything, wanted=Wanted.API_KEY).needs_api_key
    assert OFFER.orders()[0].api_key.sealed_api_key == b"s"
    assert replace(OFFER, intact=False).orders() == ()
    assert Rotation("nd").orders() == ()


# -- over a database --------------------------------------------------------------------------------------------------
async def offered(world: World, node: Node, keys: NodeKeys | None = None) -> str:
    """The api_key that the server offers, as the node opens it."""
    (order,) = await world.sessions.rotations.orders(node.node_id)
    keys = keys or node.keys
    info = sealing.sealing_info(sealing.Purpose.API_KEY, world.trust.cluster_id, node.node_id, keys.fingerprint)
    return sealing.unseal(order.api_key.sealed_api_key, keys.sealing, info).decode()


async def opens(node: Node, api_key: str, stream_id: str = "s") -> bool:
    before, node.api_key = node.api_key, api_key
    try:
        await node.connect(stream_id=stream_id)
    except Refusal as refusal:
        assert refusal.reason is Reason.REVOKED
        return False
    finally:
        node.api_key = before
    return True


async def rotate(world: World, wanted: Wanted, overlap_s: int = 3600) -> None:
    await world.sessions.rotations.rotate("ada", ["node-1"], wanted, overlap_s)


async def test_old_and_new_work_side_by_side_until_the_new_one_was_used_and_its_time_has_come(
    world: World, clock: MockClock
) -> None:
    node = await world.member()
    old = node.api_key
    await rotate(world, Wanted.API_KEY)
    new = await offered(world, node)
    assert (await world.node("node-1")).rotating == ("api",)

    await clock.advance(2 * 3600)
    assert await opens(node, old), "the new one was not used: the old one stands, whatever the time"
    assert await opens(node, new)
    assert not await opens(node, old), "its time was over already"
    assert await opens(node, new)
    assert (await world.node("node-1")).rotating == ()
    assert "api_key.replaced" in await world.audited()


async def test_the_former_one_stays_good_for_the_overlap(world: World, clock: MockClock) -> None:
    node = await world.member()
    old = node.api_key
    await rotate(world, Wanted.API_KEY)
    assert await opens(node, await offered(world, node))
    await clock.advance(3599)
    assert await opens(node, old)
    await clock.advance(1)
    assert not await opens(node, old)


async def test_an_order_that_is_given_again_offers_the_same_key(world: World) -> None:
    node = await world.member()
    await rotate(world, Wanted.API_KEY)
    first = await offered(world, node)
    await rotate(world, Wanted.API_KEY)
    assert await offered(world, node) == first
    assert await world.value("SELECT count(*) FROM api_keys") == 2


async def test_there_is_never_a_third_key(world: World, clock: MockClock) -> None:
    node = await world.member()
    clock.advance_nowait(0.001)  # keys are told apart by when they were made
    await rotate(world, Wanted.API_KEY)
    assert await opens(node, await offered(world, node))
    assert await refused(rotate(world, Wanted.API_KEY)) is Reason.CONFLICT
    await rotate(world, Wanted.API_KEY, overlap_s=0)
    assert not await opens(node, node.api_key), "an overlap of 0 ends the former one"
    live = "SELECT count(*) FROM api_keys WHERE revoked_at_ms = 0 OR revoked_at_ms > ?"
    assert await world.value(live, world.clock.now_ms()) == 2


async def test_new_keys_are_known_at_once_and_the_old_ones_prove_nothing(world: World) -> None:
    node = await world.member()
    await rotate(world, ALL)
    new = NodeKeys.generate()
    statement = sign_rotation(
        cluster_id=world.trust.cluster_id,
        node_id=node.node_id,
        old=node.keys,
        new=new,
        issued_at_ms=world.clock.now_ms(),
    )
    before = await world.node("node-1")
    for _ in range(2):  # the answer was lost, and it is asked again
        taken = await world.sessions.rotations.take_keys(node.node_id, await world.epoch(node.node_id), statement)
        assert (taken.taken, taken.fingerprint) == (True, new.fingerprint)
    after = await world.node("node-1")
    assert (after.identity_key, after.sealing_key) == (new.identity.public_key, new.sealing_public)
    assert (after.node_id, after.name, after.intact) == (before.node_id, before.name, True)
    assert (await world.audited()).count("node.keys_replaced") == 1

    assert await refused(node.connect()) is Reason.BAD_PROOF
    node.keys = new
    await node.connect()
    assert await offered(world, node, new), "the api_key comes last, sealed to the new keys"


async def test_an_offer_that_is_sealed_to_the_old_keys_is_taken_back(world: World) -> None:
    node = await world.member()
    await rotate(world, Wanted.API_KEY)
    first, old = await offered(world, node), node.keys
    node.keys = NodeKeys(old.identity, NodeKeys.generate().sealing)
    statement = sign_rotation(
        cluster_id=world.trust.cluster_id,
        node_id=node.node_id,
        old=old,
        new=node.keys,
        issued_at_ms=world.clock.now_ms(),
    )
    assert (await world.sessions.rotations.take_keys(node.node_id, await world.epoch(node.node_id), statement)).taken
    assert not await opens(node, first)
    assert await opens(node, await offered(world, node))


async def test_another_nodes_keys_are_refused(world: World) -> None:
    node, other = await world.member(), await world.member("node-2")
    statement = sign_rotation(
        cluster_id=world.trust.cluster_id,
        node_id=node.node_id,
        old=node.keys,
        new=other.keys,
        issued_at_ms=world.clock.now_ms(),
    )
    answer = await world.sessions.rotations.take_keys(node.node_id, await world.epoch(node.node_id), statement)
    assert (answer.taken, answer.reason) == (False, "CONFLICT")
    assert "node.rotation_refused" in await world.audited()


@pytest.mark.parametrize(("state", "reason"), [("SUSPENDED", "SUSPENDED"), ("REVOKED", "REVOKED")])
async def test_a_node_that_is_out_replaces_nothing(world: World, state: str, reason: str) -> None:
    node = await world.member()
    await world.nodes.set_state("ada", ["node-1"], state, "odd")
    statement = sign_rotation(
        cluster_id=world.trust.cluster_id,
        node_id=node.node_id,
        old=node.keys,
        new=NodeKeys.generate(),
        issued_at_ms=world.clock.now_ms(),
    )
    answer = await world.sessions.rotations.take_keys(node.node_id, await world.epoch(node.node_id), statement)
    assert (answer.taken, answer.reason) == (False, reason)


@pytest.mark.parametrize(
    ("subject", "reason", "left"),
    [
        (NODE_KEYS, "PINNED", ("api",)),
        (NODE_KEYS, "DISK", ("api", "identity", "sealing")),
        (API_KEY, "CANNOT_OPEN", ("identity", "sealing")),
    ],
)
async def test_what_a_node_cannot_follow_is_off_and_what_it_may_follow_later_stands(
    world: World, subject: gateway_pb2.RotationSubject.ValueType, reason: str, left: tuple[str, ...]
) -> None:
    node = await world.member()
    await rotate(world, ALL)
    answer = gateway_pb2.RotationAnswer(subject=subject, applied=False, reason=reason)
    await world.sessions.rotations.answered(node.node_id, await world.epoch(node.node_id), answer)
    assert (await world.node("node-1")).rotating == left
    assert "node.rotation_refused" in await world.audited()


async def test_revoking_ends_both_keys_and_the_order(world: World) -> None:
    node = await world.member()
    await rotate(world, Wanted.API_KEY)
    new = await offered(world, node)
    await world.nodes.set_state("ada", ["node-1"], "REVOKED", "stolen")
    assert not await opens(node, node.api_key)
    assert not await opens(node, new)
    assert await world.sessions.rotations.orders(node.node_id) == ()


@pytest.mark.parametrize("change", ["wanted = 7", "old_until_ms = 0", "sealed_api_key = key_sha256"])
async def test_a_row_that_was_changed_around_the_server_orders_nothing(world: World, change: str) -> None:
    node = await world.member()
    await rotate(world, Wanted.API_KEY)
    new = await offered(world, node)
    await world.execute(f"UPDATE credential_rotations SET {change.replace('key_sha256', 'new_key_sha256')}")
    assert await world.sessions.rotations.orders(node.node_id) == ()
    assert await refused(rotate(world, Wanted.API_KEY)) is Reason.QUARANTINED
    assert await opens(node, new)
    assert await opens(node, node.api_key), "nothing that the row says ends a key"
    assert (await world.audited()).count("rotation.quarantined") == 1


# -- how often a node may ask -----------------------------------------------------------------------------------------
async def asks(world: World, node: Node, clock: MockClock, *, signer: NodeKeys | None = None) -> str:
    """The node replaces its keys by itself; empty when that was taken, otherwise the reason."""
    await clock.advance(0.01)
    new = NodeKeys.generate()
    statement = sign_rotation(
        cluster_id=world.trust.cluster_id,
        node_id=node.node_id,
        old=signer or node.keys,
        new=new,
        issued_at_ms=clock.now_ms(),
    )
    answer = await world.sessions.rotations.take_keys(node.node_id, await world.epoch(node.node_id), statement)
    if answer.taken:
        node.keys = new
    else:
        assert bool(answer.retry_after_ms) == (answer.reason == "OVER_BUDGET")
        assert 0 <= answer.retry_after_ms <= 24 * HOUR_MS
    return answer.reason


async def test_a_node_replaces_its_keys_so_often_a_day_and_no_more(world: World, clock: MockClock) -> None:
    world.sessions.rotations._asked_per_day = 4
    node, other = await world.member(), await world.member("node-2")
    stranger = NodeKeys.generate()
    reasons = [
        await asks(world, node, clock),
        await asks(world, node, clock, signer=stranger),
        await asks(world, node, clock),
        await asks(world, node, clock),
    ]
    assert reasons == ["", "WRONG_SIGNER", "", ""]
    before = await world.audited()
    for signer in [None, stranger] * 5:
        assert await asks(world, node, clock, signer=signer) == "OVER_BUDGET"
    assert (await world.audited())[len(before) :] == ["node.rotation_refused"], "said once, not each time"
    assert await asks(world, other, clock) == ""
    await clock.advance(24 * 3600)
    assert await asks(world, node, clock) == ""


async def test_what_an_operator_ordered_is_taken_from_a_node_that_asked_too_often(
    world: World, clock: MockClock
) -> None:
    world.sessions.rotations._asked_per_day = 1
    node = await world.member()
    assert await asks(world, node, clock) == ""
    assert await asks(world, node, clock) == "OVER_BUDGET"
    await rotate(world, KEYS)
    assert await asks(world, node, clock, signer=NodeKeys.generate()) == "OVER_BUDGET"
    assert await asks(world, node, clock) == ""
    assert await asks(world, node, clock) == "OVER_BUDGET"


async def test_what_a_node_refuses_again_and_again_is_audited_so_often_a_day(world: World, clock: MockClock) -> None:
    world.sessions.rotations._asked_per_day = 3
    node = await world.member()
    await rotate(world, KEYS)
    answer = gateway_pb2.RotationAnswer(subject=NODE_KEYS, applied=False, reason="DISK")
    for _ in range(10):
        await world.sessions.rotations.answered(node.node_id, await world.epoch(node.node_id), answer)
    assert (await world.audited()).count("node.rotation_refused") == 3
    assert await asks(world, node, clock) == "", "the disk has room again"


async def test_api_keys_that_ended_are_forgotten_after_a_day_but_for_the_newest_of_each_node(
    world: World, clock: MockClock
) -> None:
    node, revoked = await world.member(), await world.member("node-2")
    first = node.api_key
    for _ in range(3):
        await clock.advance(1)
        await rotate(world, Wanted.API_KEY, overlap_s=0)
        node.api_key = await offered(world, node)
        assert await opens(node, node.api_key)
    await world.nodes.set_state("ada", ["node-2"], "REVOKED", "stolen")
    await world.sessions.clean_up()
    assert await world.value("SELECT COUNT(*) FROM api_keys") == 5
    assert not await opens(node, first), "told that it has ended"
    await clock.advance(ENDED_KEPT_MS / 1000 + 1)
    await world.sessions.clean_up()
    assert await world.value("SELECT COUNT(*) FROM api_keys") == 2
    assert await opens(node, node.api_key)
    assert await refused(revoked.connect()) is Reason.REVOKED
