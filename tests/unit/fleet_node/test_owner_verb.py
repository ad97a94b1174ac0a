"""`fleet-node owner`: pin an owner at the node, see what it has signed."""

import json
from pathlib import Path

from fleet import trust
from fleet.envelope import Domain
from fleet.people import owner_pin
from fleet.v1 import trust_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import BundleFile
from tests.fakes.gateway import CLUSTER, NODE, FakeGateway, FakeInstallation
from tests.properties.persons import ADA, NEXT_OWNER, PIN, grant, owner_statement, policy
from tests.unit.fleet_node.commands.audit_reader import read_audit_of
from tests.unit.fleet_node.program import end, fleet_node, start
from tests.unit.fleet_node.test_app import build, running

FAR_MS = 4_000_000_000_000


def signed_bundle(installation: FakeInstallation, folder: StateFolder) -> None:
    """The bundle in force says what people signed."""
    statement = trust_pb2.TrustBundleStatement.FromString(installation.bundle(1).statement)
    statement.owners.append(owner_statement(cluster_id=CLUSTER))
    statement.policy.CopyFrom(policy(cluster_id=CLUSTER, issued_at_ms=1, not_after_ms=FAR_MS))
    statement.role_grants.append(grant(ADA, "ada", cluster_id=CLUSTER, issued_at_ms=1, not_after_ms=FAR_MS))
    signed = installation.authority.sign(Domain.TRUST_BUNDLE, statement.SerializeToString())
    file = BundleFile(folder.bundle, cluster_id=CLUSTER, authority_key=installation.authority.public_key)
    file.save(trust.first(signed, cluster_id=CLUSTER, authority_key=installation.authority.public_key))


async def test_pin_and_show(member: StateFolder) -> None:
    before = await fleet_node("owner", "show", "--state-dir", member.path)
    assert (before.code, "none pinned" in before.out) == (0, True)
    pinned = await fleet_node("owner", "pin", PIN.hex().upper(), "--state-dir", member.path)
    assert (pinned.code, PIN.hex() in pinned.out) == (0, True)
    assert member.owner_pin.stat().st_mode & 0o777 == 0o600
    again = await fleet_node("owner", "pin", PIN.hex(), "--state-dir", member.path)
    assert again.code == 0
    shown = json.loads((await fleet_node("owner", "show", "--json", "--state-dir", member.path)).out)
    assert (shown["pin"], shown["policy_version"]) == (PIN.hex(), 0)


async def test_another_owner_needs_to_be_meant(member: StateFolder) -> None:
    other = owner_pin(NEXT_OWNER.public_key).hex()
    await fleet_node("owner", "pin", PIN.hex(), "--state-dir", member.path)
    refused = await fleet_node("owner", "pin", other, "--state-dir", member.path)
    assert (refused.code, "--replace" in refused.err) == (2, True)
    assert PIN.hex() in (await fleet_node("owner", "show", "--state-dir", member.path)).out
    meant = await fleet_node("owner", "pin", other, "--replace", "--state-dir", member.path)
    assert (meant.code, other in meant.out) == (0, True)


async def test_what_is_no_pin_changes_nothing(member: StateFolder, tmp_path: Path) -> None:
    for arguments in (("pin",), ("pin", "abc"), ("show", PIN.hex()), ("clear",)):
        assert (await fleet_node("owner", *arguments, "--state-dir", member.path)).code == 2
    assert not member.owner_pin.exists()
    assert (await fleet_node("owner", "show", "--state-dir", tmp_path / "none")).code == 2


async def test_a_running_daemon_takes_a_pin_at_once(
    installation: FakeInstallation, gateway: FakeGateway, member: StateFolder
) -> None:
    signed_bundle(installation, member)
    process = await start("run", "--state-dir", member.path)
    await gateway.wait_stream()
    pinned = await fleet_node("owner", "pin", PIN.hex(), "--state-dir", member.path)
    assert (pinned.code, "policy 1 until" in pinned.out, "operator: ada" in pinned.out) == (0, True, True)
    assert "protected" in pinned.out
    status = json.loads((await fleet_node("status", "--json", "--state-dir", member.path)).out)
    assert (status["owner"]["pin"], status["owner"]["generation"]) == (PIN.hex(), 1)
    doctor = await fleet_node("doctor", "--state-dir", member.path)
    assert "owner: generation 1, policy 1" in doctor.out
    process.terminate()
    await end(process)


async def test_every_pin_stands_once_in_the_nodes_audit(gateway: FakeGateway, member: StateFolder) -> None:
    """The first one was set while no daemon ran, the second one while one did."""
    other = owner_pin(NEXT_OWNER.public_key).hex()
    await fleet_node("owner", "pin", PIN.hex(), "--state-dir", member.path)
    for streams in (1, 2):
        process = await start("run", "--state-dir", member.path)
        await gateway.wait_stream(streams)
        await fleet_node("owner", "pin", other, "--replace", "--state-dir", member.path)
        await fleet_node("owner", "pin", other, "--state-dir", member.path)
        process.terminate()
        await end(process)

    audit = read_audit_of(member.journal, NODE)

    assert audit.details("owner.pinned") == [{"former": "", "pin": PIN.hex()}, {"former": PIN.hex(), "pin": other}]


async def test_what_is_protected_is_shown_and_what_protects_nothing_is_told(
    gateway: FakeGateway, member: StateFolder, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('protected = ["simulated.noop", "exec"]\n[drivers]\nenabled = ["simulated"]\n', encoding="utf-8")
    away = await fleet_node("owner", "show", "--config", config, "--state-dir", member.path)
    assert "fleet-node doctor" in away.out
    process = await start("run", "--config", config, "--state-dir", member.path)
    await gateway.wait_stream()
    shown = await fleet_node("owner", "show", "--json", "--config", config, "--state-dir", member.path)
    assert json.loads(shown.out)["protected"] == {"actions": ["simulated.noop"], "unmatched": ["exec"]}
    status = await fleet_node("status", "--config", config, "--state-dir", member.path)
    assert "simulated.noop" in status.out
    assert "`exec` matches no action" in status.out
    process.terminate()
    assert "protects_nothing" in (await end(process)).err


async def test_hello_says_what_the_configuration_protects(gateway: FakeGateway, member: StateFolder) -> None:
    async with running(build(member, protected=("simulated.no*",))):
        stream = await gateway.wait_stream()
        (driver,) = stream.hello.drivers
        flags = {action.action: action.protected for action in driver.actions}
        assert flags.pop("simulated.noop")
        assert not any(flags.values())
