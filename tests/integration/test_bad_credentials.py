"""Join tokens, handshakes and session tokens that are not what they should be: each refused with its own reason."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet import jointoken
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, enrollment_pb2, gateway_pb2, session_pb2
from fleet_node.enrollment.service import EnrollmentRefusedError, TokenError
from tests.integration.handmade import HandmadeNode, hello_body
from tests.integration.installation import Installation, RunningNode, Template, make_template
from tests.integration.waiting import eventually


@pytest.fixture
async def hand(installation: Installation) -> AsyncIterator[HandmadeNode]:
    """A node written by hand, enrolled."""
    async with HandmadeNode(installation, await installation.enroll("n-1")) as node:
        yield node


def newcomer(installation: Installation, name: str = "late") -> RunningNode:
    return RunningNode(installation.folder / name, name, installation.clock)


# -- join tokens ------------------------------------------------------------------------------------------------------
async def test_an_expired_join_token_is_refused(installation: Installation) -> None:
    token = await installation.join_token(ttl_s=60)
    installation.clock.step_wall(61)

    with pytest.raises(EnrollmentRefusedError, match=r"expired.*new"):
        await newcomer(installation).enroll(token)


async def test_a_used_up_join_token_is_refused_but_not_to_the_node_that_used_it(installation: Installation) -> None:
    token = await installation.join_token(max_uses=1)
    first = newcomer(installation, "first")
    await first.enroll(token)

    with pytest.raises(EnrollmentRefusedError, match=r"as many nodes as it may.*new one"):
        await newcomer(installation).enroll(token)

    again = await first.enrollment().apply(token, first.applicant)  # its answer was lost, say
    assert (await first.enrollment().wait_decided(again)).node_id == first.node_id


async def test_two_nodes_that_race_for_one_use_get_one_membership(installation: Installation) -> None:
    token = await installation.join_token(max_uses=1)

    outcomes = await asyncio.gather(
        *(newcomer(installation, f"racer-{number}").enroll(token) for number in range(5)), return_exceptions=True
    )

    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, EnrollmentRefusedError) for outcome in outcomes) == 4


async def test_a_revoked_join_token_is_refused(installation: Installation) -> None:
    token = await installation.join_token()
    listed = await installation.owner.ask("ListJoinTokens", admin_pb2.ListJoinTokensRequest())
    request = admin_pb2.RevokeJoinTokenRequest(token_id=listed.join_tokens[0].token_id)
    assert (await installation.owner.ask("RevokeJoinToken", request)).join_token.state == "REVOKED"

    with pytest.raises(EnrollmentRefusedError, match=r"revoked"):
        await newcomer(installation).enroll(token)


@pytest.mark.parametrize("cut", [1, 4, 40, 200], ids=lambda cut: f"without its last {cut}")
async def test_a_truncated_join_token_never_leaves_the_node(installation: Installation, cut: int) -> None:
    token = await installation.join_token()

    with pytest.raises((TokenError, EnrollmentRefusedError), match=r"copy it again|damaged|ask for"):
        await newcomer(installation).enroll(token[:-cut])

    answer = await installation.owner.ask("ListEnrollments", admin_pb2.ListEnrollmentsRequest())
    assert not answer.enrollments


@pytest.fixture(scope="session")
def other_template() -> Template:
    """Another cluster."""
    return make_template()


async def test_a_token_of_another_cluster_is_refused_here(
    installation: Installation, tmp_path: Path, other_template: Template
) -> None:
    async with Installation(tmp_path / "other", other_template) as other:
        foreign = jointoken.decode(await other.join_token())
    said = enrollment_pb2.JoinTokenStatement.FromString(foreign.signed.statement)
    keys = newcomer(installation).enrollment().keys()
    statement = enrollment_pb2.EnrollStatement(
        token_id=said.token_id,
        token_secret_sha256=hashlib.sha256(foreign.secret).digest(),
        cluster_id=said.cluster_id,
        identity_key=keys.identity.public_key,
        sealing_key=keys.sealing_public,
        name="late",
        version="0.1.0",
    )
    signed = keys.identity.sign(Domain.ENROLL, statement.SerializeToString())
    node = await installation.enroll("n-1")

    async with HandmadeNode(installation, node) as hand:
        with pytest.raises(Refusal) as refused:
            await hand.ask("Enroll", enrollment_pb2.EnrollRequest(signed=signed, token_secret=foreign.secret))

    assert refused.value.reason is Reason.WRONG_CLUSTER
    assert "check its endpoints" in refused.value.detail


async def test_keys_of_a_node_cannot_be_enrolled_a_second_time(installation: Installation) -> None:
    """A disk image that was copied: it is told to make keys of its own."""
    node = await installation.enroll("n-1")
    with pytest.raises(EnrollmentRefusedError, match=r"belong to node 'n-1'.*keys of its own"):
        await node.enrollment().apply(await installation.join_token(), node.applicant)


# -- handshakes -------------------------------------------------------------------------------------------------------
async def refused_handshake(hand: HandmadeNode, **changes: object) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await hand.handshake(**changes)
    return refused.value


async def test_another_identity_key_proves_nothing(hand: HandmadeNode) -> None:
    refusal = await refused_handshake(hand.posing(signer=Signer.generate()))
    assert refusal.reason is Reason.BAD_PROOF
    assert "Restore the node's state folder" in refusal.detail


async def test_a_signature_for_another_domain_proves_nothing(hand: HandmadeNode) -> None:
    assert (await refused_handshake(hand, domain=Domain.STREAM)).reason is Reason.BAD_PROOF


async def test_an_old_challenge_is_refused(installation: Installation, hand: HandmadeNode) -> None:
    challenge = await hand.begin()
    installation.clock.step_wall(31)
    with pytest.raises(Refusal) as refused:
        await hand.complete(*hand.answer(challenge))
    assert refused.value.reason is Reason.CHALLENGE_EXPIRED
    assert "again" in refused.value.detail


async def test_a_made_up_challenge_is_refused(hand: HandmadeNode) -> None:
    with pytest.raises(Refusal) as refused:
        await hand.complete(*hand.answer(os.urandom(64)))
    assert refused.value.reason in (Reason.BAD_PROOF, Reason.CHALLENGE_EXPIRED)


async def test_a_replayed_answer_gets_no_second_session(installation: Installation, hand: HandmadeNode) -> None:
    answer = hand.answer(await hand.begin())
    await hand.complete(*answer)
    with pytest.raises(Refusal) as refused:
        await hand.complete(*answer)
    assert refused.value.reason is Reason.CHALLENGE_EXPIRED

    await installation.crash_server()
    await installation.start_server()  # its memory is gone, the database remembers

    async def reason() -> Reason | None:
        try:
            await hand.complete(*answer)
        except Refusal as refusal:
            return None if refusal.reason is Reason.UNAVAILABLE else refusal.reason
        raise AssertionError("a replayed answer opened a second session")

    assert await eventually(reason, "the gateway answers") is Reason.CHALLENGE_EXPIRED


async def test_another_nodes_api_key_is_worth_nothing(installation: Installation, hand: HandmadeNode) -> None:
    other = await installation.enroll("n-2")
    hand.posing(api_key=other.membership.api_key.reveal())
    refusal = await refused_handshake(hand)
    assert refusal.reason is Reason.UNKNOWN_CREDENTIAL
    assert "belongs to another node" in refusal.detail


@pytest.mark.parametrize("api_key", ["", "fak1.", "fak1.AAAA", "Bearer x", "fak1." + "A" * 64, "\u00e9" * 50])
async def test_a_made_up_api_key_costs_no_query(hand: HandmadeNode, api_key: str) -> None:
    hand.posing(api_key=api_key)
    refusal = await refused_handshake(hand)
    assert refusal.reason is Reason.UNKNOWN_CREDENTIAL
    assert refusal.detail


async def test_a_certificate_that_is_not_the_servers_is_refused(hand: HandmadeNode) -> None:
    """Somebody terminates TLS in between: the node signed the hash of what it saw."""
    refusal = await refused_handshake(hand.posing(leaf_sha256=os.urandom(32)))
    assert refusal.reason is Reason.WRONG_CERTIFICATE
    assert "terminates TLS" in refusal.detail


async def test_a_proof_for_another_cluster_or_protocol_is_refused(hand: HandmadeNode) -> None:
    assert (await refused_handshake(hand, cluster_id="c-other")).reason is Reason.WRONG_CLUSTER
    assert (await refused_handshake(hand, protocol_version=0)).reason is Reason.PROTOCOL_TOO_OLD


async def test_a_degenerate_share_is_refused(hand: HandmadeNode) -> None:
    assert (await refused_handshake(hand, x25519_share=bytes(32))).reason is Reason.BAD_PROOF
    assert (await refused_handshake(hand, x25519_share=b"short")).reason is Reason.BAD_PROOF


async def test_refused_proofs_are_audited(installation: Installation, hand: HandmadeNode) -> None:
    await refused_handshake(hand.posing(signer=Signer.generate()))
    detail = await installation.owner.wait_audit("session.refused")
    assert "BAD_PROOF" in str(detail)


# -- session tokens ---------------------------------------------------------------------------------------------------
async def refused_stream(hand: HandmadeNode, session: object, **changes: object) -> Refusal:
    async with hand.connect(session) as stream:  # type: ignore[arg-type]
        await stream.send(gateway_pb2.NodeFrame(hello=hand.hello(session, **changes)))  # type: ignore[arg-type]
        return await stream.wait_refusal()


async def test_a_session_token_opens_one_stream_once(installation: Installation, hand: HandmadeNode) -> None:
    session = await hand.handshake()
    async with hand.connect(session) as stream:
        await stream.send(gateway_pb2.NodeFrame(hello=hand.hello(session)))
        await stream.wait_welcome()

        refusal = await refused_stream(hand, session)

        assert refusal.reason is Reason.TOKEN_USED
        assert "shake hands" in refusal.detail
        await installation.owner.issue("n-1")
        assert (await stream.wait_statement()).commands  # the rightful stream goes on


async def test_two_that_race_with_one_token_get_one_stream(hand: HandmadeNode) -> None:
    session = await hand.handshake()

    async def attempt() -> bool:
        async with hand.connect(session) as stream:
            await stream.send(gateway_pb2.NodeFrame(hello=hand.hello(session)))
            try:
                await stream.wait_welcome()
            except Refusal as refusal:
                assert refusal.reason is Reason.TOKEN_USED
                return False
            return True

    assert sum(await asyncio.gather(*(attempt() for _ in range(4)))) == 1


async def test_a_stolen_token_without_the_identity_key_opens_nothing(hand: HandmadeNode) -> None:
    session = await hand.handshake()
    thief, owner = Signer.generate(), hand.me.signer

    assert (await refused_stream(hand.posing(signer=thief), session)).reason is Reason.BAD_PROOF

    hand.posing(signer=owner)
    async with hand.connect(session) as stream:  # and the attempt did not use it up
        await stream.send(gateway_pb2.NodeFrame(hello=hand.hello(session)))
        await stream.wait_welcome()


async def test_a_token_expires_unused(installation: Installation, hand: HandmadeNode) -> None:
    session = await hand.handshake()
    installation.clock.step_wall(installation.settings.session_ttl_s + 1)
    refusal = await refused_stream(hand, session)
    assert refusal.reason is Reason.SESSION_EXPIRED
    assert "shake hands" in refusal.detail


async def test_another_nodes_session_is_worth_nothing(installation: Installation, hand: HandmadeNode) -> None:
    session = await hand.handshake()
    async with HandmadeNode(installation, await installation.enroll("n-2")) as other:
        assert (await refused_stream(other, session)).reason is Reason.BAD_PROOF


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"session_token_sha256": bytes(32)}, Reason.BAD_PROOF),
        ({"hello_sha256": bytes(32)}, Reason.BAD_PROOF),
        ({"node_id": "nd_other"}, Reason.UNKNOWN_CREDENTIAL),
        ({"cluster_id": "c-other"}, Reason.WRONG_CLUSTER),
    ],
    ids=["session", "hello", "node", "cluster"],
)
async def test_a_stream_proof_is_for_this_session_hello_node_and_cluster(
    hand: HandmadeNode, changes: dict[str, object], reason: Reason
) -> None:
    assert (await refused_stream(hand, await hand.handshake(), **changes)).reason is reason


async def test_a_stream_without_credentials_is_refused(hand: HandmadeNode) -> None:
    session = await hand.handshake()
    hand.posing(api_key="")
    async with hand.connect(session) as stream:  # refused before its hello, which would race with that
        assert (await stream.wait_refusal()).reason is Reason.UNKNOWN_CREDENTIAL


async def test_nobody_waits_for_the_hello_of_a_stranger(hand: HandmadeNode) -> None:
    session = await hand.handshake()
    hand.posing(api_key="fak1.made-up")
    async with hand.connect(session) as stream:
        assert (await stream.wait_refusal()).reason is Reason.UNKNOWN_CREDENTIAL


async def test_a_second_stream_of_a_node_ends_the_first_at_once(installation: Installation, hand: HandmadeNode) -> None:
    async with hand.welcomed() as first, hand.welcomed() as second:
        assert second.welcome.stream_epoch == first.welcome.stream_epoch + 1
        goaway = await first.wait_control("goaway")
        assert goaway.reason == gateway_pb2.GOAWAY_REASON_SUPERSEDED
        assert (await first.wait_refusal()).reason is Reason.SUPERSEDED
        await installation.owner.issue("n-1")
        assert (await second.wait_statement()).commands


async def test_a_takeover_leaves_the_first_stream_its_last_words(installation: Installation) -> None:
    node = await installation.enroll("n-1")
    async with HandmadeNode(installation, node) as hand, hand.welcomed() as first:
        issued = await installation.owner.issue("n-1")
        statement = await first.wait_statement()
        async with hand.welcomed(takeover_of=first.welcome.stream_id):
            report = {
                "report_no": 1,
                "command_id": statement.commands[0].command_id,
                "monotonic_seq": 1,
                "state": 5,
            }
            await first.control(reports={"reports": [report]})
            assert (await first.wait_control("result_ack")).report_no == 1
            await first.control(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
        (view,) = await installation.owner.outcomes(issued.issue_id)
        assert view.state == 5


async def test_reauth_needs_a_proof_for_this_very_stream(quick: Installation) -> None:
    node = await quick.enroll("n-1")
    async with HandmadeNode(quick, node) as hand, hand.welcomed() as stream:
        quick.clock.step_wall(quick.settings.session_ttl_s * 0.8)
        asked = await stream.wait_control("reauth")
        statement = session_pb2.ReauthStatement(challenge=asked.challenge, stream_id="another")
        proof = hand.me.signer.sign(Domain.REAUTH, statement.SerializeToString())
        await stream.control(reauth_proof=proof)
        assert (await stream.wait_refusal()).reason is Reason.BAD_PROOF


async def test_a_session_that_is_not_renewed_ends(quick: Installation) -> None:
    node = await quick.enroll("n-1")
    async with HandmadeNode(quick, node) as hand, hand.welcomed(hello_body()) as stream:
        await stream.wait_control("ping")
        quick.clock.step_wall(quick.settings.session_ttl_s + 1)
        assert (await stream.wait_refusal()).reason is Reason.SESSION_EXPIRED
