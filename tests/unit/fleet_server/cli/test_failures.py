"""Every way a call can fail: its exit code, and a sentence that names the next step."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import pytest

from fleet.errors import Reason, Refusal
from tests.fakes.tls import FakeAuthority
from tests.unit.fleet_server.cli.conftest import TOKEN, Fleetctl, whoami
from tests.unit.fleet_server.cli.fake_admin import FakeAdmin, serve


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def test_server_down(ctl: Fleetctl) -> None:
    ctl.log_in(server=f"127.0.0.1:{free_port()}")
    result = ctl.run("whoami")
    assert result.exit_code == 4
    assert "cannot reach the server at 127.0.0.1" in result.stderr
    assert "nothing listens there" in result.stderr
    assert "start fleet-server" in result.stderr
    assert result.stdout == ""


def test_what_reached_no_server_was_not_issued(ctl: Fleetctl) -> None:
    ctl.log_in(server=f"127.0.0.1:{free_port()}")
    result = ctl.run("run", "press-1", "host.info")
    assert result.exit_code == 4
    assert "nothing was issued" in result.stderr
    assert "--idempotency-key" not in result.stderr, "there is no doubt that a key would have to settle"


def test_wrong_ca(ctl: Fleetctl) -> None:
    ctl.log_in(ca_pem=FakeAuthority("another").cert_pem.decode())
    result = ctl.run("whoami")
    assert result.exit_code == 4
    assert "does not show a certificate of the CA that this profile trusts" in result.stderr
    assert f"fleetctl login {ctl.server} --ca-file FILE" in result.stderr
    assert ctl.fake.calls == [], "the token must not reach a server that is not trusted"


def test_certificate_for_another_name(ctl: Fleetctl, tls_authority: FakeAuthority) -> None:
    server, port = serve(FakeAdmin(), tls_authority.issue("elsewhere.example").server_credentials())
    try:
        ctl.log_in(server=f"127.0.0.1:{port}")
        result = ctl.run("whoami")
    finally:
        server.stop(0).wait()
    assert result.exit_code == 4
    assert "is for another name" in result.stderr


@pytest.mark.parametrize(
    ("answer", "code", "sentences"),
    [
        (Refusal(Reason.UNAUTHENTICATED, "no"), 3, ["does not accept this token", "fleetctl login"]),
        (
            Refusal(Reason.PERMISSION_DENIED, "no", metadata={"needed_role": "release"}),
            3,
            ["needs the role release", "fleetctl whoami", "--role release"],
        ),
        (Refusal(Reason.PERMISSION_DENIED, "not yours"), 3, ["not yours"]),
        (Refusal(Reason.NOT_FOUND, "no such thing"), 3, ["no such thing"]),
        (Refusal(Reason.NO_TARGETS, "nobody"), 3, ["nobody", "fleetctl nodes list"]),
        (Refusal(Reason.DRAINING, "going"), 4, ["is draining", "run it again"]),
        (
            Refusal(Reason.UNAVAILABLE, "the database cannot be written"),
            1,
            ["cannot be written", "a full disk"],
        ),
        (Refusal(Reason.INTERNAL, "incident 77"), 1, ["incident 77", "server's log"]),
        (grpc.StatusCode.UNIMPLEMENTED, 3, ["the gateway that nodes connect to", "older than this fleetctl"]),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 4, ["did not answer in time"]),
        (grpc.StatusCode.UNAVAILABLE, 4, ["cannot reach the server"]),
        (grpc.StatusCode.CANCELLED, 4, ["ended the call: it stops", "another one may answer"]),
        (grpc.StatusCode.INVALID_ARGUMENT, 3, ["as the test says"]),
    ],
)
def test_each_status_has_a_code_and_a_next_step(
    ctl: Fleetctl, answer: Refusal | grpc.StatusCode, code: int, sentences: list[str]
) -> None:
    ctl.fake.answers["WhoAmI"] = answer
    result = ctl.run("whoami")
    assert result.exit_code == code
    for sentence in sentences:
        assert sentence in result.stderr
    assert TOKEN not in result.output
    assert "Traceback" not in result.output


def test_a_step_that_the_server_names_is_not_said_twice(ctl: Fleetctl) -> None:
    ctl.fake.answers["WhoAmI"] = Refusal(Reason.NO_TARGETS, "nobody is called 'x': see `fleetctl nodes list`")
    assert ctl.run("whoami").stderr.count("fleetctl nodes list") == 1


def test_a_server_that_names_its_own_repair_is_not_talked_over(ctl: Fleetctl) -> None:
    ctl.fake.answers["WhoAmI"] = Refusal(Reason.UNAVAILABLE, "the record was changed: run `fleet-server db restored`")
    assert "full disk" not in ctl.run("whoami").stderr


def test_a_busy_server_is_obeyed(ctl: Fleetctl) -> None:
    ctl.fake.answers["WhoAmI"] = [Refusal(Reason.OVERLOADED, "busy", retry_after_s=2.5), whoami()]
    result = ctl.run("whoami")
    assert result.exit_code == 0
    assert ctl.slept_s == [2.5]
    assert "trying again in 2.5 s" in result.stderr


def test_a_server_that_stays_busy_is_given_up(ctl: Fleetctl) -> None:
    ctl.fake.answers["WhoAmI"] = Refusal(Reason.OVERLOADED, "busy", retry_after_s=30)
    result = ctl.run("whoami")
    assert result.exit_code == 3
    assert ctl.slept_s == [30.0, 30.0], "no more than a minute in all"
    assert "try again in 30 s" in result.stderr


def test_what_the_server_says_cannot_play_with_the_terminal(ctl: Fleetctl) -> None:
    ctl.fake.answers["WhoAmI"] = Refusal(Reason.NOT_FOUND, "gone \x1b[2J\x1b]0;owned\x07")
    result = ctl.run("whoami")
    assert "\x1b" not in result.stderr
    assert "[2J" in result.stderr, "what was said is still readable"


def test_every_call_carries_the_token(ctl: Fleetctl) -> None:
    assert ctl.run("whoami").exit_code == 0
    assert ctl.fake.calls[0].metadata["authorization"] == f"Bearer {TOKEN}"


def test_bad_profile_names_the_line(ctl: Fleetctl) -> None:
    ctl.profile.path.write_text('current = "default"\n[contexts.default]\nserver = oops\n')
    result = ctl.run("whoami")
    assert result.exit_code == 2
    assert "line 3" in result.stderr
    assert str(ctl.profile.path) in result.stderr


def test_a_profile_open_to_others_is_refused_with_the_repair(ctl: Fleetctl) -> None:
    ctl.profile.path.chmod(0o644)
    result = ctl.run("whoami")
    assert result.exit_code == 2
    assert f"chmod 600 {ctl.profile.path}" in result.stderr


def test_not_logged_in(ctl: Fleetctl, tmp_path: Path) -> None:
    result = ctl.run("whoami", env={"FLEETCTL_PROFILE": str(tmp_path / "none.toml")})
    assert result.exit_code == 2
    assert "fleetctl login SERVER" in result.stderr
