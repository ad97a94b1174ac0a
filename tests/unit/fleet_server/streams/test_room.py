"""A replica that is full sends nodes on before they have done a handshake for nothing."""

from types import SimpleNamespace
from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from fleet.metrics import Registry
from fleet.v1 import session_pb2
from fleet_node.link.rules import other_endpoints
from fleet_server.observability.metrics import SessionMetrics
from fleet_server.sessions.admission import Admission
from fleet_server.streams.rpc import Gateway
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.many import World

HERE, THERE = "here:7443", "there:7443"


async def test_a_herd_that_comes_for_the_last_places_is_sent_on_by_its_first_call(clock: MockClock) -> None:
    world = World(clock, max_streams=10)
    await world.open()
    admission = Admission(clock=clock, metrics=SessionMetrics(Registry()))

    async def begin(request: session_pb2.BeginHandshakeRequest, address: str) -> session_pb2.BeginHandshakeResponse:
        assert admission.admit_handshake(request.api_key.encode(), address)
        return session_pb2.BeginHandshakeResponse()

    sessions = SimpleNamespace(begin=begin, admission=admission)
    gateway: Any = SimpleNamespace(_registry=world.registry, _rooms=SimpleNamespace(sessions=sessions))

    async def call(api_key: str) -> Refusal | None:
        try:
            await Gateway._begin(gateway, session_pb2.BeginHandshakeRequest(api_key=api_key), "192.0.2.7")
        except Refusal as refusal:
            return refusal
        return None

    refused = [refusal for number in range(30) if (refusal := await call(f"node-{number}")) is not None]
    assert len(refused) == 21
    for refusal in refused:
        assert refusal.reason is Reason.UNAVAILABLE
        assert other_endpoints(refusal, (HERE, THERE), HERE) == (THERE,), "at once, and not after a while"
    with pytest.raises(Refusal), admission.proving("CompleteHandshake", b"node-0", "192.0.2.7"):
        raise Refusal(Reason.BAD_PROOF, "no")
    assert await call("node-40") is None, "whoever fails leaves its place to another"


def test_whoever_was_let_in_finds_a_place_when_those_who_begin_find_none(clock: MockClock) -> None:
    sessions = SimpleNamespace(admission=Admission(clock=clock, metrics=SessionMetrics(Registry())))
    gateway: Any = SimpleNamespace(_unary_calls=64, _max_unary_calls=64, _rooms=SimpleNamespace(sessions=sessions))
    Gateway._check_load(gateway, "CompleteHandshake")
    with pytest.raises(Refusal) as caught:
        Gateway._check_load(gateway, "BeginHandshake")
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.retry_after_s
    gateway._unary_calls = 128
    with pytest.raises(Refusal):
        Gateway._check_load(gateway, "CompleteHandshake")
