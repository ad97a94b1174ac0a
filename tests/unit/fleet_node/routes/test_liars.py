"""Relays and destinations that lie about a walk, over real TLS with keys of their own: the source names them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.envelope import Domain, Signer
from fleet.v1 import probe_pb2
from fleet_node.routes import walk_rules
from fleet_node.routes.probe_rules import Asked, read_request, request
from fleet_node.routes.walk_rules import WalkResult, WalkState
from tests.unit.fleet_node.routes.mesh import GENERATION, ROUTE, Mesh, MeshNode, call_raw, mesh

PATH = "srd"
PAYLOAD = b"\xfa\x01\x07payload"  # field 31, length-delimited

Lie = Callable[[Mesh, Asked, bytes], Awaitable[bytes]]
"""What a liar answers, from what it was asked and the honest answer."""


def lies(nodes: Mesh, liar: MeshNode, lie: Lie, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a node answer that from now on; its listener, certificate and key are its own."""
    honest = liar.listener.service._take

    async def take(raw: bytes, address: str, context: Any) -> bytes:
        return await lie(nodes, read_request(raw), await honest(raw, address, context))

    monkeypatch.setattr(liar.listener.service, "_take", take)


async def walked(
    folder: Path, liar: str, lie: Lie, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 5.0
) -> WalkResult:
    async with mesh(folder, "srd") as nodes:
        nodes.route(PATH)
        lies(nodes, nodes[liar], lie, monkeypatch)
        return await nodes["s"].caller.walk(ROUTE, GENERATION, PATH, timeout_s)


def made(asked: Asked, hop_index: int, signer: Signer, **changes: object) -> probe_pb2.WalkResponse:
    """An answer of one record, made by hand."""
    said = probe_pb2.HopRecord(
        node_id=asked.probe.path[hop_index],
        nonce=asked.probe.nonce,
        hop_index=hop_index,
        statement_sha256=hashlib.sha256(asked.probe.statement(hop_index)).digest(),
    )
    for name, value in changes.items():
        setattr(said, name, value)
    return probe_pb2.WalkResponse(hops=[signer.sign(Domain.PROBE_HOP, said.SerializeToString())])


async def forges_the_destinations_record(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
    forged = made(asked, 2, nodes["r"].view.signer)
    own = made(asked, 1, nodes["r"].view.signer, onward=walk_rules.ANSWERED)
    return probe_pb2.WalkResponse(hops=[*forged.hops, *own.hops]).SerializeToString()


async def signs_with_another_key(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
    answer = probe_pb2.WalkResponse.FromString(honest)
    answer.hops[-1].CopyFrom(Signer.generate().sign(Domain.PROBE_HOP, answer.hops[-1].statement))
    return answer.SerializeToString()


async def leaves_a_record_out(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
    return probe_pb2.WalkResponse(hops=probe_pb2.WalkResponse.FromString(honest).hops[-1:]).SerializeToString()


async def answers_in_the_destinations_name_alone(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
    return probe_pb2.WalkResponse(hops=probe_pb2.WalkResponse.FromString(honest).hops[:1]).SerializeToString()


async def sends_something_along(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
    return honest + PAYLOAD


async def sends_far_too_much(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
    return bytes(100_000)


async def says_that_somebody_answered_who_has_no_name(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
    said = {"onward": walk_rules.WRONG_NODE, "failure": "WRONG_NODE", "onward_node_id": "no id"}
    return made(asked, 1, nodes["r"].view.signer, **said).SerializeToString()


RELAYS_LIES = [
    says_that_somebody_answered_who_has_no_name,
    forges_the_destinations_record,
    signs_with_another_key,
    leaves_a_record_out,
    answers_in_the_destinations_name_alone,
    sends_something_along,
    sends_far_too_much,
]


@pytest.mark.parametrize("lie", RELAYS_LIES, ids=lambda lie: lie.__name__)
async def test_a_relay_that_lies_is_named(tmp_path: Path, lie: Lie, monkeypatch: pytest.MonkeyPatch) -> None:
    result = await walked(tmp_path, "r", lie, monkeypatch)
    assert (result.state, result.observed) == (WalkState.DRIFT, ("s",))
    assert (result.failure, result.failed_hop, result.blamed) == ("BAD_RECORD", 1, "r")


async def test_a_relay_that_replays_old_records_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []

    async def replay(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
        kept.append(honest)
        return kept[0]

    async def replay_the_ends_record(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
        old, new = (probe_pb2.WalkResponse.FromString(each) for each in (kept[0], honest))
        return probe_pb2.WalkResponse(hops=[old.hops[0], new.hops[1]]).SerializeToString()

    async with mesh(tmp_path, "srd") as nodes:
        nodes.route(PATH)
        lies(nodes, nodes["r"], replay, monkeypatch)
        first, second = [await nodes["s"].caller.walk(ROUTE, GENERATION, PATH, 5.0) for _ in range(2)]
        monkeypatch.undo()
        lies(nodes, nodes["r"], replay_the_ends_record, monkeypatch)
        third = await nodes["s"].caller.walk(ROUTE, GENERATION, PATH, 5.0)
    assert first.state is WalkState.ANSWERED
    assert [(each.state, each.blamed) for each in (second, third)] == [(WalkState.DRIFT, "r")] * 2


async def test_a_relay_that_swallows_probes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It proved itself over the connection, and a relay that finds nobody would have testified that."""

    async def drop(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    result = await walked(tmp_path, "r", drop, monkeypatch, timeout_s=1.0)
    assert (result.state, result.failure) == (WalkState.UNREACHABLE, "TIMED_OUT")
    assert (result.failed_hop, result.blamed) == (1, "r")


async def test_a_relay_that_says_that_nobody_is_there_is_where_the_walk_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deny(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
        said = made(asked, 1, nodes["r"].view.signer, onward=walk_rules.UNREACHABLE, failure="UNREACHABLE")
        return said.SerializeToString()

    result = await walked(tmp_path, "r", deny, monkeypatch)
    assert (result.state, result.failed_hop, result.blamed) == (WalkState.UNREACHABLE, 2, "")
    assert result.observed == ("s", "r")


@pytest.mark.parametrize("lie", [signs_with_another_key, sends_something_along, sends_far_too_much])
async def test_a_destination_that_lies_is_named_by_the_relay(
    tmp_path: Path, lie: Lie, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = await walked(tmp_path, "d", lie, monkeypatch)
    assert (result.state, result.observed) == (WalkState.DRIFT, ("s", "r"))
    assert (result.failure, result.failed_hop, result.blamed) == ("BAD_RECORD", 2, "d")


async def test_a_relay_passes_on_nothing_that_another_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what a destination puts into a record that it signed, nor what a source puts into its statement."""

    async def smuggle(nodes: Mesh, asked: Asked, honest: bytes) -> bytes:
        record = probe_pb2.WalkResponse.FromString(honest).hops[0].statement + PAYLOAD
        signed = nodes["d"].view.signer.sign(Domain.PROBE_HOP, record)
        return probe_pb2.WalkResponse(hops=[signed]).SerializeToString()

    async with mesh(tmp_path, "srd") as nodes:
        nodes.route(PATH)
        lies(nodes, nodes["d"], smuggle, monkeypatch)
        view = nodes["s"].view
        deadline_ms = view.server_now_ms() + 3000
        asked = walk_rules.Probe(view.cluster_id, ROUTE, GENERATION, tuple(PATH), bytes(16), deadline_ms)
        answer = await call_raw(nodes["r"], request(asked, 1, view.signer))
    assert b"payload" not in answer
    said = walk_rules.read_answer(answer, asked, 1, lambda _: nodes["r"].view.signer.public_key)
    assert [(each.onward, each.failure) for each in said.records] == [(walk_rules.BAD_RECORD, "BAD_RECORD")]
