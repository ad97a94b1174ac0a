"""A passphrase is what a person wrote, to the character, and never something that others could guess."""

from pathlib import Path

import pytest

from fleet.passphrase import (
    PassphraseError,
    first_line,
    passphrase_characters,
    passphrase_octets,
    read_passphrase,
)
from fleet.secrets import Secret

COMPOSED, DECOMPOSED = "K\u00f6nigsgem\u00fcse", "Ko\u0308nigsgemu\u0308se"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"correct horse battery\n", "correct horse battery"),
        (b"correct horse battery\r\nsecond\n", "correct horse battery"),
        (b"correct horse battery", "correct horse battery"),
        (b"  kept as it is \n", "  kept as it is "),
        (b"ends in two\r\r\n", "ends in two\r"),
        ("a\x0bb\x0cc\x1cd\x1ee\x85f\u2028g\u2029h\rj\n".encode(), "a\x0bb\x0cc\x1cd\x1ee\x85f\u2028g\u2029h\rj"),
        (DECOMPOSED.encode(), DECOMPOSED),
    ],
)
def test_the_first_line_is_taken_as_it_is(content: bytes, line: str) -> None:
    assert first_line(content, "it").reveal() == line


@pytest.mark.parametrize("content", [b"\xff" * 32, b"K\xf6nigsgemuese\n", b"\xed\xa0\x80 lone surrogate\n"])
def test_what_is_no_text_is_refused_with_what_to_do(content: bytes) -> None:
    with pytest.raises(PassphraseError, match=r"it does not begin .* save it as UTF-8"):
        first_line(content, "it")


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"\nsecond line\n"])
def test_an_empty_line_is_no_passphrase(content: bytes) -> None:
    with pytest.raises(PassphraseError, match="holds no passphrase"):
        first_line(content, "it")


def test_a_file_is_read_when_it_is_private(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_bytes(b"correct horse battery\n")
    assert read_passphrase(path).reveal() == "correct horse battery"


def test_one_spelling_of_each_character() -> None:
    typed, stored = Secret(COMPOSED), Secret(DECOMPOSED)
    assert passphrase_octets(typed) == passphrase_octets(stored) == COMPOSED.encode()
    assert passphrase_characters(stored) == len(COMPOSED)
