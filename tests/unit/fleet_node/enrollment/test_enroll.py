"""Enrolling against a gateway over real gRPC and TLS: approval, refusals, restarts, and bootstraps that lie."""

import asyncio
from typing import Any

import pytest

from fleet import envelope
from fleet.clock import SystemClock
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.identity import load_node_keys
from fleet.v1 import enrollment_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile, load_membership, load_pending
from fleet_node.enrollment.service import (
    Applicant,
    EnrollmentError,
    EnrollmentRefusedError,
    EnrollmentService,
    Pins,
    TokenError,
)
from tests.fakes.clock import MockClock
from tests.fakes.gateway import CLUSTER, NODE, FakeGateway, FakeInstallation

APPLICANT = Applicant("pump-1", {"rack": "b4"}, "1.2.3")


class Desk:
    """An enrollment service and what it told the person in front of it."""

    def __init__(self, folder: StateFolder, *, pins: Pins | None = None, clock: Any = None) -> None:
        self.retries: list[Refusal] = []
        self.joined: list[str] = []
        self.folder = folder
        self.service = EnrollmentService(
            folder=folder,
            clock=clock or SystemClock(),
            pins=pins or Pins(),
            poll_interval_s=None,
            retrying=lambda refusal, _: self.retries.append(refusal),
            joining=self.joined.append,
        )


async def test_an_approved_node_holds_what_the_bootstrap_gave(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    desk = Desk(folder)
    token = installation.join_token(owner_pin=b"o" * 32)
    pending = await desk.service.apply(token, APPLICANT)
    gateway.approve()
    membership = await desk.service.wait_decided(pending)
    assert (membership.node_id, membership.cluster_id, membership.name) == (NODE, CLUSTER, "pump-1")
    assert membership.api_key.reveal() == "fak1.test"
    assert membership.owner_pin == b"o" * 32
    assert load_membership(folder.membership) == membership
    assert load_pending(folder.enrollment) is None
    assert desk.joined == [NODE]
    bundle = BundleFile(folder.bundle, cluster_id=CLUSTER, authority_key=membership.authority_key).load()
    assert bundle.version == (1, 1)
    asked = gateway.enrollments[0]
    assert (asked.name, dict(asked.labels), asked.version) == ("pump-1", {"rack": "b4"}, "1.2.3")


async def test_the_poll_is_proven_with_the_identity_key(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    polled: list[enrollment_pb2.GetBootstrapRequest] = []
    original = gateway.GetBootstrap

    async def record(request: enrollment_pb2.GetBootstrapRequest, context: Any) -> Any:
        polled.append(request)
        return await original(request, context)

    gateway.GetBootstrap = record  # type: ignore[method-assign]
    await gateway.stop()
    again = FakeGateway(installation)
    again.GetBootstrap = record  # type: ignore[method-assign]
    await again.start(port=int(gateway.endpoint.rpartition(":")[2]))
    desk = Desk(folder)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    gateway.enrollments = again.enrollments
    gateway.approve()
    await desk.service.wait_decided(pending)
    keys = load_node_keys(folder.path)
    raw = envelope.verify_one(polled[0].signed, domain=Domain.BOOTSTRAP_POLL, public_key=keys.identity.public_key)
    assert enrollment_pb2.BootstrapPollStatement.FromString(raw).enrollment_id == "en_1"
    await again.stop()


async def test_it_waits_as_long_as_the_server_says(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder, clock: MockClock
) -> None:
    desk = Desk(folder, clock=clock)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    waiting = asyncio.create_task(desk.service.wait_decided(pending))
    await gateway.watch.wait_until(lambda: gateway.polls == 1, lambda: "no poll", 10)
    await clock.wait_sleepers(1)
    assert clock.next_due_s == 1.0
    gateway.approve()
    await clock.advance(1.0)
    assert (await waiting).node_id == NODE


async def test_what_a_server_asks_for_is_cut_to_what_a_node_allows(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder, clock: MockClock
) -> None:
    desk = Desk(folder, clock=clock)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    forever = enrollment_pb2.GetBootstrapResponse(state=enrollment_pb2.ENROLLMENT_STATE_PENDING)
    forever.poll_interval_s = 2**32 - 1
    gateway.bootstrap = lambda: forever
    waiting = asyncio.create_task(desk.service.wait_decided(pending))
    await clock.wait_sleepers(1)
    assert clock.next_due_s == 600.0
    huge = enrollment_pb2.NodeParameters(telemetry_interval_s=2**32 - 1, max_in_flight=2**32 - 1)
    gateway.approve(parameters=huge)
    await clock.advance(600.0)
    membership = await waiting
    assert (membership.telemetry_interval_s, membership.max_in_flight) == (86_400.0, 1024)


async def test_a_restart_resumes_the_same_enrollment(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    token = installation.join_token()
    first = await Desk(folder).service.apply(token, APPLICANT)
    again = await Desk(folder).service.apply(token, APPLICANT)
    assert again == first == load_pending(folder.enrollment)
    assert len(gateway.enrollments) == 1


async def test_another_token_asks_anew_with_the_same_keys(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    await Desk(folder).service.apply(installation.join_token(token_id="jt_1"), APPLICANT)
    await Desk(folder).service.apply(installation.join_token(token_id="jt_2"), APPLICANT)
    assert [asked.token_id for asked in gateway.enrollments] == ["jt_1", "jt_2"]
    assert gateway.enrollments[0].identity_key == gateway.enrollments[1].identity_key


async def test_a_rejection_ends_the_wait_and_makes_the_node_forget_nothing(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    desk = Desk(folder)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    rejected = enrollment_pb2.GetBootstrapResponse(state=enrollment_pb2.ENROLLMENT_STATE_REJECTED, reason="not ours")
    gateway.bootstrap = lambda: rejected
    with pytest.raises(EnrollmentRefusedError, match=r"rejected this node \(not ours\)"):
        await desk.service.wait_decided(pending)
    assert load_pending(folder.enrollment) == pending  # whoever terminates TLS could have said it
    assert load_membership(folder.membership) is None
    gateway.approve()
    assert (await desk.service.wait_decided(pending)).node_id == NODE


@pytest.mark.parametrize(
    "reason", [Reason.JOIN_TOKEN_EXPIRED, Reason.JOIN_TOKEN_USED, Reason.JOIN_TOKEN_REVOKED, Reason.WRONG_CLUSTER]
)
async def test_a_token_that_the_server_refuses_is_not_tried_again(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder, reason: Reason
) -> None:
    gateway.refuse["Enroll"] = Refusal(reason, "the join token is no good: ask for a new one")
    desk = Desk(folder)
    with pytest.raises(EnrollmentRefusedError, match="ask for a new one"):
        await desk.service.apply(installation.join_token(), APPLICANT)
    assert desk.retries == []


async def test_an_unreachable_gateway_is_tried_again_and_the_person_told(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder, clock: MockClock
) -> None:
    desk = Desk(folder, clock=clock)
    gateway.refuse["Enroll"] = Refusal(Reason.OVERLOADED, "busy", retry_after_s=3.0)
    applying = asyncio.create_task(desk.service.apply(installation.join_token(), APPLICANT))
    await clock.wait_sleepers(1)
    assert [refusal.reason for refusal in desk.retries] == [Reason.OVERLOADED]
    gateway.refuse.clear()
    await clock.advance(3.5)
    assert (await applying).enrollment_id == "en_1"


async def test_the_wait_survives_a_gateway_that_comes_back_with_a_new_certificate(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder, clock: MockClock
) -> None:
    import datetime as dt

    from fleet import tls_certificates

    desk = Desk(folder, clock=clock)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    waiting = asyncio.create_task(desk.service.wait_decided(pending))
    await gateway.watch.wait_until(lambda: gateway.polls == 1, lambda: "no poll", 10)
    await gateway.stop()
    renewed = FakeGateway(installation)
    renewed.enrollments = gateway.enrollments
    renewed.approve()
    now = dt.datetime.now(dt.UTC)
    leaf = tls_certificates.make_leaf(installation.ca, ["127.0.0.1"], now)
    await renewed.start(leaf=leaf, port=int(gateway.endpoint.rpartition(":")[2]))
    while not waiting.done():
        sleeping = asyncio.create_task(clock.wait_sleepers(1))
        await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        sleeping.cancel()
        await clock.advance(5.0)
    assert (await waiting).node_id == NODE
    await renewed.stop()


@pytest.mark.parametrize("text", ["", "garbage", "fjt1.AAAA", "fjt1." + "A" * 20_000])
async def test_a_damaged_token_is_told_before_anybody_is_asked(folder: StateFolder, text: str) -> None:
    with pytest.raises(TokenError, match="copy it again, whole"):
        await Desk(folder).service.apply(text, APPLICANT)


async def test_a_truncated_token_is_told(installation: FakeInstallation, folder: StateFolder) -> None:
    installation.endpoints = ["127.0.0.1:1"]
    token = installation.join_token()
    with pytest.raises(TokenError):
        await Desk(folder).service.apply(token[:-40], APPLICANT)


async def test_a_token_of_another_authority_than_the_pinned_one_is_refused(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    desk = Desk(folder, pins=Pins(authority_key=b"p" * 32))
    with pytest.raises(TokenError, match="another authority"):
        await desk.service.apply(installation.join_token(), APPLICANT)
    assert gateway.enrollments == []


async def test_keys_other_than_the_pinned_ones_are_not_used(folder: StateFolder) -> None:
    with pytest.raises(EnrollmentError, match="fingerprint its configuration pins"):
        Desk(folder, pins=Pins(fingerprint=b"f" * 20)).service.keys()


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"enrollment_id": "en_2"}, "another enrollment"),
        ({"cluster_id": "c-other"}, "another enrollment"),
        ({"fingerprint": b"f" * 20}, "other keys"),
        ({"sealed_api_key": b"s" * 80}, "not good"),
        ({"node_id": "nd_other"}, "not good"),  # the api_key is sealed to one node id
    ],
)
async def test_a_bootstrap_that_lies_makes_no_member(
    installation: FakeInstallation,
    gateway: FakeGateway,
    folder: StateFolder,
    said: dict[str, object],
    complaint: str,
) -> None:
    desk = Desk(folder)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    gateway.approve(**said)
    with pytest.raises(EnrollmentError, match=complaint):
        await desk.service.wait_decided(pending)
    assert load_membership(folder.membership) is None
    assert desk.joined == []


async def test_a_bootstrap_of_another_signer_makes_no_member(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    desk = Desk(folder)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    gateway.approve(signer=Signer.generate())
    with pytest.raises(EnrollmentError, match="not signed by the authority"):
        await desk.service.wait_decided(pending)
    assert load_membership(folder.membership) is None


async def test_what_fails_while_joining_leaves_the_enrollment_as_it_was(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    desk = Desk(folder)
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    gateway.approve()
    desk.service._joining = _disk_full
    with pytest.raises(OSError, match="No space"):
        await desk.service.wait_decided(pending)
    assert load_membership(folder.membership) is None
    assert load_pending(folder.enrollment) == pending


def _disk_full(_: str) -> None:
    raise OSError(28, "No space left on device")


async def test_a_bootstrap_of_the_authority_that_followed_the_tokens_is_taken_with_the_chain(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder
) -> None:
    desk, successor = Desk(folder), Signer.generate()
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    step = installation.next_generation(successor, signers=[installation.authority, successor])
    gateway.bundle_chain = [installation.bundle(), step]
    gateway.approve(signer=successor, trust_bundle=step)
    membership = await desk.service.wait_decided(pending)
    assert membership.authority_key == installation.authority.public_key
    held = BundleFile(folder.bundle, cluster_id=CLUSTER, authority_key=membership.authority_key).load()
    assert (held.generation, held.authority_key) == (2, successor.public_key)


@pytest.mark.parametrize("missing", ["the old authority's signature", "the step", "the pinned authority's bundle"])
async def test_a_bootstrap_without_a_whole_chain_from_the_token_is_refused(
    installation: FakeInstallation, gateway: FakeGateway, folder: StateFolder, missing: str
) -> None:
    desk, successor = Desk(folder), Signer.generate()
    pending = await desk.service.apply(installation.join_token(), APPLICANT)
    signers = [successor] if missing.startswith("the old") else [installation.authority, successor]
    step = installation.next_generation(successor, signers=signers)
    chain = {"the step": [installation.bundle()], "the pinned authority's bundle": [step]}
    gateway.bundle_chain = chain.get(missing, [installation.bundle(), step])
    gateway.approve(signer=successor, trust_bundle=step)
    with pytest.raises(EnrollmentError, match="not signed by the authority"):
        await desk.service.wait_decided(pending)
    assert load_membership(folder.membership) is None
