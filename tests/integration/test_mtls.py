"""The mTLS listener under real nodes: what it lets in, how a node gets there, and that nothing is lost on the way."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet import node_certificate
from fleet.errors import Reason, Refusal
from fleet.identity import write_private
from fleet.tls_certificates import CertifiedKey
from fleet.v1 import command_pb2, enrollment_pb2, gateway_pb2, trust_pb2
from tests.fakes.client_certificate import client, stranger_ca
from tests.integration import test_tls_rotation
from tests.integration.handmade import HandmadeNode, Session
from tests.integration.installation import Installation, RunningNode, Template, assert_each_ran_once, free_ports
from tests.integration.test_tls_rotation import trusted
from tests.integration.traffic import more, traffic
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
DAY_MS = 86_400_000


@pytest.fixture
async def mutual(tmp_path: Path, template: Template) -> AsyncIterator[Installation]:
    """A running server with an mTLS listener, without nodes."""
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    async with Installation(tmp_path, template, mtls_listen=listen, heartbeat_interval_s=1) as running:
        yield running


def endpoint(mutual: Installation) -> str:
    return mutual.settings.mtls_listen


def node_ca(mutual: Installation) -> CertifiedKey:
    ca = mutual.server.sessions.certificates._ca
    assert ca is not None
    return ca


def good(mutual: Installation, node_id: str) -> CertifiedKey:
    return client(node_ca(mutual), node_id, mutual.clock.now_ms())


async def claim(hand: HandmadeNode, session: Session) -> None:
    async with hand.connect(session) as stream:
        await stream.send(gateway_pb2.NodeFrame(hello=hand.hello(session)))
        await stream.wait_welcome()


def keep(node: RunningNode, certificate: CertifiedKey) -> None:
    write_private(node.folder.client_certificate, certificate.certificate_pem + certificate.private_key_pem)


async def moved(node: RunningNode, mutual: Installation) -> None:
    await eventually(lambda: node.link.endpoint == endpoint(mutual), f"{node.name} is on the mTLS listener")
    await node.wait_live()


# -- who is let in ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shown", ["none", "of another CA", "ended", "not begun", "the server's own leaf"])
async def test_tls_lets_nobody_in_without_a_good_certificate(mutual: Installation, shown: str) -> None:
    node = await mutual.enroll("n-1")
    now_ms, leaf = mutual.clock.now_ms(), mutual.server.trust.tls.leaf
    assert leaf is not None
    certificate = {
        "none": None,
        "of another CA": client(stranger_ca(now_ms), node.node_id, now_ms),
        "ended": client(node_ca(mutual), node.node_id, now_ms - 31 * DAY_MS),
        "not begun": client(node_ca(mutual), node.node_id, now_ms + 2 * DAY_MS),
        "the server's own leaf": leaf.pair,
    }[shown]
    async with HandmadeNode(mutual, node, endpoint(mutual), certificate) as hand:
        with pytest.raises(Refusal) as refusal:
            await hand.begin()
    assert refusal.value.reason is Reason.UNAVAILABLE
    async with HandmadeNode(mutual, node, endpoint(mutual), good(mutual, node.node_id)) as hand:
        await claim(hand, await hand.handshake())


async def test_another_nodes_certificate_gets_no_session(mutual: Installation) -> None:
    node, other = await mutual.enroll("n-1"), await mutual.enroll("n-2")
    async with HandmadeNode(mutual, node, endpoint(mutual), good(mutual, other.node_id)) as hand:
        with pytest.raises(Refusal, match="another node's") as refusal:
            await hand.handshake()
    assert refusal.value.reason is Reason.CLIENT_CERTIFICATE


@pytest.mark.parametrize("way", ["another certificate", "no certificate", "made without"])
async def test_a_session_is_good_over_what_it_was_made_over_alone(mutual: Installation, way: str) -> None:
    node = await mutual.enroll("n-1")
    one, other = good(mutual, node.node_id), good(mutual, node.node_id)
    async with (
        HandmadeNode(mutual, node) as plain,
        HandmadeNode(mutual, node, endpoint(mutual), one) as over_one,
        HandmadeNode(mutual, node, endpoint(mutual), other) as over_other,
    ):
        made, used = {
            "another certificate": (over_one, over_other),
            "no certificate": (over_one, plain),
            "made without": (plain, over_one),
        }[way]
        session = await made.handshake()
        with pytest.raises(Refusal) as refusal:
            await claim(used, session)
        assert refusal.value.reason is Reason.CLIENT_CERTIFICATE
        await claim(made, session)  # the attempt has used nothing up


async def test_enrollment_is_not_served_there_and_the_trust_chain_is(mutual: Installation) -> None:
    node = await mutual.enroll("n-1")
    async with HandmadeNode(mutual, node, endpoint(mutual), good(mutual, node.node_id)) as hand:
        for method, request in (
            ("Enroll", enrollment_pb2.EnrollRequest()),
            ("GetBootstrap", enrollment_pb2.GetBootstrapRequest()),
        ):
            with pytest.raises(Refusal, match="gateway_listen") as refusal:
                await hand.ask(method, request)
            assert refusal.value.reason is Reason.NOT_FOUND
        request = trust_pb2.GetTrustChainRequest(cluster_id=hand.me.cluster_id)
        assert (await hand.ask("GetTrustChain", request)).bundles


async def test_a_stream_asks_once_a_minute(mutual: Installation) -> None:
    node = await mutual.enroll("n-1")
    async with HandmadeNode(mutual, node) as hand, hand.welcomed() as stream:
        await stream.control(certificate_request=gateway_pb2.CertificateRequest(public_key=b"no key"))
        assert (await stream.wait_control("certificate")).reason == "MALFORMED"
        await stream.control(certificate_request=gateway_pb2.CertificateRequest(public_key=b"no key"))
        assert (await stream.wait_refusal()).reason is Reason.MALFORMED


# -- how a node gets there --------------------------------------------------------------------------------------------
async def test_a_node_enrolls_on_one_listener_and_works_over_the_other(mutual: Installation) -> None:
    node = await mutual.enroll("n-1", mtls_endpoints=(endpoint(mutual),))
    await node.start()
    await moved(node, mutual)
    views = await mutual.owner.run("n-1", count=20)
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
    file = node.folder.client_certificate
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    audited = await mutual.owner.wait_audit("node_certificate.issued")
    assert audited["certificate_sha256"] == node_certificate.read(file.read_bytes()).sha256.hex()

    await node.stop()
    await node.start()
    assert node.link.endpoint == endpoint(mutual), "what it kept takes it there directly"
    assert node.link.streams_opened == 1


async def test_another_start_of_the_server_knows_the_certificates_of_the_one_before(mutual: Installation) -> None:
    """As another replica does: the node CA is derived, not kept."""
    node = await mutual.enroll("n-1", mtls_endpoints=(endpoint(mutual),))
    await node.start()
    await moved(node, mutual)
    await node.stop()
    await mutual.stop_server()
    await mutual.start_server()
    await node.start()
    assert (node.link.endpoint, node.link.streams_opened) == (endpoint(mutual), 1)
    assert len(await mutual.owner.audit("node_certificate.issued")) == 1


async def test_a_node_that_lost_its_certificate_gets_another_one(mutual: Installation) -> None:
    node = await mutual.enroll("n-1", mtls_endpoints=(endpoint(mutual),))
    await node.start()
    await moved(node, mutual)
    await node.stop()
    node.folder.client_certificate.unlink()
    await node.start()
    await moved(node, mutual)


async def test_a_node_whose_certificate_nobody_accepts_any_more_gets_another_one(mutual: Installation) -> None:
    node = await mutual.enroll("n-1", mtls_endpoints=(endpoint(mutual),))
    stale = client(stranger_ca(mutual.clock.now_ms()), node.node_id, mutual.clock.now_ms())
    keep(node, stale)
    await node.start(wait_live=False)
    await moved(node, mutual)
    assert (await mutual.owner.run("n-1"))[0].state == SUCCEEDED


async def test_without_a_listener_the_node_works_on_without_mtls(installation: Installation) -> None:
    node = await installation.enroll("n-1", mtls_endpoints=(f"127.0.0.1:{free_ports(1)[0]}",))
    await node.start()
    assert (await installation.owner.run("n-1"))[0].state == SUCCEEDED
    assert not node.folder.client_certificate.exists()
    assert node.link.endpoint == installation.gateway


async def test_a_renewal_under_traffic_loses_nothing(mutual: Installation) -> None:
    node = await mutual.enroll("n-1", mtls_endpoints=(endpoint(mutual),))
    old = client(node_ca(mutual), node.node_id, mutual.clock.now_ms() - 21 * DAY_MS)
    keep(node, old)
    async with traffic(mutual, "n-1") as orders:
        await more(orders, 6)
        await node.start()
        await node.wait_live(2)
        await more(orders, 6)

    views = [view for order in orders for view in await mutual.owner.outcomes(order)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert_each_ran_once(node, [view.command_id for view in views])
    assert (node.link.endpoint, node.link.streams_opened) == (endpoint(mutual), 2)
    assert not node.folder.client_certificate.read_bytes().startswith(old.certificate_pem)
    assert len(await mutual.owner.audit("node_certificate.issued")) == 1


async def test_a_node_on_the_mtls_listener_follows_a_rotation_of_the_tls_ca_there_and_from_away(
    mutual: Installation,
) -> None:
    there, away = [await mutual.enroll(name, mtls_endpoints=(endpoint(mutual),)) for name in ("there", "away")]
    for node in (there, away):
        await node.start()
        await moved(node, mutual)
    await away.stop()
    (before,) = (await test_tls_rotation.cas(mutual)).cas
    made = await test_tls_rotation.prepare(mutual)
    await eventually(lambda: len(trusted(there)) == 2, "it trusts both")
    await test_tls_rotation.activate(mutual, made, override="away is away")
    await test_tls_rotation.retire(mutual, before, override="away is away")
    await eventually(lambda: trusted(there) == (made.certificate,), "it trusts the new one alone")
    await there.stop()

    for node in (there, away):
        await node.start()
        await moved(node, mutual)
        assert trusted(node) == (made.certificate,)
    assert {view.state for view in await mutual.owner.run("*")} == {SUCCEEDED}


async def test_a_good_certificate_does_not_help_a_node_that_was_revoked(mutual: Installation) -> None:
    node = await mutual.enroll("n-1", mtls_endpoints=(endpoint(mutual),))
    await node.start()
    await moved(node, mutual)
    await mutual.owner.set_state("n-1", "SUSPENDED", "maintenance")
    await node.wait_refused("SUSPENDED")
    await mutual.owner.set_state("n-1", "REVOKED", "stolen")
    await node.stop()
    async with HandmadeNode(mutual, node, endpoint(mutual), good(mutual, node.node_id)) as hand:
        with pytest.raises(Refusal) as refusal:
            await hand.handshake()
    assert refusal.value.reason is Reason.REVOKED
