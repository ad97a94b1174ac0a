"""What the server tells nodes of routes on their streams, and what it takes of them; the nodes are written by hand."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from fleet import envelope
from fleet.envelope import Domain
from fleet.v1 import gateway_pb2, lease_pb2, route_pb2, trust_pb2
from tests.fakes.tls import FakeAuthority
from tests.integration.handmade import HandmadeNode, HandmadeStream, hello_body
from tests.integration.installation import Installation, Template

_ASKS = 300
_SHORT_LEASE_S = 3


def listening(number: int, config_version: int = 0) -> gateway_pb2.HelloBody:
    """A hello with a probe listener."""
    listener = gateway_pb2.ProbeListener(endpoints=[f"127.0.0.1:{number}"], certificate=leaf())
    held = {"generation": 1, "number": 1}
    return hello_body(probe_listener=listener, config_version=config_version, bundle_version=held)


@cache
def leaf() -> bytes:
    """The certificate of all probe listeners here."""
    pair = FakeAuthority().issue()
    return ssl.PEM_cert_to_DER_cert(pair.cert_pem.decode())


def opened(installation: Installation, domain: Domain, signed: trust_pb2.Signed) -> bytes:
    """A statement whose authority signed it."""
    authority = installation.server.trust.authority
    assert envelope.verified_signers(signed, domain=domain, keys={authority.key_id: authority.public_key})
    return signed.statement


async def next_config(installation: Installation, stream: HandmadeStream) -> route_pb2.ConfigSnapshotStatement:
    """The next snapshot, verified."""
    raw = opened(installation, Domain.CONFIG, await stream.wait_control("config"))
    return route_pb2.ConfigSnapshotStatement.FromString(raw)


def failed(config: route_pb2.RouteConfig, now_ms: int) -> route_pb2.RouteHealth:
    """The route's path does not answer, and its source asks what to do."""
    observation = route_pb2.RouteObservation(
        route_id=config.route_id,
        generation=config.generation,
        observation_type=route_pb2.OBSERVATION_TYPE_SYNTHETIC_ROUTE_HEALTH,
        state=route_pb2.ROUTE_STATE_UNREACHABLE,
        expected_hops=config.path,
        observed_hops=config.path[:1],
        observed_at_ms=now_ms,
        failure="TIMED_OUT",
        failed_hop=1,
    )
    return route_pb2.RouteHealth(observations=[observation], refresh_routes=[config.route_id])


@asynccontextmanager
async def node(installation: Installation, name: str) -> AsyncIterator[HandmadeNode]:
    """A node, enrolled."""
    async with HandmadeNode(installation, await installation.enroll(name)) as made:
        yield made


async def test_who_has_part_in_a_route_is_told_and_nobody_else(installation: Installation) -> None:
    async with (
        node(installation, "a") as a,
        node(installation, "b") as b,
        node(installation, "c") as c,
        a.welcomed(listening(1)) as source,
        b.welcomed(listening(2)) as destination,
        c.welcomed(listening(3)) as foreign,
    ):
        await installation.server.routes.create(source="a", destination="b", by="owner")
        snapshot = await next_config(installation, source)
        (config,) = snapshot.routes
        assert (snapshot.node_id, list(config.path)) == (a.me.node_id, [a.me.node_id, b.me.node_id])
        (peer,) = snapshot.peers
        assert (peer.node_id, list(peer.probe_endpoints)) == (b.me.node_id, ["127.0.0.1:2"])
        assert peer.probe_certificate == leaf()
        assert peer.identity_key == b.me.signer.public_key
        assert (await next_config(installation, destination)).node_id == b.me.node_id

        now_ms = installation.clock.now_ms()
        await foreign.control(route_health=failed(config, now_ms))
        await source.control(route_health=failed(config, now_ms))
        assert (await next_config(installation, source)).version >= snapshot.version

        await installation.server.routes.create(source="c", destination="b", by="owner")
        (own,) = (await next_config(installation, foreign)).routes
        assert own.path[0] == c.me.node_id, "the first thing that it is told"


async def test_asks_without_end_are_answered_as_few_are(installation: Installation) -> None:
    async with (
        node(installation, "a") as a,
        node(installation, "b") as b,
        a.welcomed(listening(1)) as source,
        b.welcomed(listening(2)),
    ):
        await installation.server.routes.create(source="a", destination="b", by="owner")
        (config,) = (await next_config(installation, source)).routes
        for _ in range(_ASKS):
            await source.control(route_health=failed(config, installation.clock.now_ms()))
        await installation.server.routes.create(source="b", destination="a", by="owner")
        answers = 1
        while len((await next_config(installation, source)).routes) < 2:
            answers += 1
        assert answers < _ASKS // 10


async def test_a_server_that_starts_again_sends_what_a_node_lacks_and_nothing_that_it_has(
    installation: Installation,
) -> None:
    async with node(installation, "a") as a, node(installation, "b") as b:
        async with a.welcomed(listening(1)) as source, b.welcomed(listening(2)):
            await installation.server.routes.create(source="a", destination="b", by="owner")
            version = (await next_config(installation, source)).version
        await installation.stop_server()
        await installation.start_server()
        async with a.welcomed(listening(1)) as source:
            again = await next_config(installation, source)
            assert again.version >= version
            assert len(again.routes) == 1
        async with a.welcomed(listening(1, config_version=again.version)) as source:
            await installation.server.routes.create(source="b", destination="a", by="owner")
            assert len((await next_config(installation, source)).routes) == 2, "the first thing that it is told"
        ahead = again.version + 1_000  # of a database that went back since
        async with a.welcomed(listening(1, config_version=ahead)) as source:
            assert (await next_config(installation, source)).version > ahead


async def test_both_parties_of_a_lease_are_told_that_it_was_renewed(tmp_path: Path, template: Template) -> None:
    async with (
        Installation(tmp_path, template, lease_ttl_s=_SHORT_LEASE_S) as installation,
        node(installation, "a") as a,
        node(installation, "b") as b,
        node(installation, "r") as r,
        a.welcomed(listening(1)) as source,
        b.welcomed(listening(2)),
        r.welcomed(listening(3)) as relay,
    ):
        await installation.server.routes.add_relay("r", by="owner")
        await installation.server.routes.create(source="a", destination="b", by="owner")
        (config,) = (await next_config(installation, source)).routes
        while not config.candidates:
            (config,) = (await next_config(installation, source)).routes
        health = failed(config, installation.clock.now_ms())
        works = health.observations.add(
            route_id=config.route_id,
            generation=config.generation,
            observation_type=route_pb2.OBSERVATION_TYPE_CANDIDATE_PATH,
            state=route_pb2.ROUTE_STATE_HEALTHY,
            rtt_us=5_000,
            observed_at_ms=health.observations[0].observed_at_ms,
        )
        for hops in (works.expected_hops, works.observed_hops):
            hops.extend(config.candidates[0].path)
        await source.control(route_health=health)
        (lent,) = (await next_config(installation, source)).leases
        first = lease_pb2.LeaseStatement.FromString(opened(installation, Domain.LEASE, lent))
        for stream in (source, relay):
            renewed = first
            while renewed.expires_at_ms == first.expires_at_ms:
                raw = opened(installation, Domain.LEASE, await stream.wait_control("lease"))
                renewed = lease_pb2.LeaseStatement.FromString(raw)
            assert (renewed.lease_id, renewed.generation) == (first.lease_id, first.generation)
            assert renewed.relay_node_id == r.me.node_id
            assert renewed.expires_at_ms > first.expires_at_ms
