"""Trust in a server and the token: how they get into the profile, and how they do not."""

from __future__ import annotations

import hashlib
import json
import ssl
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.audit_chain import CheckpointMark
from fleet.envelope import Signer
from fleet.errors import Reason, Refusal
from fleet_server.cli.profile import ProfileFile
from tests.fakes.tls import FakeAuthority
from tests.unit.fleet_server.cli.conftest import AUTHORITY, TOKEN, Fleetctl, authorities, whoami
from tests.unit.fleet_server.cli.fake_admin import FakeAdmin, serve


@pytest.fixture
def fresh(ctl: Fleetctl) -> Fleetctl:
    """Nobody has logged in yet."""
    ctl.profile.path.unlink()
    return ctl


def ca_sha256(ctl: Fleetctl) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ctl.ca_pem.decode())).hexdigest()


def test_login_with_a_ca_file_pins_cluster_and_authority(fresh: Fleetctl) -> None:
    result = fresh.run("login", fresh.server, "--ca-file", fresh.ca_file, stdin=TOKEN + "\n")
    assert result.exit_code == 0, result.output
    context = fresh.profile.load().contexts["default"]
    assert (context.server, context.token, context.cluster_id) == (fresh.server, TOKEN, "cluster-1")
    assert context.authority_key == AUTHORITY.public_key
    assert stat.S_IMODE(fresh.profile.path.stat().st_mode) == 0o600
    assert "Logged in to plant" in result.stderr
    assert TOKEN not in result.output


@pytest.mark.parametrize("form", ["{}", "sha256:{}", "{:upper}"])
def test_login_with_a_pin_fetches_the_ca_itself(fresh: Fleetctl, form: str) -> None:
    pin = ca_sha256(fresh)
    text = ":".join(pin[i : i + 2] for i in range(0, 64, 2)).upper() if "upper" in form else form.format(pin)
    result = fresh.run("login", fresh.server, "--ca-fingerprint", text, stdin=TOKEN)
    assert result.exit_code == 0, result.output
    assert fresh.profile.load().contexts["default"].ca_pem == fresh.ca_pem.decode()
    assert fresh.run("whoami").exit_code == 0


def test_a_wrong_pin_stops_before_the_token(fresh: Fleetctl) -> None:
    result = fresh.run("login", fresh.server, "--ca-fingerprint", "00" * 32, stdin=TOKEN)
    assert result.exit_code == 3
    assert "shows another CA" in result.stderr
    assert fresh.fake.calls == []
    assert not fresh.profile.path.exists()


def test_a_pin_that_is_no_sha256_is_wrong_usage(fresh: Fleetctl) -> None:
    assert fresh.run("login", fresh.server, "--ca-fingerprint", "12:34", stdin=TOKEN).exit_code == 2


def test_trust_on_first_use_shows_the_sha256_and_asks(fresh: Fleetctl) -> None:
    result = fresh.run("login", fresh.server, stdin=f"y\n{TOKEN}\n", person=True)
    assert result.exit_code == 0, result.output
    assert ca_sha256(fresh).upper() in result.stderr.replace(":", "")
    assert "over another way" in result.stderr


def test_trust_on_first_use_says_no(fresh: Fleetctl) -> None:
    result = fresh.run("login", fresh.server, stdin="n\n", person=True)
    assert result.exit_code == 1
    assert fresh.fake.calls == []
    assert not fresh.profile.path.exists()


def test_without_a_person_an_unknown_ca_is_not_believed(fresh: Fleetctl) -> None:
    result = fresh.run("login", fresh.server, stdin=TOKEN)
    assert result.exit_code == 2
    assert "--ca-file or --ca-fingerprint" in result.stderr
    assert fresh.fake.calls == []


def test_a_server_that_shows_no_ca_is_pinned_by_its_own_certificate(
    fresh: Fleetctl, tls_authority: FakeAuthority
) -> None:
    fake = FakeAdmin()
    fake.answers["WhoAmI"] = whoami()
    fake.answers["ListAuthorities"] = authorities(AUTHORITY)
    server, port = serve(fake, tls_authority.issue().server_credentials())
    try:
        result = fresh.run("login", f"127.0.0.1:{port}", stdin=f"y\n{TOKEN}\n", person=True)
        assert result.exit_code == 0, result.output
        assert "it shows no CA" in result.stderr
        assert fresh.run("whoami").exit_code == 0
    finally:
        server.stop(0).wait()


def test_the_token_comes_from_a_file_or_the_environment(fresh: Fleetctl, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    login = ("login", fresh.server, "--ca-file", fresh.ca_file)
    for args, env in [
        ((*login, "--token-file", str(file)), {}),
        (login, {"FLEETCTL_TOKEN": TOKEN}),
        (login, {"FLEETCTL_TOKEN_FILE": str(file)}),
    ]:
        assert fresh.run(*args, env=env).exit_code == 0
    assert {call.metadata["authorization"] for call in fresh.fake.calls} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("text", ["", "two words", "line\x00break", "é", "x" * 5000])
def test_what_cannot_be_a_token_is_refused_and_not_quoted(fresh: Fleetctl, text: str) -> None:
    result = fresh.run("login", fresh.server, "--ca-file", fresh.ca_file, stdin=text)
    assert result.exit_code == 2
    assert "holds no operator token" in result.stderr
    assert len(text) < 3 or text not in result.output


def test_a_token_that_the_server_does_not_know_is_not_kept(fresh: Fleetctl) -> None:
    fresh.fake.answers["WhoAmI"] = Refusal(Reason.UNAUTHENTICATED, "no")
    result = fresh.run("login", fresh.server, "--ca-file", fresh.ca_file, stdin=TOKEN)
    assert result.exit_code == 3
    assert not fresh.profile.path.exists()


def test_what_speaks_no_tls_is_told_apart(fresh: Fleetctl) -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            accepted, _ = plain.accept()
            with accepted:
                accepted.recv(1024)
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        result = fresh.run("login", f"127.0.0.1:{plain.getsockname()[1]}", stdin=TOKEN)
        thread.join()
    assert result.exit_code == 4
    assert "does not speak TLS 1.3" in result.stderr


@pytest.mark.parametrize("server", ["", ":7444", "host:notaport", "host:70000", "https://host:1", "::1"])
def test_what_is_no_address_is_wrong_usage(fresh: Fleetctl, server: str) -> None:
    assert fresh.run("login", server, "--ca-file", fresh.ca_file, stdin=TOKEN).exit_code == 2


def test_logging_in_again_keeps_what_was_remembered(ctl: Fleetctl) -> None:
    mark = CheckpointMark(9, b"\x01" * 32)
    ctl.log_in(checkpoint=mark, owner_pin=b"\x02" * 32)
    assert ctl.run("login", ctl.server, "--ca-file", ctl.ca_file, stdin="fop1.new").exit_code == 0
    context = ctl.profile.load().contexts["default"]
    assert (context.token, context.checkpoint, context.owner_pin) == ("fop1.new", mark, b"\x02" * 32)


def test_another_authority_behind_the_same_name_is_asked_about(ctl: Fleetctl) -> None:
    ctl.log_in(checkpoint=CheckpointMark(9, b"\x01" * 32))
    other = Signer.generate()
    ctl.fake.answers["WhoAmI"] = whoami(authority_key=other.public_key)
    ctl.fake.answers["ListAuthorities"] = authorities(other)
    login = ("login", ctl.server, "--ca-file", ctl.ca_file)
    assert ctl.run(*login, stdin=TOKEN).exit_code == 2
    assert ctl.profile.load().contexts["default"].authority_key == AUTHORITY.public_key
    answered = ctl.run(*login, "--token-file", str(_token_file(ctl)), stdin="y\n", person=True)
    assert answered.exit_code == 0, answered.output
    context = ctl.profile.load().contexts["default"]
    assert (context.authority_key, context.checkpoint) == (other.public_key, None)


def test_whoami_warns_of_another_authority(ctl: Fleetctl) -> None:
    ctl.fake.answers["WhoAmI"] = whoami(authority_key=b"\x66" * 32)
    assert "another authority key" in ctl.run("whoami").stderr


def test_a_rotation_is_followed_and_never_gone_back_behind(ctl: Fleetctl) -> None:
    second, other = Signer.generate(), Signer.generate()
    ctl.log_in(checkpoint=CheckpointMark(9, b"\x01" * 32))
    ctl.fake.answers["WhoAmI"] = whoami(authority_key=second.public_key)
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, second)
    assert ctl.run("whoami").stderr == ""
    seen = ctl.profile.load().contexts["default"]
    assert (seen.authority_key, seen.newest_authority) == (AUTHORITY.public_key, second.public_key)
    login = ("login", ctl.server, "--ca-file", ctl.ca_file)
    assert ctl.run(*login, stdin=TOKEN).exit_code == 0, "the same cluster: nothing to ask"
    kept = ctl.profile.load().contexts["default"]
    assert (kept.authority_key, kept.newest_authority, kept.checkpoint) == (*_keys(AUTHORITY, second), seen.checkpoint)

    ctl.fake.answers["WhoAmI"] = whoami(authority_key=other.public_key)
    ctl.fake.answers["ListAuthorities"] = authorities(AUTHORITY, other)  # by whoever holds the first one's key
    assert "does not prove" in ctl.run("whoami").stderr
    assert ctl.run(*login, stdin=TOKEN).exit_code == 2
    assert ctl.profile.load().contexts["default"] == kept


def test_a_first_login_after_rotations_pins_the_first_authority(fresh: Fleetctl) -> None:
    second = Signer.generate()
    fresh.fake.answers["WhoAmI"] = whoami(authority_key=second.public_key)
    fresh.fake.answers["ListAuthorities"] = authorities(AUTHORITY, second)
    assert fresh.run("login", fresh.server, "--ca-file", fresh.ca_file, stdin=TOKEN).exit_code == 0
    context = fresh.profile.load().contexts["default"]
    assert [context.authority_key, context.newest_authority] == _keys(AUTHORITY, second)


def _keys(*signers: Signer) -> list[bytes]:
    return [signer.public_key for signer in signers]


def test_contexts_are_kept_side_by_side(ctl: Fleetctl) -> None:
    login = ("login", ctl.server, "--ca-file", ctl.ca_file, "--context", "second")
    assert ctl.run(*login, stdin="fop1.other").exit_code == 0
    shown = json.loads(ctl.run("contexts", "list", "-o", "json").stdout)
    assert [(one["name"], one["current"]) for one in shown] == [("default", False), ("second", True)]
    assert "fop1" not in json.dumps(shown)
    assert ctl.run("contexts", "use", "default").exit_code == 0
    assert ctl.run("--context", "second", "whoami").exit_code == 0
    assert ctl.fake.calls[-1].metadata["authorization"] == "Bearer fop1.other"
    assert ctl.run("logout", "--context", "second").exit_code == 0
    assert list(ctl.profile.load().contexts) == ["default"]
    assert ctl.run("contexts", "use", "second").exit_code == 2
    assert ctl.run("whoami", "--context", "second").exit_code == 2


def test_the_environment_alone_is_enough(ctl: Fleetctl, tmp_path: Path) -> None:
    env = {
        "FLEETCTL_PROFILE": str(tmp_path / "none.toml"),
        "FLEETCTL_SERVER": ctl.server,
        "FLEETCTL_CA_FILE": ctl.ca_file,
        "FLEETCTL_TOKEN": "fop1.env",
    }
    assert ctl.run("whoami", env=env).exit_code == 0
    assert ctl.fake.calls[0].metadata["authorization"] == "Bearer fop1.env"


def test_the_profiles_token_never_goes_to_another_ca(ctl: Fleetctl) -> None:
    result = ctl.run("whoami", env={"FLEETCTL_CA_FILE": ctl.ca_file})
    assert result.exit_code == 2
    assert "without a token" in result.stderr
    assert ctl.fake.calls == []


def test_the_server_can_be_reached_at_another_address(ctl: Fleetctl) -> None:
    ctl.log_in(server="gateway.invalid:7444")
    assert ctl.run("whoami", env={"FLEETCTL_SERVER": ctl.server}).exit_code == 0


def test_a_token_never_prints(ctl: Fleetctl) -> None:
    assert TOKEN not in repr(ctl.profile.load())


def test_an_older_checkpoint_never_replaces_a_newer_one(ctl: Fleetctl) -> None:
    file = ProfileFile(ctl.profile.path)
    for number in (5, 3):
        file.remember_checkpoint("default", CheckpointMark(number, bytes([number]) * 32))
    assert file.load().contexts["default"].checkpoint == CheckpointMark(5, b"\x05" * 32)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("contexts = 1", "`contexts` is not a table"),
        ("[contexts]\nx = 1", "[contexts.x] is not a table"),
        ("[contexts.x]\nserver = 'h:1'", "`ca_pem` is missing"),
        ("[contexts.x]\nserver = 'h:1'\nca_pem = ''\ntoken = ''\nauthority_key = 'zz'", "`authority_key` is not hex"),
        ("[contexts.x]\nserver = 'h:1'\nca_pem = ''\ntoken = ''\nauthority_key = 'aa'", "1 bytes instead of 32"),
        ("[contexts.x]\nserver = 'h:1'\nca_pem = ''\ntoken = ''\ncheckpoint = 1", "checkpoint needs a number"),
        ("current = 1", "`current` is missing or not a text"),
        ("current = \n", "is not TOML: Invalid value (at line 1"),
        ("current = 1" + "0" * 5000, "is not TOML: "),
        ("#" * (2 << 20), "that is no profile"),
        ("contxts = 1", "`contxts` is not known here\n next: did you mean `contexts`?"),
        ("[contexts.x]\ntokn = 't'", "[contexts.x] `tokn` is not known here\n next: did you mean `token`?"),
        ("[contexts.x]\nzzz = 1", "[contexts.x] `zzz` is not known here"),
        ("[contexts.x]\nserver = 'http://h'", "[contexts.x] 'http://h' is not a server address"),
    ],
)
def test_a_profile_that_cannot_be_used_says_which_it_is_what_is_wrong_and_what_to_do(
    ctl: Fleetctl, text: str, sentence: str
) -> None:
    ctl.profile.path.write_text(text)
    result = ctl.run("whoami")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {ctl.profile.path}")
    assert sentence in result.stderr
    assert "\n next: " in result.stderr


def test_a_profile_that_is_no_text_or_no_file_is_told_the_same_way(ctl: Fleetctl, tmp_path: Path) -> None:
    ctl.profile.path.write_bytes(b"\xff")
    assert f"error: {ctl.profile.path} is not TOML" in ctl.run("whoami").stderr
    # For root no door is closed: a name that is too long is one that the system refuses.
    refused = ctl.run("whoami", env={"FLEETCTL_PROFILE": str(tmp_path / ("n" * 300))})
    assert refused.exit_code == 2
    assert f"error: cannot read {tmp_path}/nnn" in refused.stderr
    assert " next: see that this user may read" in refused.stderr


def test_a_profile_without_the_context_names_the_file_and_those_that_there_are(ctl: Fleetctl, tmp_path: Path) -> None:
    for words in (["--context", "prod"], []):
        ProfileFile(ctl.profile.path).update(lambda profile: replace(profile, current="prod"))
        result = ctl.run("whoami", *words)
        assert f"error: the profile {ctl.profile.path} has no context 'prod'\n next: contexts: default" in result.stderr
    absent = tmp_path / "none.toml"
    result = ctl.run("whoami", env={"FLEETCTL_PROFILE": str(absent)})
    assert f"error: not logged in: {absent} is not there\n next: run `fleetctl login SERVER`" in result.stderr


@pytest.mark.parametrize("variable", ["FLEETCTL_CA_FILE", "FLEETCTL_TOKEN_FILE"])
def test_a_file_that_the_environment_names_and_is_not_there_is_told_with_a_next_step(
    ctl: Fleetctl, variable: str
) -> None:
    result = ctl.run("whoami", env={"FLEETCTL_TOKEN": "" if "TOKEN" in variable else TOKEN, variable: "/nonexistent"})
    assert result.exit_code == 2
    assert "file /nonexistent: No such file or directory\n next: " in result.stderr


def _token_file(ctl: Fleetctl) -> Path:
    path = ctl.folder / "token"
    path.write_text(TOKEN)
    return path
