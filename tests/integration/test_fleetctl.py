"""fleetctl as a process against the whole server: what operators see when things work, and when they do not."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.v1 import admin_pb2
from tests.fakes.tls import FakeAuthority
from tests.integration.command_line import Fleetctl
from tests.integration.installation import Installation
from tests.integration.waiting import eventually


@pytest.fixture
async def fleetctl(installation: Installation, tmp_path: Path) -> AsyncIterator[Fleetctl]:
    """The owner's fleetctl, logged in."""
    ctl = Fleetctl(installation, tmp_path, installation.owner_token)
    await ctl.login()
    yield ctl


async def test_an_operators_day(installation: Installation, fleetctl: Fleetctl) -> None:
    await installation.add_nodes(2)

    code, out, _ = await fleetctl("nodes", "list", "--output", "json")
    assert code == 0
    assert "n-1" in out
    assert "n-2" in out
    code, out, err = await fleetctl("run", "n-*", "simulated.work", "--arg", "latency_ms:=1")
    assert code == 0, err
    assert out.count("SUCCEEDED") >= 2
    code, out, err = await fleetctl("run", "n-1", "simulated.work", "--arg", "fail_rate:=1")
    assert (code, "SIMULATED" in out) == (1, True), (out, err)
    code, out, err = await fleetctl("keys", "list")
    assert code == 0, err


async def test_a_command_key_is_rotated_and_the_old_one_revoked(installation: Installation, fleetctl: Fleetctl) -> None:
    await installation.add_node("n-1")
    before = installation.server.trust.command_key_id("").hex()
    code, out, err = await fleetctl("keys", "prepare", "--output", "json")
    assert code == 0, err
    key = json.loads(out)["key"]["key_id"]

    async def complete() -> bool:
        _, out, _ = await fleetctl("keys", "rollout", "--output", "json")
        return [(each["holding"], each["complete"]) for each in json.loads(out)["keys"]] == [(1, True)]

    await eventually(complete, "the node holds the key")
    code, out, err = await fleetctl("keys", "activate", key[:8])
    assert (code, "ACTIVE" in out, "1 of 1 node" in err) == (0, True, True), (out, err)
    code, out, err = await fleetctl("keys", "revoke", key, "--reason", "leaked", "--yes")
    assert (code, "--stop-commands" in err) == (3, True), (out, err)
    code, out, err = await fleetctl("keys", "revoke", before[:8], "--reason", "leaked", "--yes")
    assert (code, "REVOKED" in out) == (0, True), (out, err)
    code, out, err = await fleetctl("run", "n-1", "simulated.noop")
    assert code == 0, (out, err)
    code, out, err = await fleetctl("keys", "list")
    assert all(word in out for word in (before, "REVOKED", key, "ACTIVE")), (out, err)


async def test_the_audit_verifies_until_somebody_touches_it(installation: Installation, fleetctl: Fleetctl) -> None:
    await installation.add_node("n-1")
    await installation.owner.run("n-1", count=3)
    await installation.server.audit.checkpoint(
        installation.server.trust.sign_checkpoint, installation.server.trust.cluster_id
    )
    code, out, err = await fleetctl("audit", "verify")
    assert code == 0, (out, err)

    with contextlib.closing(sqlite3.connect(installation.database_file)) as database:
        database.execute("UPDATE audit_rows SET actor = 'nobody' WHERE kind = 'command.issued'")
        database.commit()

    code, out, err = await fleetctl("audit", "verify")
    assert code == 1
    assert "CHANGED" in out + err

    with contextlib.closing(sqlite3.connect(installation.database_file)) as database:
        database.execute("DELETE FROM audit_rows WHERE kind = 'command.issued'")
        database.commit()
    code, out, err = await fleetctl("audit", "verify")
    assert code == 1
    assert any(word in out + err for word in ("REMOVED", "TRUNCATED", "CHECKPOINT_MISMATCH"))


async def test_a_server_that_is_down_is_exit_code_4_with_a_next_step(
    installation: Installation, fleetctl: Fleetctl
) -> None:
    await installation.crash_server()
    code, out, err = await fleetctl("nodes", "list")
    assert (code, out) == (4, "")
    assert str(installation.admin_port) in err
    assert "next" in err or "check" in err


async def test_a_wrong_ca_is_not_believed(installation: Installation, fleetctl: Fleetctl, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.crt"
    wrong.write_bytes(FakeAuthority().cert_pem)
    address = f"127.0.0.1:{installation.admin_port}"
    code, _, err = await fleetctl("login", address, "--ca-file", str(wrong), "--token-file", str(tmp_path / "token"))
    assert code == 4
    assert "certificate" in err


async def test_no_permission_names_the_role_that_would_do(installation: Installation, tmp_path: Path) -> None:
    await installation.add_node("n-1")
    viewer = await installation.owner.ask("CreateOperator", _operator("eve", "viewer"))
    ctl = Fleetctl(installation, tmp_path, viewer.token)
    await ctl.login()

    code, _, err = await ctl("run", "n-1", "simulated.noop")

    assert code == 3
    assert "needs the role operator" in err
    assert "an owner can" in err


async def test_refusals_come_with_their_sentence(installation: Installation, fleetctl: Fleetctl) -> None:
    await installation.add_node("n-1")
    for arguments, word in (
        (("run", "nobody", "simulated.noop"), "fleetctl nodes list"),
        (("run", "n-1", "simulated.explode"), "simulated.explode"),
        (("run", "n-1", "simulated.work", "--arg", "latency_ms:=-1"), "latency_ms"),
        (("nodes", "show", "n-9"), "n-9"),
    ):
        code, out, err = await fleetctl(*arguments)
        assert code == 3, (arguments, out, err)
        assert word in out + err


async def test_a_damaged_profile_names_the_file(fleetctl: Fleetctl, tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text("this is = not [ TOML\n")
    code, _, err = await fleetctl("nodes", "list")
    assert code == 2
    assert "profile.toml" in err
    assert "line 1" in err


async def test_json_is_for_programs(installation: Installation, fleetctl: Fleetctl) -> None:
    await installation.add_node("n-1")
    code, out, _ = await fleetctl("run", "n-1", "simulated.noop", "--output", "json")
    assert code == 0
    assert "SUCCEEDED" in json.dumps(json.loads(out))


def _operator(name: str, role: str) -> admin_pb2.CreateOperatorRequest:
    return admin_pb2.CreateOperatorRequest(name=name, role=role)
