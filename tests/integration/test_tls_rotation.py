"""The server's TLS CA rotates under real nodes, real TLS and running commands: nobody is cut off, nothing is lost."""

import asyncio
import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from fleet import tls, tls_certificates
from fleet.errors import Reason, Refusal
from fleet.v1 import admin_pb2, command_pb2, installation_pb2_grpc, trust_pb2
from fleet_server.certificates import ServedTls
from tests.integration.command_line import Fleetctl
from tests.integration.installation import Installation, RunningNode, assert_each_ran_once
from tests.integration.test_authority_rotation import rotate as rotate_authority
from tests.integration.traffic import more, traffic
from tests.integration.waiting import eventually

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED
PREPARED, ACTIVE = admin_pb2.TLS_CA_PHASE_PREPARED, admin_pb2.TLS_CA_PHASE_ACTIVE
OUTGOING, RETIRED = admin_pb2.TLS_CA_PHASE_OUTGOING, admin_pb2.TLS_CA_PHASE_RETIRED
REVOKED = admin_pb2.TLS_CA_PHASE_REVOKED


async def cas(installation: Installation) -> admin_pb2.ListTlsCasResponse:
    return await installation.owner.ask("ListTlsCas", admin_pb2.ListTlsCasRequest())


async def phases(installation: Installation) -> list[int]:
    return [ca.phase for ca in (await cas(installation)).cas]


async def prepare(installation: Installation, certificate: bytes = b"") -> admin_pb2.TlsCaView:
    request = admin_pb2.PrepareTlsCaRequest(certificate=certificate)
    return (await installation.owner.ask("PrepareTlsCa", request)).ca


async def activate(installation: Installation, ca: admin_pb2.TlsCaView, override: str = "") -> None:
    request = admin_pb2.ActivateTlsCaRequest(ca=ca.sha256.hex(), override_reason=override)
    await installation.owner.ask("ActivateTlsCa", request)
    installation.log_in()


async def retire(installation: Installation, ca: admin_pb2.TlsCaView, override: str = "") -> None:
    request = admin_pb2.RetireTlsCaRequest(ca=ca.sha256.hex()[:12], override_reason=override)
    await installation.owner.ask("RetireTlsCa", request)


async def revoke(installation: Installation, ca: admin_pb2.TlsCaView) -> None:
    request = admin_pb2.RevokeTlsCaRequest(ca=ca.sha256.hex(), reason="leaked")
    await installation.owner.ask("RevokeTlsCa", request)
    installation.log_in()


async def complete(installation: Installation) -> bool:
    rollouts = (await cas(installation)).rollouts
    return bool(rollouts) and all(far.complete for far in rollouts)


async def rotate(installation: Installation, *, override: str = "") -> admin_pb2.TlsCaView:
    """The whole way: prepare, activate, retire; the CA that is ACTIVE in the end."""
    before = next(ca for ca in (await cas(installation)).cas if ca.phase == ACTIVE)
    made = await prepare(installation)
    await eventually(lambda: complete(installation), "nodes trust it")
    await activate(installation, made, override)
    await retire(installation, before, override)
    return made


def trusted(node: RunningNode) -> tuple[bytes, ...]:
    assert node.node is not None
    return node.node.trust.state.tls_ca_der


def leaf_is_of(installation: Installation, ca: admin_pb2.TlsCaView) -> bool:
    leaf = tls.der_to_pem(installation.server.certificates.leaf_der)
    return tls_certificates.is_issued_by(leaf, tls.der_to_pem(ca.certificate))


async def run_everywhere(installation: Installation) -> None:
    assert {view.state for view in await installation.owner.run()} == {SUCCEEDED}


async def test_a_rotation_under_traffic_cuts_off_neither_who_is_there_nor_who_is_away(
    installation: Installation,
) -> None:
    proxy = await installation.proxy()
    nodes = [*await installation.add_nodes(2), await installation.add_node("cut", endpoints=(proxy.address,))]
    away = await installation.add_node("away")
    first_runs = [view.command_id for view in await installation.owner.run("away")]
    await away.stop()
    first = (await cas(installation)).cas[0]
    async with traffic(installation) as orders:
        await more(orders, 5)
        second = await prepare(installation)
        await eventually(lambda: all(len(trusted(node)) == 2 for node in nodes), "nodes trust both")
        await more(orders, 5)
        await activate(installation, second, override="away is away")
        assert leaf_is_of(installation, second)
        await more(orders, 5)
        proxy.cut()  # and this one connects anew, to the new certificate
        await nodes[2].wait_live(streams=2)
        await more(orders, 5)
        await retire(installation, first, override="away is away")
        for node in nodes:
            await eventually(
                lambda node=node: trusted(node) == (second.certificate,), "the node trusts the new one alone"
            )
        proxy.cut()
        await nodes[2].wait_live(streams=3)
        await more(orders, 5)
        assert await phases(installation) == [RETIRED, ACTIVE]
        await away.start()  # no person does anything
        assert trusted(away) == (second.certificate,)

    views = [view for order in orders for view in await installation.owner.outcomes(order)]
    assert {view.state for view in views} == {SUCCEEDED}
    assert [node.link.streams_opened for node in nodes] == [1, 1, 3], "no stream was cut but by the test"
    for node in (*nodes, away):
        ran = [view.command_id for view in views if view.node_name == node.name]
        assert_each_ran_once(node, [*first_runs, *ran] if node is away else ran)
    await run_everywhere(installation)
    assert await installation.owner.audit("statement.refused", "node.bundle_refused") == []


async def test_a_node_that_was_away_over_rotations_of_both_ca_and_authority_comes_back(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    await installation.owner.set_state("n-1", "SUSPENDED", "or every step would wait for it")
    for _ in range(2):
        await rotate_authority(installation)
        newest = await rotate(installation, override="n-1 is away")
    await installation.owner.set_state("n-1", "ACTIVE", "back")
    queued = await installation.owner.issue("n-1", count=3)

    await node.start()

    assert {view.state for view in await installation.owner.outcomes(queued.issue_id)} == {SUCCEEDED}
    assert trusted(node) == (newest.certificate,)
    assert node.node is not None
    assert node.node.trust.state.generation == 3


async def test_steps_wait_for_the_rollout_and_an_override_says_how_many_it_leaves_behind(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    await node.stop()
    await installation.owner.wait_node("n-1", lambda view: not view.online)
    first = (await cas(installation)).cas[0]
    second = await prepare(installation)
    (far,) = (await cas(installation)).rollouts
    assert (far.sha256, far.asked, far.holding, far.complete) == (second.sha256, 1, 0, False)

    with pytest.raises(Refusal, match=r"0 of 1 nodes .* 1 would be cut off .* such as n-1") as refused:
        await activate(installation, second)
    assert refused.value.reason is Reason.CONFLICT
    await activate(installation, second, override="n-1 is on its way")
    detail = await installation.owner.wait_audit("tls_ca.activated")
    assert (detail["override"], detail["lacking"]) == ("n-1 is on its way", 1)
    with pytest.raises(Refusal, match="1 would be cut off"):
        await retire(installation, first)

    await node.start()  # meets a certificate of a CA that it has never heard of
    await eventually(lambda: complete(installation), "it trusts the new one")
    await retire(installation, first)
    await retire(installation, first)  # an answer that was lost
    assert len(await installation.owner.audit("tls_ca.retired")) == 1
    await run_everywhere(installation)


async def test_tokens_and_requests_of_before_during_and_after_all_let_nodes_in(installation: Installation) -> None:
    before, by_hand = await installation.join_token(), await installation.join_token(auto_approve=False)
    waiting = RunningNode(installation.folder / "waiting", "waiting", installation.clock)
    pending = await waiting.enrollment().apply(by_hand, waiting.applicant)
    first = (await cas(installation)).cas[0]
    second = await prepare(installation)
    during = await installation.join_token()
    await activate(installation, second)
    after = await installation.join_token()
    await retire(installation, first)
    await rotate_authority(installation)

    for name, token in (("before", before), ("during", during), ("after", after)):
        await installation.enroll(name, token)
        await installation.nodes[name].start()
    approve = admin_pb2.DecideEnrollmentRequest(enrollment_id=pending.enrollment_id, approve=True)
    await installation.owner.ask("DecideEnrollment", approve)
    await waiting.enrollment().wait_decided(pending)
    await run_everywhere(installation)


async def test_a_revoked_ca_gives_way_at_once_to_the_prepared_one_and_its_key_is_gone(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    first = (await cas(installation)).cas[0]
    with pytest.raises(Refusal, match="makes its successor first"):
        await revoke(installation, first)
    second = await prepare(installation)
    await revoke(installation, first)

    assert await phases(installation) == [REVOKED, ACTIVE]
    assert leaf_is_of(installation, second)
    await eventually(lambda: trusted(node) == (second.certificate,), "the node trusts it no longer")
    assert node.link.streams_opened == 1
    assert installation.server.trust.tls.row(first.sha256).sealed_private == b""
    await node.stop()
    await node.start()
    await run_everywhere(installation)


async def test_a_ca_from_outside_is_published_and_its_certificate_shown_from_the_folder(
    installation: Installation,
) -> None:
    node = await installation.add_node("n-1")
    now = dt.datetime.now(dt.UTC)
    outside = tls_certificates.make_ca("company", now)
    brought = await prepare(installation, outside.certificate_pem)
    assert (await prepare(installation, outside.certificate_pem)).sha256 == brought.sha256, "again changes nothing"
    assert (brought.own, brought.subject) == (False, "CN=company")
    await eventually(lambda: complete(installation), "nodes trust it")
    with pytest.raises(Refusal, match=r"outside\.pem"):
        await activate(installation, brought)

    leaf = tls_certificates.make_leaf(outside, ["127.0.0.1"], now)
    file = installation.data / "tls" / "outside.pem"
    file.touch(mode=0o600)
    file.write_bytes(leaf.certificate_pem + leaf.private_key_pem)
    await activate(installation, brought)
    assert installation.server.certificates.leaf_der == leaf.certificate_der
    await node.stop()
    await node.start()
    await retire(installation, (await cas(installation)).cas[0])
    later = await installation.add_node("n-2")
    assert trusted(later) == (brought.certificate,)

    back = await prepare(installation)
    await eventually(lambda: complete(installation), "nodes trust the next one")
    await activate(installation, back)
    assert leaf_is_of(installation, back)
    await retire(installation, brought)
    await node.stop()
    await node.start()
    await run_everywhere(installation)


async def test_of_two_who_activate_at_once_both_are_answered_and_it_happens_once(installation: Installation) -> None:
    second = await prepare(installation)
    request = admin_pb2.ActivateTlsCaRequest(ca=second.sha256.hex())
    answers = await asyncio.gather(*(installation.owner.ask("ActivateTlsCa", request) for _ in range(2)))
    assert [answer.ca.phase for answer in answers] == [ACTIVE, ACTIVE]
    installation.log_in()
    assert len(await installation.owner.audit("tls_ca.activated")) == 1
    assert await phases(installation) == [OUTGOING, ACTIVE]


async def test_the_rotation_outlives_restarts_and_is_audited(installation: Installation) -> None:
    await installation.add_node("n-1")
    second = await rotate(installation)
    leaf = installation.server.certificates.leaf_der
    await installation.crash_server()
    await installation.start_server()
    assert installation.server.certificates.leaf_der == leaf
    assert leaf_is_of(installation, second)
    rows = await installation.owner.audit(
        "tls_ca.created", "tls_ca.prepared", "tls_ca.activated", "tls_ca.outgoing", "tls_ca.retired", "tls_leaf.issued"
    )
    assert [(row.kind, row.actor) for row in rows] == [
        ("tls_ca.created", "server"),
        ("tls_leaf.issued", "server"),
        ("tls_ca.prepared", "owner"),
        ("tls_ca.activated", "owner"),
        ("tls_ca.outgoing", "owner"),
        ("tls_leaf.issued", "server"),
        ("tls_ca.retired", "owner"),
    ]
    assert json.loads(rows[3].detail)["asked"] == 1


async def test_fleetctl_follows_and_shows_its_token_to_nobody_else(installation: Installation, tmp_path: Path) -> None:
    here = tmp_path / "operator"
    here.mkdir(mode=0o700)
    fleetctl = Fleetctl(installation, here, installation.owner_token)
    await fleetctl.login()
    first = (await cas(installation)).cas[0]
    second = await rotate(installation)

    code, _, err = await fleetctl("nodes", "list")
    assert code == 0, err
    assert "proves the new one" in err
    code, _, err = await fleetctl("tls", "list")
    assert (code, err) == (0, ""), "it remembers"
    profile = (here / "profile.toml").read_text()
    assert json.dumps(tls.der_to_pem(second.certificate).decode()) in profile
    assert json.dumps(tls.der_to_pem(first.certificate).decode()) not in profile

    stranger = tls_certificates.make_ca("stranger", dt.datetime.now(dt.UTC))
    installation.server.certificates.take(
        replace(served(installation), leaf=tls_certificates.make_leaf(stranger, ["127.0.0.1"], dt.datetime.now(dt.UTC)))
    )
    code, _, err = await fleetctl("nodes", "list")
    assert code != 0
    assert "certificate" in err


async def test_the_operators_listener_hands_the_chain_to_strangers_and_nothing_else(
    installation: Installation,
) -> None:
    trust = installation.server.trust
    credentials = grpc.ssl_channel_credentials(installation.ca_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{installation.admin_port}", credentials) as channel:
        stub = installation_pb2_grpc.InstallationStub(channel)
        answer = await stub.GetTrustChain(trust_pb2.GetTrustChainRequest(cluster_id=trust.cluster_id))
        assert answer.bundles[-1].statement == trust.bundle.signed.statement
        with pytest.raises(grpc.aio.AioRpcError, match="does not serve that cluster"):
            await stub.GetTrustChain(trust_pb2.GetTrustChainRequest(cluster_id="another"))


def served(installation: Installation) -> ServedTls:
    found = installation.server.trust.tls.served()
    assert found is not None
    return found


async def test_only_an_owner_changes_tls_cas(installation: Installation) -> None:
    release = await installation.operator("rel", "release")
    for method, request in (
        ("PrepareTlsCa", admin_pb2.PrepareTlsCaRequest()),
        ("ActivateTlsCa", admin_pb2.ActivateTlsCaRequest(ca="0" * 64)),
        ("RetireTlsCa", admin_pb2.RetireTlsCaRequest(ca="0" * 64)),
        ("RevokeTlsCa", admin_pb2.RevokeTlsCaRequest(ca="0" * 64, reason="x")),
    ):
        with pytest.raises(Refusal) as refused:
            await release.ask(method, request)
        assert refused.value.reason is Reason.PERMISSION_DENIED
    assert len((await release.ask("ListTlsCas", admin_pb2.ListTlsCasRequest())).cas) == 1
    await release.close()
