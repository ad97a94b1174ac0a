"""`fleet-node enroll` as a process: the fingerprint, the wait, exit codes and sentences."""

import json
import signal
from pathlib import Path

import pytest

from fleet.errors import Reason, Refusal
from fleet.identity import load_node_keys, show_fingerprint
from fleet.v1 import enrollment_pb2
from fleet_node.enrollment.folder import StateFolder
from fleet_node.enrollment.membership import load_membership, load_pending
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.unit.fleet_node.program import end, fleet_node, start


async def test_enroll_shows_the_fingerprint_waits_and_says_what_is_next(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(installation.join_token(owner_pin=b"\xab" * 32) + "\n")
    state = tmp_path / "state"
    process = await start(
        "enroll", "--token-file", token, "--name", "pump-1", "--label", "rack=b4", "--state-dir", state
    )
    await gateway.watch.wait_until(lambda: gateway.polls > 0, lambda: "no poll", 20)
    gateway.approve()
    ended = await end(process)
    assert ended.code == 0
    assert show_fingerprint(load_node_keys(state).fingerprint) in ended.out
    assert "ab" * 32 in ended.out
    assert f"Next: `fleet-node run --state-dir {state}`" in ended.out, "the next step is for this node"
    assert "Waiting for an operator" in ended.err
    assert (gateway.enrollments[0].name, dict(gateway.enrollments[0].labels)) == ("pump-1", {"rack": "b4"})
    assert StateFolder(state).journal.exists()

    again = await fleet_node("enroll", "--state-dir", state)
    assert again.code == 0
    assert "enrolled already" in again.out


async def test_an_interrupted_enroll_resumes_without_the_token(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    process = await start("enroll", "--token", installation.join_token(), "--state-dir", state)
    await gateway.watch.wait_until(lambda: gateway.polls > 0, lambda: "no poll", 20)
    process.send_signal(signal.SIGINT)
    interrupted = await end(process)
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.err
    gateway.approve()
    assert (await fleet_node("enroll", "--state-dir", state)).code == 0
    assert len(gateway.enrollments) == 1


async def test_no_wait_asks_and_ends(installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path) -> None:
    state = tmp_path / "state"
    token = installation.join_token().encode()
    ended = await fleet_node("enroll", "--token-file", "-", "--no-wait", "--state-dir", state, stdin=token)
    assert ended.code == 0
    assert load_pending(StateFolder(state).enrollment) is not None
    status = await fleet_node("status", "--json", "--state-dir", state)
    assert json.loads(status.out)["enrollment"] == "pending"


async def test_what_the_server_refuses_is_exit_code_3(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.refuse["Enroll"] = Refusal(Reason.JOIN_TOKEN_EXPIRED, "the join token has expired: ask for a new one")
    token = installation.join_token().encode()
    ended = await fleet_node("enroll", "--state-dir", tmp_path / "state", stdin=token)
    assert (ended.code, ended.out) == (3, "")
    assert "ask for a new one" in ended.err


async def test_what_an_operator_rejects_is_exit_code_3(
    installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path
) -> None:
    rejected = enrollment_pb2.GetBootstrapResponse(state=enrollment_pb2.ENROLLMENT_STATE_REJECTED, reason="who are you")
    gateway.bootstrap = lambda: rejected
    ended = await fleet_node("enroll", "--state-dir", tmp_path / "state", stdin=installation.join_token().encode())
    assert ended.code == 3
    assert "who are you" in ended.err


async def test_a_gateway_that_is_away_is_exit_code_4(installation: FakeInstallation, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("poll_timeout_s = 0.1")
    config.chmod(0o600)
    token = installation.join_token(endpoints=["127.0.0.1:1"]).encode()
    ended = await fleet_node("enroll", "--config", config, "--state-dir", tmp_path / "state", stdin=token)
    assert ended.code == 4
    assert "cannot reach 127.0.0.1:1 (Connection refused)" in ended.err or "no gateway answered in time" in ended.err
    assert "doctor" not in ended.err, "it would send a node that has joined nothing back to `enroll`"


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ((), b"", "no join token in standard input"),
        ((), b"garbage", "begins with 'fjt1.'"),
        ((), b"fjt1.AAAA", "copy it again, whole"),
        (("--token-file", "/nonexistent"), b"", "cannot read /nonexistent"),
        (("--token", "a", "--token-file", "b"), b"", "not both"),
        (("--label", "rack"), b"", "KEY=VALUE"),
        (("--name", "Not A Name"), b"", "name (option --name)"),
        (("--state-dir", "~nobody-of-that-name/state"), b"", "state_dir (option --state-dir)"),
    ],
)
async def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], stdin: bytes, said: str) -> None:
    ended = await fleet_node("enroll", "--state-dir", tmp_path / "state", *arguments, stdin=stdin)
    assert ended.code == 2
    assert said in ended.err
    assert load_membership(tmp_path / "state" / "membership.json") is None
