"""The profile file: what is written is what is read, and two runs of fleetctl lose nothing of each other."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.audit_chain import CheckpointMark
from fleet_server.cli.failures import BadProfile
from fleet_server.cli.profile import Context, Profile, ProfileFile, parse_server

texts = st.text(st.characters(codec="utf-8"), max_size=20)
keys = st.sampled_from([b""]) | st.binary(min_size=32, max_size=32)
marks = st.none() | st.builds(CheckpointMark, st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    names = draw(st.lists(texts, min_size=1, max_size=3, unique=True))
    contexts = {
        name: Context(
            name=name,
            server="gateway.example:7444",
            ca_pem=draw(texts.filter(bool)),
            token=draw(texts.filter(bool)),
            cluster_id=draw(texts),
            authority_key=draw(keys),
            owner_pin=draw(keys),
            checkpoint=draw(marks),
        )
        for name in names
    }
    return Profile(current=names[0], contexts=contexts)


@given(profiles())
def test_what_is_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> None:
    file = ProfileFile(tmp_path_factory.mktemp("profile", numbered=True) / "profile.toml")
    file.path.parent.chmod(0o700)
    file.update(lambda _: profile)
    assert file.load() == profile


def context(name: str) -> Context:
    return Context(name=name, server="h:1", ca_pem="pem", token="t")


def test_runs_side_by_side_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    names = [f"context-{i}" for i in range(12)]

    def add(name: str) -> None:
        ProfileFile(path).update(lambda profile: profile.with_context(context(name), make_current=True))

    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ProfileFile(path).load().contexts) == sorted(names)


def test_file_and_folder_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    file = ProfileFile(tmp_path / "new" / "profile.toml")
    file.update(lambda profile: profile.with_context(context("a"), make_current=True))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in file.path.parent.iterdir()} == {0o600}


def test_a_link_to_ones_own_file_is_followed(tmp_path: Path) -> None:
    real = ProfileFile(tmp_path / "real.toml")
    real.update(lambda profile: profile.with_context(context("a"), make_current=True))
    (tmp_path / "link.toml").symlink_to(real.path)
    linked = ProfileFile.of_environment({"FLEETCTL_PROFILE": str(tmp_path / "link.toml")})
    assert list(linked.load().contexts) == ["a"]


def test_where_the_profile_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ProfileFile.of_environment({}).path == tmp_path / ".config/fleetctl/profile.toml"
    assert ProfileFile.of_environment({"XDG_CONFIG_HOME": "/x"}).path == Path("/x/fleetctl/profile.toml")
    assert ProfileFile.of_environment({"FLEETCTL_PROFILE": "~/p.toml"}).path == tmp_path / "p.toml"


def test_forgetting_the_current_context_takes_another(tmp_path: Path) -> None:
    profile = Profile("a", {"a": context("a"), "b": context("b")})
    assert profile.without_context("a").current == "b"
    assert profile.without_context("b").current == "a"
    assert Profile("a", {"a": context("a")}).without_context("a") == Profile()


def test_a_profile_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "file-in-the-way"
    folder.write_text("")
    with pytest.raises(BadProfile, match="cannot"):
        ProfileFile(folder / "profile.toml").update(lambda profile: profile)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("host", "host:7444"),
        ("host:1", "host:1"),
        ("[::1]", "[::1]:7444"),
        ("[::1]:9", "[::1]:9"),
        ("1.2.3.4", "1.2.3.4:7444"),
    ],
)
def test_addresses(text: str, server: str) -> None:
    assert parse_server(text) == server
