"""The doctor: each step of the way, well and ill, against a gateway over real TLS."""

import asyncio
import datetime as dt
import ssl
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet import tls_certificates, trust
from fleet.clock import SystemClock
from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys, store_node_keys, write_private
from fleet_node.config import Settings
from fleet_node.doctor.finding import Finding, Level
from fleet_node.doctor.service import Doctor, Patient
from fleet_node.enrollment.folder import PRIVATE_FILES, StateFolder
from fleet_node.enrollment.membership import BundleFile, PendingEnrollment, save_pending
from fleet_node.status.server import ControlServer
from tests.fakes.gateway import CLUSTER, FakeGateway, FakeInstallation


@pytest.fixture
def folder(member: StateFolder) -> StateFolder:
    return member


async def examine(folder: StateFolder, **settings: Any) -> dict[str, Finding]:
    """Findings by check; of several gateways the last."""
    told = Settings(state_dir=folder.path, drivers_enabled=("simulated",))
    patient = Patient(replace(told, **settings), "no file", str, SystemClock())
    findings = [finding async for finding in Doctor(patient).examine()]
    assert all(finding.next_step for finding in findings if finding.level in (Level.WARN, Level.FAIL))
    assert not [finding for finding in findings if "fleet-node doctor" in finding.detail + finding.next_step], (
        "that is where the person is"
    )
    return {finding.check: finding for finding in findings}


def levels(findings: Mapping[str, Finding]) -> dict[str, str]:
    return {check: str(finding.level) for check, finding in findings.items() if finding.level is not Level.OK}


async def test_a_node_that_is_well(gateway: FakeGateway, folder: StateFolder) -> None:
    findings = await examine(folder)
    assert levels(findings) == {"daemon": "warn"}  # it is not running
    assert list(findings) == [
        "config",
        "state folder",
        "keys",
        "disk space",
        "disk write",
        "membership",
        "rotation",
        "trust bundle",
        "daemon",
        "journal",
        "drivers",
        "protected",
        "owner",
        "dns",
        "tcp",
        "tls",
        "http2",
        "credentials",
        "handshake",
        "clock",
        "stream",
    ]
    assert gateway.streams == []  # a hello would take the node's place
    folder.lock()  # it let go of the folder
    folder.unlock()


async def test_beside_a_daemon_it_opens_no_stream_and_asks(gateway: FakeGateway, folder: StateFolder) -> None:
    link = {"state": "live", "stream_epoch": 4, "endpoint": gateway.endpoint, "last_refusal": "", "last_detail": ""}
    drained = False
    problem = {"driver": "exec", "reason": "BAD_SETTINGS", "detail": "no path"}

    async def status() -> Mapping[str, Any]:
        return {
            "pid": 7,
            "version": "1.2.3",
            "link": link,
            "commands": {"journal_rows": 3, "drained": drained},
            "driver_problems": [problem],
            "protected": {"actions": ["exec.run"], "unmatched": ["exce.*"]},
        }

    daemon = ControlServer(folder.control_socket, {"status": status})
    await daemon.start()
    # In a process of its own, as it is in life: asking is blocking.
    findings = await asyncio.to_thread(lambda: asyncio.run(examine(folder)))
    assert levels(findings) == {"drivers": "warn", "protected": "warn", "owner": "warn"}
    assert "exce.*" in findings["protected"].detail
    assert "exec.run" in findings["owner"].detail
    assert "epoch 4" in findings["daemon's stream"].detail
    assert "both ways" in findings["stream"].detail
    assert "3 commands" in findings["journal"].detail
    assert (gateway.handshakes, gateway.streams) == (1, [])

    link.update(state="waiting", last_refusal="SUSPENDED", last_detail="an operator did")
    drained = True
    findings = await asyncio.to_thread(lambda: asyncio.run(examine(folder)))
    assert findings["daemon's stream"].level is Level.FAIL
    assert "fleetctl nodes resume" in findings["daemon's stream"].next_step
    assert "fleetctl resume node" in findings["drained"].next_step
    await daemon.close()


@pytest.mark.parametrize("reason", [*Reason, "OF_A_NEWER_SERVER"])
async def test_why_the_daemon_is_away_is_told_with_a_step_that_leads_on(
    gateway: FakeGateway, folder: StateFolder, reason: str
) -> None:
    away = {"state": "waiting", "stream_epoch": 4, "endpoint": "", "last_refusal": str(reason), "last_detail": "why"}

    async def status() -> Mapping[str, Any]:
        commands = {"journal_rows": 3, "drained": False}
        return {"pid": 7, "version": "1.2.3", "link": away, "commands": commands, "driver_problems": []}

    daemon = ControlServer(folder.control_socket, {"status": status})
    await daemon.start()
    findings = await asyncio.to_thread(lambda: asyncio.run(examine(folder)))
    assert findings["daemon's stream"].detail == f"waiting; {reason}: why"
    await daemon.close()


async def test_a_daemon_of_another_version_is_told_apart(gateway: FakeGateway, folder: StateFolder) -> None:
    async def status() -> Mapping[str, Any]:
        return {"pid": 7, "shape": "of another version"}

    daemon = ControlServer(folder.control_socket, {"status": status})
    await daemon.start()
    findings = await asyncio.to_thread(lambda: asyncio.run(examine(folder)))
    assert levels(findings) == {"daemon": "warn"}
    assert "restart it" in findings["daemon"].next_step
    await daemon.close()


@pytest.mark.parametrize(
    ("method", "reason", "check"),
    [
        ("BeginHandshake", Reason.UNKNOWN_CREDENTIAL, "credentials"),
        ("BeginHandshake", Reason.REVOKED, "credentials"),
        ("CompleteHandshake", Reason.BAD_PROOF, "handshake"),
        ("CompleteHandshake", Reason.WRONG_CERTIFICATE, "handshake"),
        ("CompleteHandshake", Reason.OVERLOADED, "handshake"),
        ("Connect", Reason.SUPERSEDED, "stream"),
    ],
)
async def test_a_refusal_is_named_where_it_happens(
    gateway: FakeGateway, folder: StateFolder, method: str, reason: Reason, check: str
) -> None:
    gateway.refuse[method] = Refusal(reason, "the server's own words")
    finding = (await examine(folder))[check]
    assert finding.level is Level.FAIL
    assert finding.detail == f"{reason}: the server's own words"


async def test_a_way_that_lets_no_stream_through_is_named(
    gateway: FakeGateway, folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_node.doctor.gateway_checks._STREAM_TIMEOUT_S", 0.2)
    gateway.deaf = True
    finding = (await examine(folder))["stream"]
    assert finding.level is Level.FAIL
    assert "pass gRPC streams on" in finding.next_step


async def test_a_server_that_is_not_the_clusters_is_named(gateway: FakeGateway, folder: StateFolder) -> None:
    gateway.handshake_signer = Signer.generate()
    finding = (await examine(folder))["handshake"]
    assert finding.level is Level.FAIL
    assert "did not prove" in finding.detail


async def test_a_stranger_who_opens_tls_is_shown(folder: StateFolder) -> None:
    now = dt.datetime.now(dt.UTC)
    stranger = FakeGateway(FakeInstallation())
    await stranger.start(
        leaf=tls_certificates.make_leaf(tls_certificates.make_ca("Corporate Proxy", now), ["127.0.0.1"], now)
    )
    findings = await examine(folder, endpoints=(stranger.endpoint,))
    assert levels(findings) == {"daemon": "warn", "tls": "fail", "http2": "skip"}
    assert "CN=Corporate Proxy" in findings["tls"].detail
    assert "opens TLS" in findings["tls"].next_step
    await stranger.stop()


async def test_a_certificate_for_other_names_is_told_apart(installation: FakeInstallation, folder: StateFolder) -> None:
    other = FakeGateway(installation)
    await other.start(leaf=tls_certificates.make_leaf(installation.ca, ["gw.example"], dt.datetime.now(dt.UTC)))
    finding = (await examine(folder, endpoints=(other.endpoint,)))["tls"]
    assert finding.level is Level.FAIL
    assert "other names" in finding.next_step
    await other.stop()


async def test_a_gateway_without_http2_is_named(
    installation: FakeInstallation, folder: StateFolder, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "leaf.pem").write_bytes(installation.leaf.certificate_pem + installation.leaf.private_key_pem)
    context.load_cert_chain(tmp_path / "leaf.pem")
    context.set_alpn_protocols(["http/1.1"])
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    findings = await examine(folder, endpoints=(f"127.0.0.1:{port}",))
    assert findings["tls"].level is Level.OK
    assert findings["http2"].level is Level.FAIL
    assert "HTTP/2" in findings["http2"].next_step
    server.close()


async def test_something_that_speaks_no_tls_is_named(folder: StateFolder) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    findings = await examine(folder, endpoints=(f"127.0.0.1:{port}",))
    assert (findings["tcp"].level, findings["tls"].level) == (Level.OK, Level.FAIL)
    server.close()


async def test_nobody_there_is_named(folder: StateFolder) -> None:
    findings = await examine(folder, endpoints=("127.0.0.1:1",))
    assert levels(findings) == {"daemon": "warn", "tcp": "fail", "tls": "skip", "http2": "skip"}


@pytest.mark.parametrize("name", ["gateway.invalid", "a..b", "n" * 70])
async def test_a_name_without_an_address_is_named(folder: StateFolder, name: str) -> None:
    finding = (await examine(folder, endpoints=(f"{name}:7443",)))["dns"]
    assert finding.level is Level.FAIL
    assert f"{name} has no address" in finding.detail


async def test_an_endpoint_that_is_none_is_named(folder: StateFolder) -> None:
    finding = (await examine(folder, endpoints=("https://gateway",)))["dns"]
    assert finding.level is Level.FAIL
    assert "advertises" in finding.next_step


async def test_one_gateway_that_is_down_does_not_hide_the_other(gateway: FakeGateway, folder: StateFolder) -> None:
    findings = await examine(folder, endpoints=("127.0.0.1:1", gateway.endpoint))
    assert findings["stream"].level is Level.OK


async def test_no_state_folder(tmp_path: Path) -> None:
    patient = Patient(Settings(state_dir=tmp_path / "none"), "no file", str, SystemClock())
    findings = [finding async for finding in Doctor(patient).examine()]
    assert [finding.level for finding in findings] == [Level.OK, Level.FAIL]
    assert not (tmp_path / "none").exists()


async def test_a_state_folder_behind_a_closed_door(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)  # for root no door is closed: a name that is too long
    patient = Patient(Settings(state_dir=path), "no file", str, SystemClock())
    findings = [finding async for finding in Doctor(patient).examine()]
    assert [finding.level for finding in findings] == [Level.OK, Level.FAIL]
    assert "cannot be looked at" in findings[1].detail


async def test_a_node_that_is_not_enrolled(tmp_path: Path) -> None:
    finding = (await examine(StateFolder(tmp_path / "state")))["membership"]
    assert finding.level is Level.FAIL
    assert "fleet-node enroll" in finding.next_step


async def test_a_node_that_waits_for_approval_has_its_way_checked(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    folder = StateFolder(tmp_path / "state")
    store_node_keys(folder.path, NodeKeys.generate())
    key = installation.authority.public_key
    pending = PendingEnrollment(
        "jt", "en", CLUSTER, (gateway.endpoint,), installation.ca.certificate_der, key, b"", 2.0
    )
    save_pending(folder.enrollment, pending)
    findings = await examine(folder)
    assert levels(findings) == {"membership": "warn"}
    assert findings["http2"].level is Level.OK


@pytest.mark.parametrize("name", PRIVATE_FILES)
async def test_open_modes_are_named_with_the_command(folder: StateFolder, name: str) -> None:
    (folder.path / name).touch()
    (folder.path / name).chmod(0o644)
    finding = (await examine(folder))["state folder"]
    assert finding.level is Level.FAIL
    assert "chmod 600" in finding.detail


async def test_other_keys_than_the_pinned_ones(folder: StateFolder) -> None:
    assert (await examine(folder, fingerprint=b"f" * 20))["keys"].level is Level.FAIL


async def test_a_missing_key_file(folder: StateFolder) -> None:
    (folder.path / "sealing.key").unlink()
    findings = await examine(folder)
    assert findings["keys"].level is Level.FAIL
    assert findings["handshake"].level is Level.SKIP


async def test_a_bundle_that_ran_out(installation: FakeInstallation, folder: StateFolder) -> None:
    key = installation.authority.public_key
    expired = trust.first(installation.bundle(expires_in_ms=-1), cluster_id=CLUSTER, authority_key=key)
    BundleFile(folder.bundle, cluster_id=CLUSTER, authority_key=key).save(expired)
    finding = (await examine(folder))["trust bundle"]
    assert finding.level is Level.FAIL
    assert "commands are refused" in finding.detail


async def test_a_damaged_bundle(folder: StateFolder) -> None:
    folder.bundle.write_bytes(b"garbage")
    assert (await examine(folder))["trust bundle"].level is Level.FAIL


async def test_a_node_that_protects_something_needs_an_owner(folder: StateFolder) -> None:
    finding = (await examine(folder, protected=("simulated.no*",)))["owner"]
    assert finding.level is Level.WARN
    assert "simulated.noop" in finding.detail
    assert "fleet-node owner pin" in finding.next_step


async def test_a_glob_that_protects_nothing_is_told(folder: StateFolder) -> None:
    findings = await examine(folder, protected=("simulated",))
    assert findings["protected"].level is Level.WARN
    assert "`simulated.*`" in findings["protected"].next_step
    assert findings["owner"].level is Level.OK


async def test_new_credentials_that_cannot_be_read(folder: StateFolder) -> None:
    write_private(folder.rotation, b"{")
    findings = await examine(folder)
    assert findings["rotation"].level is Level.FAIL
    assert "move it away" in findings["rotation"].detail
    assert findings["handshake"].level is Level.SKIP


async def test_a_damaged_membership(folder: StateFolder) -> None:
    folder.membership.write_text("{")
    assert (await examine(folder))["membership"].level is Level.FAIL


async def test_a_damaged_journal(folder: StateFolder) -> None:
    folder.journal.write_bytes(b"garbage" * 1000)
    finding = (await examine(folder))["journal"]
    assert finding.level is Level.FAIL
    assert "fleetctl nodes revoke" in finding.next_step


async def test_a_driver_that_does_not_load(folder: StateFolder) -> None:
    findings = await examine(folder, drivers_enabled=("simulated", "missing"))
    assert findings["drivers"].level is Level.WARN
    assert "NOT_INSTALLED" in findings["drivers"].detail


async def test_a_full_disk(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr("fleet_node.doctor.folder_checks.shutil.disk_usage", lambda path: usage)
    assert (await examine(folder))["disk space"].level is Level.FAIL
    usage.free = 32 << 20  # type: ignore[attr-defined]
    assert (await examine(folder))["disk space"].level is Level.WARN


async def test_a_locked_folder_whose_daemon_is_silent(folder: StateFolder) -> None:
    folder.lock()
    try:
        findings = await examine(StateFolder(folder.path))
    finally:
        folder.unlock()
    assert findings["daemon"].level is Level.FAIL
    assert findings["journal"].level is Level.SKIP


async def test_a_clock_that_is_wrong(gateway: FakeGateway, folder: StateFolder) -> None:
    class Ahead(SystemClock):
        def now_ms(self) -> int:
            return super().now_ms() + 60_000

    told = Settings(state_dir=folder.path, drivers_enabled=())
    patient = Patient(told, "no file", str, Ahead())
    findings = {finding.check: finding async for finding in Doctor(patient).examine()}
    assert findings["clock"].level is Level.WARN
    assert "ahead of" in findings["clock"].detail
