"""Two replicas behind a real HAProxy that ends TLS with a certificate of a CA from outside, with the shipped config."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleet.tls import certificate_sha256
from fleet.tls_certificates import CertifiedKey, make_ca, make_leaf
from fleet.v1 import admin_pb2, command_pb2
from tests.fakes.haproxy import HaProxy
from tests.fakes.process import Processes
from tests.fakes.proxy import FaultProxy
from tests.integration.balanced import Balanced, balanced
from tests.integration.clock import QuickClock
from tests.integration.installation import assert_each_ran_once, free_ports
from tests.integration.waiting import eventually

if TYPE_CHECKING:
    from tests.fakes.postgres import PostgresServer

SUCCEEDED = command_pb2.COMMAND_STATE_SUCCEEDED


@dataclass
class Terminated:
    """Replicas behind a terminator.

    Args:
        company: the CA that signed its certificate.
        lines: from the terminator to the gateway of each replica.
    """

    fleet: Balanced
    company: CertifiedKey
    lines: Sequence[FaultProxy]

    def config(self, leaf: CertifiedKey, folder: Path, gateway: str) -> str:
        """The shipped config, with that certificate, listening for nodes there."""
        folder.mkdir(parents=True)
        (folder / "gateway.pem").write_bytes(leaf.certificate_pem + leaf.private_key_pem)
        (folder / "fleet-ca.pem").write_bytes(self.fleet.replicas[0].ca_pem)
        admin = self.fleet.admin if gateway == self.fleet.gateway else f"127.0.0.1:{free_ports(1)[0]}"
        listens = {"7443": gateway, "7444": admin}
        gateways = [line.address for line in self.lines]
        config = self.fleet.configured("terminating.cfg", listens, gateways)
        return config.replace("/etc/haproxy/", f"{folder}/")


@pytest.fixture
async def terminated(tmp_path: Path, postgres: "PostgresServer", processes: Processes) -> AsyncIterator[Terminated]:
    """Two replicas that name the terminator's certificate; nodes trust the company's CA alone."""
    now = dt.datetime.now(dt.UTC)
    company = make_ca("company", now)
    leaf = make_leaf(company, ["127.0.0.1"], now)
    named = (certificate_sha256(leaf.certificate_der).hex(),)
    async with (
        balanced(tmp_path, postgres, processes, clock=QuickClock(speed=5), tls_terminator_leaf_sha256=named) as fleet,
        contextlib.AsyncExitStack() as stack,
    ):
        targets = [("127.0.0.1", replica.gateway_port) for replica in fleet.replicas]
        lines = [await stack.enter_async_context(FaultProxy(target)) for target in targets]
        made = Terminated(fleet, company, lines)
        await fleet.start_balancer(made.config(leaf, tmp_path / "certificates", fleet.gateway))
        (own,) = (await fleet.owner.ask("ListTlsCas", admin_pb2.ListTlsCasRequest())).cas
        request = admin_pb2.PrepareTlsCaRequest(certificate=company.certificate_pem)
        brought = (await fleet.owner.ask("PrepareTlsCa", request)).ca.sha256.hex()

        async def activated() -> bool:
            await fleet.owner.ask("ActivateTlsCa", admin_pb2.ActivateTlsCaRequest(ca=brought))
            return True

        await eventually(activated, "both replicas have said that a terminator shows it")
        await fleet.owner.ask("RetireTlsCa", admin_pb2.RetireTlsCaRequest(ca=own.sha256.hex()))
        yield made


async def test_each_stream_has_a_connection_to_a_replica_and_all_move_at_a_drain(terminated: Terminated) -> None:
    fleet = terminated.fleet
    nodes = [await fleet.add_node(f"n-{number}") for number in range(3)]
    lines = terminated.lines

    def connections() -> int:
        return sum(len(line.connections) for line in lines)

    await eventually(lambda: connections() == len(nodes), "no two nodes share a connection")
    next(line for line in lines if line.connections).connections[0].cut()
    await eventually(lambda: sum(node.link.streams_opened for node in nodes) == len(nodes) + 1, "one node comes back")
    await eventually(lambda: connections() == len(nodes), "each has one again")
    async with fleet.traffic():
        await fleet.more()
        assert await fleet.replicas[0].stop_server() == 0
        assert {(await fleet.owner.node(node.name)).replica_id for node in nodes} == {"fleet-1"}
        await fleet.more()

    views = await fleet.outcomes()
    assert {view.state for view in views} == {SUCCEEDED}
    for node in nodes:
        assert_each_ran_once(node, [view.command_id for view in views if view.node_name == node.name])


async def test_a_stranger_who_ends_tls_in_between_is_found_out_whoever_signed_its_certificate(
    terminated: Terminated, tmp_path: Path, processes: Processes
) -> None:
    """The company's CA would sign for the stranger as well; only the terminator's own certificate is named."""
    fleet, now = terminated.fleet, dt.datetime.now(dt.UTC)
    node = await fleet.add_node("n-1")
    await node.stop()
    strangers = {
        "same-ca": (terminated.company, "the node saw a TLS certificate that is not this server's"),
        "other-ca": (make_ca("another company", now), "shows a certificate that is not of the pinned CA"),
    }
    for name, (ca, told) in strangers.items():
        gateway = f"127.0.0.1:{free_ports(1)[0]}"
        leaf = make_leaf(ca, ["127.0.0.1"], now)
        between = HaProxy(processes, tmp_path / name, terminated.config(leaf, tmp_path / name, gateway))
        await asyncio.to_thread(between.start)
        await fleet.wait_statuses(between, "UP", "UP")
        node.settings = replace(node.settings, endpoints=(gateway,))
        await node.start(wait_live=False)
        assert told in await node.wait_refused("WRONG_CERTIFICATE")
        assert node.link.streams_opened == 0
        await node.stop()
    await fleet.replicas[0].owner.wait_audit("session.refused", lambda row: "WRONG_CERTIFICATE" in str(row))

    node.settings = replace(node.settings, endpoints=(fleet.gateway,))
    await node.start()
    assert {view.state for view in await fleet.run()} == {SUCCEEDED}
