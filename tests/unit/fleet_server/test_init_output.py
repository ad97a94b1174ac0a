"""What `fleet-server init` gives away once, the owner's token, when nobody takes it."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import click
import pytest

from fleet import identity
from tests.unit.fleet_server.program import call
from tests.unit.fleet_server.test_main import TOKEN, surroundings

__all__ = ["surroundings"]  # a fixture for all tests here


class ClosedPipe:
    """`fleet-server init | head -2`: standard output takes so many lines, and then nobody reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
        self._left = lines
        self._echo = click.echo
        monkeypatch.setattr(click, "echo", self._write)
        monkeypatch.setattr(os, "dup2", lambda *_: None)  # of the test's own standard output

    def _write(self, message: Any = None, *args: Any, err: bool = False, **options: Any) -> None:
        if not err and "file" not in options:
            self._left -= 1
            if self._left < 0:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        self._echo(message, *args, err=err, **options)


def test_a_token_that_nobody_read_is_said_to_be_lost_and_how_to_get_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        ClosedPipe(patched, 2)
        cut = call("init", "--data-dir", tmp_path / "data")
    assert cut.exit_code == 1
    assert not TOKEN.findall(cut.output)
    assert "The owner's token may be lost" in cut.stderr
    found = re.search(r"`fleet-server (init .*) --owner NAME`", cut.stderr)
    assert found is not None
    again = call(*found[1].split())
    assert "if it is lost: `--owner NAME` makes a further owner" in again.stderr
    assert len(TOKEN.findall(call(*found[1].split(), "--owner", "rescue").stdout)) == 1


def test_a_token_for_a_file_is_there_whatever_becomes_of_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ClosedPipe(monkeypatch, 0)
    cut = call("init", "--data-dir", tmp_path / "data", "--owner-token-file", tmp_path / "owner.token")
    assert cut.exit_code == 1
    assert "lost" not in cut.stderr
    assert TOKEN.fullmatch((tmp_path / "owner.token").read_text().strip())


def test_a_token_that_its_file_does_not_take_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(identity, "write_private", full)
    made = call("init", "--data-dir", tmp_path / "data", "--owner-token-file", tmp_path / "owner.token")
    assert made.exit_code == 1
    assert len(TOKEN.findall(made.stdout)) == 1
    assert "No space left on device: the token was shown instead" in made.stderr
