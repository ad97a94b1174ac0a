"""What a probe listener refuses, over real TLS: each caller here holds keys of the mesh, and breaks one rule."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.events import ResponseReceived, TrailersReceived

from fleet.envelope import Domain, Signer
from fleet.tls import split_endpoint
from fleet.v1 import probe_pb2
from fleet_node.routes.intake import ProbeLimits
from fleet_node.routes.probe_rules import Probe, request
from fleet_node.routes.walk_rules import WalkState
from tests.unit.fleet_node.routes.mesh import (
    GENERATION,
    ROUTE,
    TIMEOUT_S,
    Mesh,
    MeshNode,
    call_raw,
    deaf_port,
    mesh,
    probe,
    refusal_of,
)


async def message_over_h2(node: MeshNode, context: ssl.SSLContext, request: bytes | None) -> str:
    """The gRPC message that answers a walk over such a connection; one without a request never ends it."""
    host, port = split_endpoint(node.endpoint)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    http = H2Connection()
    http.initiate_connection()
    path = [(":method", "POST"), (":scheme", "https"), (":authority", "d"), (":path", "/fleet.v1.Probe/Walk")]
    http.send_headers(1, [*path, ("te", "trailers"), ("content-type", "application/grpc")])
    if request is not None:
        http.send_data(1, b"\0" + len(request).to_bytes(4, "big") + request, end_stream=True)
    said = ""
    async with asyncio.timeout(TIMEOUT_S):
        while not said:
            writer.write(http.data_to_send())
            for event in http.receive_data(await reader.read(65_536)):
                if isinstance(event, ResponseReceived | TrailersReceived):
                    said = said or dict(event.headers).get(b"grpc-message", b"").decode()
    writer.transport.abort()
    return said


def anybody(newest: ssl.TLSVersion) -> ssl.SSLContext:
    """TLS up to a version, with whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    return context


async def reason_at_r(nodes: Mesh, asked: Probe, hop_index: int = 1, signer: Signer | None = None) -> str:
    """Why r refuses; s calls unless told otherwise."""
    raw = request(asked, hop_index, signer or nodes["s"].view.signer)
    return str((await refusal_of(nodes["r"], raw)).reason)


async def test_what_breaks_a_rule_is_refused_by_its_name(tmp_path: Path) -> None:
    async with mesh(tmp_path, "srdx") as nodes:
        nodes.route("srd", "sd")
        stranger = Signer.generate()
        reasons = {
            "five hops": await reason_at_r(nodes, probe("srabcd")),
            "loop in the path": await reason_at_r(nodes, probe("srxxd")),
            "route to itself": await reason_at_r(nodes, probe("srs")),
            "relay that is an end": await reason_at_r(nodes, probe("srr")),
            "not its place": await reason_at_r(nodes, probe("srd"), 2, nodes["r"].view.signer),
            "no peer": await reason_at_r(nodes, probe("yrd"), signer=stranger),
            "another peer's key": await reason_at_r(nodes, probe("srd"), signer=nodes["x"].view.signer),
            "a stranger's key": await reason_at_r(nodes, probe("srd"), signer=stranger),
            "another cluster": await reason_at_r(nodes, replace(probe("srd"), cluster_id="cl_other")),
            "deadline over": await reason_at_r(nodes, probe("srd", ahead_ms=-1)),
            "deadline far ahead": await reason_at_r(nodes, probe("srd", ahead_ms=60_000)),
            "route unknown": await reason_at_r(nodes, probe("srd", route_id="rt_other")),
            "path unknown": await reason_at_r(nodes, probe("srx")),
        }
        answered = nodes["r"].listener.service.answered
        refused = nodes["r"].listener.service.refused
    assert reasons == {
        "five hops": "TOO_MANY_HOPS",
        "loop in the path": "LOOP",
        "route to itself": "LOOP",
        "relay that is an end": "RELAY_IS_END",
        "not its place": "NOT_MY_HOP",
        "no peer": "FOREIGN",
        "another peer's key": "BAD_PROOF",
        "a stranger's key": "BAD_PROOF",
        "another cluster": "FOREIGN",
        "deadline over": "EXPIRED",
        "deadline far ahead": "EXPIRED",
        "route unknown": "UNKNOWN_ROUTE",
        "path unknown": "UNKNOWN_GENERATION",
    }
    assert answered == 0
    assert refused == Counter(reasons.values())


async def test_a_probe_counts_once_and_for_its_own_purpose(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sd") as nodes:
        nodes.route("sd")
        asked = probe("sd")
        raw = request(asked, 1, nodes["s"].view.signer)
        assert await call_raw(nodes["d"], raw)
        assert (await refusal_of(nodes["d"], raw)).reason == "REPLAYED"
        again = request(replace(asked, deadline_ms=asked.deadline_ms + 1), 1, nodes["s"].view.signer)
        assert (await refusal_of(nodes["d"], again)).reason == "REPLAYED"
        signed = nodes["s"].view.signer.sign(Domain.PROBE_HOP, probe("sd", nonce=bytes(16)).statement(1))
        other_domain = probe_pb2.WalkRequest(signed=signed).SerializeToString()
        assert (await refusal_of(nodes["d"], other_domain)).reason == "BAD_PROOF"


@pytest.mark.parametrize("size", [4097, 6000])
async def test_what_is_too_large_is_refused(tmp_path: Path, size: int) -> None:
    async with mesh(tmp_path, "d") as nodes:
        assert (await refusal_of(nodes["d"], bytes(size))).reason == "OVERSIZE"


async def test_a_relay_without_a_lease_carries_candidates_only(tmp_path: Path) -> None:
    async with mesh(tmp_path, "srxd") as nodes:
        nodes.route("srd", "sxd", leased=False)
        effective = await nodes["s"].caller.walk(ROUTE, GENERATION, "srd", TIMEOUT_S)
        candidate = await nodes["s"].caller.walk(ROUTE, GENERATION, "sxd", TIMEOUT_S)
    assert (effective.state, effective.failure, effective.failed_hop) == (WalkState.UNREACHABLE, "LEASE_EXPIRED", 1)
    assert candidate.state is WalkState.ANSWERED


async def test_a_flood_is_stopped_before_anything_is_computed_for_it(tmp_path: Path) -> None:
    limits = ProbeLimits(address_per_s=0.001, address_burst=20)
    async with mesh(tmp_path, "sd", limits) as nodes:
        nodes.route("sd")
        stranger = Signer.generate()
        flood = [request(probe("sd", nonce=bytes([n] * 16)), 1, stranger) for n in range(40)]
        reasons = Counter([str((await refusal_of(nodes["d"], raw)).reason) for raw in flood])
        walked = await nodes["s"].caller.walk(ROUTE, GENERATION, "sd", TIMEOUT_S)
    assert reasons == {"BAD_PROOF": 20, "RATE_LIMITED": 20}
    assert (walked.state, walked.failure) == (WalkState.INCONCLUSIVE, "RATE_LIMITED")


async def test_a_peer_that_floods_takes_none_of_anothers_rate(tmp_path: Path) -> None:
    async with mesh(tmp_path, "sxd", ProbeLimits(caller_per_s=0.001, caller_burst=2)) as nodes:
        nodes.route("sd", "xd")
        flooding = [await nodes["s"].caller.walk(ROUTE, GENERATION, "sd", TIMEOUT_S) for _ in range(4)]
        other = await nodes["x"].caller.walk(ROUTE, GENERATION, "xd", TIMEOUT_S)
    # The first came over a connection of which nobody knew whose it was.
    assert [each.failure for each in (*flooding, other)] == ["", "", "", "RATE_LIMITED", ""]


async def test_walks_that_wait_hold_no_more_than_their_share(tmp_path: Path) -> None:
    """A relay whose next node is deaf waits for it; more than so many do not wait at one time."""
    async with mesh(tmp_path, "srd", ProbeLimits(in_flight=2)) as nodes, deaf_port() as (deaf, _):
        nodes.route("srd")
        nodes.redirect("d", deaf)
        walks = [nodes["s"].caller.walk(ROUTE, GENERATION, "srd", 1.0) for _ in range(4)]
        results = await asyncio.gather(*walks)
    assert Counter(each.failure for each in results) == {"UNREACHABLE": 2, "RATE_LIMITED": 2}
    waited = next(each for each in results if each.failure == "UNREACHABLE")
    assert (waited.observed, waited.failed_hop) == (("s", "r"), 2)
    assert 0 < waited.first_hop_us < 500_000  # of a second at most; the relay waited for most of it


async def test_a_peer_whose_walks_all_wait_keeps_nobody_else_out(tmp_path: Path) -> None:
    """Who is in league with a node that says nothing could hold every place of a relay, and blind its other peers."""
    limits = ProbeLimits(in_flight=4, in_flight_of_peer=2)
    async with mesh(tmp_path, "sxrde", limits) as nodes, deaf_port() as (deaf, _):
        nodes.route("srd", "xre")
        nodes.redirect("d", deaf)
        waiting = [asyncio.create_task(nodes["s"].caller.walk(ROUTE, GENERATION, "srd", 3.0)) for _ in range(6)]
        refused, waiting_still = await asyncio.wait(waiting, timeout=1.5)
        other = await nodes["x"].caller.walk(ROUTE, GENERATION, "xre", TIMEOUT_S)
        waited = await asyncio.gather(*waiting_still)
        again = await nodes["s"].caller.walk(ROUTE, GENERATION, "srd", 0.5)
    assert [each.result().failure for each in refused] == ["RATE_LIMITED"] * 4
    assert (other.state, other.failure) == (WalkState.ANSWERED, "")
    assert [each.failure for each in (*waited, again)] == ["UNREACHABLE"] * 3


async def test_tls_before_13_is_refused(tmp_path: Path) -> None:
    async with mesh(tmp_path, "d") as nodes:
        assert "TLS 1.3 is required" in await message_over_h2(nodes["d"], anybody(ssl.TLSVersion.TLSv1_2), b"")
        assert "no part of one" in await message_over_h2(nodes["d"], anybody(ssl.TLSVersion.TLSv1_3), b"")


async def test_a_call_whose_request_never_comes_is_ended(tmp_path: Path) -> None:
    async with mesh(tmp_path, "d", ProbeLimits(read_s=0.1)) as nodes:
        said = await message_over_h2(nodes["d"], anybody(ssl.TLSVersion.TLSv1_3), None)
        assert said.startswith("no whole probe came")


async def test_an_error_of_the_node_tells_a_stranger_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise RuntimeError("secret of the state folder")

    async with mesh(tmp_path, "sd") as nodes:
        nodes.route("sd")
        monkeypatch.setattr(nodes["d"].view, "configs_of", broken)
        refusal = await refusal_of(nodes["d"], request(probe("sd"), 1, nodes["s"].view.signer))
    assert refusal.reason == "INTERNAL"
    assert "secret" not in refusal.detail and "incident" in refusal.detail


@pytest.mark.parametrize("ahead_ms", [-4_000, 4_000])
async def test_nodes_that_take_another_moment_for_server_time_walk_however_short_a_walk_may_take(
    tmp_path: Path, ahead_ms: int
) -> None:
    """What a node takes for server time is behind by what it last waited for a word of the server."""
    async with mesh(tmp_path, "sd") as nodes:
        nodes.route("sd")
        await nodes["s"].caller.walk(ROUTE, GENERATION, "sd", TIMEOUT_S)  # connects
        nodes["d"].view.ahead_ms = ahead_ms
        walked = await nodes["s"].caller.walk(ROUTE, GENERATION, "sd", 0.5)
    assert (walked.state, walked.failure) == (WalkState.ANSWERED, "")
