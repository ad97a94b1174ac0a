"""Join tokens, requests, decisions and bootstraps, over both databases."""

import asyncio
import contextlib
import dataclasses
import os

import pytest

from fleet import trust_chain
from fleet.envelope import Domain, verify, verify_one
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.trust import verify_join_token
from fleet.v1 import enrollment_pb2, session_pb2, trust_pb2
from fleet_server.admin.views import enrollment_view
from fleet_server.database.engine import Database
from fleet_server.enrollment.rules import TokenState
from fleet_server.trust.succession import AuthorityRotation
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import ADDRESS, Node, World, approve


async def refused(work: object) -> Reason:
    with pytest.raises(Refusal) as caught:
        await work  # type: ignore[misc]
    assert caught.value.detail
    return caught.value.reason


async def test_from_token_to_member(world: World) -> None:
    token = await world.token(site="berlin")
    said = verify_join_token(token)
    assert (said.site, list(said.endpoints)) == ("berlin", ["gateway.example:7443"])
    assert said.tls_ca_der == world.trust.bundle.tls_ca_der[0]
    assert (said.authority_generation, said.bundle_number) == world.trust.bundle.version
    node = Node(world, name="press-1")
    answer = await node.enroll(token)
    assert answer.fingerprint == node.keys.fingerprint
    assert (await node.poll()).state == enrollment_pb2.ENROLLMENT_STATE_PENDING
    decided = await approve(world, node, fingerprint=node.keys.fingerprint, labels={"role": "press"})
    said = await node.fetch_bootstrap()
    record = await world.node("press-1")
    assert (record.node_id, record.site, record.labels) == (decided.node_id, "berlin", {"role": "press"})
    assert said.trust_bundle.statement == world.trust.bundle.signed.statement
    assert (await node.connect()).epoch == 1
    kinds = await world.audited()
    assert [k for k in kinds if k.startswith(("join_token", "enrollment", "api_key"))] == [
        "join_token.created",
        "enrollment.requested",
        "api_key.issued",
        "enrollment.approved",
    ]


async def test_what_a_node_reports_never_becomes_a_label(world: World) -> None:
    node = await world.member()
    assert (await world.node(node.name)).labels == {}


async def test_the_same_request_again_burns_nothing(world: World, clock: MockClock) -> None:
    token = await world.token()
    node = Node(world)
    first = await node.enroll(token)
    assert (await node.enroll(token)).enrollment_id == first.enrollment_id
    await clock.advance(2 * 3600)  # the token has expired by now
    assert (await node.enroll(token)).enrollment_id == first.enrollment_id
    [listed] = await world.enrollment.list_tokens()
    assert listed.uses == 1


async def test_a_replica_that_has_not_heard_of_a_rotation_answers_a_chain_that_leads_to_the_bootstrap(
    world: World, database: Database, clock: MockClock
) -> None:
    """One replica rotates the authority and approves; the next poll comes to another one, before its next look."""
    other = await World(database, clock, replica_id="r2").start()
    pinned = world.trust.authority.public_key
    node = Node(world)
    await node.enroll(await world.token())
    await AuthorityRotation(world.trust).rotate("ada", from_generation=1, reason="yearly")
    await approve(world, node)
    node.world = other
    answer = await node.poll()
    links = trust_chain.from_pin(answer.bundle_chain, cluster_id=world.trust.cluster_id, authority_key=pinned)
    raw = verify(answer.bootstrap, domain=Domain.BOOTSTRAP, keys=trust_chain.authorities(links))
    assert enrollment_pb2.BootstrapStatement.FromString(raw).enrollment_id == node.enrollment_id
    await node.fetch_bootstrap()
    behind = await World(database, clock, replica_id="r3").start()
    await AuthorityRotation(world.trust).rotate("ada", from_generation=2, reason="yearly")
    held = session_pb2.BundleVersion(generation=3, number=1)
    node.world = behind
    assert await node.begin(bundle_version=held)
    assert behind.trust.authority_generation == 3


async def test_every_poll_gets_the_same_bootstrap(world: World) -> None:
    node = await world.member()
    first = (await node.poll()).bootstrap
    there = dataclasses.replace(node, world=await World(world.database, world.clock, replica_id="r2").start())
    assert (await there.poll()).bootstrap == first


async def test_one_use_for_many_at_the_same_moment(world: World) -> None:
    token = await world.token(max_uses=3)
    nodes = [Node(world, name=f"n-{number}") for number in range(8)]
    answers = await asyncio.gather(*(node.enroll(token) for node in nodes), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 3
    assert {a.reason for a in answers if isinstance(a, Refusal)} == {Reason.JOIN_TOKEN_USED}


async def test_an_expired_token(world: World, clock: MockClock) -> None:
    token = await world.token(ttl_s=60)
    await clock.advance(60)
    assert await refused(Node(world).enroll(token)) is Reason.JOIN_TOKEN_EXPIRED


async def test_a_revoked_token(world: World) -> None:
    token = await world.token()
    [listed] = await world.enrollment.list_tokens()
    revoked = await world.enrollment.revoke_token("ada", listed.token_id)
    assert revoked.state(world.clock.now_ms()) is TokenState.REVOKED
    assert await refused(Node(world).enroll(token)) is Reason.JOIN_TOKEN_REVOKED
    assert await refused(world.enrollment.revoke_token("ada", "jt_none")) is Reason.NOT_FOUND


async def test_a_token_that_nobody_made(world: World) -> None:
    token = await world.token()
    token.secret = os.urandom(32)
    assert await refused(Node(world).enroll(token)) is Reason.JOIN_TOKEN_INVALID
    assert await refused(Node(world).enroll(await world.token(), token_id="jt_none")) is Reason.JOIN_TOKEN_INVALID
    for no_id in ("", "jt_\x00", "x" * 65):  # PostgreSQL takes no NUL
        assert await refused(Node(world).enroll(await world.token(), token_id=no_id)) is Reason.MALFORMED


async def test_an_invented_token_costs_no_query(world: World) -> None:
    """Nor does a known id with a secret that is not its own: ids stand in lists and logs."""
    genuine = await world.token()
    said = enrollment_pb2.JoinTokenStatement.FromString(genuine.signed.statement)
    near = said.token_id[:-1] + ("a" if said.token_id[-1] != "a" else "b")
    reads = world.count_reads()
    for token_id in ("jt_none", near, "jt_" + "a" * 32, "en_" + said.token_id[3:]):
        assert await refused(Node(world).enroll(genuine, token_id=token_id)) is Reason.JOIN_TOKEN_INVALID
    genuine.secret = os.urandom(32)
    assert await refused(Node(world).enroll(genuine)) is Reason.JOIN_TOKEN_INVALID
    assert reads == []


async def test_a_token_of_another_cluster(world: World) -> None:
    token = await world.token()
    assert await refused(Node(world).enroll(token, cluster_id="c-else")) is Reason.WRONG_CLUSTER


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, Reason.INVALID_ARGUMENT),
        ({"name": "Upper_Case"}, Reason.INVALID_ARGUMENT),
        ({"name": "n" * 64}, Reason.INVALID_ARGUMENT),
        ({"sealing_key": b"\x00" * 32}, Reason.MALFORMED),
        ({"sealing_key": b"short"}, Reason.MALFORMED),
        ({"identity_key": b"\x05" * 32}, Reason.BAD_PROOF),
        ({"token_secret_sha256": b"\x00" * 32}, Reason.MALFORMED),
        ({"labels": {"k": "x" * 300}}, Reason.MALFORMED),
        ({"version": "v" * 65}, Reason.MALFORMED),
    ],
)
async def test_a_request_that_does_not_hold_together(world: World, changes: dict, reason: Reason) -> None:
    token = await world.token()
    assert await refused(Node(world).enroll(token, **changes)) is reason
    await Node(world).enroll(token)  # and nothing was burnt


async def test_a_request_without_a_valid_proof(world: World) -> None:
    request = Node(world).enroll_request(await world.token())
    request.signed.signatures[0].value = bytes(64)
    assert await refused(world.enrollment.enroll(request, ADDRESS)) is Reason.BAD_PROOF
    assert await refused(world.enrollment.enroll(enrollment_pb2.EnrollRequest(), ADDRESS)) is Reason.MALFORMED


async def test_keys_that_are_a_nodes_already(world: World) -> None:
    node = await world.member()
    copied = Node(world, name="copy", keys=node.keys)
    assert await refused(copied.enroll(await world.token())) is Reason.CONFLICT


async def test_auto_approval_gives_a_taken_name_a_suffix(world: World) -> None:
    first, second = await world.member("press"), await world.member("press")
    assert first.name == "press"
    assert second.name.startswith("press-")
    assert second.name != first.name
    assert "node.quarantined" not in await world.audited()


async def test_an_operator_is_told_of_a_taken_name(world: World) -> None:
    await world.member("press")
    node = Node(world, name="press")
    await node.enroll(await world.token())
    assert await refused(approve(world, node)) is Reason.CONFLICT
    assert (await node.poll()).state == enrollment_pb2.ENROLLMENT_STATE_PENDING
    assert (await approve(world, node, name="press-2")).name == "press-2"


async def test_the_fingerprint_that_was_compared_must_match(world: World) -> None:
    node = Node(world)
    await node.enroll(await world.token())
    assert await refused(approve(world, node, fingerprint=NodeKeys.generate().fingerprint)) is (
        Reason.FINGERPRINT_MISMATCH
    )
    assert "enrollment.refused" in await world.audited()
    assert (await node.poll()).state == enrollment_pb2.ENROLLMENT_STATE_PENDING


async def test_a_decision_is_taken_once(world: World) -> None:
    node = Node(world)
    await node.enroll(await world.token())
    outcomes = await asyncio.gather(*(approve(world, node) for _ in range(3)), return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert {o.reason for o in outcomes if isinstance(o, Refusal)} == {Reason.ALREADY_DECIDED}
    assert await world.value("SELECT COUNT(*) FROM nodes") == 1


async def test_rejected(world: World) -> None:
    node = Node(world)
    await node.enroll(await world.token())
    await approve(world, node, approve=False, reason="not ours")
    answer = await node.poll()
    assert (answer.state, answer.reason) == (enrollment_pb2.ENROLLMENT_STATE_REJECTED, "not ours")
    assert not answer.HasField("bootstrap")
    assert await refused(approve(world, node)) is Reason.ALREADY_DECIDED


async def test_only_the_node_itself_may_poll(world: World) -> None:
    node = await world.member()
    thief = dataclasses.replace(node, keys=NodeKeys.generate())
    assert await refused(thief.poll()) is Reason.BAD_PROOF


async def test_an_invented_enrollment_costs_no_query(world: World) -> None:
    node = await world.member()
    near = node.enrollment_id[:-1] + ("a" if node.enrollment_id[-1] != "a" else "b")
    invented = ("en_none", near, "en_\x00" + node.enrollment_id[4:], "\x00", "é" * 35)
    for enrollment_id in invented:
        assert await refused(approve(world, dataclasses.replace(node, enrollment_id=enrollment_id))) is Reason.NOT_FOUND
    await world.database.close()  # a query would say UNAVAILABLE
    for enrollment_id in invented:
        assert await refused(dataclasses.replace(node, enrollment_id=enrollment_id).poll()) is Reason.NOT_FOUND
    assert await refused(node.poll()) is Reason.UNAVAILABLE


async def test_a_poll_played_again_costs_a_bounded_number_of_queries_and_the_node_nothing(world: World) -> None:
    node = await world.member()
    reads = world.count_reads()
    for keys in (node.keys, NodeKeys.generate()):
        for _ in range(200):
            with contextlib.suppress(Refusal):
                await dataclasses.replace(node, keys=keys, address="198.51.100.66").poll()
    assert len(reads) <= 20
    await node.poll()


async def test_the_bootstrap_is_signed_by_the_authority(world: World) -> None:
    node = await world.member()
    bootstrap = (await node.poll()).bootstrap
    verify_one(bootstrap, domain=Domain.BOOTSTRAP, public_key=world.trust.authority.public_key)


async def test_strangers_are_slowed_down_by_address_and_whoever_has_a_token_there_is_not(world: World) -> None:
    token = await world.token()
    token.secret = os.urandom(32)
    reasons = [await refused(Node(world).enroll(token)) for _ in range(102)]
    assert reasons[0] is Reason.JOIN_TOKEN_INVALID
    assert reasons[-1] is Reason.OVERLOADED
    garbage = enrollment_pb2.EnrollRequest(signed=trust_pb2.Signed(statement=b"\xff"))
    assert await refused(world.enrollment.enroll(garbage, ADDRESS)) is Reason.OVERLOADED
    request = Node(world).enroll_request(await world.token())
    for _ in range(100):
        await world.enrollment.enroll(request, ADDRESS)
    assert await refused(world.enrollment.enroll(request, ADDRESS)) is Reason.OVERLOADED
    await world.enrollment.enroll(request, "192.0.2.99")


async def test_lists_are_paged_newest_first(world: World, clock: MockClock) -> None:
    token = await world.token(max_uses=5)
    for number in range(5):
        clock.advance_nowait(number % 2)  # some share a millisecond
        await Node(world, name=f"n-{number}").enroll(token)
    seen, page_token = [], ""
    while page := await world.enrollment.list(page_token=page_token, limit=2):
        seen += [record.name for record in page]
        page_token = page[-1].page_token
    assert sorted(seen) == [f"n-{number}" for number in range(5)]
    assert await world.enrollment.list(enrollment_pb2.ENROLLMENT_STATE_APPROVED) == []
    assert await refused(world.enrollment.list(page_token="nonsense")) is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize("terms", [{"site": "No Site"}, {"ttl_s": 10**9}, {"max_uses": 10**9}])
async def test_terms_that_no_token_may_have(world: World, terms: dict) -> None:
    assert await refused(world.token(**terms)) is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE join_tokens SET auto_approve = 1",
        "UPDATE join_tokens SET auto_approve = 0.9",  # SQLite keeps the fraction
        "UPDATE join_tokens SET secret_sha256 = 'text'",
        "UPDATE join_tokens SET mac = 'text'",
        "UPDATE join_tokens SET max_uses = 100",
        "UPDATE join_tokens SET site = 'vault'",
        "UPDATE join_tokens SET expires_at_ms = expires_at_ms + 1000",
    ],
)
async def test_a_token_row_changed_around_the_server_lets_nobody_in(world: World, text: str) -> None:
    token = await world.token()
    await world.execute(text)
    assert await refused(Node(world).enroll(token)) is Reason.JOIN_TOKEN_INVALID
    assert await refused(Node(world).enroll(token)) is Reason.JOIN_TOKEN_INVALID
    assert (await world.audited()).count("join_token.quarantined") == 1
    [listed] = await world.enrollment.list_tokens()
    assert listed.state(world.clock.now_ms()) is TokenState.QUARANTINED


async def test_a_used_token_is_not_made_fresh_by_an_update(world: World) -> None:
    token = await world.token()
    await Node(world).enroll(token)
    await world.execute("UPDATE join_tokens SET uses = 0")
    assert await refused(Node(world, name="other").enroll(token)) is Reason.JOIN_TOKEN_INVALID


@pytest.mark.parametrize("ended", ["used", "revoked"])
async def test_a_token_whose_row_is_put_back_lets_nobody_in(
    world: World, database: Database, clock: MockClock, ended: str
) -> None:
    token = await world.token(max_uses=2, auto_approve=True)
    await Node(world, name="first").enroll(token)
    mac = await world.value("SELECT mac FROM join_tokens")
    if ended == "used":
        await Node(world, name="second").enroll(token)
    else:
        [listed] = await world.enrollment.list_tokens()
        await world.enrollment.revoke_token("ada", listed.token_id)
    await world.execute("UPDATE join_tokens SET uses = 1, revoked_at_ms = 0, mac = ?", mac)
    other = await World(database, clock, replica_id="r2").start()
    for each in (world, other):
        assert await refused(Node(each, name="third").enroll(token)) is Reason.JOIN_TOKEN_INVALID
        [listed] = await each.enrollment.list_tokens()
        assert listed.state(clock.now_ms()) is TokenState.QUARANTINED
        assert not listed.auto_approve
    assert "join_token.quarantined" in await world.audited()


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE enrollments SET state = 2",
        "UPDATE enrollments SET name = 'other'",
        "UPDATE enrollments SET site = 'x'",
        "UPDATE enrollments SET identity_key = 'text'",
    ],
)
async def test_an_enrollment_row_changed_around_the_server_is_not_decided(world: World, text: str) -> None:
    node = Node(world)
    await node.enroll(await world.token())
    await world.execute(text)
    assert await refused(node.poll()) is Reason.QUARANTINED
    assert await refused(approve(world, node)) is Reason.QUARANTINED
    [listed] = await world.enrollment.list()
    assert enrollment_view(listed).state == enrollment_pb2.ENROLLMENT_STATE_PENDING
    assert "enrollment.quarantined" in await world.audited()
    assert await world.value("SELECT COUNT(*) FROM nodes") == 0
