"""A gateway shows a certificate of a CA that the node does not know: only a chain under its own pin lets it in."""

import datetime as dt
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from fleet import tls, tls_certificates, trust
from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet.v1 import trust_pb2
from fleet_node.doctor.gateway_checks import LookOnlyTrust
from fleet_node.link.caller import GatewayCaller, LeafCache
from fleet_node.link.following import learn_cas, open_following
from tests.fakes.gateway import CLUSTER, FakeGateway, FakeInstallation

NOW = dt.datetime.now(dt.UTC)
NEW_CA = tls_certificates.make_ca("new", NOW)
STRANGER = Signer.generate()
GARBAGE = 99


@pytest.fixture
async def rotated(gateway: FakeGateway) -> FakeGateway:
    """The gateway, which shows a certificate of another CA."""
    port = int(gateway.endpoint.rpartition(":")[2])
    await gateway.stop()
    await gateway.start(tls_certificates.make_leaf(NEW_CA, ["127.0.0.1"], NOW), port)
    return gateway


def bundle(
    installation: FakeInstallation, ca: tls_certificates.CertifiedKey, number: int, signer: Signer | None = None
) -> trust_pb2.Signed:
    before, installation.ca = installation.ca, ca
    try:
        return installation.bundle(number, signer=signer)
    finally:
        installation.ca = before


Chain = Callable[[FakeInstallation], list[trust_pb2.Signed]]
REFUSED: dict[str, Chain] = {
    "nothing": lambda _: [],
    "nothing newer": lambda installation: [installation.bundle(5)],
    "an older one with that CA": lambda installation: [bundle(installation, NEW_CA, 4)],
    "signed by a stranger": lambda installation: [bundle(installation, NEW_CA, 9, STRANGER)],
    "garbage": lambda _: [trust_pb2.Signed(statement=b"\xff")],
    "newer, and another CA": lambda installation: [bundle(installation, tls_certificates.make_ca("other", NOW), 9)],
}


# -- parts of a chain --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ends", "asked"),
    [
        ([], [0]),
        ([2, 3, 4], [0, 2, 3, 4]),
        ([2, 2, 3], [0, 2]),
        ([2, 1, 3], [0, 2]),
        ([GARBAGE, 2], [0]),
    ],
    ids=["nothing", "on and on", "no further", "back", "garbage"],
)
async def test_a_chain_is_asked_for_part_by_part_as_long_as_it_leads_further(ends: list[int], asked: list[int]) -> None:
    """The server says of each part that there is more; `ends` are the numbers of their last bundles."""
    left, heard = list(ends), []

    async def get_trust_chain(request: trust_pb2.GetTrustChainRequest) -> trust_pb2.GetTrustChainResponse:
        heard.append(request.from_number)
        answer = trust_pb2.GetTrustChainResponse(more=True)
        if left:
            said = trust_pb2.TrustBundleStatement(generation=1, number=left.pop(0))
            answer.bundles.add(statement=said.SerializeToString() if said.number != GARBAGE else b"\xff")
        return answer

    request = trust_pb2.GetTrustChainRequest(cluster_id="c", from_generation=1)
    parts = GatewayCaller.trust_chain(SimpleNamespace(get_trust_chain=get_trust_chain), request)  # type: ignore[arg-type]
    assert len([part async for part in parts]) == min(len(asked), len(ends))
    assert heard == asked


# -- a node that holds a bundle ----------------------------------------------------------------------------------------
async def test_a_node_that_was_away_follows_the_chain_to_the_new_ca(
    installation: FakeInstallation, rotated: FakeGateway
) -> None:
    held = LookOnlyTrust(installation.trust_state(5))
    rotated.trust_chain = [bundle(installation, NEW_CA, 9)]
    caller = await open_following([rotated.endpoint], held, installation.membership(), LeafCache(), None)
    assert held.state.tls_ca_der == (NEW_CA.certificate_der,)
    assert caller.leaf_sha256 == tls.certificate_sha256(rotated.leaf.certificate_der)
    await caller.close()


async def test_an_endpoint_that_proves_nothing_does_not_hide_one_that_does(
    installation: FakeInstallation, rotated: FakeGateway
) -> None:
    other = FakeGateway(installation)
    await other.start(tls_certificates.make_leaf(NEW_CA, ["127.0.0.1"], NOW))
    other.trust_chain = [bundle(installation, NEW_CA, 9, STRANGER)]
    rotated.trust_chain = [bundle(installation, NEW_CA, 9)]
    for _ in range(8):  # whichever is asked first
        held = LookOnlyTrust(installation.trust_state(5))
        endpoints = ["127.0.0.1:1", other.endpoint, rotated.endpoint]
        caller = await open_following(endpoints, held, installation.membership(), LeafCache(), None)
        assert held.state.number == 9
        await caller.close()
    await other.stop()


@pytest.mark.parametrize("chain", REFUSED.values(), ids=REFUSED.keys())
async def test_who_proves_nothing_is_not_talked_to(
    installation: FakeInstallation, rotated: FakeGateway, chain: Chain
) -> None:
    held = LookOnlyTrust(installation.trust_state(5))
    rotated.trust_chain = chain(installation)
    with pytest.raises(Refusal) as refused:
        await open_following([rotated.endpoint], held, installation.membership(), LeafCache(), None)
    assert refused.value.reason is Reason.WRONG_CERTIFICATE
    assert rotated.handshakes == 0


async def test_while_the_trusted_ca_is_shown_nobody_is_asked_for_a_chain(
    installation: FakeInstallation, gateway: FakeGateway
) -> None:
    held = LookOnlyTrust(installation.trust_state(5))
    gateway.trust_chain = [bundle(installation, NEW_CA, 9)]
    caller = await open_following([gateway.endpoint], held, installation.membership(), LeafCache(), None)
    assert held.state.number == 5
    await caller.close()


async def test_a_leaf_that_was_verified_under_other_cas_is_fetched_anew(
    installation: FakeInstallation, gateway: FakeGateway
) -> None:
    """One of them may have been revoked, and whoever took the leaf's key would pass for the server until a restart."""
    leaves = LeafCache()
    assert await leaves.get(gateway.endpoint, (installation.ca.certificate_der,)) == gateway.leaf.certificate_der
    with pytest.raises(Refusal) as refused:
        await leaves.get(gateway.endpoint, (NEW_CA.certificate_der,))
    assert refused.value.reason is Reason.WRONG_CERTIFICATE


# -- a newcomer -------------------------------------------------------------------------------------------------------
async def learned(installation: FakeInstallation, gateway: FakeGateway) -> tuple[bytes, ...]:
    return await learn_cas(
        [gateway.endpoint],
        cluster_id=CLUSTER,
        authority_key=installation.authority.public_key,
        at_least=(1, 5),
    )


@pytest.mark.parametrize("number", [5, 9])
async def test_a_newcomer_learns_the_cas_of_now_from_the_authority_in_its_token(
    installation: FakeInstallation, rotated: FakeGateway, number: int
) -> None:
    rotated.trust_chain = [bundle(installation, NEW_CA, number)]
    assert await learned(installation, rotated) == (NEW_CA.certificate_der,)


@pytest.mark.parametrize("case", ["nothing", "an older one with that CA", "signed by a stranger", "garbage"])
async def test_a_newcomer_believes_no_chain_that_is_older_than_its_token_or_another_authoritys(
    installation: FakeInstallation, rotated: FakeGateway, case: str
) -> None:
    rotated.trust_chain = REFUSED[case](installation)
    assert await learned(installation, rotated) == ()
    assert rotated.enrollments == []


async def test_a_newcomer_follows_a_rotation_of_the_authority_on_its_way(
    installation: FakeInstallation, rotated: FakeGateway
) -> None:
    successor = Signer.generate()
    before, installation.ca = installation.ca, NEW_CA
    step = installation.next_generation(successor, signers=[installation.authority, successor])
    installation.ca = before
    rotated.trust_chain = [installation.bundle(), step]
    assert await learned(installation, rotated) == (NEW_CA.certificate_der,)
    assert trust.claimed(step).generation == 2
