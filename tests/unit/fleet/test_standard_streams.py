"""Characters that a locale cannot write. Broken pipes and full disks: each program's own tests."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from fleet.standard_streams import carry_output


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("latin-1", "● größe … ▁█ ─", b"* gr\xf6\xdfe ~ _# -"),
        ("iso-8859-7", "größe \ud83d", b"gr??e ?"),
        ("utf-8", "● größe", "● größe".encode()),
    ],
)
def test_what_cannot_be_written_has_a_stand_in(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str, written: bytes
) -> None:
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with carry_output():
        sys.stdout.write(text)
    assert sys.stdout is terminal
    assert raw.getvalue() == written


def test_an_ending_of_the_program_stays_its_own() -> None:
    with pytest.raises(SystemExit) as ending, carry_output():
        sys.exit(3)
    assert ending.value.code == 3
    with pytest.raises(FileNotFoundError), carry_output():
        Path("/nowhere/at/all").read_bytes()
