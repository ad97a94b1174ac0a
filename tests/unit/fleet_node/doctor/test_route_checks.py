"""What the doctor finds out about routes."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet.clock import SystemClock
from fleet.tls import certificate_sha256
from fleet_node.config import Settings
from fleet_node.doctor.finding import Finding, Level
from fleet_node.doctor.route_checks import check_daemon, check_settings
from fleet_node.routes.listener import ProbeListener
from fleet_node.routes.probe_caller import ProbeCaller
from tests.unit.fleet_node.routes.mesh import View
from tests.unit.fleet_node.status.test_routes import ROUTE, ROUTES

LISTENING = Settings(probe_listen="127.0.0.1:0")


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[ProbeListener]:
    view = View("nd_a")
    caller = ProbeCaller(view, SystemClock())
    started = ProbeListener("127.0.0.1:0", tmp_path / "probe.pem", view, caller, SystemClock())
    await started.start()
    yield started
    await started.close()
    await caller.close()


async def findings(settings: Settings, routes: Any) -> list[Finding]:
    return [finding async for finding in check_daemon(settings, {"routes": routes})]


async def test_a_listener_is_called_where_others_call_it(listener: ProbeListener) -> None:
    sha256 = certificate_sha256(listener.certificate).hex()
    said = ROUTES | {"endpoints": [listener.bound], "certificate_sha256": sha256}
    found = await findings(LISTENING, said)
    assert [(each.level, each.endpoint) for each in found] == [(Level.OK, ""), (Level.OK, listener.bound)]
    (_, stranger) = await findings(LISTENING, said | {"certificate_sha256": "00" * 32})
    assert (stranger.level, stranger.endpoint) == (Level.FAIL, listener.bound)
    assert "another node or program" in stranger.detail


async def test_an_endpoint_where_nobody_answers_is_told(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{closed.getsockname()[1]}"
        (_, found) = await findings(LISTENING, ROUTES | {"endpoints": [endpoint]})
    assert (found.level, found.endpoint) == (Level.WARN, endpoint)
    assert "probe_endpoints" in found.next_step


async def test_a_listener_that_is_not_there_is_told() -> None:
    (found,) = await findings(LISTENING, ROUTES | {"endpoints": [], "listener": "not listening on 127.0.0.1:1: taken"})
    assert (found.level, found.detail) == (Level.FAIL, "not listening on 127.0.0.1:1: taken")
    (found,) = await findings(LISTENING, None)
    assert (found.level, found.next_step) == (Level.WARN, "restart it")
    assert await findings(Settings(), None) == []


async def test_a_node_that_others_would_call_is_told_to_listen() -> None:
    unheard = ROUTES | {"listener": "off", "endpoints": []}
    assert await findings(Settings(), unheard) == []  # it calls others, and nobody calls it
    (found,) = await findings(Settings(), unheard | {"routes": [ROUTE | {"role": "destination"}]})
    assert (found.level, "probe_listen" in found.next_step) == (Level.WARN, True)


async def test_routes_that_are_bad_or_were_lost_are_told() -> None:
    bad = ROUTE | {"state": "UNREACHABLE"}
    relayed = bad | {"role": "relay", "route_id": "rt_2"}
    (lost, route) = await findings(Settings(), ROUTES | {"routes": [bad, relayed], "problem": "it is damaged"})
    assert lost.detail == "it is damaged"
    assert route.detail == "rt_1 is UNREACHABLE over nd_a > nd_r > nd_b"
    assert "fleetctl routes explain rt_1" in route.next_step


def test_routes_without_a_signature_are_unsafe() -> None:
    (found,) = check_settings(Settings(routes_authority_required=False))
    assert (found.level, "UNSAFE" in found.detail) == (Level.WARN, True)
    assert list(check_settings(Settings())) == []
